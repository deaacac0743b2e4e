struct Server;

impl Server {
    #[childproof::test]
    fn restarts(&self) {}
}

fn main() {}
