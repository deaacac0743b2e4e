//! A fork of a threaded process whose child does not go straight on to exec is reported.
//!
//! The verdicts are in `shapes`, the values of the policy in `policy`.

use std::fs;

use crate::support::{Fixture, Ran, root};

const SHAPES: &str = "tests/fixtures/leaky/tests/shapes/mod.rs";

fn run(target: &str, shape: &str, arguments: &[&str]) -> Ran {
    let name = format!("shapes::{shape}");
    Fixture::build("leaky").run(target, &[&["--exact", &name][..], arguments].concat())
}

/// A report without the line breaks in its sentences.
fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sentence of `fork_among_threads`, after its pid.
fn sentence(target: &str) -> String {
    let source = fs::read_to_string(root().join(SHAPES)).unwrap();
    let line = source.lines().position(|line| line.contains("libc::fork()")).unwrap() + 1;
    let column = source.lines().nth(line - 1).unwrap().find("libc::fork").unwrap() + 1;
    format!(
        " was forked at {SHAPES}:{line}:{column} {target}::shapes::fork by thread `worker-3`, one of 3, and \
         did not go straight on to exec: a lock that another thread held at that moment stays locked in it \
         forever. So were 2 more there. "
    )
}

const FIX: &str = "fix: exec after the fork (`Command` does), or fork while there is one thread. Between fork \
                   and exec only async-signal-safe calls are sound: fork(2), signal-safety(7). CPython warns \
                   of the same since 3.12. allow: #[childproof::test(threaded_fork = \"allow\")]";

#[childproof::test]
fn among_threads_are_told_after_the_results_of_a_test_that_passes() {
    let ran = run("harness", "fork_among_threads", &["--color=never"]);
    let (_, told) = ran.stdout.split_once("test result: ok. 1 passed").unwrap();
    assert!(
        told.contains("WARN  shapes::fork_among_threads   forked among threads\n\n  pid "),
        "{}",
        ran.all()
    );
    assert!(joined(told).contains(&sentence("harness")), "{}", ran.all());
    assert!(joined(told).ends_with(FIX), "{}", ran.all());
    assert!(!ran.stdout.contains('\x1b'));
    let ran = run("harness", "fork_among_threads", &["--color=always"]);
    assert!(ran.stdout.contains("mWARN\x1b[0m"), "{}", ran.all());
    // A parser of that format accepts nothing else.
    let ran = run("harness", "fork_among_threads", &["--format=json", "-Z", "unstable-options"]);
    assert!(ran.stdout.lines().all(|line| line.starts_with('{')), "{}", ran.all());
}

#[childproof::test]
fn among_threads_are_told_in_the_output_of_a_stock_test() {
    let ran = run("stock", "fork_among_threads", &["--nocapture"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(
        ran.stderr.contains("WARN  shapes::fork_among_threads   forked among threads\n"),
        "{}",
        ran.all()
    );
    assert!(joined(&ran.stderr).contains(&sentence("stock")), "{}", ran.all());
    let ran = run("stock", "fork_among_threads", &[]);
    assert!(!ran.all().contains("WARN"), "libtest keeps what a passing test prints\n{}", ran.all());
}

#[childproof::test]
fn among_threads_are_told_in_the_report_of_a_test_that_fails_for_something_else() {
    let ran = run("harness", "fork_among_threads_that_leaks", &["--color=never"]);
    let (report, rest) = ran.stdout.split_once("\nfailures:\n    ").unwrap();
    let report = joined(report);
    assert!(report.contains(" warning: pid ") && report.contains(FIX), "{}", ran.all());
    assert!(report.contains("by thread `main`, one of 2, and did not"), "{}", ran.all());
    assert!(!rest.contains("WARN"), "once is enough\n{}", ran.all());
}

#[childproof::test]
fn that_are_sound_or_allowed_are_not_told() {
    for shape in [
        "fork_among_threads_that_is_allowed",
        "fork_among_threads_then_exec",
        "command_among_threads",
        "fork_of_a_fork_from_before_the_threads",
        "threaded_spawn",
    ] {
        let ran = run("harness", shape, &["--show-output"]);
        assert!(ran.code == Some(0) && !ran.all().contains("among threads\n"), "{}", ran.all());
    }
}
