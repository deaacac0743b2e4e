//! Findings from hand-made evidence: at least one for each kind, and for each precondition of a remedy.

mod causes;
mod chains;
mod deadlocks;
mod kinds;
mod others;
mod running;

use std::time::Duration;

use nix::libc;

use super::{Finding, Kind, Remedy, Verdict, conclude};
use crate::config::policy::{Policy, Settings};
use crate::guard::facts::{Class, EvidenceLimit, Facts, PipeState, Process, Unrecorded};
use crate::guard::report_page::{Body, End, HeldBy, StrayFd};
use crate::proc::fds::Fd;
use crate::proc::process::UnseenWaker;
use crate::proc::signals::Signals;
use crate::proc::waits::{On, Thread};
use crate::recorder::call_site::{Names, ResolvedCallSite, ResourceKind, SourceLocation};

const TEST: i32 = 100;
const CHILD: i32 = 101;
const PIPE: u64 = 7;

fn settings(policy: Policy) -> Settings {
    policy.settle()
}

/// A test that returned, and left these processes.
fn returned(processes: Vec<Process>) -> Facts {
    let mut facts = Facts::clean(TEST, 99, Some(Duration::ZERO), Duration::ZERO);
    facts.processes = processes;
    facts
}

/// A test that exceeded its timeout; the first process is its own.
fn hung(processes: Vec<Process>) -> Facts {
    let mut facts = returned(processes);
    facts.body = Body::Unfinished;
    facts.end = End::TimedOut;
    facts.processes[0].is_test = true;
    facts.processes[0].comm = "test".to_owned();
    facts
}

/// A leaked child of the test that runs another program.
fn process(pid: i32, threads: Vec<Thread>, fds: Vec<Fd>) -> Process {
    Process {
        pid,
        class: Class::Leaked,
        lineage: if pid == TEST { vec![] } else { vec![TEST] },
        parent: if pid == TEST { 99 } else { TEST },
        dead_children: Vec::new(),
        ended: Vec::new(),
        signals: Signals::default(),
        adopted: false,
        is_test: false,
        comm: "sleep".to_owned(),
        command_line: vec!["sleep".to_owned(), "1".to_owned()],
        state: "S".to_owned(),
        pgid: TEST,
        sid: 99,
        threads: threads.len() as u32,
        forked_without_exec: false,
        execed_own_program: false,
        age: None,
        tasks: threads,
        fds: Some(fds),
        unseen_wakers: Vec::new(),
        unseen_fds: Vec::new(),
        notifiers: Vec::new(),
        more_sockets: false,
        test_in_environment: None,
        killed: true,
        exit_status: None,
    }
}

fn fork(pid: i32, threads: Vec<Thread>, fds: Vec<Fd>) -> Process {
    Process { forked_without_exec: true, ..process(pid, threads, fds) }
}

fn thread(tid: i32, on: On) -> Thread {
    Thread {
        tid,
        name: "sleep".to_owned(),
        state: "S".to_owned(),
        syscall: "read".to_owned(),
        on,
        behind: Vec::new(),
        tracer: 0,
        wchan: None,
        fingerprint: "same".to_owned(),
        unchanged: true,
        frames: Vec::new(),
    }
}

fn futex() -> On {
    On::Futex { address: 4096, place: None, shared: false, forever: true }
}

fn end(fd: i32, pipe: u64, access: i32) -> Fd {
    Fd {
        fd,
        target: format!("pipe:[{pipe}]"),
        access,
        cloexec: false,
        event: 0,
        is_set_timer: false,
        process: 0,
        ino: pipe,
        locks: false,
        held: Vec::new(),
        carries: false,
    }
}

fn read_end(fd: i32, pipe: u64) -> Fd {
    end(fd, pipe, libc::O_RDONLY)
}

fn write_end(fd: i32, pipe: u64) -> Fd {
    end(fd, pipe, libc::O_WRONLY)
}

fn state(ino: u64, queued: u32) -> PipeState {
    PipeState { ino, queued: Some(queued), capacity: Some(4096), no_writer: false, no_reader: false }
}

/// A call that created a process or a pipe.
fn site(kind: ResourceKind, call: &str, key: u64) -> ResolvedCallSite {
    ResolvedCallSite {
        call: call.to_owned(),
        creator: TEST,
        keys: [key, 0],
        kind,
        threads: 0,
        thread: "main".to_owned(),
        test: 0,
        execed: false,
        cloexec: false,
        command_line: vec!["sh".to_owned()],
        place: Some(SourceLocation { file: "tests/a.rs".to_owned(), line: 3, column: 5 }),
        function: Some("a::makes".to_owned()),
        callers: Vec::new(),
        in_test: None,
        functions: vec![call.to_owned(), "a::makes".to_owned()],
        of_runtime: false,
        is_kept: false,
        is_tokios: false,
        stack: Vec::new(),
    }
}

fn names(call_sites: Vec<ResolvedCallSite>) -> Names {
    Names { call_sites, ..Names::default() }
}

fn stray(fd: i32, access: i32) -> StrayFd {
    StrayFd {
        fd,
        target: format!("pipe:[{PIPE}]"),
        ino: PIPE,
        key: PIPE,
        access,
        cloexec: true,
        held_by: HeldBy::Table,
    }
}

fn verdict(facts: Facts, names: Names, policy: Policy) -> Verdict {
    conclude("t", &settings(policy), facts, names)
}

/// The only finding of the kind that `is` accepts.
#[track_caller]
fn only(verdict: &Verdict, is: fn(&Kind) -> bool) -> Finding {
    let all = verdict.findings.iter().chain(&verdict.warnings);
    let found: Vec<&Finding> = all.filter(|finding| is(&finding.kind)).collect();
    assert_eq!(found.len(), 1, "{:#?}", verdict.findings);
    found[0].clone()
}

/// The remedies of the only leaked process.
#[track_caller]
fn remedies_of_leak(facts: Facts, names: Names) -> Vec<Remedy> {
    let verdict = verdict(facts, names, Policy::new());
    only(&verdict, |kind| matches!(kind, Kind::LeakedProcess { .. })).remedies
}
