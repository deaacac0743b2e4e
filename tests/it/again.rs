//! A stock target's test that runs its own binary again is a plain test in the second process: its exit code,
//! signals and parent are those that the test expects. What it leaves is charged to the outer test.
//!
//! `tests/fixtures/leaky/tests/again.rs` has the tests.

use crate::support::Fixture;

#[childproof::test]
fn is_a_plain_test_in_a_process_of_its_own() {
    let ran = Fixture::build("leaky").run("again", &["--skip", "leaves"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(ran.stdout.contains("test result: ok. 9 passed; 0 failed"), "{}", ran.all());
}

#[childproof::test]
fn leaves_what_fails_the_test_that_ran_it() {
    let ran = Fixture::build("leaky").run("again", &["leaves"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert!(ran.all().contains("LEAK  leaves_a_process   body passed"), "{}", ran.all());
    // There is only one guard, and it reports once.
    assert_eq!(ran.all().matches("LEAK").count(), 1, "{}", ran.all());
}
