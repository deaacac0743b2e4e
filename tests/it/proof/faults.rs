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

/// Calls that strace cannot make fail, or of which a failure means nothing to any program.
const LEFT_OUT: [&str; 8] = [
    "exit",
    "exit_group",
    "rt_sigreturn",
    "restart_syscall",
    "execve",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
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

/// The names of the calls that the guard makes from the middle of a test to the end of the run.
fn calls(fixture: &Fixture) -> BTreeSet<String> {
    let mut held = Held::start(&fixture.command("harness", &["--exact", "guarded::tree"]));
    let log = scratch().join("calls");
    let guard = guard(&mut held);
    let mut strace = attach(&guard, &["-qq", "-o", log.to_str().unwrap()]);
    held.run.tell("go");
    held.run.finish();
    strace.wait().unwrap();
    let text = fs::read_to_string(log).unwrap();
    // `PID call(..`
    let calls = text.lines().filter_map(|line| line.split_once(' ')?.1.trim().split_once('('));
    let names = calls.map(|(name, _)| name.to_owned());
    let is_name = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    names.filter(is_name).filter(|name| !LEFT_OUT.contains(&&name[..])).collect()
}

/// Runs a leaking test with one fault. Returns what is wrong.
fn trial(fixture: &Fixture, fault: &Fault) -> Option<String> {
    let inject = format!("inject={}:{}:when={}", fault.call, fault.what, fault.when);
    let like = fixture.command(fault.target, &["--exact", "guarded::tree"]);
    let begin = Instant::now();
    let mut strace = None;
    let mut held = match fault.phase {
        Phase::Start => {
            let mut command = Command::new("strace");
            command.args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={}", fault.call),
                "-e",
                &inject,
            ]);
            command.arg(like.get_program()).args(like.get_args());
            for (name, value) in like.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            Held::start(&command)
        }
        Phase::Test => {
            let mut held = Held::start(&like);
            let pids = guard(&mut held);
            let trace = format!("trace={}", fault.call);
            strace = Some(attach(&pids, &["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]));
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

fn faults(calls: &BTreeSet<String>, whens: &[u32]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for target in ["harness", "stock"] {
        for phase in [Phase::Start, Phase::Test] {
            for call in calls {
                for what in FAULTS {
                    for when in whens {
                        faults.push(Fault { target, phase, call: call.clone(), what, when: *when });
                    }
                }
            }
        }
    }
    faults
}

/// Some of them: each call once.
#[childproof::test(timeout = "300s")]
fn never_hang_a_run_nor_let_a_leak_pass() {
    if !has_strace() {
        return;
    }
    let fixture = fixture();
    let calls = calls(&fixture);
    let all = faults(&calls, &[1]).into_iter().enumerate();
    // Each call with another fault, phase and target.
    let some = all.filter(|(number, _)| number % 29 == 0).map(|(_, fault)| fault);
    check(&fixture, some.collect());
}

#[childproof::test(timeout = "120m")]
#[ignore = "takes minutes: `PROOF_TRIALS=3 cargo test --test it -- --ignored --nocapture proof::faults`"]
fn of_each_call_never_hang_a_run_nor_let_a_leak_pass() {
    if !has_strace() {
        return;
    }
    let fixture = fixture();
    let calls = calls(&fixture);
    println!("{} calls: {calls:?}", calls.len());
    let whens: Vec<u32> = (1..=trials(3) as u32).collect();
    check(&fixture, faults(&calls, &whens));
}
