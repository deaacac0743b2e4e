//! A program that all tests of a target use is started once, guarded by the run, and ends with it, however it ends.
//!
//! `tests/fixtures/team` has the tests, in its crate `c`.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Fixture, Run, alive, root, scratch, until};

const SOON: Duration = Duration::from_secs(10);

fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Fixture::build("team").command("shared", arguments);
    command.envs(variables.iter().copied());
    Run::spawn(command)
}

/// The pids of the servers that were started.
fn started(run: &Run) -> Vec<i32> {
    let lines = run.told("started").unwrap_or_default();
    lines.lines().map(|line| line.parse().unwrap()).collect()
}

#[childproof::test]
fn is_started_once_and_ended_with_the_run() {
    for arguments in [&[][..], &["--test-threads=1"], &["--repeat=2"]] {
        let mut run = start(arguments, &[]);
        let text = run.finish();
        assert_eq!(run.code(), Some(0), "{text}");
        assert!(text.contains("3 passed; 0 failed"), "{text}");
        assert_eq!(started(&run).len(), 1, "{text}");
        run.assert_nothing_left(SOON);
        assert!(!text.contains("shared"), "{text}");
    }
}

#[childproof::test]
fn is_not_started_for_nothing() {
    for arguments in [&["--list"][..], &["no_such_test"], &["waits", "--exact"]] {
        let mut run = start(arguments, &[("SHARED_OTHER", "/nonexistent")]);
        let text = run.finish();
        assert_eq!(run.code(), Some(0), "{text}");
        assert!(started(&run).is_empty(), "{text}");
    }
}

#[childproof::test]
fn has_a_report_of_its_own_where_it_leaks() {
    let json = scratch().join("run.json");
    let mut run = start(&["--json", json.to_str().unwrap()], &[("SHARED_SCRIPT", "sleep 86399 & wait")]);
    let text = run.finish();
    assert_eq!(run.code(), Some(101), "{text}");
    assert!(text.contains("3 passed; 0 failed"), "{text}");
    assert!(text.contains("LEAK  shared server   SIGTERM (15) after "), "{text}");
    assert!(text.contains("`sleep 86399` was still running 200 ms after the command ended"), "{text}");
    assert!(text.contains("allow: childproof::policy!(allow_process = \"sleep *\");\n"), "{text}");
    assert!(text.contains("fix: orphaned: the command has left it behind."), "{text}");
    assert!(text.contains(&format!("note: `Harness::shared` starts it, at {}", place())), "{text}");
    let lines = fs::read_to_string(json).unwrap();
    let line: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&line["test"], &line["causes"][0]),
        (&"shared server".into(), &"leaked_process".into()),
        "{lines}"
    );
    run.assert_nothing_left(SOON);
}

/// The line that starts the server.
fn place() -> String {
    let source = fs::read_to_string(root().join("tests/fixtures/team/crates/c/tests/shared.rs")).unwrap();
    let at = source.lines().position(|line| line.ends_with("// MARK server")).unwrap();
    format!("crates/c/tests/shared.rs:{}", at + 1)
}

#[childproof::test]
fn has_the_policy_of_the_target() {
    for variable in ["SHARED_ALLOWS", "CHILDPROOF_ALLOW_PROCESS"] {
        let mut run =
            start(&["has_the_address"], &[("SHARED_SCRIPT", "sleep 86399 & wait"), (variable, "sleep *")]);
        let text = run.finish();
        assert_eq!(run.code(), Some(0), "{variable}: {text}");
        run.assert_nothing_left(SOON);
    }
}

#[childproof::test]
fn says_how_it_ended_where_it_ended_before_the_run() {
    let mut run = start(&["has_the_address"], &[("SHARED_SCRIPT", "exit 3")]);
    let text = run.finish();
    assert!(
        text.contains("childproof: the shared fixture `server` exited 3 before the end of the run"),
        "{text}"
    );
    assert_eq!(run.code(), Some(0), "{text}");
    run.assert_nothing_left(SOON);
}

#[childproof::test(timeout = "60s")]
fn is_killed_where_it_is_deaf_to_sigterm() {
    let mut run = start(&[], &[("SHARED_SCRIPT", "trap '' TERM; while :; do sleep 1; done")]);
    let text = run.finish();
    assert!(
        text.contains("the shared fixture `server` did not end within 5 s of SIGTERM, and was killed"),
        "{text}"
    );
    run.assert_nothing_left(SOON);
}

#[childproof::test]
fn is_killed_with_the_run_whatever_kills_that() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let mut run = start(&["waits", "--exact", "--ignored"], &[]);
        run.wait_for("waits");
        until("the server", || !started(&run).is_empty());
        let server = started(&run)[0];
        assert!(alive(server), "{}", run.text());
        kill(Pid::from_raw(run.pid()), signal).unwrap();
        let text = run.finish();
        assert_eq!(run.signal(), Some(signal as i32), "{text}");
        run.assert_nothing_left(SOON);
    }
}

/// Neither a test nor the guard of another program keeps the write end of a lifeline.
#[childproof::test]
fn is_held_by_the_harness_alone() {
    let mut run = start(&["waits", "--exact", "--ignored"], &[]);
    run.wait_for("waits");
    let pipes = |pid: i32| -> Vec<String> {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let writes = fds.filter(|fd| {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display()));
            info.unwrap_or_default()
                .lines()
                .any(|line| line.starts_with("flags:") && line.trim_end().ends_with('1'))
        });
        let targets =
            writes.filter_map(|fd| fs::read_link(fd.path()).ok()).map(|path| path.display().to_string());
        targets.filter(|target| target.starts_with("pipe:")).collect()
    };
    let harness = run.pid();
    let own = pipes(harness);
    // Of the run, of `other` and of `server`.
    assert!(own.len() >= 3, "{own:?}\n{}", run.text());
    let others = run.marked();
    assert!(others.len() > 5, "{others:?}");
    for pid in others.into_iter().filter(|pid| *pid != harness) {
        let shared: Vec<String> = pipes(pid).into_iter().filter(|pipe| own.contains(pipe)).collect();
        assert!(shared.is_empty(), "pid {pid} has {shared:?}\n{}", run.text());
    }
}

#[childproof::test]
fn that_cannot_be_started_is_an_error() {
    for (variable, value, words) in [
        (
            "SHARED_OTHER",
            "/nonexistent/server",
            "cannot start the shared fixture `other`: No such file or directory",
        ),
        ("SHARED_NAME", "a=b", "invalid name `a=b` of a shared fixture: expected letters, digits"),
        ("SHARED_NAME", "other", "invalid name `other` of a shared fixture: expected letters, digits"),
    ] {
        let mut run = start(&[], &[(variable, value)]);
        let text = run.finish();
        assert_eq!(run.code(), Some(2), "{text}");
        assert!(text.contains(words), "{text}");
        run.assert_nothing_left(SOON);
    }
}
