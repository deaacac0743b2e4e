//! A hang without proof: what the test's own thread waits for, followed from waiter to waiter to the last one.

mod link;
mod walk;

use nix::libc;

use super::evidence::Evidence;
use super::finding::{CodePlace, Finding, Kind};
use crate::guard::facts::{Class, Process};
use crate::proc::sockets::PeerUnknown;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;
use crate::recorder::call_site::ResourceKind;

/// A hang without proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitsFor {
    /// Each link waits for the next; the first is a thread of the test. Never empty.
    pub(crate) chain: Vec<Link>,
    /// The test that the first thread runs, if it is one of a command's.
    pub(crate) test: Option<String>,
    /// Index of the link that the last one waits for, if the chain is a cycle.
    pub(crate) ring: Option<usize>,
    /// The children of the test that failed and were not waited for; or those that ended otherwise, if no other process is
    /// left.
    pub(crate) dead: Vec<DeadChild>,
}

/// One thread and what it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) on: LinkOn,
}

/// A child that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadChild {
    pub(crate) pid: i32,
    pub(crate) name: String,
    /// The wait status; `None` if it was waited for.
    pub(crate) status: Option<i32>,
    pub(crate) created: Option<CodePlace>,
}

impl DeadChild {
    /// Whether it exited with an error, or was killed otherwise than tests kill their own children.
    pub(crate) fn has_failed(&self) -> bool {
        self.status.is_some_and(|status| ![0, libc::SIGKILL, libc::SIGTERM].contains(&status))
    }
}

/// What a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkOn {
    /// SIGCONT.
    Stopped,
    /// The exit of a child.
    Child {
        pid: i32,
    },
    /// The exit of any child; the pids of the living ones.
    AnyChild {
        pids: Vec<i32>,
    },
    /// The end of a thread of the same process.
    Thread {
        tid: i32,
    },
    /// A futex, which only another thread of the process could wake; the ids of those that do not idle.
    Threads {
        kind: Option<Awaited>,
        function: Option<String>,
        tids: Vec<i32>,
    },
    /// One of the fds in the poll set of an async runtime.
    Runtime {
        waits: Vec<RuntimeWait>,
    },
    /// Any of several things of different kinds, in one poll set.
    AnyOf {
        waits: Vec<RuntimeWait>,
    },
    /// Only the channels that wake an event loop from within its own process.
    EventLoop,
    /// A connection to a listening socket.
    Connection {
        inode: u64,
    },
    /// A socket with an unknown peer.
    UnknownPeer {
        inode: u64,
        why: PeerUnknown,
    },
    Socket(AtSocket),
    /// Room in a pipe.
    PipeRoom {
        inode: u64,
        readers: Vec<i32>,
    },
    /// Data or EOF of pipes.
    PipeData {
        inodes: Vec<u64>,
        writers: Vec<i32>,
        by_mistake: bool,
        part: bool,
    },
    /// EOF of a pipe that is open for writing only in the reader itself, and in `others`, if there are any.
    OwnPipe {
        inode: u64,
        /// Its own write ends.
        fds: Vec<i32>,
        others: Vec<i32>,
    },
    /// A lock on a file.
    FileLock {
        file: String,
        holders: Vec<i32>,
    },
    /// That another process opens the other end of a FIFO, or what else the opening of this path waits for.
    Opening {
        path: String,
    },
    /// A terminal, by its slave or its master (`/dev/ptmx`); it writes, and the terminal is full. `alone`: no other process of
    /// the test is alive.
    /// `own`: the process's own fds of the other side; `others`: the processes that have it too.
    Terminal {
        fd: i32,
        path: String,
        /// The number in `/dev/pts/0`, if known.
        index: Option<i32>,
        writes: bool,
        alone: bool,
        own: Vec<i32>,
        others: Vec<i32>,
        /// Processes that do not belong to the test have the other side, too.
        outside: bool,
    },
    /// Data or room in a named FIFO that is open; the same of its other end. `outside`: other processes have it.
    Fifo {
        path: String,
        writes: bool,
        own: Vec<i32>,
        others: Vec<i32>,
        outside: bool,
    },
    /// A datagram, from any socket.
    Datagram {
        inode: u64,
    },
    /// A futex in memory that these processes share with it; `outside`: so do, or may, other processes.
    SharedFutex {
        kind: Option<Awaited>,
        path: String,
        others: Vec<i32>,
        outside: bool,
    },
    /// The return of a system call of which no more is known; the fd that it was called with, if any.
    Call {
        name: String,
        file: Option<(i32, String)>,
    },
    /// Nothing: it sleeps repeatedly, and polls in between.
    Polling,
    /// A timeout.
    Sleep,
    /// A signal.
    Signal,
    /// Unknown: it runs, or is in a call that is not understood.
    Unknown,
}

/// A socket that a thread waits at, and what could end that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AtSocket {
    pub(crate) inode: u64,
    pub(crate) way: Way,
    /// It writes, and the socket is full.
    pub(crate) full: bool,
    /// Fds of the same process that are the other end.
    pub(crate) own: Vec<i32>,
    /// Other processes that hold it.
    pub(crate) holders: Vec<i32>,
    /// Whether the socket has a timeout.
    pub(crate) timeout: bool,
}

/// The kind of a wait on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Data,
    Room,
    Accept,
}

/// What a task of an async runtime may wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuntimeWait {
    /// The exit of a process, through a pidfd; the pid is known if there is only one child.
    Child {
        pid: Option<i32>,
        fd: i32,
    },
    PipeData {
        fd: i32,
        writers: Vec<i32>,
    },
    PipeRoom {
        fd: i32,
        readers: Vec<i32>,
    },
    /// A socket about which nothing is known.
    UnknownSocket {
        fd: i32,
    },
    Socket {
        inode: u64,
        fd: i32,
        peers: Vec<i32>,
    },
    Other {
        fd: i32,
        target: String,
    },
    Timer,
}

impl WaitsFor {
    pub(crate) fn first(&self) -> Option<&Link> {
        self.chain.first()
    }

    /// In a cycle, the link that the last one waits for.
    pub(crate) fn ring_link(&self) -> Option<&Link> {
        self.chain.get(self.ring?)
    }

    /// The pipes that the finding says are open by mistake.
    pub(super) fn mistakes(&self) -> Vec<u64> {
        let of_link = |link: &Link| match &link.on {
            LinkOn::PipeData { inodes, by_mistake: true, .. } => inodes.clone(),
            _ => Vec::new(),
        };
        self.chain.iter().flat_map(of_link).collect()
    }

    /// The processes that could end the first wait.
    pub(crate) fn wakers(&self) -> Vec<i32> {
        self.first().map(|link| link.on.wakers()).unwrap_or_default()
    }
}

impl LinkOn {
    /// The processes that could end the wait.
    pub(crate) fn wakers(&self) -> Vec<i32> {
        match self {
            LinkOn::Child { pid } => vec![*pid],
            LinkOn::AnyChild { pids }
            | LinkOn::Socket(AtSocket { holders: pids, .. })
            | LinkOn::PipeRoom { readers: pids, .. }
            | LinkOn::PipeData { writers: pids, .. }
            | LinkOn::OwnPipe { others: pids, .. }
            | LinkOn::Fifo { others: pids, .. }
            | LinkOn::Terminal { others: pids, .. }
            | LinkOn::FileLock { holders: pids, .. } => pids.clone(),
            LinkOn::Runtime { waits } | LinkOn::AnyOf { waits } => {
                waits.iter().flat_map(RuntimeWait::wakers).collect()
            }
            LinkOn::Stopped
            | LinkOn::Thread { .. }
            | LinkOn::Threads { .. }
            | LinkOn::EventLoop
            | LinkOn::Connection { .. }
            | LinkOn::UnknownPeer { .. }
            | LinkOn::Opening { .. }
            | LinkOn::Datagram { .. }
            | LinkOn::Call { .. }
            // Memory may be mapped for something else: that is no wait for another process.
            | LinkOn::SharedFutex { .. }
            | LinkOn::Polling
            | LinkOn::Sleep
            | LinkOn::Signal
            | LinkOn::Unknown => Vec::new(),
        }
    }

    /// Whether it may be waiting for something that a failed child should have done.
    pub(super) fn may_be_for_dead_child(&self) -> bool {
        self.is_vague()
            || matches!(
                self,
                LinkOn::Connection { .. }
                    | LinkOn::UnknownPeer { .. }
                    | LinkOn::Socket(_)
                    | LinkOn::Opening { .. }
                    | LinkOn::Fifo { .. }
                    | LinkOn::Datagram { .. }
                    | LinkOn::SharedFutex { .. }
                    | LinkOn::Call { .. }
                    | LinkOn::Runtime { .. }
                    | LinkOn::AnyOf { .. }
                    | LinkOn::PipeData { .. }
            )
    }

    /// Whether only another process could end the wait, and none is known that would.
    fn needs_another_process(&self) -> bool {
        let is_alone =
            |wait: &RuntimeWait| matches!(wait, RuntimeWait::Socket { peers, .. } if peers.is_empty());
        match self {
            LinkOn::Connection { .. }
            | LinkOn::Datagram { .. }
            | LinkOn::Opening { .. }
            | LinkOn::Call { .. } => true,
            LinkOn::Socket(AtSocket { own, holders: others, .. })
            | LinkOn::Fifo { own, others, outside: false, .. } => own.is_empty() && others.is_empty(),
            LinkOn::SharedFutex { others, outside: false, .. } => others.is_empty(),
            LinkOn::Runtime { waits } | LinkOn::AnyOf { waits } => {
                !waits.is_empty() && waits.iter().all(is_alone)
            }
            _ => false,
        }
    }

    /// Whether it is a runtime that waits for nothing outside of its own process.
    pub(crate) fn is_idle_runtime(&self) -> bool {
        matches!(self, LinkOn::Runtime { waits } if waits.is_empty())
    }

    /// Whether the link does not show what would end the wait.
    pub(crate) fn is_vague(&self) -> bool {
        matches!(self, LinkOn::Sleep | LinkOn::Signal | LinkOn::Unknown | LinkOn::Polling)
    }
}

impl RuntimeWait {
    /// The fd of the runtime's poll set.
    #[cfg(feature = "json")]
    pub(crate) fn fd(&self) -> Option<i32> {
        match self {
            RuntimeWait::Child { fd, .. }
            | RuntimeWait::PipeData { fd, .. }
            | RuntimeWait::PipeRoom { fd, .. }
            | RuntimeWait::UnknownSocket { fd }
            | RuntimeWait::Socket { fd, .. }
            | RuntimeWait::Other { fd, .. } => Some(*fd),
            RuntimeWait::Timer => None,
        }
    }

    pub(super) fn wakers(&self) -> Vec<i32> {
        match self {
            RuntimeWait::Child { pid, .. } => pid.iter().copied().collect(),
            RuntimeWait::PipeData { writers: pids, .. }
            | RuntimeWait::PipeRoom { readers: pids, .. }
            | RuntimeWait::Socket { peers: pids, .. } => pids.clone(),
            RuntimeWait::UnknownSocket { .. } | RuntimeWait::Other { .. } | RuntimeWait::Timer => Vec::new(),
        }
    }
}

/// Whether a longer timeout may help: something that could end the wait of the test is running, or has set a
/// timer.
pub(super) fn more_time_may_help(evidence: &Evidence<'_>, findings: &[Finding]) -> bool {
    let test = evidence.facts.pid;
    if evidence.stuck.iter().any(|stuck| stuck.proved() || stuck.tid == test) {
        return false;
    }
    // A test binary that runs its own test again does so forever.
    if findings.iter().any(|finding| matches!(finding.kind, Kind::OwnBinary { .. } | Kind::Blocked { .. })) {
        return false;
    }
    let waits = findings.iter().find_map(|finding| match &finding.kind {
        Kind::WaitsFor(waits) => Some(waits),
        _ => None,
    });
    let runs = |process: &Process| process.tasks.iter().any(goes_on);
    let Some(waits) = waits else { return evidence.process(test).is_some_and(runs) };
    // There is a cycle, or the test waits for something that has failed.
    if waits.ring.is_some() || !waits.dead.is_empty() {
        return false;
    }
    let Some(last) = waits.chain.last() else { return false };
    let wakers = match &last.on {
        LinkOn::Stopped | LinkOn::Signal | LinkOn::EventLoop => return false,
        LinkOn::Sleep => return true,
        // Its other end is unknown.
        LinkOn::UnknownPeer { .. } => return true,
        LinkOn::Call { file: Some((fd, _)), .. }
            if evidence
                .process(last.pid)
                .and_then(|process| process.fd(*fd))
                .is_some_and(|fd| fd.is_set_timer) =>
        {
            return true;
        }
        LinkOn::Runtime { waits } | LinkOn::AnyOf { waits } if waits.contains(&RuntimeWait::Timer) => {
            return true;
        }
        // No other process that was found has the other end.
        LinkOn::Fifo { others, outside: false, .. } | LinkOn::SharedFutex { others, outside: false, .. }
            if others.is_empty() =>
        {
            return false;
        }
        LinkOn::SharedFutex { others, .. } => others.clone(),
        // A connection may come from any process.
        LinkOn::Connection { .. }
        | LinkOn::Datagram { .. }
        | LinkOn::Opening { .. }
        | LinkOn::Call { .. } => Vec::new(),
        LinkOn::Threads { .. } | LinkOn::Unknown => vec![last.pid],
        LinkOn::AnyChild { pids } if pids.is_empty() => vec![last.pid],
        on => on.wakers(),
    };
    let is_waker = |process: &&Process| {
        wakers.is_empty()
            || wakers.contains(&process.pid)
            || process.lineage.iter().any(|pid| wakers.contains(pid))
    };
    evidence.facts.processes.iter().filter(is_waker).any(runs)
}

/// Whether a thread runs, or waits with a timeout.
fn goes_on(thread: &Thread) -> bool {
    match thread.on {
        On::Sleep => true,
        On::Poll { forever, .. } | On::Epoll { forever, .. } | On::Futex { forever, .. } => !forever,
        On::Other => matches!(thread.state.as_str(), "R" | "D"),
        _ => false,
    }
}

impl Evidence<'_> {
    /// What the test waits for, if a process could still end that, and what that process waits for.
    pub(super) fn waits_for(&self) -> Option<WaitsFor> {
        let running = self.running_tests();
        if running.is_empty() {
            return self.waits_for_of(self.facts.processes.iter().find(|process| process.is_test)?);
        }
        running.into_iter().find_map(|test| {
            let (process, thread) = self.thread(test.tid)?;
            Some(WaitsFor { test: Some(test.name), ..self.waits_from(process, thread)? })
        })
    }

    /// What a leaked process waits for, if that is known: it would have ended otherwise. What concerns only its own threads
    /// is left out.
    pub(super) fn waits_of_leaked(&self, process: &Process) -> Option<WaitsFor> {
        let (chain, ring) = self.walk_process(process)?;
        let says = match &chain.first()?.on {
            LinkOn::OwnPipe { .. }
            | LinkOn::Child { .. }
            | LinkOn::PipeRoom { .. }
            | LinkOn::PipeData { .. }
            | LinkOn::FileLock { .. }
            | LinkOn::Opening { .. }
            | LinkOn::Connection { .. } => true,
            LinkOn::AnyChild { pids } => !pids.is_empty(),
            LinkOn::Socket(at) => at.own.is_empty(),
            _ => false,
        };
        says.then_some(WaitsFor { chain, test: None, ring, dead: Vec::new() })
    }

    /// What the topmost processes wait for that were looked at without a guard, where that is no deadlock of theirs that was
    /// found.
    pub(super) fn waits_of_inspected(&self, known: &[i32]) -> Vec<WaitsFor> {
        let is_above = |process: &Process, pid: i32| {
            self.process(pid)
                .is_some_and(|other| other.pid == process.pid || other.lineage.contains(&process.pid))
        };
        let topmost = self.facts.processes.iter().filter(|process| process.lineage.is_empty());
        let open = topmost.filter(|process| !known.iter().any(|pid| is_above(process, *pid)));
        open.filter_map(|process| self.waits_for_of(process)).collect()
    }

    fn waits_for_of(&self, test: &Process) -> Option<WaitsFor> {
        let first = test.tasks.first()?;
        // A runtime with several threads waits in one of them.
        let polls = |thread: &&Thread| matches!(thread.on, On::Epoll { .. }) && self.in_runtime(thread);
        let thread = match self.in_runtime(first) {
            true => test.tasks.iter().find(polls).unwrap_or(first),
            false => first,
        };
        self.waits_from(test, thread)
    }

    /// What one thread of a process waits for.
    fn waits_from(&self, test: &Process, thread: &Thread) -> Option<WaitsFor> {
        let (chain, ring) = self.walk(test, thread);
        let dead = if ring.is_none() && chain.last().is_some_and(|link| link.on.may_be_for_dead_child()) {
            self.dead_children(test, chain.last())
        } else {
            Vec::new()
        };
        // That a test sleeps or runs explains nothing; what a child does that it may poll for in between may.
        let polls_for_child = || {
            chain.first().is_some_and(|link| link.on == LinkOn::Polling) && !self.children(test).is_empty()
        };
        let waits_for_signal = || chain.first().is_some_and(|link| link.on == LinkOn::Signal);
        let is_news = chain.iter().any(|link| !link.on.is_vague())
            || ring.is_some()
            || polls_for_child()
            || waits_for_signal();
        (is_news || !dead.is_empty()).then_some(WaitsFor { chain, test: None, ring, dead })
    }

    /// The children of the test that exited with an error, or were killed, and that it has not waited for. If there are none
    /// and no other process is left that could end this wait, those that ended without an error; or else the last one that
    /// was waited for.
    fn dead_children(&self, test: &Process, last: Option<&Link>) -> Vec<DeadChild> {
        let children = self.facts.processes.iter().filter(|child| child.parent == test.pid);
        let ended = children.filter_map(|child| {
            let created = self.names.of_process(child.pid).map(CodePlace::of);
            let status = Some(child.exit_status?);
            Some(DeadChild { pid: child.pid, name: child.comm.clone(), status, created })
        });
        let (failed, others): (Vec<DeadChild>, Vec<DeadChild>) = ended.partition(DeadChild::has_failed);
        let is_left = |process: &Process| !process.is_test && process.class != Class::Unwaited;
        if !failed.is_empty()
            || !test.is_test
            || self.facts.processes.iter().any(is_left)
            || test.tasks.iter().any(goes_on)
            || !last.is_some_and(|last| last.on.needs_another_process())
        {
            return failed;
        }
        if !others.is_empty() {
            return others;
        }
        self.last_ended().into_iter().collect()
    }

    /// The last process that the test started, if it has ended and was waited for.
    fn last_ended(&self) -> Option<DeadChild> {
        let mut started = self.names.call_sites.iter().filter(|site| site.kind == ResourceKind::Process);
        let site = started.next_back()?;
        let pid = i32::try_from(site.keys[0]).ok().filter(|pid| self.process(*pid).is_none())?;
        let program = site.command_line.first().map(|path| path.rsplit('/').next().unwrap_or(path));
        let name = program.unwrap_or("fork").to_owned();
        Some(DeadChild { pid, name, status: None, created: Some(CodePlace::of(site)) })
    }

    /// The children of a process.
    pub(super) fn children(&self, parent: &Process) -> Vec<&Process> {
        let processes = self.facts.processes.iter().filter(|process| process.class != Class::Unwaited);
        processes.filter(|process| process.lineage.first() == Some(&parent.pid)).collect()
    }
}
