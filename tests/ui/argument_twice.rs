#[childproof::test(timeout = "5s", timeout = "6s")]
fn test() {}

#[childproof::test(allow_process = "sleep *", allow_process = "cat", crate = childproof, crate = childproof)]
fn repeatable_and_not() {}

fn main() {}
