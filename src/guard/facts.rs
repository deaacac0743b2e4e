//! What a supervisor observed of one test, as sent to the harness. Facts only: `diagnosis` draws the
//! conclusions.

use std::time::Duration;

use crate::guard::contended::Contended;
use crate::guard::failure::{GuardFailure, ScratchFailure, SystemError};
use crate::guard::isolation::{self, NotIsolated};
use crate::guard::report_page::{Body, End, StrayFd};
use crate::proc::fds::Fd;
use crate::proc::mapped::MappedFile;
use crate::proc::process::UnseenWaker;
use crate::proc::signals::{Ended, Signals};
use crate::proc::sockets::Socket;
use crate::proc::threads::{Running, ThreadStack};
use crate::proc::waits::Thread;
use crate::recorder::call_site::CallSite;
use crate::sys::wire::{wire_enum, wire_struct};

wire_enum! {
    /// The state of a descendant at the end of a test.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Class {
        /// Alive after the grace, or at the timeout. The guard killed it.
        Leaked,
        /// Alive at the end of the body, and exited by itself within the grace.
        Straggler,
        /// Dead at the end of the body, and never waited for: a zombie.
        Unwaited,
    }
}

wire_struct! {
    /// A process at the end of a test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Process {
        pub(crate) pid: i32,
        pub(crate) class: Class,
        /// The ancestors up to the test process, nearest first, as far as they are known.
        pub(crate) lineage: Vec<i32>,
        /// Its parent when it was last read, which may be the supervisor.
        pub(crate) parent: i32,
        /// Its zombie children.
        pub(crate) dead_children: Vec<i32>,
        /// How these exited; for a zombie, how it exited itself.
        pub(crate) ended: Vec<Ended>,
        /// Its signal masks and dispositions. Only of a process that was inspected in full.
        pub(crate) signals: Signals,
        /// Whether its parent exited before it did.
        pub(crate) adopted: bool,
        pub(crate) is_test: bool,
        pub(crate) comm: String,
        /// Empty for a zombie.
        pub(crate) command_line: Vec<String>,
        pub(crate) state: String,
        pub(crate) pgid: i32,
        pub(crate) sid: i32,
        pub(crate) threads: u32,
        /// A fork of the test that has not called exec: it runs the test's own program.
        pub(crate) forked_without_exec: bool,
        /// Whether it has called exec, with the program of the test. Only of a process that was inspected in full.
        pub(crate) execed_own_program: bool,
        pub(crate) age: Option<Duration>,
        /// Its threads, the first thread first. Only of a process that was killed.
        pub(crate) tasks: Vec<Thread>,
        /// Its fds of the test's pipes, its sockets if they matter, and every fd that a thread of it waits
        /// on; `None` if they may not be read.
        pub(crate) fds: Option<Vec<Fd>>,
        /// Other events that might wake it.
        pub(crate) unseen_wakers: Vec<UnseenWaker>,
        /// Where it may hold files outside of its fd table.
        pub(crate) unseen_fds: Vec<UnseenFds>,
        /// The names of its drivers that may write to an eventfd from within the kernel.
        pub(crate) notifiers: Vec<String>,
        /// Whether it has, or may have, sockets that are not in `fds`.
        pub(crate) more_sockets: bool,
        /// The test that its environment names. Only of a process that a command left.
        pub(crate) test_in_environment: Option<String>,
        pub(crate) killed: bool,
        /// The wait status of a zombie; `None` for others, and if it may not be read.
        pub(crate) exit_status: Option<i32>,
    }
}

/// What a signal does to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    ByDefault,
    /// By a handler, or it is read (signalfd(2), sigwait(3)).
    Handled,
    Ignored,
    Blocked,
}

impl Disposition {
    /// Whether the process goes on as if there were no signal.
    pub(crate) fn is_deaf(self) -> bool {
        matches!(self, Disposition::Ignored | Disposition::Blocked)
    }
}

impl Process {
    /// Whether it runs the test's own program: it is the test process, or a fork that has not called exec.
    pub(crate) fn runs_own_program(&self) -> bool {
        self.is_test || self.forked_without_exec
    }

    /// Whether it handles a signal.
    pub(crate) fn handles(&self, signal: i32) -> bool {
        self.signals.handled.contains(&signal)
    }

    /// What a signal that asks a process to end does to it.
    pub(crate) fn takes(&self, signal: i32) -> Disposition {
        let Signals { blocked, ignored, handled, .. } = &self.signals;
        let is_read = || {
            self.known_fds().iter().any(|fd| fd.target == "anon_inode:[signalfd]")
                || self.tasks.iter().any(|thread| thread.syscall == "rt_sigtimedwait")
        };
        match blocked.contains(&signal) {
            _ if ignored.contains(&signal) => Disposition::Ignored,
            true if is_read() => Disposition::Handled,
            // Only the first thread's mask is known.
            true if self.tasks.len() == 1 => Disposition::Blocked,
            _ if handled.contains(&signal) => Disposition::Handled,
            _ => Disposition::ByDefault,
        }
    }

    /// Whether a signal is pending and blocked in it.
    pub(crate) fn holds_back(&self, signal: i32) -> bool {
        self.signals.pending.contains(&signal)
    }

    /// Its fds, as far as they may be read.
    pub(crate) fn known_fds(&self) -> &[Fd] {
        self.fds.as_deref().unwrap_or_default()
    }

    /// One of its fds by number. They are sorted by number.
    pub(crate) fn fd(&self, fd: i32) -> Option<&Fd> {
        let fds = self.known_fds();
        fds.get(fds.binary_search_by_key(&fd, |known| known.fd).ok()?)
    }

    /// The pipe behind one of its fds.
    pub(crate) fn pipe(&self, fd: i32) -> Option<u64> {
        self.fd(fd)?.pipe()
    }
}

wire_struct! {
    /// A snapshot of a pipe.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct PipeState {
        pub(crate) ino: u64,
        /// Bytes in the pipe, and its capacity.
        pub(crate) queued: Option<u32>,
        pub(crate) capacity: Option<u32>,
        /// No write end is open: a read returns EOF.
        pub(crate) no_writer: bool,
        /// No read end is open: a write fails with EPIPE.
        pub(crate) no_reader: bool,
    }
}

wire_struct! {
    /// A process outside of the test's tree that holds one of its pipes or sockets.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Outsider {
        pub(crate) pid: i32,
        pub(crate) comm: String,
        pub(crate) fds: Vec<Fd>,
    }
}

wire_struct! {
    /// The result of searching all other processes of the machine.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Outside {
        pub(crate) holders: Vec<Outsider>,
        pub(crate) read: u32,
        /// Processes whose fds may not be read.
        pub(crate) unreadable: u32,
        /// Whether `/proc` hides processes of other users (`hidepid`, proc(5)).
        pub(crate) hides: bool,
        /// Whether no process outside of the test's PID namespace can be seen.
        pub(crate) is_unseen: bool,
        /// Whether a cgroup may write to an eventfd.
        pub(crate) cgroups_notify: bool,
        /// Whether a process of the test was started between two snapshots.
        pub(crate) process_appeared: bool,
        /// Whether a process of the test received a pipe end or a socket between two snapshots.
        pub(crate) fd_transferred: bool,
    }
}

wire_enum! {
    /// Why a process could not be killed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Unkillable {
        /// It runs as a user whose processes this one may not signal.
        OtherUser { uid: u32, own: u32 },
        /// The kernel refused the signal.
        Refused { error: SystemError },
        /// It is in an uninterruptible wait.
        Uninterruptible {},
        /// It was still there this long after SIGKILL, in this state of proc_pid_stat(5).
        StillThere { after: Duration, state: u32 },
        /// The kernel reports that a child is left, but `/proc` lists none.
        Unlisted {},
    }
}

wire_struct! {
    /// A process that could not be killed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Survivor {
        /// 0 if it is [`Unkillable::Unlisted`].
        pub(crate) pid: i32,
        pub(crate) name: String,
        pub(crate) because: Unkillable,
    }
}

impl Survivor {
    /// A process of which nothing is known.
    pub(crate) fn unlisted() -> Survivor {
        Survivor { pid: 0, name: String::new(), because: Unkillable::Unlisted {} }
    }
}

wire_struct! {
    /// A mount that was left in a test's directory for temporary files, or over `/proc`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct LeftMount {
        /// The mount point.
        pub(crate) at: String,
        /// The source path, or the name of the file system; empty if unknown.
        pub(crate) what: String,
        /// Why it could not be detached.
        pub(crate) why: Option<String>,
    }
}

wire_struct! {
    /// All observations of one test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Facts {
        pub(crate) pid: i32,
        /// The session that the test was started in: the supervisor's. 0 if there is none.
        pub(crate) session: i32,
        pub(crate) body: Body,
        pub(crate) body_time: Option<Duration>,
        pub(crate) end: End,
        /// Whether the run was cut before the test ended.
        pub(crate) cut: bool,
        /// From the request to the exit of the test process, or to its timeout.
        pub(crate) ran: Duration,
        /// From the request to the verdict.
        pub(crate) time: Duration,
        pub(crate) processes: Vec<Process>,
        /// There was a descendant after the grace that no snapshot contained.
        pub(crate) unseen: bool,
        /// The body returned, and its process exited before it had recorded what was left.
        pub(crate) unchecked: bool,
        /// Not all calls could be recorded, and something is left.
        pub(crate) unrecorded: bool,
        pub(crate) strays: Vec<StrayFd>,
        /// The number of stray fds; more than `strays` lists if there were too many to keep.
        pub(crate) stray_count: u32,
        pub(crate) threads: u32,
        /// Some of them.
        pub(crate) running: Vec<Running>,
        /// The thread of the test process that got SIGSEGV or SIGBUS, if it was looked at.
        pub(crate) fault: Option<i32>,
        /// The stacks of these threads.
        pub(crate) stacks: Vec<ThreadStack>,
        pub(crate) returned_children: u32,
        /// One of them.
        pub(crate) returned_child: Option<i32>,
        pub(crate) survivors: Vec<Survivor>,
        /// The processes that were stopped and not killed: what becomes of them is decided by the verdict.
        pub(crate) kept: Vec<i32>,
        pub(crate) mounts: Vec<LeftMount>,
        /// The inodes of pipes that existed before the test.
        pub(crate) preexisting: Vec<u64>,
        /// The pipes that are relevant here.
        pub(crate) pipes: Vec<PipeState>,
        /// The sockets of what was left, if a thread waits on one.
        pub(crate) sockets: Vec<Socket>,
        /// Those among the stray fds.
        pub(crate) stray_sockets: Vec<Socket>,
        pub(crate) outside: Outside,
        /// The files that contain frames of processes that run other programs.
        pub(crate) mapped: Vec<MappedFile>,
        /// What threads wait at besides pipes and sockets.
        pub(crate) contended: Contended,
        /// The calls that created what was left.
        pub(crate) call_sites: Vec<CallSite>,
        /// What could not be read or cleaned.
        pub(crate) limits: Vec<EvidenceLimit>,
    }
}

wire_enum! {
    /// Where files of a process may be, besides its fd table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(crate) enum UnseenFds {
        /// In an io_uring instance (io_uring_register(2)).
        IoUring,
        /// In requests of io_submit(2).
        Aio,
        /// In a thread's own fd table.
        ThreadTable,
        /// In flight to it over a socket.
        InFlight,
    }
}

wire_enum! {
    /// What the guard could not read or clean after a test.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum EvidenceLimit {
        /// The look at what was left exceeded its time. Not read are: the details of so many processes, the
        /// whole tree, the fds of other processes, the state of pipes and sockets, stacks.
        OutOfTime { processes: u32, tree: bool, outside: bool, pipes_or_sockets: bool, stacks: bool },
        /// The calls of this program are not recorded.
        NotRecorded { why: Unrecorded },
        /// The scratch directory could not be emptied.
        ScratchNotEmptied { failure: ScratchFailure },
        /// Pids are those of the test's PID namespace, and processes outside of it were not seen.
        Isolated {},
        /// The test was to run in a PID namespace.
        NotIsolated { why: NotIsolated },
    }
}

wire_enum! {
    /// Why no calls of a program are recorded.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Unrecorded {
        /// childproof was built without its feature `sites`.
        WithoutFeature,
        /// The test binary is linked statically, or with a libc other than glibc.
        OtherLibc,
        /// The recorder is not in the command's program, for the reason that the tool gives.
        Command { why: String },
    }
}

wire_enum! {
    /// The messages about a test. A clean one only contains what differs from test to test.
    pub(crate) enum Answer {
        /// Something was left and is being inspected; a report follows.
        Looking {},
        /// The test was not started, and may be given to another supervisor.
        NotBegun { failure: GuardFailure },
        Clean { pid: i32, session: i32, body_time: Option<Duration>, time: Duration },
        Other { facts: Box<Facts> },
        /// The running processes, as requested. The test goes on.
        Inspected { facts: Box<Facts> },
        /// The timeout has passed while a debugger is attached: the test gets another second.
        Traced {},
        /// The supervisor responds: nothing stops it.
        Responds {},
        /// What was stopped is kept, whatever becomes of the harness.
        Kept {},
        /// The command is running.
        Started { pid: i32, supervisor: i32 },
        /// The command's program could not be started: the error of execve(2).
        NotStarted { error: i32 },
        /// A signal stopped the command.
        Stopped { signal: i32 },
    }
}

impl Answer {
    pub(crate) fn of(facts: Box<Facts>) -> Answer {
        let Facts { pid, session, body_time, time, .. } = *facts;
        if facts.are_clean() {
            Answer::Clean { pid, session, body_time, time }
        } else {
            Answer::Other { facts }
        }
    }
}

impl Facts {
    /// Every inspected thread, with its process.
    ///
    /// Boxed, like the argument of `holders`: generic code would be compiled anew for each use in a debug
    /// build.
    pub(crate) fn tasks(&self) -> Box<dyn Iterator<Item = (&Process, &Thread)> + '_> {
        let of_all = self.processes.iter();
        Box::new(of_all.flat_map(|process| process.tasks.iter().map(move |thread| (process, thread))))
    }

    /// Notes that what was stopped is killed after all.
    pub(crate) fn set_killed(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        for process in self.processes.iter_mut().filter(|process| kept.contains(&process.pid)) {
            process.killed = process.class == Class::Leaked;
        }
    }

    /// Notes that pids are those of a namespace, if there are any.
    pub(crate) fn note_isolation(&mut self) {
        if isolation::is_inside() && !self.are_clean() {
            self.limits.push(EvidenceLimit::Isolated {});
        }
    }

    /// Whether the subject is a command and not a test.
    pub(crate) fn is_command(&self) -> bool {
        self.body == Body::OfCommand
    }

    /// Whether they are of processes that no guard is above.
    pub(crate) fn is_inspected(&self) -> bool {
        self.body == Body::Inspected
    }

    /// Whether the body passed, the process returned, and nothing at all was left: what nearly every
    /// test comes to, and nothing can be concluded from.
    pub(crate) fn are_clean(&self) -> bool {
        self.body.has_passed()
            && !self.cut
            && self.end == (End::Exited { code: 0 })
            && self.threads == 0
            && self.returned_children == 0
            && !self.unseen
            && !self.unchecked
            && self.processes.is_empty()
            && self.stray_count == 0
            && self.survivors.is_empty()
            && self.mounts.is_empty()
            && self.call_sites.is_empty()
            && self.limits.is_empty()
    }

    /// All holders of matching fds: the pid, the fd, and the name if the process does not belong to the test.
    pub(crate) fn holders(&self, is: &dyn Fn(&Fd) -> bool) -> Vec<(i32, &Fd, Option<&str>)> {
        let inside = self
            .processes
            .iter()
            .flat_map(|process| process.known_fds().iter().map(move |fd| (process.pid, fd, None)));
        let outside = self.outside.holders.iter().flat_map(|outsider| {
            outsider.fds.iter().map(move |fd| (outsider.pid, fd, Some(outsider.comm.as_str())))
        });
        inside.chain(outside).filter(|(_, fd, _)| is(fd)).collect()
    }

    /// The state of a pipe, if it could be read.
    pub(crate) fn pipe(&self, ino: u64) -> Option<&PipeState> {
        self.pipes.iter().find(|state| state.ino == ino)
    }

    /// The state of a socket, if it could be read.
    pub(crate) fn socket(&self, ino: u64) -> Option<&Socket> {
        self.sockets.iter().find(|socket| socket.ino == ino)
    }

    /// Facts of a test that passed and left nothing.
    pub(crate) fn clean(pid: i32, session: i32, body_time: Option<Duration>, time: Duration) -> Facts {
        Facts {
            pid,
            session,
            body: Body::Passed,
            body_time,
            end: End::Exited { code: 0 },
            time,
            ..Facts::unguarded(GuardFailure::ReadExitStatus {})
        }
    }

    /// Facts of a test that could not be run or followed.
    pub(crate) fn unguarded(failure: GuardFailure) -> Facts {
        Facts {
            pid: 0,
            session: 0,
            body: Body::Unfinished,
            body_time: None,
            end: End::Unguarded { failure },
            cut: false,
            ran: Duration::ZERO,
            time: Duration::ZERO,
            processes: Vec::new(),
            unseen: false,
            unchecked: false,
            unrecorded: false,
            strays: Vec::new(),
            stray_count: 0,
            threads: 0,
            running: Vec::new(),
            fault: None,
            stacks: Vec::new(),
            returned_children: 0,
            returned_child: None,
            survivors: Vec::new(),
            kept: Vec::new(),
            mounts: Vec::new(),
            preexisting: Vec::new(),
            pipes: Vec::new(),
            sockets: Vec::new(),
            stray_sockets: Vec::new(),
            outside: Outside::default(),
            mapped: Vec::new(),
            contended: Contended::default(),
            call_sites: Vec::new(),
            limits: Vec::new(),
        }
    }
}
