#[childproof::test(allow_process = "")]
fn allow_process() {}

#[childproof::test(allow_created_by = "")]
fn allow_created_by() {}

#[childproof::test(serial = "")]
fn serial() {}

fn main() {}
