#[childproof::test(threaded_fork = "yes")]
fn unknown() {}

#[childproof::test(threaded_fork)]
fn none() {}

#[childproof::test(thread_fork = "deny")]
fn misspelt() {}

fn main() {}
