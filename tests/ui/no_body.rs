#[childproof::test]
fn test();

fn main() {}
