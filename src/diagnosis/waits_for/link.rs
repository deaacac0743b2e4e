//! What one thread waits for, in any process.

use nix::libc;

use super::{AtSocket, LinkOn, RuntimeWait, Way};
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::wake_channel;
use crate::guard::facts::{Class, Process};
use crate::proc::fds::Fd;
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::{On, Thread};

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
            _ => self.waits_at_fd(process, thread).unwrap_or(LinkOn::Unknown),
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
        let idles = |other: &Thread| {
            matches!(other.on, On::Futex { .. }) && self.in_runtime(other)
                || wake_channel::idles(self.facts, self.names, process, other)
        };
        let others = process.tasks.iter().filter(|other| other.tid != thread.tid && !idles(other));
        LinkOn::Threads {
            kind: self.names.awaited.get(&thread.tid).cloned(),
            function: self.called(thread).map(str::to_owned),
            tids: others.map(|other| other.tid).collect(),
        }
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
        if let Some(socket) = fds().find_map(|fd| self.socket(process, fd)) {
            return self.waits_at(socket, process, thread);
        }
        if let Some(terminal) = self.at_terminal(process, thread) {
            return Some(terminal);
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
        is_terminal.then(|| LinkOn::Terminal { fd, path: path.clone(), writes, alone })
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
        let (peer, way) = match &socket.peer {
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
            return None;
        }
        Some(LinkOn::Socket(AtSocket { inode, way, full: writes, own, holders, timeout }))
    }

    /// What the tasks of an async runtime may wait for.
    fn runtime_waits(&self, process: &Process, thread: &Thread) -> Vec<RuntimeWait> {
        let fds = thread.fds().into_iter().filter_map(|fd| process.fd(fd));
        let fds = fds.filter(|fd| fd.event == 0 && !fd.is_epoll());
        let mut waits: Vec<RuntimeWait> = fds.filter_map(|fd| self.runtime_wait(process, fd)).collect();
        if matches!(thread.on, On::Epoll { forever: false, .. }) {
            waits.push(RuntimeWait::Timer);
        }
        waits
    }

    fn runtime_wait(&self, process: &Process, held: &Fd) -> Option<RuntimeWait> {
        let fd = held.fd;
        if held.target == "anon_inode:[pidfd]" {
            let pid = match self.children(process)[..] {
                [child] => Some(child.pid),
                _ => None,
            };
            return Some(RuntimeWait::Child { pid, fd });
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
