#[childproof::test]
#[should_panic(with = "as told")]
fn unknown_word() {}

#[childproof::test]
#[should_panic(expected = 5)]
fn number() {}

#[should_panic("as told")]
#[childproof::test]
fn string_alone() {}

fn main() {}
