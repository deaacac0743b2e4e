//! The remedies of findings. Each has a precondition on the typed facts, and is shown only if that holds.

mod deadlock;
mod precondition;
mod processes;
mod waits;

use super::deadlock::Wait;
use super::evidence::Evidence;
use super::finding::{Ending, Finding, Kind};
use super::inherited::Inherited;
use super::stray;
use super::{Cause, CodePlace, allowance};
use crate::recorder::awaited::Awaited;
use crate::recorder::call_site::SourceLocation;

pub(crate) use stray::CloseFds;

/// A suggested fix. Its documentation states when it applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    // Forks and locks.
    /// A fork waits for a lock that its parent held, or may have held. `locking` is the waiting function, if
    /// known; `or_own`: the process itself may hold the lock.
    ExecAfterFork {
        locking: Option<String>,
        or_own: bool,
    },
    /// A fork of a threaded process did not go straight on to exec.
    ExecOrForkSingleThreaded,
    /// No thread is left that could end the wait; `None` if the stack does not show what it waits for.
    EndWait(Option<Awaited>),
    /// A thread waits in the code of a task, without `.await`: its runtime runs nothing else there.
    AwaitInTask(Option<Awaited>),
    /// Threads wait for different locks, and for nothing else.
    LockOrder,
    /// Threads wait for locks, and it is not known whether for the same one.
    OneLockOrSeveral,
    /// A thread waits for a lock, and another thread only joins it.
    ReleaseBeforeJoin,

    // Own ends of pipes and sockets.
    /// A fork reads a pipe and holds a write end of it.
    CloseInChild {
        fds: Vec<i32>,
    },
    /// The test reads a pipe and holds a write end of it; `only`: it is proved that no other
    /// process does.
    DropOwnWriteEnd {
        fds: Vec<i32>,
        only: bool,
    },
    /// A program reads a pipe and holds a write end of it; `created`: the line that created it.
    CreateWithCloexec {
        fds: Vec<i32>,
        created: Option<SourceLocation>,
    },
    /// Processes that hold write ends of their own pipes wait for each other to write.
    WriteFirst {
        pids: Vec<i32>,
    },
    /// Both ends of a pair are in one poll set.
    WriteToOtherOfPair {
        fds: Vec<i32>,
    },
    /// The only thread of a process reads a socket and the process holds the other end.
    WriteElsewhere {
        fds: Vec<i32>,
        in_fork: bool,
    },
    /// Other threads of the process could write to its own end: `thread` is the only such thread, with its
    /// wait.
    LookAtWriters {
        pid: i32,
        thread: Option<(i32, Option<Wait>)>,
        ends: Vec<i32>,
    },
    /// A process writes to a full socket and holds the other end itself.
    ReadElsewhere {
        fds: Vec<i32>,
        in_task: bool,
    },
    /// A process writes to a full pipe and holds a read end itself.
    CloseOwnReadEnd {
        fds: Vec<i32>,
    },
    /// A program has inherited an end of a pipe that was created without O_CLOEXEC.
    CreatePipeWithCloexec {
        created: CodePlace,
    },
    /// A program has inherited a socket that was created without close-on-exec.
    CreateSocketWithCloexec {
        pid: i32,
        fds: Vec<i32>,
        created: CodePlace,
    },

    // Processes that wait for each other.
    /// A child reads a line or some bytes of its stdin, which its parent holds open.
    WriteToChild {
        ends: Ends,
    },
    /// A child waits for EOF of its stdin, which its parent holds open while it reads the child's output.
    DropStdin {
        ends: Ends,
    },
    /// A child waits for EOF of its stdin, which its parent holds open while it waits for the child.
    DropStdinBeforeWait {
        ends: Ends,
    },
    /// A process reads a pipe that a waiter for this process holds open for writing.
    CloseWriteEnd {
        reader: i32,
        ends: Ends,
        before: Before,
    },
    /// A process waits for data or EOF on a socket, and a waiter for this process holds the other end.
    ShutdownSocket {
        ends: Ends,
        before: Before,
    },
    /// Two threads of one process each wait for data or EOF on one end of a connection.
    ShutdownEither {
        one: Ends,
        other: Ends,
    },
    /// A child writes to a full pipe, and its parent waits for it to exit.
    ReadBeforeWait {
        ends: Ends,
    },
    /// A child writes to a full pipe, and its parent reads another one.
    ReadBoth {
        ends: Ends,
        reads: i32,
    },
    /// A process writes to a full pipe, and the reader does something else.
    ReadAllTheWhile {
        ends: Ends,
    },
    /// In a cycle, one process waits for a child, and that child waits on an end that a process of the cycle
    /// holds.
    CloseBeforeWait,
    /// All processes of a cycle write to full pipes.
    ReadWhileWriting,
    /// All processes of a cycle wait for data.
    OneSideFirst,

    // Waits that may end.
    /// The test is stopped by a signal.
    FindStopSignal,
    /// All processes that the test waits for are stopped.
    ContinueStopped {
        pids: Vec<i32>,
    },
    /// A process used its terminal from the background.
    BringToForeground {
        pid: i32,
        signal: i32,
    },
    /// The test reads a line or some bytes, and the writer is running.
    FindWhyNothingIsWritten,
    /// A fork of the test is the only writer of the pipe that the test reads.
    CloseInFork {
        ends: Ends,
        watch: bool,
    },
    /// The pipe that is read is the output of a background program; `orphan`: one without its parent.
    RedirectBackground {
        watch: bool,
        orphan: Option<i32>,
    },
    /// Processes read a pipe that only they themselves have open for writing, after the one that wrote to it has ended.
    CloseInReaders {
        pids: Vec<i32>,
        ends: Ends,
    },
    /// A program has inherited a write end of the pipe that is read, as an fd other than its output.
    CloseInProgram {
        ends: Ends,
    },
    /// The pipe that is read is the output of a child of the test that runs on.
    EndWriter {
        pid: i32,
    },
    /// A process reads a FIFO that it has open for writing itself, by these fds; `reads` is the one that it reads.
    CloseOwnFifo {
        pid: i32,
        fds: Vec<i32>,
        reads: i32,
    },
    /// Two processes each open a FIFO whose other end no process has open.
    OpenInOneOrder,
    /// A child failed, and the test waits for something that only the child could do.
    CheckChild {
        pid: i32,
        was_waited_for: bool,
    },
    /// `pid` holds a file lock, and waits for a process that waits for the lock.
    ReleaseFileLock {
        file: String,
        pid: i32,
        waiter: i32,
    },
    /// A process waits for a file lock that it holds itself, by another open file.
    ReleaseOwnFileLock {
        file: String,
        opened: Option<SourceLocation>,
    },
    /// A process that is not waited for has inherited the fd by which a lock is held.
    CloseLockInChild {
        pid: i32,
        fd: i32,
        file: String,
        opened: Option<SourceLocation>,
    },
    /// A process has a file lock that it has taken itself, and runs on.
    EndLockHolder {
        pid: i32,
        file: String,
    },
    /// Opening a path blocks, without a timeout.
    OpenOtherEnd {
        path: String,
    },
    /// A process reads a terminal's one side, and only the test could have the other; or it writes, and the
    /// terminal is full.
    CloseSlave {
        fd: i32,
    },
    ReadTerminal,
    /// A process reads a terminal, and a waiter for this process has its master: these fds.
    AnswerAtTerminal {
        pid: i32,
        fds: Vec<i32>,
    },
    /// A thread is in `block_on`, and the runtime's own thread waits for it.
    LeaveRuntime,
    /// A task of an async body waits, and the evidence does not show where.
    FindAwait,
    /// A child has inherited a signal mask.
    UnblockSignal {
        signal: i32,
    },
    /// A child is the test binary itself.
    StartOtherProgram,

    // Processes that are left.
    /// It left the session, and is not the test's own child.
    StopDaemon {
        pid: i32,
    },
    /// It leads a process group.
    KillGroup {
        /// SIGTERM, or SIGKILL if a process of the group does not end by that.
        signal: i32,
        pid: i32,
    },
    /// Its exited parent led its process group.
    KillParentsGroup {
        signal: i32,
        pgid: i32,
    },
    /// A fork without exec and without its parent.
    EndForkWithParent,
    /// A program without its parent; `parent` is where the parent was started. `exec`: the parent was a shell
    /// that started another program.
    StartParentInGroup {
        parent: Option<SourceLocation>,
        exec: bool,
    },
    /// A program that the command itself has left behind.
    WaitInCommand,
    /// `daemon(3)` forked the test itself.
    NoDaemonInBody {
        pid: i32,
    },
    /// `popen(3)` started it, or created the pipe.
    ClosePopen,
    /// A command of `system(3)` started it; `system` only waits for the shell.
    EndJobsOfSystem,
    /// It is the shell of a `system(3)` that has not returned.
    EndSystem {
        pid: i32,
    },
    /// `forkpty(3)` forked it.
    EndForkpty {
        pid: i32,
    },
    /// A fork without exec, and a child of the test.
    KillAndWaitpid {
        pid: i32,
    },
    /// A process that is to be killed has a handler for SIGTERM.
    TerminateFirst {
        pid: i32,
    },
    /// A child of the test that tokio started.
    KillTokioChild,
    /// A program that is a child of the test.
    KillAndWait,
    /// The same if what it has started is left too.
    KillAllOfChild {
        pid: i32,
    },
    /// SIGTERM does not end it. `signals`: SIGTERM, and SIGINT if that does not either.
    EndDeaf {
        pid: i32,
        /// It ignores them; otherwise it blocks them.
        ignores: bool,
        signals: Vec<i32>,
        inherited_from: Option<i32>,
    },
    /// A child of a command that is not started by a line of Rust, or may be one.
    EndBeforeCommand,
    /// A descendant with a living parent.
    StopWithParent,
    /// Descendants that fork and exit again and again.
    EndForker,
    /// Mounts are left; `at` is the mount point of the first one.
    Unmount {
        at: String,
    },
    /// It could not be killed.
    EndByHand {
        pid: i32,
    },
    /// Children that were not waited for.
    WaitForChildren,

    // Fds and threads.
    CloseFds(CloseFds),
    /// There are more stray fds than were recorded.
    CloseAllowedToo,
    /// Threads were running when the body returned.
    JoinThreads,

    // How a test ended.
    /// A child that the body forked continued as if it were the test.
    ExitInChild,
    /// The body ended its process.
    ReturnFromBody,
    /// The process exited with another code after the body returned.
    LookAtExitCode,
    /// A signal killed it while it exited.
    LookAtExitHandlersAndThreads,
    /// It did not exit.
    LookAtExitHandlers,
    /// A signal killed it that has common reasons.
    LookAtSignal {
        signal: i32,
    },
}

/// Fds of one process that are an end of a pipe or socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) pid: i32,
    pub(crate) fds: Vec<i32>,
    /// The line that created it.
    pub(crate) created: Option<SourceLocation>,
}

/// What the holder of an end does, so that the end must be closed before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Before reading to the end.
    Reading,
    /// Before waiting for the end of the process.
    Waiting,
}

impl Finding {
    /// Builds a finding with its remedies and allowances.
    pub(super) fn new(cause: impl Into<Option<Cause>>, kind: Kind, evidence: &Evidence<'_>) -> Finding {
        let remedies = remedies(&kind, evidence);
        let allow = allowance::allowances(&kind, evidence);
        Finding { cause: cause.into(), kind, remedies, allow }
    }
}

impl Inherited {
    fn remedy(&self) -> Remedy {
        Remedy::CreatePipeWithCloexec { created: self.created.clone() }
    }
}

#[cfg(test)]
pub(super) use precondition::holds as fits;

/// The remedies that apply to a finding, the best first.
pub(super) fn remedies(kind: &Kind, evidence: &Evidence<'_>) -> Vec<Remedy> {
    let first = remedy_of(kind, evidence);
    let handled = first.as_ref().and_then(|first| terminate_first(first, kind));
    let all = first.into_iter().chain(handled).chain(evidence.remedy_of_deaf(kind));
    all.filter(|remedy| precondition::holds(remedy, kind, evidence)).collect()
}

/// What comes before the kill of a leaked process.
fn terminate_first(first: &Remedy, kind: &Kind) -> Option<Remedy> {
    let kills = matches!(
        first,
        Remedy::KillAndWait
            | Remedy::KillAndWaitpid { .. }
            | Remedy::KillAllOfChild { .. }
            | Remedy::KillTokioChild
    );
    match kind {
        Kind::LeakedProcess { pid, .. } if kills => Some(Remedy::TerminateFirst { pid: *pid }),
        _ => None,
    }
}

fn remedy_of(kind: &Kind, evidence: &Evidence<'_>) -> Option<Remedy> {
    match kind {
        Kind::Deadlock(deadlock) => evidence.remedy_of_deadlock(deadlock),
        Kind::WaitsFor(waits) => evidence.remedy_of_wait(waits),
        Kind::InheritedByMistake { pid, is_socket: true, ends, created, .. } => {
            let fds = ends.iter().map(|end| end.fd).collect();
            Some(Remedy::CreateSocketWithCloexec { pid: *pid, fds, created: created.clone() })
        }
        Kind::InheritedByMistake { created, .. } => {
            Some(Remedy::CreatePipeWithCloexec { created: created.clone() })
        }
        Kind::EndedEarly { when, .. } => Some(match when {
            Ending::InBody => Remedy::ReturnFromBody,
            Ending::Unchecked => Remedy::JoinThreads,
            Ending::AtExit => Remedy::LookAtExitCode,
        }),
        Kind::ChildReturned { .. } => Some(Remedy::ExitInChild),
        Kind::Signalled { body_returned: true, .. } => Some(Remedy::LookAtExitHandlersAndThreads),
        Kind::Signalled { signal, .. } => {
            KNOWN_SIGNALS.contains(signal).then_some(Remedy::LookAtSignal { signal: *signal })
        }
        Kind::TimedOut { body_returned, .. } => body_returned.then_some(Remedy::LookAtExitHandlers),
        Kind::LeakedProcess { pid, .. } => {
            evidence.process(*pid).map(|process| evidence.remedy_of_leak(process))
        }
        Kind::ElusiveProcess { .. } => Some(Remedy::EndForker),
        Kind::StrayFd { .. } => match stray::is_of_popen(evidence) {
            true => Some(Remedy::ClosePopen),
            false => stray::close(evidence).map(Remedy::CloseFds),
        },
        Kind::OwnBinary { .. } => Some(Remedy::StartOtherProgram),
        Kind::Blocked { signals, .. } => {
            signals.first().map(|signal| Remedy::UnblockSignal { signal: *signal })
        }
        Kind::UnlistedFds { .. } => Some(Remedy::CloseAllowedToo),
        Kind::Unwaited { .. } => Some(Remedy::WaitForChildren),
        Kind::Threads { .. } => Some(Remedy::JoinThreads),
        Kind::ThreadedFork { .. } => Some(Remedy::ExecOrForkSingleThreaded),
        Kind::LeftMounts { mounts } => mounts.first().map(|mount| Remedy::Unmount { at: mount.at.clone() }),
        Kind::Unkillable { pid, .. } => (*pid != 0).then_some(Remedy::EndByHand { pid: *pid }),
        Kind::Cut { .. }
        | Kind::MoreDeadlocks { .. }
        | Kind::UnwatchedLifeline { .. }
        | Kind::Panicked { .. }
        | Kind::DidNotPanic
        | Kind::PanickedOtherwise { .. }
        | Kind::ReturnedError { .. }
        | Kind::NotGuarded { .. }
        // Is added last, by itself.
        | Kind::UnusedAllowances { .. } => None,
    }
}

/// The signals that have common reasons.
const KNOWN_SIGNALS: [i32; 9] = {
    use nix::libc::{SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGPIPE, SIGSEGV, SIGXFSZ};
    [SIGKILL, SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGXFSZ, SIGALRM, SIGPIPE]
};
