//! A run that is cut from outside reports what had failed and what was running, and ends by the signal.
//!
//! `tests/fixtures/leaky/tests/cut` has the tests.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Fixture, PATIENCE, Run, guard_above, root, send, until};

const TARGETS: [&str; 2] = ["cut", "cut_stock"];
const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
/// Two seconds are promised, on an idle machine.
const SOON: Duration = Duration::from_secs(6);

fn leaky() -> Fixture {
    Fixture::build("leaky")
}

/// A command that runs a target, with the words of `before` in front, as a foreground shell would: no signal
/// is ignored.
fn command(fixture: &Fixture, before: &[&str], target: &str, arguments: &[&str]) -> Command {
    let like = fixture.command(target, &[]);
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM,QUIT").args(before);
    if target == "cut" {
        let script =
            "exec \"$0\" \"$@\" --json \"$VICTIM_OUT/report.json\" --junit \"$VICTIM_OUT/report.xml\"";
        command.args(["sh", "-c", script]);
    }
    command.arg(fixture.binary(target)).args(arguments);
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn start(target: &str, arguments: &[&str]) -> Run {
    Run::spawn(command(&leaky(), &[], target, arguments))
}

/// Starts the ten tests that wait and the two that fail, eight at a time, and waits until eight of them wait.
fn start_eight(target: &str) -> Run {
    let mut run = start(target, &["bodies::waits::", "bodies::fails", "bodies::leaks", "--test-threads=8"]);
    for name in &NAMES[..8] {
        run.wait_for(&format!("waits-{name}"));
    }
    run
}

/// Waits for the end of a run that was cut just now, and checks how it ended.
#[track_caller]
fn expect_the_end(run: &mut Run, signal: Signal) -> String {
    let begin = Instant::now();
    let text = run.finish();
    println!("over {:?} after {signal}", begin.elapsed());
    assert!(begin.elapsed() < SOON, "{:?}\n{text}", begin.elapsed());
    assert_eq!(run.signal(), Some(signal as i32), "{text}");
    run.assert_nothing_left(PATIENCE);
    assert!(text.contains(&format!("childproof: the run was cut by {signal} ")), "{text}");
    text
}

#[track_caller]
fn expect_cut(text: &str, name: &str) {
    let head = text.lines().find(|line| line.contains(&format!("CUT  {name}   after ")));
    let head = head.unwrap_or_else(|| panic!("no `CUT  {name}` in\n{text}"));
    assert!(head.ends_with(" s; killed 2 processes"), "{head}");
}

fn lines(run: &Run) -> Vec<Value> {
    let json = run.told("report.json").unwrap();
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn cut_by(signal: Signal) {
    for target in TARGETS {
        let mut run = start_eight(target);
        send(run.pid(), signal);
        let text = expect_the_end(&mut run, signal);
        let waiting = (0..10).filter(|at| run.told(&format!("waits-{}", NAMES[*at])).is_some());
        let waiting: Vec<&str> = waiting.map(|at| NAMES[at]).collect();
        for name in &waiting {
            expect_cut(&text, &format!("bodies::waits::{name}"));
            assert!(text.contains(&format!("words of {name}\n")), "{text}");
        }
        // The wait of the thread is reported, as at a timeout.
        assert!(text.contains("the test reads from a pipe") || text.contains("`sleep 86399`"), "{text}");
        // In the stock target the failing tests run first, in alphabetical order.
        for words in ["words of the failure", "output of the failure", "LEAK  bodies::leaks   "] {
            assert!(text.contains(words), "no `{words}` in {target}:\n{text}");
        }
        assert_eq!(waiting.len(), 8, "{text}");
        let not_begun =
            if target == "cut" { "; 2 tests had not begun" } else { "; 2 guarded tests had not begun" };
        assert!(text.contains(not_begun), "{text}");
        if target == "cut" {
            let lines = lines(&run);
            let is_cut =
                |line: &&Value| line["outcome"] == "failed" && line["causes"] == serde_json::json!(["cut"]);
            assert_eq!((lines.len(), lines.iter().filter(is_cut).count()), (12, 8));
        }
    }
}

#[childproof::test(timeout = "120s")]
fn by_sigint() {
    cut_by(Signal::SIGINT);
}

#[childproof::test(timeout = "120s")]
fn by_sigterm() {
    cut_by(Signal::SIGTERM);
}

#[childproof::test(timeout = "120s")]
fn by_sighup() {
    cut_by(Signal::SIGHUP);
}

/// Half of 200 tests have finished, and each of them is in all three reports.
#[childproof::test(timeout = "120s")]
fn loses_no_finished_result() {
    let mut command = command(&leaky(), &[], "cut", &["many::", "--test-threads=8"]);
    command.env("CUT_MANY", "200");
    let mut run = Run::spawn(command);
    for number in 100..108 {
        run.wait_for(&format!("waits-{number}"));
    }
    send(run.pid(), Signal::SIGTERM);
    let text = expect_the_end(&mut run, Signal::SIGTERM);
    for number in (0..100).step_by(3) {
        assert!(text.contains(&format!("words of {number:03}")), "{number}\n{text}");
    }
    (100..108).for_each(|number| expect_cut(&text, &format!("many::{number}")));
    assert!(text.contains("test result: FAILED. 66 passed; 42 failed; 92 ignored;"), "{text}");
    assert!(text.contains("; 92 tests had not begun"), "{text}");
    let lines = lines(&run);
    let count = |is: &dyn Fn(&Value) -> bool| lines.iter().filter(|line| is(line)).count();
    assert_eq!(count(&|line| line["outcome"] == "passed"), 66);
    assert_eq!(count(&|line| line["causes"] == serde_json::json!(["panicked"])), 34);
    assert_eq!(count(&|line| line["causes"] == serde_json::json!(["cut"])), 8);
    assert_eq!(count(&|line| line["outcome"] == "ignored"), 92);
    let xml = run.told("report.xml").unwrap();
    assert!(xml.ends_with("</testsuites>\n"), "{xml}");
    assert_eq!(xml.matches("<testcase ").count(), 200);
    let kinds = ["<failure ", "<error ", "<skipped "].map(|kind| xml.matches(kind).count());
    assert_eq!(kinds, [34, 8, 92], "{xml}");
    assert_eq!(xml.matches("type=\"cut\"").count(), 8);
}

/// Processes that were still in the grace are no leak.
#[childproof::test(timeout = "120s")]
fn in_the_grace_it_is_no_leak() {
    for target in TARGETS {
        let mut run = start(target, &["bodies::leaves_a_child", "--exact"]);
        let test = run.wait_for("leaves").parse().unwrap();
        until("the end of the test's process", || !crate::support::alive(test));
        send(run.pid(), Signal::SIGTERM);
        let text = expect_the_end(&mut run, Signal::SIGTERM);
        let head =
            text.lines().find(|line| line.starts_with("CUT  bodies::leaves_a_child   body passed in "));
        assert!(head.is_some_and(|head| head.ends_with(" s; killed 1 process")), "{text}");
        if target == "cut" {
            assert_eq!(lines(&run)[0]["causes"], serde_json::json!(["cut"]));
        }
    }
}

/// A test that waits for its serial key has not started, and does not delay the end.
#[childproof::test(timeout = "120s")]
fn does_not_wait_for_a_serial_key() {
    for target in TARGETS {
        let mut other = start("cut", &["bodies::has_the_key", "--exact"]);
        other.wait_for("waits-key");
        let mut run =
            start(target, &["bodies::waits_for_the_key", "bodies::waits::a", "--exact", "--test-threads=2"]);
        run.wait_for("waits-a");
        // In the call that waits for the lock.
        until("a thread at the lock", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", run.pid())).unwrap().flatten();
            let is_at_lock = |path: std::path::PathBuf| {
                fs::read_to_string(path.join("syscall")).is_ok_and(|line| line.starts_with("73 "))
            };
            cfg!(not(target_arch = "x86_64")) || tasks.map(|task| task.path()).any(is_at_lock)
        });
        send(run.pid(), Signal::SIGTERM);
        let text = expect_the_end(&mut run, Signal::SIGTERM);
        expect_cut(&text, "bodies::waits::a");
        assert!(
            text.contains("; 1 test had not begun") || text.contains("; 1 guarded test had not begun"),
            "{text}"
        );
    }
}

/// Whatever keeps the first from its end: here the supervisor is stopped and cannot answer, and what would continue it is
/// gone.
#[childproof::test(timeout = "120s")]
fn a_second_signal_ends_it_at_once() {
    for target in TARGETS {
        let mut run = start(target, &["bodies::waits::a", "--exact"]);
        let test = run.wait_for("waits-a");
        let stat = fs::read_to_string(format!("/proc/{test}/stat")).unwrap();
        let supervisor: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        // The topmost first, which would start another.
        guard_above(supervisor, run.pid()).iter().rev().for_each(|pid| send(*pid, Signal::SIGKILL));
        send(supervisor, Signal::SIGSTOP);
        send(run.pid(), Signal::SIGTERM);
        // The same signal again, as timeout(1) sends it.
        send(run.pid(), Signal::SIGTERM);
        thread::sleep(Duration::from_millis(600));
        assert!(run.is_running(), "{}", run.text());
        let begin = Instant::now();
        send(run.pid(), Signal::SIGINT);
        let text = run.finish();
        assert_eq!(run.signal(), Some(Signal::SIGINT as i32), "{text}");
        assert!(begin.elapsed() < SOON, "{text}");
        send(supervisor, Signal::SIGCONT);
        run.assert_nothing_left(PATIENCE);
    }
}

/// timeout(1) signals the process, and then its group.
#[childproof::test(timeout = "120s")]
fn by_timeout_of_a_shell() {
    for target in TARGETS {
        let mut run =
            Run::spawn(command(&leaky(), &["timeout", "5"], target, &["bodies::waits::a", "--exact"]));
        run.wait_for("waits-a");
        let text = run.finish();
        assert_eq!(run.code(), Some(124), "{text}");
        run.assert_nothing_left(PATIENCE);
        expect_cut(&text, "bodies::waits::a");
    }
}

/// SIGQUIT shows the running tests, and interrupts none of their system calls.
#[childproof::test(timeout = "120s")]
fn sigquit_shows_what_runs_and_goes_on() {
    for target in TARGETS {
        let tests = ["bodies::polls", "bodies::waits::a", "--exact", "--test-threads=2"];
        // A shell creates the FIFO in the run's directory for messages.
        let like = command(
            &leaky(),
            &["sh", "-c", "mkfifo \"$VICTIM_OUT/fifo\" && exec \"$0\" \"$@\""],
            target,
            &tests,
        );
        let mut run = Run::spawn(like);
        let polls = run.wait_for("polls");
        let reads = run.wait_for("waits-a");
        for round in 1..=2 {
            send(run.pid(), Signal::SIGQUIT);
            for name in ["bodies::polls", "bodies::waits::a"] {
                until("the look", || run.text().matches(&format!("RUNS  {name}   for ")).count() == round);
            }
        }
        let text = run.text();
        assert!(text.contains("`sleep 86399`"), "{text}");
        assert!(run.is_running(), "{text}");
        assert!(!text.contains("CUT") && !text.contains("killed"), "{text}");
        for pid in [&polls, &reads] {
            assert!(crate::support::alive(pid.parse().unwrap()), "{text}");
        }
        fs::write(run.out().join("fifo"), "x").unwrap();
        until("the end of the test that polls", || !crate::support::alive(polls.parse().unwrap()));
        send(run.pid(), Signal::SIGTERM);
        let text = expect_the_end(&mut run, Signal::SIGTERM);
        assert!(!text.contains("Interrupted") && !text.contains("CUT  bodies::polls"), "{text}");
        expect_cut(&text, "bodies::waits::a");
    }
}

/// A signal that is ignored from the start stays ignored, as under nohup.
#[childproof::test(timeout = "120s")]
fn a_signal_that_is_ignored_cuts_nothing() {
    for target in TARGETS {
        let mut run = Run::spawn(command(&leaky(), &["nohup"], target, &["bodies::waits::a", "--exact"]));
        run.wait_for("waits-a");
        let status = fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap();
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let bit = |signal: Signal| 1 << (signal as i32 - 1);
        assert_eq!(mask("SigIgn:") & bit(Signal::SIGHUP), bit(Signal::SIGHUP), "{status}");
        assert_eq!(
            mask("SigCgt:") & (bit(Signal::SIGHUP) | bit(Signal::SIGTERM)),
            bit(Signal::SIGTERM),
            "{status}"
        );
        send(run.pid(), Signal::SIGHUP);
        send(run.pid(), Signal::SIGTERM);
        expect_the_end(&mut run, Signal::SIGTERM);
    }
}

#[childproof::test(timeout = "120s")]
fn a_handler_of_the_users_own_is_left_alone() {
    let mut command = command(&leaky(), &[], "cut", &["bodies::waits::a", "--exact"]);
    command.env("CUT_HANDLER", "1");
    let mut run = Run::spawn(command);
    run.wait_for("waits-a");
    send(run.pid(), Signal::SIGTERM);
    let text = run.finish();
    assert_eq!(run.code(), Some(7), "{text}");
    run.assert_nothing_left(PATIENCE);
}

/// Forks of an unguarded test in a stock target inherit the handler, and must not use it.
#[childproof::test(timeout = "120s")]
fn children_of_unguarded_tests_have_the_default_effect() {
    let tests = [
        "a_child_is_ended_by_sigterm",
        "bodies::waits::a",
        "--exact",
        "--include-ignored",
        "--test-threads=2",
    ];
    let mut run = start("cut_stock", &tests);
    run.wait_for("children");
    assert!(run.is_running() && !run.text().contains("CUT"), "{}", run.text());
    send(run.pid(), Signal::SIGTERM);
    expect_cut(&expect_the_end(&mut run, Signal::SIGTERM), "bodies::waits::a");
}

/// While a debugger is attached from outside, the timeout is extended; after it detaches, the timeout ends.
#[childproof::test(timeout = "120s")]
fn the_clock_of_a_test_under_a_debugger_stands_still() {
    let there = Command::new("strace").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("not checked: strace is not installed");
        return;
    }
    for target in TARGETS {
        let mut run = start(target, &["bodies::is_debugged", "--exact"]);
        let test = run.wait_for("debugged");
        let mut debugger = Command::new("strace");
        debugger.args(["-qq", "-o", "/dev/null", "-p", &test]);
        let mut debugger = run.beside(debugger);
        let words = "childproof: test bodies::is_debugged is stopped by a debugger; its timeout waits\n";
        until("the word of the debugger", || run.text().contains(words));
        // The timeout is extended by a second repeatedly.
        thread::sleep(Duration::from_millis(2500));
        assert!(run.is_running() && !run.text().contains("HUNG"), "{}", run.text());
        assert_eq!(run.text().matches(words).count(), 1);
        send(debugger.id() as i32, Signal::SIGTERM);
        debugger.wait().unwrap();
        let text = run.finish();
        assert!(text.contains("HUNG  bodies::is_debugged"), "{text}");
        run.assert_nothing_left(PATIENCE);
    }
}

/// Ctrl-C: the terminal signals the foreground group. cargo is in it and exits at once, and the harness
/// reports all the same.
#[childproof::test(timeout = "180s")]
fn by_ctrl_c_below_cargo() {
    let fixture = leaky();
    for target in TARGETS {
        let arguments = ["test", "--offline", "--quiet", "--test", target, "--"];
        let tests = ["bodies::waits::a", "bodies::waits::b", "--exact", "--test-threads=2"];
        let mut command = cargo(&fixture, target, &[&arguments[..], &tests].concat());
        command.process_group(0);
        let mut run = Run::spawn(command);
        run.wait_for("waits-a");
        run.wait_for("waits-b");
        send(-run.pid(), Signal::SIGINT);
        let text = run.finish();
        assert_eq!(run.signal(), Some(Signal::SIGINT as i32), "{text}");
        // cargo does not wait for it.
        until("the report", || run.text().contains("childproof: the run was cut by SIGINT"));
        run.assert_nothing_left(PATIENCE);
        ["a", "b"].iter().for_each(|name| expect_cut(&run.text(), &format!("bodies::waits::{name}")));
    }
}

/// A cargo command on the fixture, in which no signal is ignored.
fn cargo(fixture: &Fixture, target: &str, arguments: &[&str]) -> Command {
    let like = fixture.command(target, &[]);
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM,QUIT", env!("CARGO")]).args(arguments);
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .current_dir(root().join("tests/fixtures/leaky"))
        .env("CARGO_TARGET_DIR", root().join("target/fixtures"))
        .env_remove("RUSTFLAGS");
    command
}

/// nextest ends a slow test with SIGTERM to its group. It shows the report.
#[childproof::test(timeout = "180s")]
fn by_the_slow_timeout_of_nextest() {
    let version = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
    if !version.is_ok_and(|output| output.status.success()) {
        println!("not checked: cargo-nextest is not installed");
        return;
    }
    let fixture = leaky();
    for target in TARGETS {
        let filter = ["--test", target, "-E", "test(=bodies::waits::a)"];
        let arguments = ["nextest", "run", "--offline", "--color=never", "--profile=cut"];
        let command = cargo(&fixture, target, &[&arguments[..], &filter].concat());
        let mut run = Run::spawn(command);
        let text = run.finish();
        assert_eq!(run.code(), Some(100), "{text}");
        assert!(text.contains("TIMEOUT"), "{text}");
        expect_cut(&text, "bodies::waits::a");
        run.assert_nothing_left(PATIENCE);
    }
}
