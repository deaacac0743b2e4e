#[childproof::test(timout = "5s")]
fn slip() {}

#[childproof::test(banana = "5s")]
fn other_word() {}

#[childproof::test(should_panic)]
fn belongs_below() {}

fn main() {}
