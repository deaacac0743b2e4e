#[childproof::test(fds = "sockets")]
fn test() {}

fn main() {}
