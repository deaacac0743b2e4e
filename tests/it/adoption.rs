//! A suite that is not clean yet: leaks that only warn, and what tests without a guard leave.
//!
//! `tests/fixtures/team` has the tests, in its crate `c`.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::output::normalise;
use crate::support::{Fixture, Ran, Run, root, scratch};

fn command(target: &str, arguments: &[&str]) -> Command {
    let mut command = Fixture::build("team").command(target, arguments);
    command.current_dir(root().join("tests/fixtures/team/crates/c"));
    command
}

/// Runs a target to its end, and then ends what it has left. The files of a run keep nothing waiting.
fn run(command: Command) -> (Option<i32>, String, usize) {
    let mut run = Run::spawn(command);
    let text = run.finish();
    let left = run.marked();
    for pid in &left {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    (run.code(), text, left.len())
}

#[childproof::test]
fn what_tests_without_a_guard_leave_is_listed_at_the_end_of_a_stock_target() {
    for arguments in [&[][..], &["--test-threads=1"], &["--nocapture"]] {
        let (code, text, left) = run(command("plain", arguments));
        assert_eq!((code, left), (Some(0), 2), "{text}");
        let (results, report) = text.split_once("WARN  ").unwrap_or_else(|| panic!("{text}"));
        assert!(results.contains("test result: ok. 5 passed"), "{text}");
        let lines: Vec<String> = normalise(report).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "tests without a guard left 2 processes", "{text}");
        let place = "crates/b/src/lib.rs:7:57 b::start, by the test `leaks` at crates/c/tests/plain.rs:15:5";
        assert!(
            lines.contains(&format!("  pid # `sleep 86399` is still running. It was started at {place}.")),
            "{text}"
        );
        assert!(
            lines.iter().any(|line| line.contains("`sleep 86398` is still running.")
                || line.contains("`sleep #` is still running.")),
            "{text}"
        );
        assert!(text.contains("fix: write `#[childproof::test]` in place of `#[test]`"), "{text}");
    }
}

#[childproof::test]
fn what_ends_by_itself_or_is_allowed_is_not_listed() {
    for tests in [&["guarded", "ends_what"][..], &["leaves_what_ends"], &["guarded"]] {
        let (code, text, left) = run(command("plain", tests));
        assert_eq!((code, left), (Some(0), 0), "{text}");
        assert!(!text.contains("without a guard"), "{text}");
    }
    let mut allowed = command("plain", &["leaks", "--exact"]);
    allowed.env("CHILDPROOF_ALLOW_PROCESS", "sleep *");
    let mut off = command("plain", &["leaks", "--exact"]);
    off.env("CHILDPROOF_UNGUARDED", "allow");
    for command in [allowed, off, command("adopting", &["plain::leaks_what_is_allowed"])] {
        let (code, text, left) = run(command);
        assert_eq!((code, left), (Some(0), 1), "{text}");
        assert!(!text.contains("without a guard"), "{text}");
    }
}

/// `cargo test | tee` waits for what has inherited its stdout, so that is told where it can still be read.
#[childproof::test]
fn that_a_leftover_keeps_an_output_open_is_told_with_it() {
    let (reader, writer) = std::io::pipe().unwrap();
    let errors = scratch().join("errors");
    let mut command = command("plain", &["leaks", "--exact"]);
    command.stdout(writer).stderr(fs::File::create(&errors).unwrap());
    let mut harness = command.spawn().unwrap();
    drop(command);
    assert_eq!(harness.wait().unwrap().code(), Some(0));
    let text = fs::read_to_string(errors).unwrap();
    let left: i32 =
        text.split_once("pid ").and_then(|(_, pid)| pid.split_once(' ')).unwrap().0.parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::Signal::SIGKILL).unwrap();
    // Its end is that of the pipe.
    std::io::read_to_string(reader).unwrap();
    let said = "It has this run's stdout open: who reads that to its end (`| tee`, a CI job) waits for this process.";
    assert!(text.split_whitespace().collect::<Vec<_>>().join(" ").contains(said), "{text}");
}

#[childproof::test]
fn what_tests_without_a_guard_leave_is_denied_where_the_policy_says_so() {
    let mut by_variable = command("plain", &["leaks", "--exact"]);
    by_variable.env("CHILDPROOF_UNGUARDED", "deny");
    for command in [by_variable, command("adopting", &["plain::leaks", "--exact"])] {
        let (code, text, left) = run(command);
        assert_eq!((code, left), (Some(101), 1), "{text}");
        assert!(text.contains("LEAK  tests without a guard left 1 process\n"), "{text}");
        assert!(text.contains("test result: ok. 1 passed"), "{text}");
    }
    let (code, text, _) = run({
        let mut command = command("plain", &["guarded"]);
        command.env("CHILDPROOF_UNGUARDED", "no");
        command
    });
    assert_eq!(code, Some(101), "{text}");
    assert!(text.contains("`no` for `CHILDPROOF_UNGUARDED`: expected `deny`, `warn` or `allow`"), "{text}");
}

#[childproof::test]
fn leaks_that_only_warn_are_listed_and_killed() {
    let json = scratch().join("run.json");
    for (target, more) in [("adopting", None), ("adopting_whole", Some(["--json", json.to_str().unwrap()]))] {
        let mut command = command(target, &["leaks_first", "leaks_second"]);
        command.args(more.into_iter().flatten());
        let ran = Ran::of(&mut command);
        assert_eq!(ran.code, Some(0), "{}", ran.all());
        let list = "warnings by line:\n    2 tests left `sleep 86399`: crates/b/src/lib.rs:7:57\n";
        assert!(ran.stdout.contains(list), "{}", ran.all());
        let whole = if more.is_some() { 2 } else { 0 };
        assert_eq!(ran.stdout.matches("WARN  leaks_").count(), whole, "{}", ran.all());
        assert_eq!(ran.stdout.matches("   left 1 process\n").count(), whole, "{}", ran.all());
    }
    for line in
        fs::read_to_string(&json).unwrap().lines().map(|line| serde_json::from_str::<Value>(line).unwrap())
    {
        let warning = &line["warnings"][0];
        let seen = (&line["outcome"], &warning["kind"], &warning["cause"], &line["processes"][0]["killed"]);
        assert_eq!(
            seen,
            (&"passed".into(), &"leaked_process".into(), &Value::Null, &true.into()),
            "{line:#}"
        );
    }
    for target in ["adopting", "adopting_whole"] {
        let ran = Ran::of(&mut command(target, &["leaks_where"]));
        assert_eq!(ran.code, Some(101), "{}", ran.all());
        let ran = Ran::of(command(target, &["leaks_first"]).env("CHILDPROOF_PROCESSES", "deny"));
        assert_eq!(ran.code, Some(101), "{}", ran.all());
        let ran = Ran::of(command(target, &["leaks_where"]).env("CHILDPROOF_PROCESSES", "warn"));
        assert_eq!(ran.code, Some(0), "{}", ran.all());
    }
}

#[childproof::test]
fn a_glob_of_a_program_alone_is_explained() {
    let ran = Ran::of(&mut command("adopting", &["leaks_beside"]));
    let note = "note: `allow_process = \"tail\"` must match the whole command line, `tail -f /dev/null`: \"tail *\" does";
    assert!(ran.stdout.contains(note), "{}", ran.all());
    assert_eq!(ran.code, Some(101), "{}", ran.all());
}

#[childproof::test]
fn what_a_test_allows_and_does_not_leave_is_reported_if_that_is_asked_for() {
    let sentence = "`allow_created_by = \"b::nothing\"` allows what the test did not leave: remove it.";
    for target in ["adopting", "adopting_whole"] {
        let allows = |level: Option<&str>, test: &str| {
            let mut command = command(target, &[test, "--exact", "--nocapture"]);
            command.envs(level.map(|level| ("CHILDPROOF_UNUSED_ALLOWANCES", level)));
            Ran::of(&mut command)
        };
        for (level, code, is_told) in [(None, 0, false), (Some("warn"), 0, true), (Some("deny"), 101, true)] {
            let ran = allows(level, "allows_more_than_it_leaves");
            assert_eq!(
                (ran.code, ran.all().matches(sentence).count()),
                (Some(code), usize::from(is_told)),
                "{}",
                ran.all()
            );
            // What is needed is not named.
            assert!(!ran.all().contains("`allow_process = "), "{}", ran.all());
            let ran = allows(level, "allows_what_it_leaves");
            assert!(ran.code == Some(0) && !ran.all().contains("did not leave"), "{}", ran.all());
        }
        let ran = allows(None, "allows_and_leaves_nothing");
        let needless = "`allow_process = \"sleep *\"` allows what the test did not leave: remove it.";
        assert!(ran.code == Some(101) && ran.all().contains(needless), "{}", ran.all());
        // A test that failed may not have come to it.
        let ran = allows(None, "allows_and_panics");
        assert!(ran.code == Some(101) && !ran.all().contains("did not leave"), "{}", ran.all());
    }
    let json = scratch().join("unused.json");
    let mut command =
        command("adopting_whole", &["allows_and_leaves_nothing", "--json", json.to_str().unwrap()]);
    Ran::of(&mut command);
    let line: Value = serde_json::from_str(fs::read_to_string(&json).unwrap().trim()).unwrap();
    let finding = &line["findings"][0];
    let seen = (&line["causes"][0], &finding["kind"], &finding["fields"]["arguments"][0]);
    assert_eq!(
        seen,
        (&"unused_allowance".into(), &"unused_allowances".into(), &"allow_process = \"sleep *\"".into()),
        "{line:#}"
    );
}
