//! Whichever process is killed in the middle of a run, no process that a test started stays alive, and no
//! scratch directory is left.
//!
//! Each test starts three bodies that leave descendants of all kinds (a daemon that ignores TERM, stopped
//! processes, orphans of shells, a subreaper with orphans of its own), kills something, and measures how long
//! it takes until no process with the run's mark is left.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Fixture, Run, alive, parent, root, send, stop_guard_above, until};

const TARGETS: [&str; 3] = ["harness", "stock", "threaded"];
const CROWD: [&str; 3] = ["crowd-a", "crowd-b", "crowd-c"];
const TESTS: [&str; 5] =
    ["--exact", "bodies::crowd::a", "bodies::crowd::b", "bodies::crowd::c", "--test-threads=3"];
/// Sufficient for a busy machine. The measured time is printed; it should be below a second.
const LIMIT: Duration = Duration::from_secs(10);

fn victim() -> Fixture {
    Fixture::build("victim")
}

/// Waits until the bodies of a run have started all their descendants.
fn gather(run: &mut Run) -> usize {
    for name in CROWD {
        run.wait_for(name);
    }
    // Three tests of nine processes, three supervisors, a fork server, a harness. Some of them appear a
    // moment after their test has reported that all are started.
    let mut count = 0;
    until("all descendants", || {
        count = run.marked().len();
        count > 3 * 9 + 3 + 1
    });
    count
}

/// Waits until everything is gone after a kill, and prints the time.
#[track_caller]
fn expect_the_end(what: &str, count: usize, mut run: Run) {
    let took = run.assert_nothing_left(LIMIT);
    println!("{what}: nothing of {count} processes left after {took:?}");
    run.finish();
}

// ---- the harness ----

#[childproof::test(timeout = "120s")]
fn of_the_harness_by_sigkill() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &TESTS);
        let count = gather(&mut run);
        send(run.pid(), Signal::SIGKILL);
        expect_the_end(target, count, run);
    }
}

/// All other signals that kill by default.
#[childproof::test(timeout = "120s")]
fn of_the_harness_by_signals_that_are_polite() {
    let fixture = victim();
    for target in TARGETS {
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGABRT] {
            let mut run = Run::start(&fixture, target, &TESTS);
            let count = gather(&mut run);
            send(run.pid(), signal);
            expect_the_end(&format!("{target}, {signal}"), count, run);
        }
    }
}

/// At any moment from the first instruction on, also while the fork server starts, a supervisor is forked, or
/// a test begins.
#[childproof::test(timeout = "120s")]
fn of_the_harness_at_any_moment() {
    let fixture = victim();
    let mut longest = Duration::ZERO;
    for target in TARGETS {
        for step in 0..24 {
            let run = Run::start(&fixture, target, &TESTS);
            thread::sleep(Duration::from_micros(500) * step * 2);
            send(run.pid(), Signal::SIGKILL);
            longest = longest.max(run.assert_nothing_left(LIMIT));
        }
    }
    println!("nothing left after {longest:?} at most");
}

/// A fork server that is started by exec is none while its exec is in progress. A program that is started
/// then, without a parent, must not take itself for a harness.
#[childproof::test]
fn of_the_harness_before_its_fork_server_has_begun() {
    let there = Command::new("strace").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("not checked: strace is not installed");
        return;
    }
    let fixture = victim();
    for target in ["stock", "threaded"] {
        let like = fixture.command(target, &TESTS);
        let mut command = Command::new("strace");
        // Each exec is delayed by half a second, also the harness's own.
        let late = ["-f", "-qq", "-e", "trace=none", "-e", "signal=none", "-e"];
        command.args(late).arg("inject=execve:delay_enter=500000").arg(like.get_program());
        command.args(like.get_args());
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let run = Run::spawn(command);
        let children = |of: i32| run.marked().into_iter().filter(move |pid| parent(*pid) == of);
        let mut harness = 0;
        until("a fork server on its way", || {
            harness = children(run.pid()).next().unwrap_or(0);
            harness != 0 && children(harness).next().is_some()
        });
        send(harness, Signal::SIGKILL);
        expect_the_end(target, 2, run);
    }
}

/// The lifeline does not reach EOF while a copy of its write end exists, and a process that an unguarded test
/// forks from a libtest process has one. So the harness is also watched by a pidfd.
#[childproof::test]
fn of_a_harness_whose_lifeline_an_unguarded_child_holds() {
    let fixture = victim();
    let tests = [&TESTS[..4], &["unguarded_child_of_the_harness", "--include-ignored", "--test-threads=4"]];
    let mut run = Run::start(&fixture, "stock", &tests.concat());
    let count = gather(&mut run);
    let unguarded: i32 = run.wait_for("unguarded").parse().unwrap();
    send(run.pid(), Signal::SIGKILL);
    let begin = Instant::now();
    until("the end of all but the unguarded one", || run.marked() == [unguarded]);
    println!("nothing of {count} processes left after {:?}", begin.elapsed());
    assert!(begin.elapsed() < LIMIT);
    send(unguarded, Signal::SIGKILL);
    expect_the_end("unguarded", 1, run);
}

/// The fork server first, so that the supervisors have lost their parent; then the harness.
#[childproof::test(timeout = "120s")]
fn of_the_fork_server_and_then_the_harness() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &TESTS);
        let count = gather(&mut run);
        let supervisor: i32 = run.wait_for("crowd-a").parse().unwrap();
        let server = parent(supervisor);
        send(server, Signal::SIGKILL);
        until("the fork server's death", || !alive(server));
        assert!(run.marked().len() > 3 * 9 + 3, "{target}: the guarded ones died with the server");
        send(run.pid(), Signal::SIGKILL);
        expect_the_end(target, count, run);
    }
}

/// The supervisors are gone; the fork server cleans up when the harness exits too.
#[childproof::test(timeout = "120s")]
fn of_all_supervisors_and_the_harness() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &TESTS);
        let count = gather(&mut run);
        let supervisors = CROWD.map(|name| run.wait_for(name).parse().unwrap());
        // So that none of them can react in between.
        let guard = stop_guard_above(supervisors[0], run.pid());
        for supervisor in supervisors {
            send(supervisor, Signal::SIGKILL);
        }
        send(run.pid(), Signal::SIGKILL);
        guard.iter().for_each(|pid| send(*pid, Signal::SIGCONT));
        expect_the_end(target, count, run);
    }
}

// ---- the parent of the harness ----

/// `cargo test` or `cargo nextest run` of one target of the fixture.
fn cargo(fixture: &Fixture, target: &str, nextest: bool) -> Command {
    let mut command = fixture.command(target, &[]);
    let like = std::mem::replace(&mut command, Command::new("env"));
    // A shell makes its background processes ignore SIGINT.
    command.args(["--default-signal=INT", env!("CARGO")]);
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if nextest {
        let filter = "test(=bodies::crowd::a) + test(=bodies::crowd::b) + test(=bodies::crowd::c)";
        let arguments = ["nextest", "run", "--offline", "--test", target, "-E", filter, "--test-threads=3"];
        command.args(arguments);
    } else {
        command.args(["test", "--offline", "--quiet", "--test", target, "--"]).args(TESTS);
    }
    command
        .current_dir(root().join("tests/fixtures/victim"))
        .env("CARGO_TARGET_DIR", root().join("target/fixtures"))
        .env_remove("RUSTFLAGS");
    command
}

fn has_nextest() -> bool {
    let version = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
    let found = version.is_ok_and(|output| output.status.success());
    if !found {
        println!("not checked: cargo-nextest is not installed");
    }
    found
}

#[childproof::test(timeout = "180s")]
fn of_cargo_test_by_sigkill() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::spawn(cargo(&fixture, target, false));
        let count = gather(&mut run);
        send(run.pid(), Signal::SIGKILL);
        expect_the_end(target, count, run);
    }
}

#[childproof::test(timeout = "180s")]
fn of_cargo_nextest_by_sigkill() {
    if !has_nextest() {
        return;
    }
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::spawn(cargo(&fixture, target, true));
        let count = gather(&mut run);
        send(run.pid(), Signal::SIGKILL);
        expect_the_end(target, count, run);
    }
}

/// Ctrl-C: the terminal signals the foreground group. It includes cargo and the harness, but not nextest's
/// tests; nextest forwards the signal.
#[childproof::test(timeout = "180s")]
fn of_the_foreground_group_by_ctrl_c() {
    let fixture = victim();
    for target in TARGETS {
        for (how, mut command) in [
            ("cargo test", cargo(&fixture, target, false)),
            ("cargo nextest run", cargo(&fixture, target, true)),
        ] {
            if how == "cargo nextest run" && !has_nextest() {
                continue;
            }
            command.process_group(0);
            let mut run = Run::spawn(command);
            let count = gather(&mut run);
            send(-run.pid(), Signal::SIGINT);
            expect_the_end(&format!("{how}, {target}"), count, run);
        }
    }
}

/// Ctrl-C, from a real terminal: the harness is not its session's leader.
#[childproof::test(timeout = "120s")]
fn of_the_terminal() {
    let there = Command::new("script").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("not checked: script is not installed");
        return;
    }
    let fixture = victim();
    for target in TARGETS {
        let like = fixture.command(target, &TESTS);
        let mut line = format!("exec env --default-signal=HUP {}", fixture.binary(target).display());
        for test in TESTS {
            line = format!("{line} {test}");
        }
        let mut command = Command::new("script");
        command.args(["--quiet", "--command", &line, "/dev/null"]);
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut run = Run::spawn(command);
        let count = gather(&mut run);
        // The terminal is gone, since the holder of its master has exited: SIGHUP.
        send(run.pid(), Signal::SIGKILL);
        expect_the_end(target, count, run);
    }
}

// ---- everything that a pattern matches ----

/// `pkill -9 -f target/debug/deps/harness-1a2b`, with or without cargo.
#[childproof::test(timeout = "180s")]
fn of_everything_that_pkill_f_matches() {
    let fixture = victim();
    for target in TARGETS {
        for (by_cargo, more) in [(false, ""), (true, ""), (false, "childproof"), (false, "bodies")] {
            let mut run = if by_cargo {
                Run::spawn(cargo(&fixture, target, false))
            } else {
                Run::start(&fixture, target, &TESTS)
            };
            let count = gather(&mut run);
            let pattern = fixture.binary(target).file_name().unwrap().to_str().unwrap();
            let matched: Vec<i32> = run
                .marked()
                .into_iter()
                .filter(|pid| {
                    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line);
                    line.contains(pattern) || !more.is_empty() && line.contains(more)
                })
                .collect();
            // The harness, three tests, and their forks without exec.
            assert!(matched.len() > 12, "{target}: {matched:?} of {count}");
            assert!(matched.len() + 4 < count, "{target}: {matched:?} of {count}");
            // With the titles that `ps` shows, the pattern also matches supervisors.
            for pid in &matched {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            let what = format!("{target}, {} matched, cargo: {by_cargo}, {more}", matched.len());
            expect_the_end(&what, count, run);
        }
    }
}
