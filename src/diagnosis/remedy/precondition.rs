//! The precondition of each remedy over the typed facts, in one table. A remedy whose precondition does not hold is not shown.

use nix::libc;

use super::processes::is_spawned_without_std;
use super::waits::is_of_terminal;
use super::{Ends, Remedy};
use crate::diagnosis::deadlock::{Shape, WaitsOn};
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::finding::{Ending, Kind};
use crate::diagnosis::leaked::system_of;
use crate::diagnosis::waits_for::{LinkOn, WaitsFor};
use crate::guard::contended::FdHolder;
use crate::guard::facts::{Disposition, Process};
use crate::guard::report_page::End;
use crate::proc::fds::Fd;
use crate::proc::waits::On;

/// Whether a remedy fits the facts of a finding. One table, so it is longer than other functions.
#[allow(clippy::too_many_lines, reason = "one list of cases")]
pub(in crate::diagnosis) fn holds(remedy: &Remedy, kind: &Kind, evidence: &Evidence<'_>) -> bool {
    let facts = evidence.facts;
    let of = Of { evidence };
    match remedy {
        // Forks and locks.
        Remedy::ExecAfterFork { .. } => shape(kind).is_some_and(|shape| {
            matches!(
                shape,
                Shape::InheritedLock { .. }
                    | Shape::MaybeInheritedLock { .. }
                    | Shape::Alone { left_behind: Some(_), .. }
            )
        }),
        Remedy::ExecOrForkSingleThreaded => {
            matches!(kind, Kind::ThreadedFork { fork, .. } if fork.threads > 1)
        }
        // A lock that is waited for is held; what else a thread waits for may still come.
        Remedy::EndWait(_) => {
            matches!(kind, Kind::Deadlock(_))
                || of.link_has(kind, |on| matches!(on, LinkOn::Threads { kind: Some(kind), .. } if kind.is_held()))
        }
        Remedy::AwaitInTask(_) => matches!(kind, Kind::Deadlock(deadlock)
            if deadlock.chain.iter().any(|wait| evidence.names.in_task.contains(&wait.tid))),
        Remedy::LockOrder | Remedy::OneLockOrSeveral | Remedy::ReleaseBeforeJoin => {
            of.deadlock_has(kind, |on| matches!(on, WaitsOn::Lock(_)))
        }
        Remedy::LeaveRuntime => of.deadlock_has(kind, |on| matches!(on, WaitsOn::BlockOn)),
        Remedy::FindAwait => matches!(shape(kind), Some(Shape::Threads { .. } | Shape::Alone { .. })),

        // Own ends of pipes and sockets.
        Remedy::CloseInChild { .. } => {
            of.deadlocked(kind, |process| process.forked_without_exec && !process.is_test)
        }
        Remedy::DropOwnWriteEnd { .. } => of.deadlocked(kind, |process| process.is_test),
        // What has close-on-exec was not inherited over an exec.
        Remedy::CreateWithCloexec { fds, .. } => of.deadlocked(kind, |process| {
            let has_cloexec = |fd: &i32| process.fd(*fd).is_some_and(|fd| fd.cloexec);
            !process.runs_own_program() && !fds.iter().any(has_cloexec)
        }),
        Remedy::WriteFirst { pids } => pids.len() > 1,
        Remedy::WriteToOtherOfPair { fds } => fds.len() > 1,
        Remedy::WriteElsewhere { .. } | Remedy::ReadElsewhere { .. } | Remedy::CloseOwnReadEnd { .. } => {
            matches!(kind, Kind::Deadlock(_))
        }
        Remedy::LookAtWriters { pid, .. } => of.process(*pid, |process| process.tasks.len() > 1),
        Remedy::CreatePipeWithCloexec { created } => {
            evidence.inherited.iter().any(|known| known.created == *created)
        }
        Remedy::CreateSocketWithCloexec { fds, pid, .. } => of.process(*pid, |process| {
            fds.iter().all(|fd| *fd > 2 && process.fd(*fd).is_some_and(|fd| !fd.cloexec))
        }),

        // Processes that wait for each other.
        Remedy::WriteToChild { ends } | Remedy::DropStdin { ends } | Remedy::DropStdinBeforeWait { ends } => {
            of.writes_to_stdin(ends)
        }
        Remedy::CloseWriteEnd { reader, ends, .. } => *reader != ends.pid && of.are(ends, Fd::writes),
        Remedy::ShutdownSocket { ends, .. } => of.are(ends, |fd| fd.socket().is_some()),
        Remedy::ShutdownEither { one, other } => {
            one.pid == other.pid
                && one.fds.iter().all(|fd| !other.fds.contains(fd))
                && [one, other].into_iter().all(|ends| of.are(ends, |fd| fd.socket().is_some()))
        }
        Remedy::ReadBeforeWait { ends }
        | Remedy::ReadBoth { ends, .. }
        | Remedy::ReadAllTheWhile { ends } => of.are(ends, Fd::reads),
        Remedy::CloseBeforeWait => of.deadlock_has(kind, |on| matches!(on, WaitsOn::Child)),
        Remedy::ReadWhileWriting => {
            of.deadlock_has(kind, |on| matches!(on, WaitsOn::PipeRoom { .. } | WaitsOn::SocketRoom { .. }))
        }
        Remedy::OneSideFirst => matches!(shape(kind), Some(Shape::Ring { .. })),

        // Waits that may end.
        Remedy::FindStopSignal => of.stopped(facts.pid),
        Remedy::ContinueStopped { pids } => !pids.is_empty() && pids.iter().all(|pid| of.stopped(*pid)),
        Remedy::BringToForeground { pid, signal } => {
            of.process(*pid, |process| process.signals.stopped_by == Some(*signal) && is_of_terminal(*signal))
        }
        Remedy::FindWhyNothingIsWritten => {
            of.link_has(kind, |on| matches!(on, LinkOn::PipeData { part: true, .. }))
        }
        Remedy::CloseInFork { ends, .. } => {
            of.process(ends.pid, |process| process.forked_without_exec) && of.are(ends, Fd::writes)
        }
        // Redirecting output helps only where it was inherited, by a program that is not waited for.
        Remedy::RedirectBackground { .. } => of.link_has(kind, |on| of.has_as_output_in_background(on)),
        Remedy::CloseInProgram { ends } => {
            of.process(ends.pid, |process| !process.forked_without_exec)
                && ends.fds.iter().all(|fd| *fd > 2)
                && of.are(ends, Fd::writes)
        }
        Remedy::CloseInReaders { pids, ends } => {
            of.are(ends, Fd::writes) && pids.iter().all(|pid| of.reads_pipe_of(*pid, ends))
        }
        // If it has left its output to others, its end is not sufficient. A test that reads by itself may have to wait for
        // a slow child.
        Remedy::EndWriter { pid } => {
            let reads = |on: &LinkOn| {
                matches!(on, LinkOn::PipeData { writers, by_mistake: false, .. } if writers == &[*pid])
            };
            of.link_has(kind, reads)
                && !matches!(kind, Kind::WaitsFor(waits) if waits.first().is_some_and(|link| reads(&link.on)))
                && of.process(*pid, |process| process.parent == facts.pid && !process.forked_without_exec)
        }
        Remedy::CloseOwnFifo { pid, fds, .. } => {
            let holders: Vec<&FdHolder> =
                facts.contended.fifos.iter().flat_map(|fifo| &fifo.holders).collect();
            let writes = |fd: i32| {
                let is_it = |holder: &FdHolder| (holder.pid, holder.fd) == (*pid, fd);
                holders.iter().any(|holder| is_it(holder) && holder.access & libc::O_ACCMODE != libc::O_RDONLY)
            };
            !fds.is_empty() && fds.iter().all(|fd| writes(*fd))
        }
        Remedy::OpenInOneOrder => matches!(kind, Kind::WaitsFor(WaitsFor { chain, .. })
            if chain.iter().filter(|link| matches!(link.on, LinkOn::Opening { .. })).count() > 1),
        Remedy::CheckChild { pid, .. } => {
            matches!(kind, Kind::WaitsFor(waits) if waits.dead.iter().any(|dead| dead.pid == *pid))
        }
        Remedy::ReleaseFileLock { pid, waiter, .. } => pid != waiter,
        Remedy::ReleaseOwnFileLock { .. } => of.deadlock_has(kind, |on| matches!(on, WaitsOn::FileLock { .. })),
        Remedy::EndLockHolder { pid, file } => of.link_has(kind, |on| {
            matches!(on, LinkOn::FileLock { file: known, holders } if known == file && holders.contains(pid))
                && of.took_lock(*pid, file)
        }),
        Remedy::CloseLockInChild { pid, fd, .. } => of.process(*pid, |process| {
            process.fd(*fd).is_some_and(|fd| !fd.held.is_empty() && of.has_inherited_lock(process, fd))
        }),
        // What is written at the master is for the processes at the terminal to read.
        Remedy::ReadTerminal => of.link_has(
            kind,
            |on| matches!(on, LinkOn::Terminal { writes: true, path, .. } if !path.ends_with("ptmx")),
        ),
        Remedy::AnswerAtTerminal { fds, .. } => of.link_has(kind, |on| {
            matches!(on, LinkOn::Terminal { writes: false, path, .. } if !path.ends_with("ptmx") && !fds.is_empty())
        }),
        Remedy::CloseSlave { .. } => {
            of.link_has(kind, |on| matches!(on, LinkOn::Terminal { alone: true, .. }))
        }
        Remedy::OpenOtherEnd { .. } => of.link_has(kind, |on| matches!(on, LinkOn::Opening { .. })),
        Remedy::UnblockSignal { signal } => facts.processes.iter().any(|process| process.holds_back(*signal)),
        // A test may start its binary on purpose, for another test that helps it.
        Remedy::StartOtherProgram => matches!(kind, Kind::OwnBinary { .. }) && facts.end == End::TimedOut,

        // Processes that are left.
        Remedy::StopDaemon { pid } => {
            of.process(*pid, |process| facts.session != 0 && process.sid != facts.session)
        }
        Remedy::TerminateFirst { pid } => {
            of.process(*pid, |process| process.takes(libc::SIGTERM) == Disposition::Handled)
        }
        Remedy::KillGroup { pid, signal } => {
            of.process(*pid, |process| process.pgid == *pid) && evidence.signal_for_group(*pid) == *signal
        }
        Remedy::KillParentsGroup { pgid, signal } => {
            evidence.signal_for_group(*pgid) == *signal && facts.processes.iter().any(|process| process.adopted && process.pgid == *pgid)
        }
        Remedy::EndForkWithParent => {
            of.leaked(kind, |process| process.adopted && process.forked_without_exec)
        }
        Remedy::WaitInCommand => facts.is_command() && of.leaked(kind, |process| process.adopted),
        Remedy::StartParentInGroup { .. } => of.leaked(kind, |process| process.adopted),
        Remedy::KillAndWaitpid { pid } => of.process(*pid, |process| {
            let is_spawned = || evidence.names.of_process(*pid).is_some_and(is_spawned_without_std);
            (process.forked_without_exec || is_spawned()) && !of.is_daemons(*pid)
        }),
        Remedy::KillTokioChild => of.leaked(kind, |process| of.call(process.pid, |_, tokios| tokios)),
        Remedy::KillAndWait => of.leaked(kind, |process| {
            !process.forked_without_exec
                && of.call(process.pid, |call, tokios| !tokios && call != "popen" && call != "forkpty")
        }),
        Remedy::KillAllOfChild { pid } => {
            of.leaked(kind, |process| !process.forked_without_exec) && evidence.has_descendant_left(*pid)
        }
        Remedy::EndDeaf { pid, .. } => of.process(*pid, |process| process.takes(libc::SIGTERM).is_deaf()),
        Remedy::EndBeforeCommand => facts.is_command() && of.leaked(kind, |_| true),
        Remedy::NoDaemonInBody { pid } => of.is_daemons(*pid),
        Remedy::ClosePopen => evidence.names.call_sites.iter().any(|site| site.call == "popen"),
        Remedy::EndJobsOfSystem => evidence.names.call_sites.iter().any(|site| site.call == "system"),
        Remedy::EndSystem { pid } => {
            of.process(*pid, |process| system_of(evidence.names, process).is_some())
        }
        Remedy::EndForkpty { pid } => of.call(*pid, |call, _| call == "forkpty"),
        Remedy::StopWithParent => of.leaked(kind, |process| !process.adopted),
        Remedy::EndForker => matches!(kind, Kind::ElusiveProcess { .. }),
        Remedy::Unmount { at } => facts.mounts.iter().any(|mount| mount.at == *at),
        Remedy::EndByHand { pid } => facts.survivors.iter().any(|survivor| survivor.pid == *pid),
        Remedy::WaitForChildren => matches!(kind, Kind::Unwaited { .. }),

        // Fds and threads.
        Remedy::CloseFds(close) => facts.strays.iter().any(|stray| stray.fd == close.fd),
        Remedy::CloseAllowedToo => facts.strays.is_empty(),
        Remedy::JoinThreads => {
            matches!(kind, Kind::Threads { .. } | Kind::EndedEarly { when: Ending::Unchecked, .. })
        }

        // How a test ended.
        Remedy::ExitInChild => matches!(kind, Kind::ChildReturned { .. }),
        Remedy::ReturnFromBody | Remedy::LookAtExitCode => matches!(facts.end, End::Exited { .. }),
        Remedy::LookAtExitHandlersAndThreads | Remedy::LookAtSignal { .. } => {
            matches!(facts.end, End::Signalled { .. })
        }
        Remedy::LookAtExitHandlers => facts.end == End::TimedOut,
    }
}

fn shape(kind: &Kind) -> Option<&Shape> {
    match kind {
        Kind::Deadlock(deadlock) => Some(&deadlock.shape),
        _ => None,
    }
}

/// The facts, with the questions that the table asks.
struct Of<'a> {
    evidence: &'a Evidence<'a>,
}

impl Of<'_> {
    fn process(&self, pid: i32, is: impl Fn(&Process) -> bool) -> bool {
        self.evidence.process(pid).is_some_and(is)
    }

    /// A property of the process that the leak is named after.
    fn leaked(&self, kind: &Kind, is: impl Fn(&Process) -> bool) -> bool {
        matches!(kind, Kind::LeakedProcess { pid, .. } if self.process(*pid, is))
    }

    /// A property of the process of a deadlock's first thread.
    fn deadlocked(&self, kind: &Kind, is: impl Fn(&Process) -> bool) -> bool {
        matches!(kind, Kind::Deadlock(deadlock) if self.process(deadlock.pid, is))
    }

    fn deadlock_has(&self, kind: &Kind, is: impl Fn(&WaitsOn) -> bool) -> bool {
        matches!(kind, Kind::Deadlock(deadlock) if deadlock.chain.iter().any(|wait| is(&wait.on)))
    }

    fn link_has(&self, kind: &Kind, is: impl Fn(&LinkOn) -> bool) -> bool {
        matches!(kind, Kind::WaitsFor(WaitsFor { chain, .. }) if chain.iter().any(|link| is(&link.on)))
    }

    fn stopped(&self, pid: i32) -> bool {
        self.process(pid, |process| process.tasks.iter().any(|thread| thread.on == On::Stopped))
    }

    /// Whether these fds of a process are open and satisfy `is`.
    fn are(&self, ends: &Ends, is: impl Fn(&Fd) -> bool) -> bool {
        self.process(ends.pid, |process| ends.fds.iter().all(|fd| process.fd(*fd).is_some_and(&is)))
    }

    /// Whether a process has the read end of the pipe that these are ends of.
    fn reads_pipe_of(&self, pid: i32, ends: &Ends) -> bool {
        let pipe = ends.fds.first().and_then(|fd| self.evidence.process(ends.pid)?.pipe(*fd));
        pipe.is_some()
            && self
                .process(pid, |process| process.known_fds().iter().any(|fd| fd.reads() && fd.pipe() == pipe))
    }

    /// Whether they are write ends of the pipe that is another process's stdin.
    fn writes_to_stdin(&self, ends: &Ends) -> bool {
        let pipe = ends.fds.first().and_then(|fd| self.evidence.process(ends.pid)?.pipe(*fd));
        let mut others = self.evidence.facts.processes.iter().filter(|process| process.pid != ends.pid);
        pipe.is_some() && self.are(ends, Fd::writes) && others.any(|other| other.pipe(0) == pipe)
    }

    /// Whether another process took the lock that is held by this fd, and does not have it any more. Of a lock of an open
    /// file the kernel does not say which process took it; a program seldom opens a file to be inherited.
    fn has_inherited_lock(&self, process: &Process, fd: &Fd) -> bool {
        let locks = &self.evidence.facts.contended.locks;
        let Some(lock) = locks.iter().find(|lock| fd.held.contains(&lock.line)) else { return false };
        let has_it = |taker: i32| lock.holders.iter().any(|holder| holder.pid == taker);
        match lock.taken_by {
            _ if process.forked_without_exec => lock.taken_by.is_none_or(|taker| taker != process.pid),
            Some(taker) => taker != process.pid && !has_it(taker) && !fd.cloexec,
            None => !fd.cloexec,
        }
    }

    /// Whether a process that holds a lock has taken it.
    fn took_lock(&self, pid: i32, file: &str) -> bool {
        let mut locks = self.evidence.facts.contended.locks.iter().filter(|lock| lock.path == file);
        locks.any(|lock| lock.taken_by == Some(pid) && lock.holders.iter().any(|holder| holder.pid == pid))
    }

    /// Whether the pipe that is read is the stdout or stderr of one of its writers, and that one's parent has exited.
    fn has_as_output_in_background(&self, on: &LinkOn) -> bool {
        let LinkOn::PipeData { inodes, writers, .. } = on else { return false };
        let is_output =
            |fd: &Fd| fd.fd <= 2 && fd.writes() && fd.pipe().is_some_and(|pipe| inodes.contains(&pipe));
        let is_left = |process: &Process| process.adopted && process.known_fds().iter().any(is_output);
        writers.iter().any(|pid| self.process(*pid, is_left))
    }

    /// A property of the call that created a process: its name, and whether tokio made it. `true` if the call
    /// is unknown.
    fn call(&self, pid: i32, is: impl Fn(&str, bool) -> bool) -> bool {
        self.evidence.names.of_process(pid).is_none_or(|site| is(&site.call, site.is_tokios))
    }

    /// Whether `daemon(3)` forked the process from the test itself.
    fn is_daemons(&self, pid: i32) -> bool {
        let site = self.evidence.names.of_process(pid);
        site.is_some_and(|site| site.call == "daemon" && site.creator == self.evidence.facts.pid)
    }
}
