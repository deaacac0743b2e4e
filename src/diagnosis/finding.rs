//! The findings about a test, as data. `report` writes them in words.

use std::time::Duration;

use super::allowance::Allowance;
use super::deadlock::Deadlock;
use super::inherited::InheritedEnd;
use super::remedy::Remedy;
use super::running::{Hang, RunningTest};
use super::stray_socket::StraySocket;
use super::waits_for::WaitsFor;
use crate::guard::facts::LeftMount;
use crate::guard::facts::Unkillable;
use crate::guard::failure::GuardFailure;
use crate::guard::report_page::HeldBy;
use crate::proc::threads::Running;
use crate::recorder::call_site::{ResolvedCallSite, SourceLocation};

/// Why a test failed. Several may apply at once, and all are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    Panicked,
    Error,
    TimedOut,
    /// The run was cut from outside while the test ran.
    Cut,
    EndedEarly,
    Signal,
    LeakedProcess,
    StrayFd,
    Unwaited,
    Threads,
    ThreadedFork,
    LeftMount,
    /// An argument allows what was not left.
    UnusedAllowance,
    Unkillable,
    /// The test could not be run or followed to its end.
    Unguarded,
}

impl Cause {
    /// The name in the JSON schema.
    #[cfg(any(feature = "json", feature = "junit"))]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cause::Panicked => "panicked",
            Cause::Error => "error",
            Cause::TimedOut => "timed_out",
            Cause::Cut => "cut",
            Cause::EndedEarly => "ended_early",
            Cause::Signal => "signal",
            Cause::LeakedProcess => "leaked_process",
            Cause::StrayFd => "stray_fd",
            Cause::Unwaited => "unwaited",
            Cause::Threads => "threads",
            Cause::ThreadedFork => "threaded_fork",
            Cause::LeftMount => "left_mount",
            Cause::UnusedAllowance => "unused_allowance",
            Cause::Unkillable => "unkillable",
            Cause::Unguarded => "unguarded",
        }
    }
}

/// A problem, or something that explains one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Why the test failed; `None` if the finding is only an explanation.
    pub(crate) cause: Option<Cause>,
    pub(crate) kind: Kind,
    /// What usually fixes it.
    pub(crate) remedies: Vec<Remedy>,
    /// The arguments that accept it if it is intended.
    pub(crate) allow: Vec<Allowance>,
}

/// A line of the user's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CodePlace {
    pub(crate) place: Option<SourceLocation>,
    pub(crate) function: Option<String>,
}

impl CodePlace {
    pub(crate) fn of(site: &ResolvedCallSite) -> CodePlace {
        CodePlace { place: site.place.clone(), function: site.function.clone() }
    }
}

/// The kinds of findings, each with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Threads that can never make progress, or for which no waker was found.
    Deadlock(Deadlock),
    /// More deadlocks than are reported one by one.
    MoreDeadlocks {
        count: usize,
    },
    /// The wait of the test that may still end: a hang without proof.
    WaitsFor(WaitsFor),
    /// A process of the test has exec'ed the test binary, and so runs tests again. `filters` are the
    /// arguments that it takes as names of tests.
    OwnBinary {
        pid: i32,
        filters: Vec<String>,
        created: Option<CodePlace>,
    },
    /// A process blocks signals that were sent to it.
    Blocked {
        pid: i32,
        signals: Vec<i32>,
        created: Option<CodePlace>,
    },
    /// A program has inherited ends of a pipe, or a socket, because it was created without close-on-exec.
    InheritedByMistake {
        pid: i32,
        pipe: u64,
        is_socket: bool,
        ends: Vec<InheritedEnd>,
        created: CodePlace,
        others: usize,
    },
    /// A process holds read ends at EOF, and no thread of it waits on them.
    UnwatchedLifeline {
        pid: i32,
        fds: Vec<i32>,
    },
    /// The body panicked. The message is empty if the payload is not a string.
    Panicked {
        message: String,
        place: Option<SourceLocation>,
    },
    /// `#[should_panic]`, and the body returned.
    DidNotPanic,
    /// `#[should_panic(expected = ..)]`, and the message was another.
    PanickedOtherwise {
        message: String,
    },
    /// The message is `None` if its output was not caught, or does not have it.
    ReturnedError {
        message: Option<String>,
    },
    /// The test's process exited before the body returned, or with an exit code other than 0 after that.
    EndedEarly {
        code: i32,
        when: Ending,
        call: Option<String>,
        called: Option<CodePlace>,
    },
    /// A child that the body forked returned from the body as if it were the test.
    ChildReturned {
        pid: i32,
        more: u32,
        created: Option<CodePlace>,
    },
    Signalled {
        signal: i32,
        body_returned: bool,
        called: Option<CodePlace>,
    },
    TimedOut {
        limit: Duration,
        body_returned: bool,
        hangs: Option<Hang>,
        /// The tests that ran, if it is a command that ran some.
        tests: Vec<RunningTest>,
    },
    /// The run was cut from outside while the test ran, or during its grace.
    Cut {
        ran: Duration,
        body_returned: bool,
        hangs: Option<Hang>,
        tests: Vec<RunningTest>,
    },
    NotGuarded {
        failure: GuardFailure,
    },
    /// Descendants that were still running after the grace; `pid` is one of them.
    LeakedProcess {
        pid: i32,
        others: Vec<i32>,
        grace: Duration,
        created: Option<CreatedBy>,
    },
    /// A descendant after the grace that no snapshot contained.
    ElusiveProcess {
        grace: Duration,
    },
    /// Fds that the body opened and left open.
    StrayFd {
        count: usize,
        fds: Vec<StrayNumber>,
        threads: u32,
        running: Vec<Running>,
        created: Option<CodePlace>,
    },
    /// Stray fds beyond the recorded ones, all of which are allowed.
    UnlistedFds {
        count: usize,
    },
    /// Children that exited and were not waited for.
    Unwaited {
        children: Vec<Child>,
        created: Option<CodePlace>,
    },
    /// Threads that were running when the body returned.
    Threads {
        count: u32,
        running: Vec<Running>,
        /// Where the first of them is whose line is known.
        at: Option<SourceLocation>,
    },
    /// A fork of a threaded process; the child did not go straight on to exec.
    ThreadedFork {
        fork: ThreadedFork,
        more: usize,
    },
    /// Mounts that the test left in its directory for temporary files; at least one.
    LeftMounts {
        mounts: Vec<LeftMount>,
    },
    /// Arguments of the test that allow what it did not leave; at least one.
    UnusedAllowances {
        unused: Vec<Allowance>,
    },
    Unkillable {
        pid: i32,
        name: String,
        because: Unkillable,
        created: Option<CodePlace>,
    },
}

/// When a test process exited that should not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Before the body returned.
    InBody,
    /// After that, before the stray fds and descendants were checked.
    Unchecked,
    /// After the check.
    AtExit,
}

/// The line of the user's code that created a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CreatedBy {
    pub(crate) creator: Creator,
    pub(crate) site: CodePlace,
}

/// The process that the line created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creator {
    /// The process itself.
    Itself,
    /// An ancestor that is still running.
    Ancestor { pid: i32 },
    /// Its exited parent; `sure` if the relation is certain.
    ExitedParent { pid: i32, sure: bool },
}

/// A stray fd by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StrayNumber {
    pub(crate) fd: i32,
    pub(crate) inode: u64,
    /// The recorder's key, 0 if it has none.
    pub(crate) key: u64,
    pub(crate) is_pipe: bool,
    /// What keeps it open.
    pub(crate) held_by: HeldBy,
    /// If it is a socket that was asked about.
    pub(crate) socket: Option<StraySocket>,
    /// The path of a named FIFO.
    pub(crate) fifo: Option<String>,
}

/// A zombie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) name: String,
}

/// A fork of a threaded process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ThreadedFork {
    pub(crate) pid: i32,
    /// The process that called fork.
    pub(crate) creator: i32,
    pub(crate) thread: String,
    pub(crate) threads: u32,
    pub(crate) site: CodePlace,
}

impl Kind {
    /// The line of code that created the object of the finding, or where it happened.
    pub(crate) fn place(&self) -> Option<&SourceLocation> {
        match self {
            Kind::InheritedByMistake { created, .. } => created.place.as_ref(),
            Kind::EndedEarly { called: site, .. }
            | Kind::Signalled { called: site, .. }
            | Kind::ChildReturned { created: site, .. }
            | Kind::OwnBinary { created: site, .. }
            | Kind::Blocked { created: site, .. }
            | Kind::StrayFd { created: site, .. }
            | Kind::Unwaited { created: site, .. }
            | Kind::Unkillable { created: site, .. } => site.as_ref()?.place.as_ref(),
            Kind::TimedOut { hangs, tests, .. } | Kind::Cut { hangs, tests, .. } => {
                let of_tests = || tests.iter().find_map(|test| test.hang.as_ref());
                hangs.as_ref().or_else(of_tests).map(|hang| &hang.place)
            }
            Kind::LeakedProcess { created, .. } => created.as_ref()?.site.place.as_ref(),
            Kind::ThreadedFork { fork, .. } => fork.site.place.as_ref(),
            Kind::Panicked { place, .. } | Kind::Threads { at: place, .. } => place.as_ref(),
            Kind::Deadlock(_)
            | Kind::MoreDeadlocks { .. }
            | Kind::WaitsFor(_)
            | Kind::UnwatchedLifeline { .. }
            | Kind::DidNotPanic
            | Kind::PanickedOtherwise { .. }
            | Kind::ReturnedError { .. }
            | Kind::NotGuarded { .. }
            | Kind::ElusiveProcess { .. }
            | Kind::UnlistedFds { .. }
            | Kind::LeftMounts { .. }
            | Kind::UnusedAllowances { .. } => None,
        }
    }
}
