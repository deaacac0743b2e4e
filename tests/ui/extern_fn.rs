#[childproof::test]
extern "C" fn test() {}

fn main() {}
