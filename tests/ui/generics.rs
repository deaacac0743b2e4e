#[childproof::test]
fn by_type<T: Default>() {}

#[childproof::test]
fn by_constant<const N: usize>() {}

#[childproof::test]
fn by_lifetime<'a>() {}

fn main() {}
