#[childproof::test(serial = "b")]
#[serial(a)]
fn other_key() {}

#[childproof::test]
#[serial_test::file_serial(a, b)]
fn several_keys() {}

fn main() {}
