//! The arguments of a test that accept a finding if it is intended.

use super::evidence::Evidence;
use super::finding::{Ending, Kind};
use super::glob::glob_for;
use super::{leaked, stray};
use crate::guard::report_page::HeldBy;

/// An argument of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    Timeout {
        seconds: u64,
    },
    /// `allow_process`: processes whose command line matches.
    Process {
        glob: String,
    },
    /// `processes = "allow"`.
    Processes,
    /// `fds = "pipes"`: files and sockets do not count.
    PipesOnly,
    /// `fds = "off"`.
    NoFds,
    /// `allow_created_by`: fds that a function created.
    CreatedBy {
        path: String,
    },
    Unwaited,
    Threads,
    ThreadedFork,
}

impl Allowance {
    /// The name of the argument.
    pub(crate) fn argument(&self) -> &'static str {
        match self {
            Allowance::Timeout { .. } => "timeout",
            Allowance::Process { .. } => "allow_process",
            Allowance::Processes => "processes",
            Allowance::PipesOnly | Allowance::NoFds => "fds",
            Allowance::CreatedBy { .. } => "allow_created_by",
            Allowance::Unwaited => "unwaited",
            Allowance::Threads => "threads",
            Allowance::ThreadedFork => "threaded_fork",
        }
    }
}

/// The arguments that would accept a finding.
pub(super) fn allowances(kind: &Kind, evidence: &Evidence<'_>) -> Vec<Allowance> {
    match kind {
        Kind::TimedOut { limit, body_returned: false, .. } => {
            vec![Allowance::Timeout { seconds: (2.0 * limit.as_secs_f64()).ceil().max(600.0) as u64 }]
        }
        Kind::LeakedProcess { pid, others, .. } => of_processes(evidence, *pid, others),
        Kind::ElusiveProcess { .. } => vec![Allowance::Processes],
        Kind::StrayFd { count, fds, .. } => stray::allow_creators(evidence)
            .filter(|_| *count == evidence.facts.strays.len())
            .unwrap_or_else(|| match fds.iter().any(|fd| fd.is_pipe || fd.held_by == HeldBy::Opaque) {
                true => vec![Allowance::NoFds],
                false => vec![Allowance::PipesOnly],
            }),
        Kind::UnlistedFds { .. } => vec![Allowance::NoFds],
        Kind::Unwaited { .. } => vec![Allowance::Unwaited],
        Kind::Threads { .. } => vec![Allowance::Threads],
        Kind::ThreadedFork { .. } => vec![Allowance::ThreadedFork],
        Kind::EndedEarly { when: Ending::InBody | Ending::Unchecked | Ending::AtExit, .. }
        | Kind::TimedOut { body_returned: true, .. }
        | Kind::Cut { .. }
        | Kind::Deadlock(_)
        | Kind::MoreDeadlocks { .. }
        | Kind::WaitsFor(_)
        | Kind::OwnBinary { .. }
        | Kind::Blocked { .. }
        | Kind::InheritedByMistake { .. }
        | Kind::UnwatchedLifeline { .. }
        | Kind::Panicked { .. }
        | Kind::DidNotPanic
        | Kind::PanickedOtherwise { .. }
        | Kind::ReturnedError { .. }
        | Kind::ChildReturned { .. }
        | Kind::Signalled { .. }
        | Kind::NotGuarded { .. }
        | Kind::LeftMounts { .. }
        | Kind::UnusedAllowances { .. }
        | Kind::Unkillable { .. } => Vec::new(),
    }
}

/// The arguments that accept all of these processes; none if one of them has no name of its own.
fn of_processes(evidence: &Evidence<'_>, first: i32, others: &[i32]) -> Vec<Allowance> {
    /// The most programs that get an argument each.
    const NAMED: usize = 4;
    let mut globs: Vec<Allowance> = Vec::new();
    for process in
        leaked::leaked(evidence.facts).filter(|process| process.pid == first || others.contains(&process.pid))
    {
        let Some(glob) = glob_for(process) else { return Vec::new() };
        let glob = Allowance::Process { glob };
        if !globs.contains(&glob) {
            globs.push(glob);
        }
    }
    if globs.len() > NAMED { vec![Allowance::Processes] } else { globs }
}
