//! Attributes of other crates on a test, and the policy of a whole target.
//!
//! The crate `tests/fixtures/compose-foreign` has the real crates; that it compiles is half the test.

use std::process::Command;

use crate::support::{Fixture, Ran, root};

fn foreign() -> Fixture {
    Fixture::build("compose-foreign")
}

/// The bodies compare their own path with that of a `#[test]`.
#[childproof::test]
fn the_path_of_a_test_function_is_that_of_a_plain_test() {
    for target in ["paths-stock", "paths-harness"] {
        let ran = foreign().run(target, &[]);
        assert_eq!(ran.code, Some(0), "{}", ran.all());
        assert!(ran.stdout.contains("15 passed; 0 failed"), "{}", ran.all());
    }
}

/// What the panics of a test print, from the first to the last line. Test and process are `#`, and so is what called the
/// function that both kinds of tests call.
fn panics(target: &str, test: &str, backtrace: &str) -> String {
    let fixture = foreign();
    let mut command = fixture.command(target, &[test, "--exact", "--test-threads=2"]);
    let ran = Ran::of(command.env("RUST_BACKTRACE", backtrace));
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let body = test.rsplit("::").next().unwrap();
    let mut shown = String::new();
    let mut is_shown = false;
    for line in ran.stdout.lines() {
        is_shown |= line.starts_with("thread '");
        is_shown &= !line.starts_with("failures:") && !line.starts_with("FAIL ") && !line.contains(" FAILED");
        // What follows is the way from the harness to the body.
        is_shown &= !line.contains(&format!("::guarded::{body}")) || line.starts_with("thread '");
        is_shown &= !line.contains(&format!("::plain::{body}")) || line.starts_with("thread '");
        if is_shown && !line.is_empty() {
            let line = line.replace(test, "TEST");
            let (begin, end) = line.split_once(") panicked").unwrap_or((&line, ""));
            let begin = if end.is_empty() { begin } else { begin.rsplit_once('(').unwrap().0 };
            shown += &format!("{begin}#{end}\n");
        }
    }
    shown
        .replace("panics-stock", "TARGET")
        .replace("panics_stock", "TARGET")
        .replace("panics_harness", "TARGET")
}

#[childproof::test]
fn a_panic_prints_what_it_prints_in_a_plain_test() {
    let all = ["literal", "formatted", "no_text", "two", "on_a_thread", "with_a_hook_of_its_own"];
    for (backtrace, bodies) in [("0", &all[..]), ("1", &all[3..]), ("full", &all[..1])] {
        for body in bodies {
            let plain = panics("panics-stock", &format!("panics::plain::{body}"), backtrace);
            assert!(plain.contains("thread 'TEST' "), "{body}\n{plain}");
            for target in ["panics-stock", "panics-harness"] {
                let guarded = panics(target, &format!("panics::guarded::{body}"), backtrace);
                println!("{backtrace} {target} {body}\n{plain}--\n{guarded}");
                if backtrace == "full" {
                    assert!(guarded.contains("thread 'TEST' "), "{body}\n{guarded}");
                } else {
                    assert_eq!(guarded, plain, "{target} {body} with RUST_BACKTRACE={backtrace}");
                }
            }
        }
    }
}

#[childproof::test]
fn an_attribute_that_makes_the_test_itself_composes_in_a_stock_target() {
    let ran = foreign().run("stock", &["composes::"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(ran.stdout.contains("12 passed; 0 failed"), "{}", ran.all());
    let ran = foreign().run("stock", &["leaks::", "--test-threads=2"]);
    assert_eq!(ran.all().matches("LEAK  leaks::").count(), 5, "{}", ran.all());
    assert!(ran.stdout.contains("0 passed; 5 failed"), "{}", ran.all());
}

#[childproof::test]
fn what_serial_test_keeps_apart_is_kept_apart() {
    for threads in ["--test-threads=8", "--test-threads=1"] {
        let ran = foreign().run("stock", &["serial::", threads]);
        assert_eq!(ran.code, Some(0), "{}", ran.all());
        assert!(ran.stdout.contains("14 passed; 0 failed"), "{}", ran.all());
    }
}

/// Each line of a target that must not compile, and the error there.
#[childproof::test(timeout = "600s")]
fn what_rustc_would_drop_is_an_error_that_says_what_to_do() {
    // Builds the dependencies.
    drop(foreign());
    let output = Command::new(env!("CARGO"))
        .args(["test", "--no-run", "--test", "dropped", "--features", "dropped", "--message-format=short"])
        .current_dir(root().join("tests/fixtures/compose-foreign"))
        .env("CARGO_TARGET_DIR", root().join("target/fixtures"))
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let guard = |path: &str| {
        format!(
            "error: `#[{path}]` makes the `#[test]` itself, above all other attributes, and rustc silently drops that in a \
             target with `harness = false`: move it to a target without, where `#[childproof::guard]` goes below \
             `#[{path}]`"
        )
    };
    for (line, expected) in [
        (8, guard("test_case::test_case")),
        (12, guard("quickcheck_macros::quickcheck")),
        (18, guard("smol_potat::test")),
        (22, guard("test_fork::test")),
        (30, "`#[smol]` makes the `#[test]` itself, above all other attributes".to_owned()),
        (34, "error: nothing makes this function a test: write `#[childproof::test]` in place".to_owned()),
        (41, "error: the test has two serial keys, `a` by `#[serial]` and `b`".to_owned()),
        (45, "error: `#[serial]` with several keys keeps no two processes apart".to_owned()),
        (49, "error: `#[serial]` with several keys keeps no two processes apart".to_owned()),
        (54, "`childproof::policy!` is for a whole target: put it at the root".to_owned()),
        (58, "the name `childproof_policy_stands_once_in_a_target` is defined multiple times".to_owned()),
        (59, "error: invalid value `5` for `timeout`: expected a duration above zero".to_owned()),
        (60, "error: unknown argument `timout`: did you mean `timeout`?".to_owned()),
    ] {
        let place = format!("tests/dropped.rs:{line}:");
        let found = text.lines().any(|text| text.starts_with(&place) && text.contains(&expected));
        assert!(found, "{place} {expected}\n{text}");
    }
    assert_eq!(output.status.code(), Some(101), "{text}");
}

#[childproof::test]
fn a_target_without_a_registered_test_is_an_error_unless_tests_were_selected() {
    let fixture = foreign();
    let ran = fixture.run("nothing", &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{}", ran.all());
    for part in ["no test is registered", "rustc silently drops `#[test]`", "write `#[childproof::test]`"] {
        assert!(ran.stderr.contains(part), "{}", ran.all());
    }
    for arguments in [&["plain"][..], &["--skip", "plain"], &["--ignored"], &["--list"]] {
        let ran = fixture.run("nothing", arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}\n{}", ran.all());
    }
    let listed = fixture.run("nothing", &["--list", "--format", "terse"]);
    assert_eq!(listed.stdout, "", "{}", listed.all());
}

#[childproof::test]
fn a_guard_that_no_test_reaches_fails_a_run_of_all_tests() {
    let fixture = foreign();
    for threads in ["--test-threads=1", "--test-threads=2"] {
        let ran = fixture.run("orphan", &[threads]);
        assert_eq!(ran.code, Some(101), "{}", ran.all());
        assert_eq!(
            ran.stderr.matches("never runs: it has `#[childproof::guard]`").count(),
            1,
            "{}",
            ran.all()
        );
        assert!(ran.stderr.contains("error: tests/orphan.rs:11: `orphan` never runs"), "{}", ran.all());
    }
    for argument in ["plain", "guarded", "--list"] {
        let ran = fixture.run("orphan", &[argument]);
        assert_eq!(ran.code, Some(0), "{}", ran.all());
    }
}

/// The shared policy tests that fail.
#[track_caller]
fn failed(target: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let fixture = foreign();
    let ran = Ran::of(fixture.command(target, &["--test-threads=1"]).envs(variables.iter().copied()));
    let failed = ran.stdout.lines().filter(|line| line.starts_with("test ") && line.ends_with("FAILED"));
    let mut failed: Vec<String> =
        failed.filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned())).collect();
    failed.sort();
    assert!(ran.all().contains("test result: FAILED"), "{}", ran.all());
    failed
}

#[childproof::test]
fn a_policy_of_a_target_is_below_the_attribute_and_above_the_default() {
    for target in ["policy-stock", "policy-harness"] {
        assert_eq!(failed(target, &[]), ["leaks_a_denied_process", "leaves_a_file_open"], "{target}");
    }
}

#[childproof::test]
fn a_policy_of_a_harness_wins_over_that_of_its_target() {
    let expected = [
        "added::leaks_an_allowed_process",
        "leaks_a_denied_process",
        "leaks_an_allowed_process",
        "leaves_a_file_open",
    ];
    assert_eq!(failed("policy-harness", &[("COMPOSE_DENY", "1")]), expected);
}

#[childproof::test]
fn lists_of_the_environment_add_up_with_those_of_the_test() {
    for target in ["policy-stock", "policy-harness"] {
        assert_eq!(
            failed(target, &[("CHILDPROOF_ALLOW_PROCESS", "cat;sleep *")]),
            ["leaves_a_file_open"],
            "{target}"
        );
    }
    let variables = [("CHILDPROOF_ALLOW_PROCESS", "cat;"), ("CHILDPROOF_ALLOW_CREATED_BY", ";")];
    for (name, value) in variables {
        for (target, code) in [("policy-stock", 101), ("policy-harness", 2)] {
            let ran = Ran::of(foreign().command(target, &[]).env(name, value));
            assert_eq!(ran.code, Some(code), "{}", ran.all());
            let message = format!("invalid value `{value}` for `{name}`: expected");
            assert!(ran.all().contains(&message), "{}", ran.all());
            assert!(ran.all().contains("or several with `;` between them"), "{}", ran.all());
        }
    }
}
