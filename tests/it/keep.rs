//! `--keep`: what leaked or hangs stays, stopped, and everything else ends with the run.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Fixture, PATIENCE, Run, send, through_shell, until};

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Starts a target of the fixture, with its output in a pipe. The run has finished when that is at its end.
fn start(target: &str, arguments: &[&str]) -> Run {
    let fixture = Fixture::build("leaky");
    let mut like = fixture.command(target, &[]);
    like.env("CHILDPROOF_KEEP", "1").env("CHILDPROOF_GRACE", "100ms");
    let script = "{ \"$@\"; echo \"exit code $?\"; } 2>&1 | cat";
    Run::spawn(through_shell(&like, script, fixture.binary(target), arguments))
}

/// The pids that a finished run says it has kept.
fn kept(text: &str) -> Vec<i32> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("kept:"));
    let pids = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_digit()));
    pids.filter_map(|word| word.parse().ok()).collect()
}

/// Checks that these are all that is left of a run besides their guard, and stopped; ends them, and checks that nothing is
/// left then.
fn end_kept(run: &Run, pids: &[i32], text: &str) {
    for pid in pids {
        assert_eq!(state(*pid), Some('T'), "{pid}: {text}");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
    until("the end of all else", || {
        let others: Vec<i32> = run.marked().into_iter().filter(|pid| !pids.contains(pid)).collect();
        let is_guard = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["childproof-kept\n", "()\n"].contains(&name.as_str())
        };
        others.iter().all(is_guard)
    });
    // What they have written is there for as long as they are.
    assert_eq!(run.scratches().len(), 1, "{text}");
    pids.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    run.assert_nothing_left(PATIENCE);
}

#[childproof::test]
fn a_leak_is_kept_and_the_run_ends_there() {
    for capture in [&[][..], &["--nocapture"]] {
        let tests = ["shapes::background_job_of_a_shell", "shapes::three_groups_of_their_own", "--exact"];
        let mut run = start("harness", &[&tests[..], &["--test-threads=1"], capture].concat());
        let text = run.finish();
        assert!(text.contains("exit code 101\n"), "{text}");
        assert!(text.contains("what a test before it has left is kept"), "{text}");
        let kept = kept(&text);
        assert!(text.contains(&format!("look: gdb -p {}\n", kept[0])), "{text}");
        assert!(text.contains(&format!("end: childproof kill {}\n", kept[0])), "{text}");
        end_kept(&run, &kept, &text);
    }
}

#[childproof::test]
fn a_test_that_hangs_is_kept_with_its_child() {
    let mut run = start("harness", &["shapes::waits_for_a_child_that_never_ends", "--exact"]);
    let text = run.finish();
    let kept = kept(&text);
    assert_eq!(kept.len(), 2, "{text}");
    assert!(text.contains("; kept 2 processes"), "{text}");
    end_kept(&run, &kept, &text);
}

#[childproof::test]
fn a_leak_of_a_stock_target_is_kept_and_the_run_ends_there() {
    for capture in [&[][..], &["--nocapture"]] {
        let mut run = start("stock", &[&["shapes::session_of_its_own", "--exact"], capture].concat());
        let text = run.finish();
        assert!(text.contains("exit code 101\n"), "{text}");
        let kept = kept(&text);
        assert!(!kept.is_empty(), "{text}");
        end_kept(&run, &kept, &text);
    }
}

#[childproof::test]
fn a_leak_of_a_suite_is_kept() {
    let mut run = start("shared", &["--shared", "leaks_a_sleep", "is_clean", "--exact"]);
    let text = run.finish();
    assert!(text.contains("exit code 101\n"), "{text}");
    let kept = kept(&text);
    assert_eq!(kept.len(), 1, "{text}");
    end_kept(&run, &kept, &text);
}

#[childproof::test]
fn what_the_policy_allows_is_killed() {
    let tests = ["shapes::process_that_is_allowed", "shapes::process_that_is_allowed_by_name", "--exact"];
    let mut run = start("harness", &[&tests[..], &["--test-threads=1"]].concat());
    let text = run.finish();
    assert!(text.contains("exit code 0\n"), "{text}");
    run.assert_nothing_left(PATIENCE);
}

/// The first test has been stopped to be kept, while the second one still runs.
#[childproof::test]
fn a_run_that_is_killed_before_it_ends_keeps_nothing() {
    let fixture = Fixture::build("leaky");
    let tests = ["shapes::session_of_its_own", "shapes::sleeps_too_long", "--exact", "--test-threads=2"];
    let mut command = fixture.command("harness", &[&tests[..], &["--keep", "--timeout=300s"]].concat());
    command.env("CHILDPROOF_GRACE", "100ms");
    let run = Run::spawn(command);
    until("a stopped process", || run.marked().iter().any(|pid| state(*pid) == Some('T')));
    send(run.pid(), Signal::SIGKILL);
    run.assert_nothing_left(Duration::from_secs(30));
}
