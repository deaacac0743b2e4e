#[childproof::test]
#[ignore("for a reason")]
fn parentheses() {}

fn main() {}
