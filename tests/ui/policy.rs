childproof::policy!(timeout = "5", banana = "x");

childproof::policy!("5s");

fn main() {}
