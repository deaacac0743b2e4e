#[childproof::test]
unsafe extern "C" fn test(mut arguments: ...) {}

fn main() {}
