//! Finds the potential wakers of a thread: what it waits on, and all holders of that.
//!
//! Longer than 600 lines: one rule after the other about what can wake a thread.

use std::collections::{BTreeSet, HashMap, HashSet};

use nix::libc;

use super::{Because, Doubt, has_ended, parent_was_threaded};
use crate::guard::facts::{Class, Facts, PipeState, Process};
use crate::proc::fds::Fd;
use crate::proc::process::ACCOUNTED;
use crate::proc::sockets::Socket;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;
use crate::recorder::call_site::Names;

/// A thread and its potential wakers.
pub(super) struct Node<'a> {
    pub(super) process: &'a Process,
    /// Index of its process.
    pub(super) owner: usize,
    pub(super) thread: &'a Thread,
    pub(super) wait: Option<Wait>,
}

/// A wait that only processes of the tree can end.
#[derive(Default)]
pub(super) struct Wait {
    /// Numbers of sets of threads.
    pub(super) wakers: BTreeSet<usize>,
    /// Sets of threads that could also wake it, by means that no program uses to make progress: `shutdown` of
    /// the same end, a new entry in the poll set. They must be stuck too, and are not reported.
    pub(super) secondary_wakers: BTreeSet<usize>,
    /// The pipes on which it waits for a writer or for a reader.
    pub(super) reads: Vec<u64>,
    pub(super) writes: Vec<u64>,
    /// The sockets that it waits on.
    pub(super) sockets: Vec<AtSocket>,
    /// It waits on an eventfd that may be registered with the kernel, which then writes to it.
    pub(super) events: bool,
    /// The kernel reports another end, and no process was found to hold it.
    pub(super) unseen: bool,
}

/// A socket that a thread waits on.
#[derive(Clone, Copy)]
pub(super) struct AtSocket {
    pub(super) ino: u64,
    /// Whether it waits for data.
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// Whether its own process holds the other end.
    pub(super) own: bool,
}

/// Something that a process may hold; its holders may wake a thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Resource {
    Reader(u64),
    Writer(u64),
    /// An `O_PATH` fd of a pipe: its holder may open either end at any time.
    Path(u64),
    Socket(u64),
    Event(u64),
    Epoll,
}

impl Resource {
    /// The resources that an fd refers to.
    fn of(fd: &Fd) -> impl Iterator<Item = Resource> {
        let pipe = fd.pipe();
        let reader = pipe.filter(|_| fd.reads()).map(Resource::Reader);
        let writer = pipe.filter(|_| fd.writes()).map(Resource::Writer);
        let path = pipe.filter(|_| fd.is_path()).map(Resource::Path);
        let event = (fd.event != 0).then_some(Resource::Event(fd.event));
        let epoll = fd.is_epoll().then_some(Resource::Epoll);
        [reader, writer, path, fd.socket().map(Resource::Socket), event, epoll].into_iter().flatten()
    }
}

/// The property that defines a set of threads.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Threads of the holders of a resource.
    Holders(Resource),
    /// Threads of the holders of this file lock.
    Lock(String),
    /// Threads of this process.
    Process(usize),
    /// Threads of processes with this parent.
    Children(i32),
    /// Threads of processes with this ancestor.
    Descendants(i32),
    /// This thread only.
    Thread(usize),
    /// Threads of all processes of the test.
    All,
}

/// The sets of threads, without duplicates.
#[derive(Default)]
pub(super) struct Sets {
    /// `None` if the set has a process with an unknown thread.
    pub(super) numbers: HashMap<Source, Option<usize>>,
    pub(super) members: Vec<Vec<usize>>,
}
/// An end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Reader,
    Writer,
}

/// The facts, indexed for look-ups.
pub(super) struct Index<'a> {
    pub(super) facts: &'a Facts,
    /// All processes below the supervisor.
    pub(super) processes: Vec<&'a Process>,
    pub(super) holders: HashMap<Resource, Vec<usize>>,
    pub(super) locks: HashMap<&'a str, Vec<usize>>,
    /// The processes with unreadable fds: they may hold any file.
    pub(super) blind: Vec<usize>,
    pub(super) children: HashMap<i32, Vec<usize>>,
    pub(super) pipes: HashMap<u64, &'a PipeState>,
    pub(super) sockets: HashMap<u64, &'a Socket>,
    pub(super) preexisting: HashSet<u64>,
    pub(super) outside: HashSet<Resource>,
    /// The eventfds that a runtime keeps to itself: no other code can have registered them with the kernel.
    private_events: HashSet<u64>,
    /// Whether an fd may have been sent out of the tree over a socket.
    pub(super) leads_out: bool,
}

impl<'a> Index<'a> {
    pub(super) fn new(facts: &'a Facts, names: &Names) -> Index<'a> {
        let alive = |process: &&Process| process.class == Class::Leaked && !has_ended(process, facts);
        let outside = facts.outside.holders.iter().flat_map(|holder| &holder.fds);
        let mut index = Index {
            facts,
            processes: facts.processes.iter().filter(alive).collect(),
            holders: HashMap::new(),
            locks: HashMap::new(),
            blind: Vec::new(),
            children: HashMap::new(),
            pipes: facts.pipes.iter().map(|pipe| (pipe.ino, pipe)).collect(),
            sockets: facts.sockets.iter().map(|socket| (socket.ino, socket)).collect(),
            preexisting: facts.preexisting.iter().copied().collect(),
            outside: outside.flat_map(Resource::of).collect(),
            private_events: super::private_events(facts, names),
            leads_out: false,
        };
        for (at, process) in index.processes.iter().enumerate() {
            // The present parent counts: the original one may have exited.
            index.children.entry(process.parent).or_default().push(at);
            let Some(fds) = &process.fds else {
                index.blind.push(at);
                continue;
            };
            // If this process is in the list, it is the last one.
            let add = |list: &mut Vec<usize>| {
                if list.last() != Some(&at) {
                    list.push(at);
                }
            };
            for fd in fds {
                Resource::of(fd).for_each(|resource| add(index.holders.entry(resource).or_default()));
                fd.held.iter().for_each(|lock| add(index.locks.entry(lock).or_default()));
            }
        }
        // What is looked at without a guard has been given its fds by processes that are none of it.
        index.leads_out =
            facts.is_inspected() || index.processes.iter().any(|process| index.may_leave(process));
        index
    }

    /// All threads, with nothing known about their wakers yet.
    pub(super) fn nodes(&self) -> Vec<Node<'a>> {
        let threads = |(owner, process): (usize, &&'a Process)| {
            let process: &'a Process = process;
            process.tasks.iter().map(move |thread| Node { process, owner, thread, wait: None })
        };
        self.processes.iter().enumerate().flat_map(threads).collect()
    }

    /// Whether a process holds a resource.
    pub(super) fn has(&self, owner: usize, resource: Resource) -> bool {
        self.holders.get(&resource).is_some_and(|holders| holders.binary_search(&owner).is_ok())
    }

    /// The number of a set of threads; `None` if not all of them are known, so one may be running.
    fn set(&self, sets: &mut Sets, nodes: &[Node<'_>], source: Source) -> Option<usize> {
        if let Some(known) = sets.numbers.get(&source) {
            return *known;
        }
        let members = self.members(nodes, &source);
        let number = members.map(|members| {
            sets.members.push(members);
            sets.members.len() - 1
        });
        sets.numbers.insert(source, number);
        number
    }

    fn members(&self, nodes: &[Node<'_>], source: &Source) -> Option<Vec<usize>> {
        let owners = match source {
            Source::Thread(at) => return Some(vec![*at]),
            Source::Process(owner) => vec![*owner],
            Source::All => (0..self.processes.len()).collect(),
            // A process with an unreadable table may hold any resource.
            Source::Holders(resource) => {
                [self.holders.get(resource).map_or(&[][..], |list| &list[..]), &self.blind[..]].concat()
            }
            Source::Lock(lock) => {
                [self.locks.get(lock.as_str()).map_or(&[][..], |list| &list[..]), &self.blind[..]].concat()
            }
            Source::Children(parent) => self.children.get(parent).cloned().unwrap_or_default(),
            Source::Descendants(ancestor) => {
                let mut found = Vec::new();
                let mut seen = HashSet::from([*ancestor]);
                let mut pending = vec![*ancestor];
                while let Some(parent) = pending.pop() {
                    for child in self.children.get(&parent).into_iter().flatten() {
                        let pid = self.processes[*child].pid;
                        if seen.insert(pid) {
                            found.push(*child);
                            pending.push(pid);
                        }
                    }
                }
                found
            }
        };
        let owners: BTreeSet<usize> = owners.into_iter().collect();
        let mut members = Vec::new();
        for owner in owners {
            // Threads of one process are adjacent.
            let first = nodes.partition_point(|node| node.owner < owner);
            let end = nodes.partition_point(|node| node.owner <= owner);
            if first == end || end - first < self.processes[owner].threads as usize {
                return None;
            }
            members.extend(first..end);
        }
        Some(members)
    }

    /// The potential wakers of a thread; `None` if something outside of the tree or a clock could wake it.
    pub(super) fn wait(&self, sets: &mut Sets, nodes: &[Node<'_>], at: usize) -> Option<Wait> {
        let Node { process, owner, thread, .. } = nodes[at];
        let mut wait = Wait::default();
        match &thread.on {
            On::Read { fd } => self.add_call(sets, &mut wait, nodes, at, *fd, Side::Writer)?,
            On::Write { fd } => self.add_call(sets, &mut wait, nodes, at, *fd, Side::Reader)?,
            On::Poll { fds, forever: true } => self.add_set(sets, &mut wait, nodes, at, fds)?,
            On::Epoll { epoll, fds, inodes, exact, forever: true } => {
                for (entry, ino) in fds.chunks_exact(2).zip(inodes) {
                    let fd = process.fd(entry[0])?;
                    // The number refers to another file by now, or the kernel does not say. (All eventfds may
                    // have one inode.)
                    let is_same = if fd.event == 0 { fd.pipe_or_socket() == Some(*ino) } else { *exact };
                    if !is_same {
                        return None;
                    }
                }
                // The instance may be from before the test.
                if process.fd(*epoll).is_none_or(|epoll| self.preexisting.contains(&epoll.ino)) {
                    return None;
                }
                self.add_set(sets, &mut wait, nodes, at, fds)?;
                // Each holder of the instance may add another fd to it that is ready.
                wait.secondary_wakers.insert(self.set(sets, nodes, Source::Holders(Resource::Epoll))?);
            }
            // The kernel has a zombie but does not return it: its tracer has not released it yet.
            On::Child { pid } if process.dead_children.iter().any(|dead| *pid < 0 || dead == pid) => {
                return None;
            }
            On::Child { pid } if *pid < 0 => {
                let children = self.set(sets, nodes, Source::Children(process.pid))?;
                if sets.members[children].is_empty() {
                    return None;
                }
                wait.wakers.insert(children);
                // Other threads may start another child, and a descendant may become one when its parent
                // exits (PR_SET_CHILD_SUBREAPER).
                wait.secondary_wakers.insert(self.set(sets, nodes, Source::Process(owner))?);
                wait.secondary_wakers.insert(self.set(sets, nodes, Source::Descendants(process.pid))?);
            }
            On::Child { pid } => {
                let mut children = self.children.get(&process.pid).into_iter().flatten();
                let child = children.find(|child| self.processes[**child].pid == *pid)?;
                wait.wakers.insert(self.set(sets, nodes, Source::Process(*child))?);
            }
            On::Futex { shared: false, forever: true, .. } => {
                // A signal handler may write the word, whatever its purpose.
                wait.wakers.insert(self.set(sets, nodes, Source::Process(owner))?);
            }
            On::Thread { tid } => {
                let first = nodes.partition_point(|node| node.owner < owner);
                let mut same = nodes[first..].iter().take_while(|node| node.owner == owner);
                let other = first + same.position(|node| node.thread.tid == *tid)?;
                wait.wakers.insert(self.set(sets, nodes, Source::Thread(other))?);
            }
            On::Lock { fd } => {
                if thread.behind.is_empty() || self.preexisting.contains(&process.fd(*fd)?.ino) {
                    return None;
                }
                for lock in &thread.behind {
                    // An outside or unreadable process holds it.
                    self.locks.get(lock.as_str())?;
                    wait.wakers.insert(self.set(sets, nodes, Source::Lock(lock.clone()))?);
                }
            }
            _ => return None,
        }
        // A signal handler runs when a child exits, or when another process sends the signal: any running
        // process may do so.
        if ACCOUNTED.iter().any(|signal| process.handles(*signal)) {
            wait.secondary_wakers.insert(self.set(sets, nodes, Source::All)?);
        }
        // A running thread may cancel it (pthread_cancel(3)), or kill the child that it waits for.
        wait.secondary_wakers.insert(self.set(sets, nodes, Source::Process(owner))?);
        Some(wait)
    }

    /// Adds the threads that could end a read or write on an fd.
    fn add_call(
        &self,
        sets: &mut Sets,
        wait: &mut Wait,
        nodes: &[Node<'_>],
        at: usize,
        fd: i32,
        other: Side,
    ) -> Option<()> {
        let found = nodes[at].process.fd(fd)?;
        let reads = other == Side::Writer;
        let Some(ino) = found.socket() else {
            // The call would have returned: the number refers to another file by now.
            let has_some =
                found.pipe().and_then(|pipe| self.pipes.get(&pipe)?.queued).is_some_and(|queued| queued > 0);
            if reads && (!found.reads() || has_some) || !reads && !found.writes() {
                return None;
            }
            return self.add(sets, wait, nodes, found, other);
        };
        let socket = self.sockets.get(&ino)?;
        // The timeout of poll is an argument; that of a socket is a socket option (socket(7)).
        let forever = if reads { socket.reads_forever } else { socket.writes_forever };
        if !forever {
            return None;
        }
        self.add_socket(sets, wait, nodes, at, AtSocket { ino, reads, writes: !reads, own: false })
    }

    fn add_set(
        &self,
        sets: &mut Sets,
        wait: &mut Wait,
        nodes: &[Node<'_>],
        at: usize,
        set: &[i32],
    ) -> Option<()> {
        // An empty set waits for a signal.
        if set.is_empty() {
            return None;
        }
        for entry in set.chunks_exact(2) {
            let fd = nodes[at].process.fd(entry[0])?;
            if let Some(ino) = fd.socket() {
                let asks = |events: i16| entry[1] & i32::from(events) != 0;
                let writes = asks(libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND);
                let reads =
                    !writes || asks(libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLPRI);
                self.add_socket(sets, wait, nodes, at, AtSocket { ino, reads, writes, own: false })?;
                continue;
            }
            // poll(2) reports a hang-up even if no event is requested.
            if fd.reads() {
                self.add(sets, wait, nodes, fd, Side::Writer)?;
            }
            if fd.writes() {
                self.add(sets, wait, nodes, fd, Side::Reader)?;
            }
        }
        Some(())
    }

    /// Adds the threads of processes that hold the other end of a unix socket, or the same one.
    fn add_socket(
        &self,
        sets: &mut Sets,
        wait: &mut Wait,
        nodes: &[Node<'_>],
        at: usize,
        end: AtSocket,
    ) -> Option<()> {
        let AtSocket { ino, writes, .. } = end;
        let socket = self.sockets.get(&ino)?;
        let peer = socket.other_end()?;
        // A datagram sender may wait for room in the queue of any socket.
        if writes && socket.is_datagram() {
            return None;
        }
        if [ino, peer]
            .iter()
            .any(|ino| self.preexisting.contains(ino) || self.outside.contains(&Resource::Socket(*ino)))
        {
            return None;
        }
        let others = self.set(sets, nodes, Source::Holders(Resource::Socket(peer)))?;
        wait.unseen |= sets.members[others].is_empty();
        wait.wakers.insert(others);
        wait.secondary_wakers.insert(self.set(sets, nodes, Source::Holders(Resource::Socket(ino)))?);
        let own = self.has(nodes[at].owner, Resource::Socket(peer));
        wait.sockets.push(AtSocket { own, ..end });
        Some(())
    }

    /// Adds the threads of processes that hold an end of the file behind an fd that is not a socket.
    fn add(&self, sets: &mut Sets, wait: &mut Wait, nodes: &[Node<'_>], fd: &Fd, other: Side) -> Option<()> {
        if fd.event != 0 {
            // An eventfd: each holder can write to it and read from it.
            let event = Resource::Event(fd.event);
            if self.preexisting.contains(&fd.ino) || self.outside.contains(&event) {
                return None;
            }
            wait.events |= !self.private_events.contains(&fd.event);
            wait.wakers.insert(self.set(sets, nodes, Source::Holders(event))?);
            return Some(());
        }
        let pipe = fd.pipe()?;
        let ends = [Resource::Reader(pipe), Resource::Writer(pipe), Resource::Path(pipe)];
        if self.preexisting.contains(&pipe) || ends.iter().any(|end| self.outside.contains(end)) {
            return None;
        }
        // At EOF the read does not block; the thread is about to continue.
        if self.pipes.get(&pipe).is_some_and(|state| match other {
            Side::Writer => state.no_writer,
            Side::Reader => state.no_reader,
        }) {
            return None;
        }
        let [readers, writers, paths] = ends.map(|end| self.set(sets, nodes, Source::Holders(end)));
        let (readers, writers, paths) = (readers?, writers?, paths?);
        // A holder of the same end may enlarge the pipe (F_SETPIPE_SZ), or open the other end by
        // /proc/self/fd.
        wait.secondary_wakers.extend([readers, writers, paths]);
        let others = match other {
            Side::Writer => {
                wait.reads.push(pipe);
                writers
            }
            Side::Reader => {
                wait.writes.push(pipe);
                readers
            }
        };
        wait.unseen |= sets.members[others].is_empty();
        wait.wakers.insert(others);
        Some(())
    }

    /// The pipes that a thread waits to read and to write. A thread with an fd in a poll set waits for one
    /// direction of it: if there is data it does not wait to read, and if there is room it does not wait to
    /// write.
    pub(super) fn pipes_of(&self, thread: &Thread, wait: &Wait, alone: bool) -> (Vec<u64>, Vec<u64>) {
        let (mut reads, mut writes) = (wait.reads.clone(), wait.writes.clone());
        if !thread.on.is_set() {
            return (reads, writes);
        }
        let queued = |pipe: &u64| self.pipes.get(pipe).and_then(|state| state.queued);
        reads.retain(|pipe| queued(pipe).is_none_or(|count| count == 0));
        writes.retain(|pipe| queued(pipe).is_none_or(|count| count > 0));
        // It may only wait for the other side to hang up.
        match reads.is_empty() && writes.is_empty() && alone {
            true => (wait.reads.clone(), wait.writes.clone()),
            false => (reads, writes),
        }
    }

    /// The same for sockets, each with its direction, except those that a runtime added for itself.
    pub(super) fn sockets_of(&self, thread: &Thread, wait: &Wait, names: &Names) -> Vec<AtSocket> {
        if !thread.on.is_set() {
            return wait.sockets.clone();
        }
        let way = |end: &AtSocket| {
            let socket = self.sockets.get(&end.ino)?;
            let has_nothing = socket.queued.is_none_or(|count| count == 0);
            let writes = end.writes && (socket.is_full || !end.reads);
            (writes || has_nothing).then_some(AtSocket { writes, ..*end })
        };
        let is_users = |end: &&AtSocket| !names.is_of_runtime(end.ino);
        let users: Vec<&AtSocket> = wait.sockets.iter().filter(is_users).collect();
        let found: Vec<AtSocket> = users.iter().copied().filter_map(way).collect();
        if found.is_empty() {
            return users.into_iter().map(|end| AtSocket { writes: !end.reads, ..*end }).collect();
        }
        // The full one is what it waits for.
        match found.iter().any(|end| end.writes) {
            true => found.into_iter().filter(|end| end.writes).collect(),
            false => found,
        }
    }

    /// Whether a thread waits for a lock that was held when its process was forked: the process is a fork
    /// without exec of a threaded one, and none of its own threads can hold the lock, or is likely to.
    pub(super) fn inherited(&self, process: &Process, thread: &Thread, names: &Names) -> Option<Because> {
        let threaded = parent_was_threaded(self.facts, names, process);
        let alone = process.tasks.len() == 1;
        let kind = names.awaited.get(&thread.tid);
        // No thread holds a lock of std while it waits for something else, or takes it twice. The exception
        // is stdin's lock, which the user's code can hold.
        let name = names.locks.get(&thread.tid).map_or("", String::as_str);
        let of_std = name.starts_with("std::") && !name.starts_with("std::io::stdio::stdin");
        // User code runs with the panic hook's lock held, and can hold the locks of stdout and stderr.
        let runs_users = ["std::io::stdio::", "std::panicking::HOOK", "std::sys::backtrace::lock::"]
            .iter()
            .any(|lock| name.starts_with(lock));
        match threaded {
            Some(false) => None,
            _ if alone && (of_std || kind == Some(&Awaited::CLibrary)) => Some(Because::InheritedLock),
            Some(true) if of_std && !runs_users => Some(Because::InheritedLock),
            Some(true) if of_std => Some(Because::MaybeInheritedLock),
            Some(true) if alone && kind.is_some_and(Awaited::is_held) => Some(Because::MaybeInheritedLock),
            _ => None,
        }
    }

    /// The doubts about the wait of one thread, without those about the waits that it depends on.
    pub(super) fn doubts(&self, node: &Node<'_>) -> Vec<Doubt> {
        let mut doubts: Vec<Doubt> = Vec::new();
        let Some(wait) = &node.wait else { return doubts };
        let outside = &self.facts.outside;
        let pid = node.process.pid;
        if !node.thread.unchanged {
            doubts.push(Doubt::Ran { pid });
        }
        // A signal, a timer or the like may end it without any other process.
        let unseen_wakers = node.process.unseen_wakers.iter().cloned();
        doubts.extend(unseen_wakers.map(|waker| Doubt::UnseenWaker { pid, waker }));
        if wait.unseen {
            let read = outside.read as usize + self.processes.len();
            doubts.push(Doubt::NoHolder { read, unreadable: outside.unreadable });
        }
        doubts.extend(unseen_fds(node.process));
        if wait.events {
            doubts.extend(super::kernel_writers(self.facts));
        }
        if matches!(node.thread.on, On::Futex { .. } | On::Thread { .. }) {
            return doubts;
        }
        // They might hold any file, and be children of any process.
        if outside.process_appeared {
            doubts.push(Doubt::ProcessAppeared);
        }
        if outside.fd_transferred {
            doubts.push(Doubt::FdTransferred);
        }
        if outside.hides {
            doubts.push(Doubt::HiddenProcesses);
        }
        // A file may have left over a socket that is closed by now. No process outside is the child of one inside.
        if outside.is_unseen && !matches!(node.thread.on, On::Child { .. }) {
            doubts.push(Doubt::OutsideNamespace);
        }
        // A file that was created in the tree can only leave it over a socket. The epoll instances of other
        // processes cannot be compared.
        if self.leads_out && matches!(node.thread.on, On::Epoll { .. }) {
            doubts.push(Doubt::EpollMayHaveLeft);
        }
        doubts
    }

    /// The doubts about every wait on an fd.
    pub(super) fn doubts_of_all(&self) -> Vec<Doubt> {
        let outside = &self.facts.outside;
        // A process that receives an fd in flight can continue with it, even if the fd has nothing to do with
        // this wait.
        let mut doubts: Vec<Doubt> = self.processes.iter().flat_map(|process| unseen_fds(process)).collect();
        let receives = outside.holders.iter().filter(|outsider| outsider.fds.iter().any(|fd| fd.carries));
        doubts.extend(receives.map(|outsider| Doubt::FdsOnTheirWayOut { pid: outsider.pid }));
        if outside.unreadable > 0 && self.leads_out {
            doubts.push(Doubt::UnreadableFds { processes: outside.unreadable });
        }
        doubts
    }

    /// Whether a process has a socket over which an fd may have left the tree: a unix socket, unless it
    /// listens or its other end is in the tree too. (No other kind carries fds.)
    fn may_leave(&self, process: &Process) -> bool {
        let stays = |ino: u64| {
            let Some(socket) = self.sockets.get(&ino) else { return false };
            let other_kind = socket.domain != 0 && !socket.is_unix();
            let other_end = socket.other_end();
            // A datagram socket may send to any named socket, regardless of its peer.
            other_kind
                || socket.listens
                || !socket.is_datagram()
                    && other_end.is_some_and(|other| self.holders.contains_key(&Resource::Socket(other)))
        };
        process.more_sockets || !process.known_fds().iter().filter_map(Fd::socket).all(stays)
    }
}

/// The doubts about files that a process may hold outside of its fd table.
fn unseen_fds(process: &Process) -> impl Iterator<Item = Doubt> {
    let pid = process.pid;
    process.unseen_fds.iter().map(move |place| Doubt::UnseenFds { pid, place: *place })
}
