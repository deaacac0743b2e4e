#[childproof::test]
pub struct Server;

#[childproof::test]
mod tests {
    pub fn test() {}
}

#[childproof::guard]
impl Server {
    pub fn start() {}
}

#[childproof::test]
const LIMIT: usize = 5;

fn main() {}
