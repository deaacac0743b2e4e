#[childproof::test(timeout = 5)]
fn number() {}

#[childproof::test(timeout = Duration::from_secs(5))]
fn expression() {}

#[childproof::test(serial = concat!("a", "b"))]
fn macro_call() {}

#[childproof::test(fds = all)]
fn word() {}

#[childproof::test(serial = "a" "b")]
fn two_strings() {}

fn main() {}
