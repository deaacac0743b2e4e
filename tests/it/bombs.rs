//! Processes that are left may use all CPUs, and all processes that a user may have: the verdict comes all
//! the same.
//!
//! Processes that a broken guard leaves here exit by themselves after a minute, since the fixture's bodies
//! limit their lifetime.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Fixture, Run, as_user};

/// From the end of the body to the end of the run, on CPUs that nothing else uses. PLATFORM.md has the measured times.
const LIMIT: Duration = Duration::from_secs(5);

/// The same for a bomb of 1000 processes: the test process itself, and a guard without privilege, have a thousandth of the
/// CPUs.
const LIMIT_OF_A_THOUSAND: Duration = Duration::from_secs(10);

/// A user without other processes, so that only the bomb counts towards its process limit.
const USER: u32 = 64_011;

/// One body, run as root if this is root, and as an ordinary user.
fn runs(fixture: &Fixture, body: &str) -> Vec<(&'static str, Command)> {
    let arguments = ["--exact", body];
    let own = fixture.command("harness", &arguments);
    if !nix::unistd::geteuid().is_root() {
        return vec![("an ordinary user", own)];
    }
    vec![("root", own), ("an ordinary user", as_user(USER, fixture, "harness", &arguments))]
}

/// Runs a body to the end of its run, which must follow within a limit after the body's own end.
#[track_caller]
fn verdict(mut run: Run, limit: Duration, what: &str) -> String {
    run.wait_for("over");
    let begin = Instant::now();
    let text = run.finish();
    let took = begin.elapsed();
    println!("{what}: {took:.2?} from the end of the body to the verdict");
    assert!(took < limit, "{what}: {took:?}\n{text}");
    assert!(!text.contains("could not be killed"), "{what}\n{text}");
    run.assert_nothing_left(Duration::from_secs(2));
    text
}

#[childproof::test(timeout = "180s")]
#[ignore = "takes every processor from the tests beside it: run alone"]
fn of_processes_that_never_sleep_comes_soon() {
    let fixture = Fixture::build("victim");
    for (user, command) in runs(&fixture, "bodies::bombs::leaves_spinners") {
        let text = verdict(Run::spawn(command), LIMIT, &format!("500 processes that run, {user}"));
        assert!(text.contains("left 500 processes"), "{text}");
        // In the state before they were stopped.
        assert!(text.contains(" R, age "), "{text}");
    }
}

/// The grace is measured exactly, even if the snapshot comes late.
#[childproof::test(timeout = "180s")]
#[ignore = "takes every processor from the tests beside it: run alone"]
fn of_a_process_beside_those_that_never_sleep_is_not_late() {
    let fixture = Fixture::build("victim");
    for (user, command) in runs(&fixture, "bodies::bombs::leaves_a_late_process_beside_spinners") {
        let mut run = Run::spawn(command);
        let late = run.wait_for("late");
        let text = verdict(run, LIMIT, &format!("a process beside 500 that run, {user}"));
        assert!(text.contains(&late), "pid {late} passed\n{text}");
    }
}

/// Each process of the bomb leads a session, so no signal to a group kills it, and each has its own share of
/// the CPUs.
#[childproof::test(timeout = "180s")]
#[ignore = "takes every processor from the tests beside it: run alone"]
fn of_a_refilling_fork_bomb_comes_soon() {
    let fixture = Fixture::build("victim");
    for count in ["200", "1000"] {
        for (user, mut command) in runs(&fixture, "bodies::bombs::leaves_a_bomb") {
            command.env("VICTIM_BOMB_LIMIT", count);
            let limit = if count == "1000" { LIMIT_OF_A_THOUSAND } else { LIMIT };
            let text = verdict(Run::spawn(command), limit, &format!("a bomb of {count}, {user}"));
            assert!(text.contains("leaves_a_bomb ... FAILED"), "{text}");
        }
    }
}

/// A descendant in a PID namespace of its own may have the test's pid.
#[childproof::test]
fn a_namesake_in_another_pid_namespace_has_no_say() {
    let fixture = Fixture::build("victim");
    let mut run = Run::start(&fixture, "harness", &["--exact", "bodies::bombs::ends_beside_a_namesake"]);
    let text = run.finish();
    if let Some(why) = run.told("refused") {
        println!("not checked: no namesake can be made: {why}");
        return;
    }
    assert_eq!(run.told("namesake"), run.told("own"), "{text}");
    assert!(text.contains("ends_beside_a_namesake ... FAILED"), "{text}");
}
