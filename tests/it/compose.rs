//! The attributes compose with those of tokio, rstest and test_log in either order, in both kinds
//! of target, under `forbid(unsafe_code)` and `deny(warnings, missing_docs)`, in both editions.
//!
//! The crates `tests/fixtures/compose*` have the compositions; that they compile is half the test.

use std::collections::BTreeSet;

use crate::support::Fixture;

/// The names that a target lists.
fn listed(fixture: &Fixture, target: &str) -> BTreeSet<String> {
    let output = fixture.run(target, &["--list", "--format", "terse"]);
    let names = output.stdout.lines().map(|line| line.trim_end_matches(": test").to_owned());
    let names: BTreeSet<String> = names.collect();
    assert!(!names.is_empty(), "{}", output.all());
    names
}

#[childproof::test]
fn every_order_gives_the_same_tests_in_both_kinds_of_target() {
    for name in ["compose", "compose-2021"] {
        let fixture = Fixture::build(name);
        assert_eq!(listed(&fixture, "harness"), listed(&fixture, "stock"), "{name}");
    }
}

#[childproof::test]
fn every_order_runs() {
    for (name, targets) in
        [("compose", &["harness", "stock", "compose"][..]), ("compose-2021", &["harness", "stock", "oldest"])]
    {
        let fixture = Fixture::build(name);
        for target in targets {
            let output = fixture.run(target, &["--skip", "leaks::"]);
            assert_eq!(output.code, Some(0), "{name} {target}\n{}", output.all());
        }
    }
}

#[childproof::test]
fn every_order_is_guarded() {
    let fixture = Fixture::build("compose");
    for target in ["harness", "stock"] {
        let mut names = listed(&fixture, target);
        names.retain(|name| name.contains("leaks::"));
        let count = names.len();
        assert!(count >= 11);
        let mut text = String::new();
        // Each alone: they leak by the same line, which is reported in full once.
        for name in names {
            let output = fixture.run(target, &[&name, "--exact"]);
            assert_eq!(output.code, Some(101), "{target}\n{}", output.all());
            text += &output.all();
        }
        assert_eq!(text.matches("LEAK  shared::leaks::").count(), count, "{target}\n{text}");
        // The suggested argument is written in the syntax of the attribute.
        let allowed = |form: &str| {
            text.matches(&format!("  allow: #[childproof::{form}allow_process = \"sleep *\")]")).count()
        };
        let counts = ["test(", "guard(", "guard(.., "].map(allowed);
        assert_eq!(counts, [count - 3, 2, 1], "{target}\n{text}");
    }
}

/// tokio before 1.38 puts its `#[test]` above all other attributes, so it has expanded before ours.
#[childproof::test]
fn a_test_of_an_old_tokio_runs_once() {
    let output = Fixture::build("compose-old").run("stock", &["--skip", "twice"]);
    let text = output.all();
    assert!(text.contains("test result: FAILED. 2 passed; 1 failed; 1 ignored"), "{text}");
    assert!(text.contains("LEAK  leaks   body passed"), "{text}");
}

/// A `#[test]` above has made a test before our attribute expands, too early to be seen.
#[childproof::test]
fn a_test_that_is_one_twice_fails_and_says_so() {
    let output = Fixture::build("compose-old").run("stock", &["twice", "--exact", "--test-threads=2"]);
    let text = output.all();
    assert!(text.contains("test result: FAILED. 1 passed; 1 failed"), "{text}");
    assert!(text.contains("error: `twice` is a test twice, by `#[test]` and by"), "{text}");
}

#[childproof::test]
fn a_child_of_tokio_is_mended_as_tokio_has_it() {
    let text = Fixture::build("compose").run("hangs", &["leaves_a_child"]).all();
    assert!(text.contains("fix: call `kill().await` on its `Child` before the test ends, or"), "{text}");
}
