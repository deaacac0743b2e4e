//! Finds children with a wrong start: a child that runs the test binary itself, or blocks the signal that
//! should end it.

use nix::libc;

use super::evidence::Evidence;
use super::finding::{CodePlace, Finding, Kind};
use super::leaked;
use crate::guard::facts::Process;
use crate::proc::process::GUARD;

/// The signals that ask a process to exit.
const ENDING: [i32; 7] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE];

/// A child of the test that has exec'ed the test binary.
pub(super) fn own_binary(evidence: &Evidence<'_>) -> Option<Finding> {
    let child = leaked::leaked(evidence.facts).find(|process| evidence.runs_tests_again(process))?;
    let filters = child.command_line.iter().skip(1).filter(|argument| !argument.starts_with('-'));
    let created = evidence.names.of_process(child.pid).map(CodePlace::of);
    let kind = Kind::OwnBinary { pid: child.pid, filters: filters.cloned().collect(), created };
    Some(Finding::new(None, kind, evidence))
}

impl Evidence<'_> {
    /// Whether a process has exec'ed the test binary, and runs tests: it has guards of its own.
    pub(super) fn runs_tests_again(&self, process: &Process) -> bool {
        let is_guard = |other: &Process| {
            other.comm.as_bytes() == GUARD.to_bytes() && other.lineage.contains(&process.pid)
        };
        process.execed_own_program
            && (!self.facts.is_command() || self.names.is_libtest)
            && self.facts.processes.iter().any(is_guard)
    }
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
