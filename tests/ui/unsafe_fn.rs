#[childproof::test]
unsafe fn test() {}

fn main() {}
