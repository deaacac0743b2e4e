#[childproof::test(timeout = "5")]
fn no_unit() {}

#[childproof::test(timeout = "0s")]
fn zero() {}

#[childproof::test(timeout = "5 s")]
fn space() {}

#[childproof::test(timeout = "1d")]
fn unknown_unit() {}

#[childproof::test(timeout = "9999h")]
fn more_than_a_year() {}

fn main() {}
