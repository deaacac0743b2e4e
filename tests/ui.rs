//! The error messages of the attributes, on the tokens they are about.

#[test]
fn wrong_use_is_a_compile_error_that_says_what_to_do() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
}
