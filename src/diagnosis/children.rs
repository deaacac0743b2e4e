//! Finds children with a wrong start: a child that runs the test binary itself, or blocks the signal that
//! should end it.

use nix::libc;

use super::evidence::Evidence;
use super::finding::{CodePlace, Finding, Kind};
use super::leaked;
use crate::guard::facts::Process;

/// The signals that ask a process to exit.
const ENDING: [i32; 7] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE];

/// A child of the test that has exec'ed the test binary.
pub(super) fn own_binary(evidence: &Evidence<'_>) -> Option<Finding> {
    let facts = evidence.facts;
    let test = facts.processes.iter().find(|process| process.is_test)?;
    let is_own = |process: &&Process| {
        !process.runs_own_program()
            && process.lineage.contains(&facts.pid)
            && process.comm == test.comm
            && program(process).is_some_and(|name| Some(name) == program(test))
    };
    let child = leaked::leaked(facts).find(is_own)?;
    let filters = child.command_line.iter().skip(1).filter(|argument| !argument.starts_with('-'));
    let created = evidence.names.of_process(child.pid).map(CodePlace::of);
    let kind = Kind::OwnBinary { pid: child.pid, filters: filters.cloned().collect(), created };
    Some(Finding::new(None, kind, evidence))
}

/// A process that is left and blocks a signal that was sent to end it.
pub(super) fn blocked(evidence: &Evidence<'_>) -> Option<Finding> {
    let held_back = |process: &Process| {
        let signals = ENDING.into_iter().filter(|signal| process.holds_back(*signal));
        signals.collect::<Vec<i32>>()
    };
    let child = leaked::leaked(evidence.facts).find(|process| !held_back(process).is_empty())?;
    let created = evidence.names.of_process(child.pid).map(CodePlace::of);
    let kind = Kind::Blocked { pid: child.pid, signals: held_back(child), created };
    Some(Finding::new(None, kind, evidence))
}

/// The name of the program that a process runs.
fn program(process: &Process) -> Option<&str> {
    process.command_line.first()?.rsplit('/').next()
}
