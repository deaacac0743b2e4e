#[childproof::test(crate = 5)]
fn number() {}

#[childproof::test(crate = "not a path")]
fn string() {}

#[childproof::test(crate = child<proof>)]
fn generic() {}

fn main() {}
