#[childproof::test(processes = "off")]
fn processes() {}

#[childproof::test(unwaited = "warn")]
fn unwaited() {}

#[childproof::test(threads = "Deny")]
fn threads() {}

fn main() {}
