//! `--shared`: all tests on threads of one guarded process, each leak charged to its test.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Fixture, PATIENCE, Ran, Run, marked, root, scratch, until};

/// The line of a `MARK` in the fixture.
fn place(mark: &str) -> String {
    let source = fs::read_to_string(root().join("tests/fixtures/leaky/tests/shared.rs")).unwrap();
    let at = source.lines().position(|line| line.ends_with(&format!("// MARK {mark}")));
    format!("tests/shared.rs:{}:", at.unwrap_or_else(|| panic!("no mark {mark}")) + 1)
}

/// Runs the fixture; returns what it printed, and its JSON by test.
fn run(arguments: &[&str]) -> (Ran, BTreeMap<String, Value>) {
    let json = scratch().join("report.json");
    let fixture = Fixture::build("leaky");
    let mut command = fixture.command("shared", arguments);
    command.arg("--shared").arg("--json").arg(&json).env("SHARED_MARK", json.display().to_string());
    let ran = Ran::of(&mut command);
    let lines = fs::read_to_string(&json).unwrap_or_default();
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let by_test = values.map(|value| (value["test"].as_str().unwrap().to_owned(), value)).collect();
    let left = marked("SHARED_MARK", &json.display().to_string());
    assert!(left.is_empty(), "{left:?}: {}", ran.all());
    (ran, by_test)
}

#[childproof::test]
fn each_leak_is_charged_to_the_test_whose_thread_made_it() {
    let (ran, tests) = run(&["--test-threads=6"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let failed: Vec<&str> =
        tests.iter().filter(|(_, test)| test["outcome"] == "failed").map(|(name, _)| name.as_str()).collect();
    let expected = [
        "(suite)",
        "does_not_panic",
        "forks_among_threads",
        "leaks_a_sleep",
        "leaks_on_a_named_thread",
        "leaks_on_a_thread",
        "leaks_past_the_recorder",
        "leaves_a_pipe",
        "panics",
    ];
    assert_eq!(failed, expected, "{}", ran.all());
    for (test, cause, processes, fds) in [
        ("(suite)", "leaked_process", 1, 0),
        ("does_not_panic", "panicked", 0, 0),
        ("forks_among_threads", "threaded_fork", 0, 0),
        ("leaks_a_sleep", "leaked_process", 1, 0),
        ("leaks_on_a_named_thread", "leaked_process", 1, 0),
        ("leaks_on_a_thread", "leaked_process", 1, 0),
        ("leaks_past_the_recorder", "leaked_process", 1, 0),
        ("leaves_a_pipe", "stray_fd", 0, 2),
        ("panics", "panicked", 0, 0),
    ] {
        let found = &tests[test];
        assert_eq!(found["causes"], serde_json::json!([cause]), "{test}: {found:#}\n{}", ran.all());
        assert_eq!(found["processes"].as_array().unwrap().len(), processes, "{test}: {found:#}");
        assert_eq!(found["fds"].as_array().unwrap().len(), fds, "{test}: {found:#}");
        // All of them are threads of one process.
        assert_eq!(found["pid"], tests["is_clean"]["pid"], "{test}: {found:#}");
    }
    let at =
        |test: &str, key: &str, place_key: &str| tests[test][key][0][place_key].as_str().unwrap().to_owned();
    assert!(at("leaks_a_sleep", "processes", "spawned_at").contains(&place("sleep")), "{}", ran.all());
    assert!(at("leaks_on_a_named_thread", "processes", "spawned_at").contains(&place("named")));
    assert!(at("leaves_a_pipe", "fds", "created_at").contains(&place("pipe")), "{}", ran.all());
    let sentence = |test: &str| tests[test]["findings"][0]["sentence"].as_str().unwrap().to_owned();
    assert!(sentence("panics").contains(&place("panic")), "{}", sentence("panics"));
    assert!(sentence("forks_among_threads").contains(&place("fork")), "{}", sentence("forks_among_threads"));
    assert_eq!(tests["never_runs"]["outcome"], "ignored");
    assert!(ran.stdout.contains("---- output of the suite ----\n"), "{}", ran.all());
    assert!(ran.stdout.contains("printed before the panic"), "{}", ran.all());
}

#[childproof::test]
fn what_is_clean_passes() {
    let (ran, tests) = run(&["is_clean", "meets", "as_expected", "as_it_may", "--test-threads=4"]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(ran.stdout.contains("test result: ok. 7 passed; 0 failed"), "{}", ran.all());
    assert!(!ran.stdout.contains("output of the suite"), "{}", ran.all());
    assert_eq!(tests["leaks_as_it_may"]["processes"].as_array().unwrap().len(), 1);
}

#[childproof::test]
fn a_test_that_exits_is_charged_with_the_end_of_the_suite() {
    let (ran, tests) = run(&["--ignored", "a_test", "b_test", "exits", "--test-threads=2"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert_eq!(tests["ending::exits"]["causes"], serde_json::json!(["ended_early"]), "{}", ran.all());
    assert!(tests["ending::exits"]["ended_at"].as_str().unwrap().contains(&place("exit")));
    assert_eq!(tests["ending::a_test_that_waits"]["outcome"], "ignored", "{}", ran.all());
    assert_eq!(tests["ending::b_test_that_passes"]["outcome"], "passed", "{}", ran.all());
    assert_eq!(tests["(suite)"]["outcome"], "passed", "{}", ran.all());
    assert!(ran.stdout.contains("the suite was ended while it ran, by `ending::exits`"), "{}", ran.all());
}

#[childproof::test]
fn a_fault_is_that_of_the_test_whose_thread_it_was_in() {
    let (ran, tests) = run(&["--ignored", "a_test", "faults", "--test-threads=2"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert_eq!(tests["ending::faults"]["causes"], serde_json::json!(["signal"]), "{}", ran.all());
    let sentence = tests["ending::faults"]["findings"].to_string();
    assert!(sentence.contains("SIGSEGV (11), at") && sentence.contains(&place("fault")), "{sentence}");
    assert_eq!(tests["ending::a_test_that_waits"]["outcome"], "ignored", "{}", ran.all());
    assert_eq!(tests["(suite)"]["outcome"], "passed", "{}", ran.all());
}

#[childproof::test]
fn a_timeout_is_that_of_one_test() {
    let (ran, tests) = run(&["--ignored", "a_test", "b_test", "hangs", "--test-threads=2"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    let hung = &tests["ending::hangs"];
    assert_eq!(hung["causes"], serde_json::json!(["timed_out"]), "{}", ran.all());
    let sentence = hung["findings"].to_string();
    assert!(
        sentence.contains("within its timeout of 500 ms") && sentence.contains(&place("hang")),
        "{sentence}"
    );
    assert!(hung["processes"].to_string().contains("sleep"), "{hung:#}");
    assert_eq!(tests["ending::a_test_that_waits"]["outcome"], "ignored", "{}", ran.all());
    assert_eq!(tests["(suite)"]["outcome"], "passed", "{}", ran.all());
}

#[childproof::test]
fn zombies_and_threads_count_where_they_are_denied() {
    let outcomes = |tests: &BTreeMap<String, Value>| -> Vec<(String, String)> {
        let failed = tests.iter().filter(|(_, test)| test["outcome"] == "failed");
        failed.map(|(name, test)| (name.clone(), test["causes"].to_string())).collect()
    };
    let failed = |name: &str, cause: &str| (format!("counted::{name}"), format!("[\"{cause}\"]"));
    let (ran, tests) = run(&["--ignored", "counted::", "--skip=returns", "--skip=opens"]);
    let expected = [
        // Two tests have names that begin alike.
        ("(suite)".to_owned(), "[\"threads\"]".to_owned()),
        failed("a_thread_is_denied", "threads"),
        failed("denies_a_zombie", "unwaited"),
    ];
    assert_eq!(outcomes(&tests), expected, "{}", ran.all());
    assert!(ran.stdout.contains(&place("zombie")), "{}", ran.all());
    assert_eq!(ran.stderr.matches("childproof: with --shared, `threads = \"deny\"` finds").count(), 1);
    let json = scratch().join("all.json");
    let fixture = Fixture::build("leaky");
    let mut command = fixture.command("shared", &["--ignored", "counted::leaves_a_zombie", "--shared"]);
    let ran = Ran::of(command.env("CHILDPROOF_UNWAITED", "deny").arg("--json").arg(&json));
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert!(ran.stdout.contains("LEAK  counted::leaves_a_zombie"), "{}", ran.all());
}

/// The suite has no attribute that could allow it.
#[childproof::test]
fn what_no_test_is_charged_with_is_allowed_for_the_target() {
    let (ran, tests) = run(&["--ignored", "counted::opens"]);
    assert_eq!(tests["(suite)"]["causes"], serde_json::json!(["stray_fd"]), "{}", ran.all());
    assert!(ran.stdout.contains("allow: childproof::policy!(fds = \"off\");\n"), "{}", ran.all());
    assert!(ran.stdout.contains("(FIFO)  read and write end; other end: the same fd"), "{}", ran.all());
    assert!(ran.stdout.contains(", which is both ends, before the test ends."), "{}", ran.all());
}

#[childproof::test]
fn the_error_that_one_body_returned_is_shown_with_it() {
    let (ran, tests) = run(&["--ignored", "counted::returns", "counted::leaves"]);
    let finding = tests["counted::returns_an_error"]["findings"].to_string();
    assert!(finding.contains("words of the error"), "{finding}\n{}", ran.all());
}

/// The others have ended before, and what they have left is theirs.
#[childproof::test]
fn what_is_left_before_a_timeout_is_charged_or_not_judged() {
    let (ran, tests) = run(&["--ignored", "ending::c_", "hangs", "--test-threads=1"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    for (test, outcome, causes) in [
        ("c_leaks_a_process", "failed", &["leaked_process"][..]),
        ("c_leaks_unseen", "passed", &[]),
        ("c_leaves_a_pipe", "failed", &["stray_fd"]),
        ("c_leaves_a_pipe_as_it_may", "passed", &[]),
        ("c_leaves_what_may_end_yet", "ignored", &[]),
        ("c_opens_what_is_not_counted", "ignored", &[]),
        ("c_panics_and_leaves_what_may_end_yet", "failed", &["panicked"]),
        ("hangs", "failed", &["timed_out"]),
    ] {
        let found = &tests[&format!("ending::{test}")];
        assert_eq!(found["outcome"], outcome, "{test}: {found:#}\n{}", ran.all());
        if outcome != "ignored" {
            assert_eq!(found["causes"], serde_json::json!(causes), "{test}: {found:#}");
        }
    }
    assert_eq!(tests["(suite)"]["outcome"], "ignored", "{}", ran.all());
    for reason in [
        "before the grace of what it has left was over",
        "before the fds that it has left were counted",
        "a test that ran may have needed what was left",
    ] {
        assert!(ran.stdout.contains(reason), "{reason}: {}", ran.all());
    }
}

#[childproof::test]
fn no_test_starts_after_a_failure_if_that_is_asked_for() {
    let (ran, tests) = run(&["meets", "panics", "--test-threads=1", "--fail-fast", "--skip=meets"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert_eq!(tests["panics"]["outcome"], "failed", "{}", ran.all());
    assert_eq!(tests["panics_as_expected"]["outcome"], "ignored", "{}", ran.all());
    assert!(ran.stdout.contains("a test failed before it, and --fail-fast is set"), "{}", ran.all());
}

#[childproof::test]
fn each_round_is_a_process_of_its_own() {
    let (ran, _) = run(&["is_clean", "leaves_a_pipe", "--exact", "--repeat=3"]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert_eq!(
        ran.stdout.matches("1 passed; 1 failed").count() + ran.stdout.matches("2 passed; 1 failed").count(),
        3
    );
    assert_eq!(ran.stdout.matches("LEAK  leaves_a_pipe").count(), 3, "{}", ran.all());
}

#[childproof::test]
fn the_environment_asks_for_it_too() {
    let fixture = Fixture::build("leaky");
    let mut command = fixture.command("shared", &["meets", "--test-threads=2"]);
    let ran = Ran::of(command.env("CHILDPROOF_SHARED", "1"));
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let mut command = fixture.command("shared", &["meets", "--test-threads=2"]);
    let ran = Ran::of(command.env("CHILDPROOF_SHARED", "yes"));
    assert_eq!(ran.code, Some(2), "{}", ran.all());
    assert!(ran.stderr.contains("`CHILDPROOF_SHARED`: expected `0` or `1`"), "{}", ran.all());
}

/// Starts a suite, and returns when a test of it waits and another has leaked ten processes.
fn start() -> Run {
    let fixture = Fixture::build("leaky");
    let arguments = ["--shared", "--ignored", "a_test", "leaks_ten", "--test-threads=2"];
    let mut run = Run::start(&fixture, "shared", &arguments);
    run.wait_for("waits");
    // Harness, net, fork server, supervisor, the suite, and what it has leaked.
    until("ten processes run", || run.marked().len() >= 15);
    run
}

#[childproof::test]
fn a_cut_reports_the_tests_that_run() {
    let mut run = start();
    kill(Pid::from_raw(run.pid()), Signal::SIGTERM).unwrap();
    let text = run.finish();
    assert_eq!(run.signal(), Some(Signal::SIGTERM as i32), "{text}");
    assert!(text.contains("CUT  ending::a_test_that_waits"), "{text}");
    run.assert_nothing_left(PATIENCE);
}

#[childproof::test]
fn a_killed_harness_leaves_nothing_of_a_suite() {
    let mut run = start();
    kill(Pid::from_raw(run.pid()), Signal::SIGKILL).unwrap();
    run.finish();
    run.assert_nothing_left(PATIENCE);
}
