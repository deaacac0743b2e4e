#[childproof::test(grace = "none")]
fn none() {}

#[childproof::test(grace = "")]
fn empty() {}

#[childproof::test(grace = "-1s")]
fn negative() {}

fn main() {}
