//! What one thread waits for, in any process.

use nix::libc;

use super::{AtSocket, LinkOn, RuntimeWait, Way};
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::wake_channel;
use crate::guard::contended::{FdHolder, Mapper, Waiter};
use crate::guard::facts::{Class, Process};
use crate::proc::fds::Fd;
use crate::proc::sockets::{Peer, PeerUnknown, Socket};
use crate::proc::waits::{On, Thread};

/// Functions that code calls again and again until something has happened.
const LOOKS: [&str; 3] = ["::try_wait", "thread::functions::yield_now", "sched_yield"];

impl Evidence<'_> {
    /// What a thread waits for.
    pub(super) fn link_on(&self, process: &Process, thread: &Thread) -> LinkOn {
        match &thread.on {
            On::Stopped if thread.state == "T" => LinkOn::Stopped,
            On::Child { pid } if *pid > 0 => LinkOn::Child { pid: *pid },
            On::Child { .. } => {
                let alive = self.facts.processes.iter().filter(|child| child.parent == process.pid);
                let alive = alive.filter(|child| child.class != Class::Unwaited);
                LinkOn::AnyChild { pids: alive.map(|child| child.pid).collect() }
            }
            On::Thread { tid } => LinkOn::Thread { tid: *tid },
            On::Futex { shared: false, .. } => self.waits_for_threads(process, thread),
            On::Futex { shared: true, .. } => self.in_shared_memory(process, thread),
            On::Lock { fd } => self.waits_for_lock(process, thread, *fd),
            On::Open { path, .. } => LinkOn::Opening { path: path.clone() },
            // This is how some shells wait for their jobs.
            On::Signal if process.handles(libc::SIGCHLD) && !self.children(process).is_empty() => {
                LinkOn::AnyChild { pids: self.children(process).iter().map(|child| child.pid).collect() }
            }
            On::Signal => LinkOn::Signal,
            On::Sleep => self.sleeps(thread),
            _ if self.called(thread).is_some_and(|called| called.ends_with("thread::functions::sleep")) => {
                self.sleeps(thread)
            }
            On::Epoll { .. }
                if (process.runs_own_program() || self.facts.is_inspected()) && self.in_runtime(thread) =>
            {
                LinkOn::Runtime { waits: self.runtime_waits(process, thread) }
            }
            // It looks again and again, without a pause.
            On::Other
                if self
                    .called(thread)
                    .is_some_and(|called| LOOKS.iter().any(|function| called.ends_with(function))) =>
            {
                LinkOn::Polling
            }
            _ => self.waits_at_fd(process, thread).unwrap_or_else(|| in_call(process, thread)),
        }
    }

    /// A futex that processes share.
    fn in_shared_memory(&self, process: &Process, thread: &Thread) -> LinkOn {
        let waits = |waiters: &[Waiter]| waiters.iter().any(|waiter| waiter.tid == thread.tid);
        let memory = self.facts.contended.memory.iter().find(|memory| waits(&memory.waiters));
        let mapped_by = memory.iter().flat_map(|memory| &memory.mapped_by);
        let others: Vec<&Mapper> = mapped_by.filter(|mapper| mapper.pid != process.pid).collect();
        LinkOn::SharedFutex {
            kind: self.names.awaited.get(&thread.tid).cloned(),
            path: memory.map_or_else(String::new, |memory| memory.path.clone()),
            others: others.iter().filter(|other| other.outside.is_none()).map(|other| other.pid).collect(),
            // Other processes may map it that could not be read.
            outside: memory.is_none()
                || self.facts.contended.unreadable > 0
                || others.iter().any(|other| other.outside.is_some()),
        }
    }

    /// A thread that sleeps. If it ran between the two snapshots, it sleeps repeatedly and polls for
    /// something in between.
    fn sleeps(&self, thread: &Thread) -> LinkOn {
        match thread.on == On::Sleep && thread.unchanged {
            true => LinkOn::Sleep,
            false => LinkOn::Polling,
        }
    }

    fn waits_for_threads(&self, process: &Process, thread: &Thread) -> LinkOn {
        LinkOn::Threads {
            kind: self.names.awaited.get(&thread.tid).cloned(),
            function: self.called(thread).map(str::to_owned),
            tids: self.busy_threads(process, thread.tid),
        }
    }

    /// The other threads of a process, without those that wait for work.
    pub(super) fn busy_threads(&self, process: &Process, tid: i32) -> Vec<i32> {
        let idles = |other: &Thread| {
            matches!(other.on, On::Futex { .. }) && self.in_runtime(other)
                || wake_channel::idles(self.facts, self.names, process, other)
        };
        // The harness's own thread sends no message.
        let is_harness = |other: &Thread| other.name.starts_with("childproof-");
        let others =
            process.tasks.iter().filter(|other| other.tid != tid && !idles(other) && !is_harness(other));
        let others = others.filter(|other| !self.is_of_libtest(other.tid));
        others.map(|other| other.tid).collect()
    }

    fn waits_for_lock(&self, process: &Process, thread: &Thread, fd: i32) -> LinkOn {
        let file = process.fd(fd).map_or_else(String::new, |file| file.target.clone());
        let holds = |fd: &Fd| fd.held.iter().any(|lock| thread.behind.contains(lock));
        LinkOn::FileLock { file, holders: self.holders_of(process, holds) }
    }

    /// A wait on one fd or a set of them.
    fn waits_at_fd(&self, process: &Process, thread: &Thread) -> Option<LinkOn> {
        let is_channel = |fd: &i32| {
            wake_channel::is_one(self.facts, self.names, process, thread, *fd)
                || self.is_runtimes(process, thread, *fd)
        };
        let fds = || thread.fds().into_iter().filter(|fd| !is_channel(fd));
        if thread.on.is_set() && wake_channel::entries(thread).iter().all(is_channel) {
            return Some(LinkOn::EventLoop);
        }
        if let Some(any) = self.waits_for_any(process, thread, &fds().collect::<Vec<i32>>()) {
            return Some(any);
        }
        if let Some(socket) = fds().find_map(|fd| self.socket(process, fd)) {
            return self.waits_at(socket, process, thread);
        }
        if let Some(terminal) = self.at_terminal(process, thread) {
            return Some(terminal);
        }
        if let Some(fifo) = self.at_fifo(process, thread) {
            return Some(fifo);
        }
        if let Some(ended) = waits_for_end(process, &fds().collect::<Vec<i32>>()) {
            return Some(ended);
        }
        match &thread.on {
            On::Write { fd } => {
                let inode = process.pipe(*fd)?;
                let readers = self.holders_of(process, |fd: &Fd| fd.reads() && fd.pipe() == Some(inode));
                (!readers.is_empty()).then_some(LinkOn::PipeRoom { inode, readers })
            }
            On::Read { fd } if self.reads_own_pipe(process, *fd).is_some() => {
                self.reads_own_pipe(process, *fd)
            }
            On::Read { .. } | On::Poll { .. } | On::Epoll { .. } => {
                self.reads_from(process, fds().filter_map(|fd| process.pipe(fd)).collect())
            }
            _ => None,
        }
    }

    /// A poll set with several things that are not all pipes, so that none of them alone is what the thread waits for; or
    /// with a file of another kind.
    fn waits_for_any(&self, process: &Process, thread: &Thread, set: &[i32]) -> Option<LinkOn> {
        if !thread.on.is_set() {
            return None;
        }
        let waits = self.waits_in_set(process, thread, set.iter().filter_map(|fd| process.fd(*fd)));
        let is_other = |wait: &RuntimeWait| matches!(wait, RuntimeWait::Other { .. });
        let is_socket = |wait: &RuntimeWait| {
            matches!(wait, RuntimeWait::Socket { .. } | RuntimeWait::UnknownSocket { .. })
        };
        let several = waits.iter().filter(|wait| **wait != RuntimeWait::Timer).count() > 1;
        (waits.iter().any(is_other) || several && waits.iter().any(is_socket))
            .then_some(LinkOn::AnyOf { waits })
    }

    fn at_terminal(&self, process: &Process, thread: &Thread) -> Option<LinkOn> {
        let (fd, writes) = match thread.on {
            On::Read { fd } => (fd, false),
            On::Write { fd } => (fd, true),
            _ => return None,
        };
        let path = &process.fd(fd)?.target;
        let is_terminal = path.starts_with("/dev/pts/") || path == "/dev/ptmx";
        let mut others = self.facts.processes.iter().filter(|other| other.pid != process.pid);
        let alone = others.all(|other| other.class != Class::Leaked);
        let known = self.facts.contended.terminals.iter().find(|terminal| {
            let ends = terminal.masters.iter().chain(&terminal.slaves);
            ends.clone().any(|end| (end.pid, end.fd) == (process.pid, fd))
        });
        // What it waits for comes from the other side.
        let is_master = path.ends_with("ptmx");
        let other_side = known.map(|terminal| if is_master { &terminal.slaves } else { &terminal.masters });
        let (own, others) = inside(process, other_side.into_iter().flatten());
        let outside = self.facts.outside.is_unseen
            || other_side.is_some_and(|ends| ends.iter().any(|end| end.outside.is_some()));
        let index = known.map(|terminal| terminal.index);
        let alone = alone && !outside;
        is_terminal.then(|| LinkOn::Terminal {
            fd,
            path: path.clone(),
            index,
            writes,
            alone,
            own,
            others,
            outside,
        })
    }

    /// A wait at a named FIFO that is open.
    fn at_fifo(&self, process: &Process, thread: &Thread) -> Option<LinkOn> {
        let (fd, writes) = match thread.on {
            On::Read { fd } => (fd, false),
            On::Write { fd } => (fd, true),
            _ => return None,
        };
        let path = &process.fd(fd)?.target;
        let fifo = self.facts.contended.fifos.iter().find(|fifo| fifo.path == *path)?;
        let is_other_end = |holder: &&FdHolder| match writes {
            true => holder.access & libc::O_ACCMODE != libc::O_WRONLY,
            false => holder.access & libc::O_ACCMODE != libc::O_RDONLY,
        };
        let other_end = || fifo.holders.iter().filter(is_other_end);
        let (own, others) = inside(process, other_end());
        // Without another end this thread would not wait.
        let is_unseen = self.facts.outside.is_unseen && own.is_empty() && others.is_empty();
        let outside = is_unseen || other_end().any(|holder| holder.outside.is_some());
        Some(LinkOn::Fifo { path: path.clone(), writes, own, others, outside })
    }

    /// Whether a runtime added the fd to the set for its own use.
    fn is_runtimes(&self, process: &Process, thread: &Thread, fd: i32) -> bool {
        let socket = process.fd(fd).and_then(Fd::socket);
        thread.on.is_set() && socket.is_some_and(|ino| self.names.is_of_runtime(ino))
    }

    /// A program's only thread reads a pipe that it has open for writing itself, and that no process outside of the test
    /// has. In a process with more threads, another one may write there.
    fn reads_own_pipe(&self, process: &Process, fd: i32) -> Option<LinkOn> {
        let inode = process.pipe(fd)?;
        let writes = |fd: &Fd| fd.writes() && fd.pipe() == Some(inode);
        let fds = self.ends(process, inode, Fd::writes);
        let mut outside = self.facts.outside.holders.iter().flat_map(|holder| &holder.fds);
        if process.is_test || process.tasks.len() != 1 || fds.is_empty() || outside.any(writes) {
            return None;
        }
        Some(LinkOn::OwnPipe { inode, fds, others: self.holders_of(process, writes) })
    }

    /// A wait on pipes that another process holds open for writing.
    fn reads_from(&self, process: &Process, inodes: Vec<u64>) -> Option<LinkOn> {
        let writes = |fd: &Fd| fd.writes() && fd.pipe().is_some_and(|pipe| inodes.contains(&pipe));
        let writers = self.holders_of(process, writes);
        if writers.is_empty() {
            return None;
        }
        let by_mistake = matches!(inodes[..], [pipe] if self.open_by_mistake(pipe).is_some());
        let part = process.is_test && self.reads_a_part(process) && !by_mistake;
        Some(LinkOn::PipeData { inodes, writers, by_mistake, part })
    }

    /// A wait on a socket.
    fn waits_at(&self, socket: &Socket, process: &Process, thread: &Thread) -> Option<LinkOn> {
        let inode = socket.ino;
        if socket.listens {
            return Some(LinkOn::Connection { inode });
        }
        let is_set = thread.on.is_set();
        let writes = matches!(thread.on, On::Write { .. }) || is_set && socket.is_full;
        let reads_from_any = socket.is_datagram() && !writes && !is_set;
        let (peer, way) = match &socket.peer {
            Peer::None | Peer::Unknown { why: PeerUnknown::OtherKind } if reads_from_any => {
                return Some(LinkOn::Datagram { inode });
            }
            Peer::Queue { ino } => (*ino, Way::Accept),
            Peer::Socket { ino } => (*ino, if writes { Way::Room } else { Way::Data }),
            Peer::None => return None,
            Peer::Unknown { why } => return Some(LinkOn::UnknownPeer { inode, why: *why }),
        };
        // A poll set has its own timeout. A socket that cannot be asked about has no domain either.
        let forever = if writes { socket.writes_forever } else { socket.reads_forever };
        let timeout = !(is_set || forever || socket.domain == 0);
        let own = self.socket_fds(peer, process);
        let holders = self.holders_of(process, |held| held.socket() == Some(peer));
        if own.is_empty() && holders.is_empty() {
            // A process outside of the test listens.
            let is_outside = way == Way::Accept && !socket.is_unix();
            return is_outside.then_some(LinkOn::UnknownPeer { inode, why: PeerUnknown::NotAccepted });
        }
        Some(LinkOn::Socket(AtSocket { inode, way, full: writes, own, holders, timeout }))
    }

    /// What the tasks of an async runtime may wait for.
    fn runtime_waits(&self, process: &Process, thread: &Thread) -> Vec<RuntimeWait> {
        self.waits_in_set(process, thread, thread.fds().into_iter().filter_map(|fd| process.fd(fd)))
    }

    fn waits_in_set<'a>(
        &self,
        process: &Process,
        thread: &Thread,
        fds: impl Iterator<Item = &'a Fd>,
    ) -> Vec<RuntimeWait> {
        let fds = fds.filter(|fd| fd.event == 0 && !fd.is_epoll());
        let mut waits: Vec<RuntimeWait> = fds.filter_map(|fd| self.runtime_wait(process, fd)).collect();
        let timed = matches!(thread.on, On::Epoll { forever: false, .. } | On::Poll { forever: false, .. });
        if timed && !waits.contains(&RuntimeWait::Timer) {
            waits.push(RuntimeWait::Timer);
        }
        waits
    }

    fn runtime_wait(&self, process: &Process, held: &Fd) -> Option<RuntimeWait> {
        let fd = held.fd;
        if held.is_set_timer {
            return Some(RuntimeWait::Timer);
        }
        // That of async-io, which it sets for a timeout.
        let of_smol = || process.tasks.iter().any(|thread| thread.name == "async-io");
        if held.target == "anon_inode:[timerfd]" && of_smol() {
            return None;
        }
        if held.target == "anon_inode:[pidfd]" {
            let only_child = || match self.children(process)[..] {
                [child] => Some(child.pid),
                _ => None,
            };
            let pid = Some(held.process).filter(|pid| *pid > 0).or_else(only_child);
            // What has exited is not waited for: no task has asked yet.
            let has_exited = |pid: i32| self.process(pid).is_some_and(|one| one.exit_status.is_some());
            return (!pid.is_some_and(has_exited)).then_some(RuntimeWait::Child { pid, fd });
        }
        if let Some(pipe) = held.pipe() {
            let queued = self.facts.pipe(pipe).and_then(|state| state.queued);
            // If there is data, the thread does not wait to read; if there is room, it does not wait to
            // write.
            if held.reads() && queued.is_none_or(|count| count == 0) {
                let writers = self.holders_of(process, |held| held.writes() && held.pipe() == Some(pipe));
                return Some(RuntimeWait::PipeData { fd, writers });
            }
            if held.writes() && queued.is_none_or(|count| count > 0) {
                let readers = self.holders_of(process, |held| held.reads() && held.pipe() == Some(pipe));
                return Some(RuntimeWait::PipeRoom { fd, readers });
            }
            return None;
        }
        let Some(inode) = held.socket() else {
            return Some(RuntimeWait::Other { fd, target: held.target.clone() });
        };
        if self.names.is_of_runtime(inode) {
            return None;
        }
        let Some(socket) = self.facts.socket(inode) else {
            return Some(RuntimeWait::UnknownSocket { fd });
        };
        let peer = socket.ends().get(1).copied();
        let peers = peer.map(|peer| self.holders_of(process, |held| held.socket() == Some(peer)));
        Some(RuntimeWait::Socket { inode, fd, peers: peers.unwrap_or_default() })
    }
}

/// The fds of one process among the holders of a file, and the other processes of the test with it.
fn inside<'a>(process: &Process, holders: impl Iterator<Item = &'a FdHolder>) -> (Vec<i32>, Vec<i32>) {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for holder in holders.filter(|holder| holder.outside.is_none()) {
        match holder.pid == process.pid {
            true => own.push(holder.fd),
            false if !others.contains(&holder.pid) => others.push(holder.pid),
            false => {}
        }
    }
    (own, others)
}

/// A wait for the end of processes, by pidfds in a set that has nothing else.
fn waits_for_end(process: &Process, set: &[i32]) -> Option<LinkOn> {
    let pid = |fd: &i32| process.fd(*fd).map(|fd| fd.process).filter(|pid| *pid > 0);
    match set.iter().map(pid).collect::<Option<Vec<i32>>>()?[..] {
        [] => None,
        [pid] => Some(LinkOn::Child { pid }),
        ref pids => Some(LinkOn::AnyChild { pids: pids.to_vec() }),
    }
}

/// A thread that is blocked in a call of which no more is known. Pipes, sockets and sets of fds are told by what could end
/// the wait there, or not at all: they may be a wake channel.
fn in_call(process: &Process, thread: &Thread) -> LinkOn {
    let is_named = thread.syscall.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let file = thread.fds().first().map(|fd| (*fd, process.fd(*fd).map_or("", |fd| &fd.target).to_owned()));
    // The kernel itself ends these waits: no other end is open anywhere.
    let is_event = |path: &str| {
        ["anon_inode:inotify", "anon_inode:[timerfd]", "anon_inode:[signalfd]", "anon_inode:[fanotify]"]
            .contains(&path)
    };
    // A connection that waits for room in the queue of its listener is not known to that yet.
    let connects = thread.syscall == "connect";
    let is_file = file.as_ref().is_none_or(|(_, path)| path.starts_with('/') || is_event(path) || connects);
    // The second one stands for whatever the thread was in before it was stopped.
    let others = ["running", "restart_syscall", ""];
    if thread.state == "R"
        || !is_named
        || !is_file
        || others.contains(&&*thread.syscall)
        || thread.on.is_set()
    {
        return LinkOn::Unknown;
    }
    LinkOn::Call { name: thread.syscall.clone(), file }
}
