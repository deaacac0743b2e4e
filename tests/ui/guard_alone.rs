#[childproof::guard]
fn nothing_makes_it_a_test() {}

#[childproof::guard(timeout = "5s")]
#[allow(unused)]
fn with_arguments() {}

fn main() {}
