#[childproof::test]
async fn bare() {}

#[childproof::guard]
async fn guarded() {}

fn main() {}
