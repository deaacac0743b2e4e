#[childproof::test(timeout = "5", grace = "soon", fds = "none")]
async fn all_at_once(port: u16) {}

fn main() {}
