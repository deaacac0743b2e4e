#[childproof::test]
fn test(port: u16, host: &str) {}

fn main() {}
