#[childproof::test(timeout)]
fn name_alone() {}

#[childproof::test(timeout("5s"))]
fn parentheses() {}

#[childproof::test(timeout =)]
fn nothing_after_the_sign() {}

#[childproof::test("5s")]
fn value_alone() {}

#[childproof::test(timeout = "5s" grace = "1s")]
fn no_comma() {}

fn main() {}
