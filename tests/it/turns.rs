//! Tests with the same serial key never run at the same time, not even in two runs, whatever is killed.

use std::fs;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::invariants::{TARGETS, victim};
use crate::support::{Run, until};

/// Starts a run with a test that holds the key, and another with a test that waits for it.
fn two(target: &str) -> (Run, Child) {
    let fixture = victim();
    let mut first = Run::of(&fixture, target, &["bodies::turns::holds"]);
    first.wait_for("held");
    let second = first.beside(fixture.command(target, &["bodies::turns::follows", "--exact"]));
    let fds = format!("/proc/{}/fd", second.id());
    until("the second at the lock", || {
        let links = fs::read_dir(&fds).into_iter().flatten().flatten();
        let mut links = links.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|link| link.to_string_lossy().contains("/childproof-serial-"))
    });
    (first, second)
}

fn finish(first: &Run, second: &mut Child) {
    until("the end of the second", || second.try_wait().unwrap().is_some());
    assert_eq!(second.wait().unwrap().code(), Some(0), "{}", first.text());
}

#[childproof::test]
fn are_taken_one_after_the_other_and_leave_no_file() {
    for target in TARGETS {
        let (mut first, mut second) = two(target);
        first.tell("release");
        let text = first.finish();
        assert_eq!(first.code(), Some(0), "{target}\n{text}");
        finish(&first, &mut second);
        first.assert_nothing_left(Duration::from_secs(2));
    }
}

/// The key is released when no process of the test is left, not when its harness is gone.
#[childproof::test]
fn last_until_nothing_is_left_of_the_test() {
    for target in TARGETS {
        let (mut first, mut second) = two(target);
        kill(Pid::from_raw(first.pid()), Signal::SIGKILL).unwrap();
        finish(&first, &mut second);
        first.finish();
    }
}

#[childproof::test]
fn are_nothing_that_a_test_sees() {
    for target in TARGETS {
        let mut run = Run::start(&victim(), target, &["bodies::turns::keyed", "--test-threads=1"]);
        let text = run.finish();
        assert!(text.contains("5 passed; 0 failed"), "{target}\n{text}");
    }
}
