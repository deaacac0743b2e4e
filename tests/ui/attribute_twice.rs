#[childproof::test(timeout = "5s")]
#[childproof::test(grace = "1s")]
fn test() {}

#[childproof::guard]
#[childproof::test]
fn guard_and_test() {}

fn main() {}
