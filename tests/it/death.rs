//! Whatever dies in the middle of a run, nothing that a test started stays alive, and no scratch
//! directory stays behind.
//!
//! Each test starts three bodies that leave descendants of all kinds (a daemon that is deaf to
//! TERM, stopped processes, orphans of shells, a subreaper with orphans of its own), kills
//! something, and measures how long it takes until nothing with the run's mark is left.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Fixture, Run, alive, root, until};

const TARGETS: [&str; 3] = ["harness", "stock", "threaded"];
const CROWD: [&str; 3] = ["crowd-a", "crowd-b", "crowd-c"];
const TESTS: [&str; 5] =
    ["--exact", "bodies::crowd::a", "bodies::crowd::b", "bodies::crowd::c", "--test-threads=3"];
/// A busy machine's worth. The time that it took is printed; it should be below a second.
const LIMIT: Duration = Duration::from_secs(10);

fn victim() -> Fixture {
    Fixture::build("victim")
}

/// Waits until the bodies of a run have started all that they start.
fn gather(run: &mut Run) -> usize {
    for name in CROWD {
        run.wait_for(name);
    }
    // Three tests of nine processes, three supervisors, a fork server, a harness. Some of them
    // come a moment after their test has told that it has started all.
    let mut count = 0;
    until("all descendants", || {
        count = run.marked().len();
        count > 3 * 9 + 3 + 1
    });
    count
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Waits for the end of everything after a death, and prints the time.
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

/// Every other signal whose default effect is the end.
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

/// Not only in the middle: at any moment from the first instruction on, also while the fork
/// server starts, a supervisor is forked, a test begins.
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

/// A fork server that is started by exec is not one yet while its exec is under way. What is
/// started then, with nobody above it, must not take itself for a harness.
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
        // Each exec takes half a second, also the harness's own.
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

/// The lifeline is silent as long as anybody has its write end, and what an unguarded test forks
/// from a libtest process has a copy of it. The harness is watched by a pidfd too.
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

/// First the fork server, so that nobody is there whose children the supervisors are; then the
/// harness.
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

/// The supervisors are gone; the fork server cleans when the harness goes too.
#[childproof::test(timeout = "120s")]
fn of_all_supervisors_and_the_harness() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &TESTS);
        let count = gather(&mut run);
        let supervisors = CROWD.map(|name| run.wait_for(name).parse().unwrap());
        let server = parent(supervisors[0]);
        // So that it cannot act in between.
        send(server, Signal::SIGSTOP);
        for supervisor in supervisors {
            send(supervisor, Signal::SIGKILL);
        }
        send(run.pid(), Signal::SIGKILL);
        send(server, Signal::SIGCONT);
        expect_the_end(target, count, run);
    }
}

/// The parent of a process; 0 if it is gone.
fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.map_or(0, |pid| pid.trim().parse().unwrap())
}

// ---- who started the harness ----

/// `cargo test` or `cargo nextest run` of one target of the fixture.
fn cargo(fixture: &Fixture, target: &str, nextest: bool) -> Command {
    let mut command = fixture.command(target, &[]);
    let like = std::mem::replace(&mut command, Command::new("env"));
    // A shell has what it runs in the background ignore that.
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

/// Ctrl-C: the terminal signals the foreground group. cargo and the harness are in it, nextest's
/// tests are not; nextest passes it on.
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

/// Ctrl-C, from a real terminal: its session's leader is not the harness.
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
        // The terminal is gone with the one who held its other side: SIGHUP.
        send(run.pid(), Signal::SIGKILL);
        expect_the_end(target, count, run);
    }
}

// ---- everything that a pattern matches ----

/// `pkill -9 -f target/debug/deps/harness-1a2b`, as a tired user does it, with or without cargo.
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
            // The harness, three tests, and what those forked without exec.
            assert!(matched.len() > 12, "{target}: {matched:?} of {count}");
            assert!(matched.len() + 4 < count, "{target}: {matched:?} of {count}");
            // By their titles, whoever has read them with `ps`: supervisors are matched then.
            for pid in &matched {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            let what = format!("{target}, {} matched, cargo: {by_cargo}, {more}", matched.len());
            expect_the_end(&what, count, run);
        }
    }
}
