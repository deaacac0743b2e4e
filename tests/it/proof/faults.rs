//! Faults: each system call of supervisor and fork server fails or is delayed once. The run ends with a verdict or an
//! `ERROR`, everything is killed, and what leaks never passes.
//!
//! strace injects the faults, into a whole run from its start, or into the guard alone from the middle of a test on.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::proof::{Held, each, fixture, trials};
use crate::support::{Fixture, parent, scratch, until};

/// A run with a delayed call takes a second.
const LIMIT: Duration = Duration::from_secs(60);

/// What is done to a call.
const FAULTS: [&str; 4] = ["error=EIO", "error=EAGAIN", "error=ENOMEM", "delay_enter=300000"];

/// Calls that strace cannot make fail, or of which a failure means nothing to any program. The kernel answers `brk` with
/// an address, so libc takes an injected error for a success.
const LEFT_OUT: [&str; 9] = [
    "exit",
    "exit_group",
    "rt_sigreturn",
    "restart_syscall",
    "execve",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "brk",
];

/// When the faults begin.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// With the start of the run: harness and test processes are hit too.
    Start,
    /// In the middle of the test, in its guard.
    Test,
}

#[derive(Clone, Debug)]
struct Fault {
    target: &'static str,
    phase: Phase,
    call: String,
    what: &'static str,
    /// Which of its calls, in each process.
    when: u32,
}

fn has_strace() -> bool {
    let found = Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("not checked: strace is not installed");
    }
    found
}

/// The guard's processes of a run with a test that waits.
fn guard(held: &mut Held) -> [i32; 2] {
    let told = held.run.wait_for("tree");
    let supervisor: i32 = told.split_once(' ').unwrap().1.parse().unwrap();
    [supervisor, parent(supervisor)]
}

/// Attaches strace to processes, and waits until it follows them.
fn attach(pids: &[i32], arguments: &[&str]) -> Child {
    let mut strace = Command::new("strace");
    strace.arg("-f").args(arguments).args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
    let strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_traced = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    };
    until("strace", || pids.iter().all(is_traced));
    strace
}

/// The names of the calls that are made in a whole run, or by its guard from the middle of the test on.
fn calls(fixture: &Fixture, phase: Phase) -> BTreeSet<String> {
    let like = fixture.command("harness", &["--exact", "guarded::tree"]);
    let log = scratch().join("calls");
    let output = ["-qq", "-o", log.to_str().unwrap()];
    let mut held = match phase {
        Phase::Start => Held::start(&traced(&like, &output)),
        Phase::Test => Held::start(&like),
    };
    let guard = guard(&mut held);
    let strace = matches!(phase, Phase::Test).then(|| attach(&guard, &output));
    held.run.tell("go");
    held.run.finish();
    if let Some(mut strace) = strace {
        strace.wait().unwrap();
    }
    let text = fs::read_to_string(log).unwrap();
    // `PID call(..`
    let calls = text.lines().filter_map(|line| line.split_once(' ')?.1.trim().split_once('('));
    let names = calls.map(|(name, _)| name.to_owned());
    let is_name = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    names.filter(is_name).filter(|name| !LEFT_OUT.contains(&&name[..])).collect()
}

/// The same command below strace.
fn traced(like: &Command, arguments: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.arg("-f").args(arguments).arg(like.get_program()).args(like.get_args());
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Runs a leaking test with one fault. Returns what is wrong.
fn trial(fixture: &Fixture, fault: &Fault) -> Option<String> {
    let inject = format!("inject={}:{}:when={}", fault.call, fault.what, fault.when);
    let like = fixture.command(fault.target, &["--exact", "guarded::tree"]);
    let begin = Instant::now();
    let mut strace = None;
    let trace = format!("trace={}", fault.call);
    let arguments = ["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let mut held = match fault.phase {
        Phase::Start => Held::start(&traced(&like, &arguments)),
        Phase::Test => {
            let mut held = Held::start(&like);
            let pids = guard(&mut held);
            strace = Some(attach(&pids, &arguments));
            held
        }
    };
    held.run.tell("go");
    let is_over = held.are_gone(LIMIT);
    if let Some(mut strace) = strace {
        let _ = strace.kill();
        let _ = strace.wait();
    }
    if !is_over {
        return Some(format!("{fault:?}: a hang, or left: {:?}\n{}", held.run.marked(), held.run.text()));
    }
    let text = held.run.finish();
    let took = begin.elapsed();
    let has_passed = held.run.code() == Some(0) || text.contains("tree ... ok");
    has_passed.then(|| format!("{fault:?}: passed after {took:.1?}\n{text}"))
}

/// Tries these faults, and fails with what is wrong.
fn check(fixture: &Fixture, faults: Vec<Fault>) {
    let count = faults.len();
    let wrong: Vec<String> = each(faults, |fault| trial(fixture, &fault)).into_iter().flatten().collect();
    println!("{count} faults, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Each call of each phase with each fault.
fn faults(fixture: &Fixture, whens: &[u32]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for phase in [Phase::Start, Phase::Test] {
        let calls = calls(fixture, phase);
        println!("{phase:?}: {} calls: {calls:?}", calls.len());
        for call in calls {
            for target in ["harness", "stock"] {
                for what in FAULTS {
                    let fault = |when| Fault { target, phase, call: call.clone(), what, when };
                    faults.extend(whens.iter().map(|when| fault(*when)));
                }
            }
        }
    }
    faults
}

/// Some of them.
#[childproof::test(timeout = "300s")]
fn never_hang_a_run_nor_let_a_leak_pass() {
    if !has_strace() {
        return;
    }
    let fixture = fixture();
    // Each time another call, fault and target.
    let some = faults(&fixture, &[1]).into_iter().step_by(37);
    check(&fixture, some.collect());
}

/// A signal that continues the test after the look of the guard is lost.
#[childproof::test(timeout = "180s")]
fn a_test_that_is_not_continued_is_continued_later() {
    if !has_strace() {
        return;
    }
    let fixture = fixture();
    let fault =
        Fault { target: "harness", phase: Phase::Test, call: "kill".to_owned(), what: FAULTS[0], when: 1 };
    check(&fixture, vec![fault]);
}

#[childproof::test(timeout = "120m")]
#[ignore = "takes minutes: `PROOF_TRIALS=1 cargo test --test it -- --ignored --nocapture proof::faults`"]
fn of_each_call_never_hang_a_run_nor_let_a_leak_pass() {
    if !has_strace() {
        return;
    }
    let fixture = fixture();
    let whens: Vec<u32> = (1..=trials(3) as u32).collect();
    check(&fixture, faults(&fixture, &whens));
}
