//! Who could wake a thread: what each waits on, and everybody who has a part of it.

use std::collections::{BTreeSet, HashMap, HashSet};

use nix::libc;

use super::{Because, has_crowd_behind, has_ended};
use crate::diagnosis::{Awaited, Names, is_of_runtime, plural};
use crate::facts::{Class, Facts, PipeState, Process};
use crate::proc::fds::Fd;
use crate::proc::sockets::Socket;
use crate::proc::waits::{On, Thread};

/// One thread, and who could wake it.
pub(super) struct Node<'a> {
    pub(super) process: &'a Process,
    /// The place of its process in the scene.
    pub(super) owner: usize,
    pub(super) thread: &'a Thread,
    pub(super) wait: Option<Wait>,
}

/// A wait that only others of the tree can end.
#[derive(Default)]
pub(super) struct Wait {
    /// Sets of threads.
    pub(super) wakers: BTreeSet<usize>,
    /// Those that could wake it too, by means that nobody uses to go on with the work: `shutdown`
    /// of the same end, another entry in the poll set. They must be stuck as well, and are not told.
    pub(super) meddlers: BTreeSet<usize>,
    /// The pipes at which it waits for a writer or for a reader.
    pub(super) reads: Vec<u64>,
    pub(super) writes: Vec<u64>,
    /// The sockets that it waits on.
    pub(super) sockets: Vec<AtSocket>,
    /// The kernel says that there is another end, and nobody was found to have it.
    pub(super) unseen: bool,
}

/// A socket that a thread waits on.
#[derive(Clone, Copy)]
pub(super) struct AtSocket {
    pub(super) ino: u64,
    /// What it asked for.
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// Its own process has the other end.
    pub(super) own: bool,
}

/// Something that a process may hold, and whose holders may wake a thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    Reader(u64),
    Writer(u64),
    Socket(u64),
    Event(u64),
    Epoll,
}

impl Thing {
    /// What an fd is.
    fn of(fd: &Fd) -> impl Iterator<Item = Thing> {
        let pipe = fd.pipe();
        let reader = pipe.filter(|_| fd.reads()).map(Thing::Reader);
        let writer = pipe.filter(|_| fd.writes()).map(Thing::Writer);
        let event = (fd.event != 0).then_some(Thing::Event(fd.event));
        let epoll = fd.is_epoll().then_some(Thing::Epoll);
        [reader, writer, fd.socket().map(Thing::Socket), event, epoll].into_iter().flatten()
    }
}

/// What the threads of a set have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Their processes hold something.
    Holders(Thing),
    /// Their processes hold this lock on a file.
    Lock(String),
    /// They are of this process.
    Process(usize),
    /// Their processes have this parent.
    Children(i32),
    /// Their processes have this ancestor.
    Descendants(i32),
    /// It is this one.
    Thread(usize),
}

/// Sets of threads, each once.
#[derive(Default)]
pub(super) struct Sets {
    /// `None` if a process has a thread that is not known.
    pub(super) numbers: HashMap<Source, Option<usize>>,
    pub(super) members: Vec<Vec<usize>>,
}
/// Which end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Reader,
    Writer,
}

/// The facts, by what they are looked up by.
pub(super) struct Scene<'a> {
    pub(super) facts: &'a Facts,
    /// Everything that runs below the supervisor.
    pub(super) processes: Vec<&'a Process>,
    pub(super) holders: HashMap<Thing, Vec<usize>>,
    pub(super) locks: HashMap<&'a str, Vec<usize>>,
    /// The processes whose fds may not be read: they may have any.
    pub(super) blind: Vec<usize>,
    pub(super) children: HashMap<i32, Vec<usize>>,
    pub(super) pipes: HashMap<u64, &'a PipeState>,
    pub(super) sockets: HashMap<u64, &'a Socket>,
    pub(super) foreign: HashSet<u64>,
    pub(super) outside: HashSet<Thing>,
    /// An fd may have left the tree over a socket.
    pub(super) leads_out: bool,
}

impl<'a> Scene<'a> {
    pub(super) fn new(facts: &'a Facts) -> Scene<'a> {
        let alive = |process: &&Process| process.class == Class::Leaked && !has_ended(process, facts);
        let outside = facts.outside.holders.iter().flat_map(|holder| &holder.fds);
        let mut scene = Scene {
            facts,
            processes: facts.processes.iter().filter(alive).collect(),
            holders: HashMap::new(),
            locks: HashMap::new(),
            blind: Vec::new(),
            children: HashMap::new(),
            pipes: facts.pipes.iter().map(|pipe| (pipe.ino, pipe)).collect(),
            sockets: facts.sockets.iter().map(|socket| (socket.ino, socket)).collect(),
            foreign: facts.foreign.iter().copied().collect(),
            outside: outside.flat_map(Thing::of).collect(),
            leads_out: false,
        };
        for (at, process) in scene.processes.iter().enumerate() {
            // Whose child it was is another question: its parent may have ended since.
            scene.children.entry(process.parent).or_default().push(at);
            let Some(fds) = &process.fds else {
                scene.blind.push(at);
                continue;
            };
            // The last one of a list is this process if it is in there at all.
            let add = |list: &mut Vec<usize>| {
                if list.last() != Some(&at) {
                    list.push(at);
                }
            };
            for fd in fds {
                Thing::of(fd).for_each(|thing| add(scene.holders.entry(thing).or_default()));
                fd.held.iter().for_each(|lock| add(scene.locks.entry(lock).or_default()));
            }
        }
        scene.leads_out = scene.processes.iter().any(|process| scene.may_leave(process));
        scene
    }

    /// Every thread, of which nothing is known yet.
    pub(super) fn nodes(&self) -> Vec<Node<'a>> {
        let threads = |(owner, process): (usize, &&'a Process)| {
            let process: &'a Process = process;
            process.tasks.iter().map(move |thread| Node { process, owner, thread, wait: None })
        };
        self.processes.iter().enumerate().flat_map(threads).collect()
    }

    /// Whether a process has a thing.
    pub(super) fn has(&self, owner: usize, thing: Thing) -> bool {
        self.holders.get(&thing).is_some_and(|holders| holders.binary_search(&owner).is_ok())
    }

    /// The number of a set of threads; `None` if not all of them are known, so that one may run.
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
            // One whose table may not be read may have any.
            Source::Holders(thing) => {
                [self.holders.get(thing).map_or(&[][..], |list| &list[..]), &self.blind[..]].concat()
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
            // The threads of a process stand beside each other.
            let first = nodes.partition_point(|node| node.owner < owner);
            let end = nodes.partition_point(|node| node.owner <= owner);
            if first == end || end - first < self.processes[owner].threads as usize {
                return None;
            }
            members.extend(first..end);
        }
        Some(members)
    }

    /// Who could wake a thread; `None` if something outside of the tree or a clock could.
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
                    // Another file has this number by now, or the kernel does not say. (All eventfds
                    // may have one inode.)
                    let is_same = if fd.event == 0 { fd.pipe_or_socket() == Some(*ino) } else { *exact };
                    if !is_same {
                        return None;
                    }
                }
                // It may be one from before the test.
                if process.fd(*epoll).is_none_or(|epoll| self.foreign.contains(&epoll.ino)) {
                    return None;
                }
                self.add_set(sets, &mut wait, nodes, at, fds)?;
                // Whoever has the instance may put another fd into it, which is ready.
                wait.meddlers.insert(self.set(sets, nodes, Source::Holders(Thing::Epoll))?);
            }
            // The kernel has one for it and does not give it: who traces that is still to let go of it.
            On::Child { pid } if process.dead_children.iter().any(|dead| *pid < 0 || dead == pid) => {
                return None;
            }
            On::Child { pid } if *pid < 0 => {
                let children = self.set(sets, nodes, Source::Children(process.pid))?;
                if sets.members[children].is_empty() {
                    return None;
                }
                wait.wakers.insert(children);
                // Other threads may start one more, and a process below may become one when its parent
                // ends (PR_SET_CHILD_SUBREAPER).
                wait.meddlers.insert(self.set(sets, nodes, Source::Process(owner))?);
                wait.meddlers.insert(self.set(sets, nodes, Source::Descendants(process.pid))?);
            }
            On::Child { pid } => {
                let mut children = self.children.get(&process.pid).into_iter().flatten();
                let child = children.find(|child| self.processes[**child].pid == *pid)?;
                wait.wakers.insert(self.set(sets, nodes, Source::Process(*child))?);
            }
            On::Futex { shared: false, forever: true, .. } => {
                // A handler may write the word, whatever the word is for.
                wait.wakers.insert(self.set(sets, nodes, Source::Process(owner))?);
            }
            On::Thread { tid } => {
                let first = nodes.partition_point(|node| node.owner < owner);
                let mut same = nodes[first..].iter().take_while(|node| node.owner == owner);
                let other = first + same.position(|node| node.thread.tid == *tid)?;
                wait.wakers.insert(self.set(sets, nodes, Source::Thread(other))?);
            }
            On::Lock { fd } => {
                if thread.behind.is_empty() || self.foreign.contains(&process.fd(*fd)?.ino) {
                    return None;
                }
                for lock in &thread.behind {
                    // Somebody outside has it, or who may not be read.
                    self.locks.get(lock.as_str())?;
                    wait.wakers.insert(self.set(sets, nodes, Source::Lock(lock.clone()))?);
                }
            }
            _ => return None,
        }
        Some(wait)
    }

    /// Adds whoever could end a call that reads from or writes to an fd.
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
            // The call would have failed, or have got what is there: the number is another file by now.
            let has_some =
                found.pipe().and_then(|pipe| self.pipes.get(&pipe)?.queued).is_some_and(|queued| queued > 0);
            if reads && (!found.reads() || has_some) || !reads && !found.writes() {
                return None;
            }
            return self.add(sets, wait, nodes, found, other);
        };
        let socket = self.sockets.get(&ino)?;
        // The clock of a poll is in its arguments; that of a socket is an option of it (socket(7)).
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
            // Even one that asks for nothing is told of the end of the other side (poll(2)).
            if fd.reads() {
                self.add(sets, wait, nodes, fd, Side::Writer)?;
            }
            if fd.writes() {
                self.add(sets, wait, nodes, fd, Side::Reader)?;
            }
        }
        Some(())
    }

    /// Adds whoever has the other end of a unix socket, or the same.
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
        // What a datagram waits for room behind may be in anybody's queue.
        if writes && socket.is_datagram() {
            return None;
        }
        if [ino, peer]
            .iter()
            .any(|ino| self.foreign.contains(ino) || self.outside.contains(&Thing::Socket(*ino)))
        {
            return None;
        }
        let others = self.set(sets, nodes, Source::Holders(Thing::Socket(peer)))?;
        wait.unseen |= sets.members[others].is_empty();
        wait.wakers.insert(others);
        wait.meddlers.insert(self.set(sets, nodes, Source::Holders(Thing::Socket(ino)))?);
        let own = self.has(nodes[at].owner, Thing::Socket(peer));
        wait.sockets.push(AtSocket { own, ..end });
        Some(())
    }

    /// Adds whoever has an end of what is behind an fd that is no socket.
    fn add(&self, sets: &mut Sets, wait: &mut Wait, nodes: &[Node<'_>], fd: &Fd, other: Side) -> Option<()> {
        if fd.event != 0 {
            // An eventfd: whoever has it can write to it and read from it.
            let event = Thing::Event(fd.event);
            if self.foreign.contains(&fd.ino) || self.outside.contains(&event) {
                return None;
            }
            wait.wakers.insert(self.set(sets, nodes, Source::Holders(event))?);
            return Some(());
        }
        let pipe = fd.pipe()?;
        let ends = [Thing::Reader(pipe), Thing::Writer(pipe)];
        if self.foreign.contains(&pipe) || ends.iter().any(|end| self.outside.contains(end)) {
            return None;
        }
        // At end-of-file it does not wait; it is about to go on.
        if self.pipes.get(&pipe).is_some_and(|state| match other {
            Side::Writer => state.no_writer,
            Side::Reader => state.no_reader,
        }) {
            return None;
        }
        let [readers, writers] = ends.map(|end| self.set(sets, nodes, Source::Holders(end)));
        let (readers, writers) = (readers?, writers?);
        // Who has the same end may make the pipe larger (F_SETPIPE_SZ), or open the other one by way
        // of /proc/self/fd.
        wait.meddlers.extend([readers, writers]);
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

    /// The pipes at which a thread waits to read and to write. Who has put an fd into a set waits for
    /// one way of it, and the edge of the other is over: what has data is not waited for to be read,
    /// and what is empty has room.
    pub(super) fn pipes_of(&self, thread: &Thread, wait: &Wait, alone: bool) -> (Vec<u64>, Vec<u64>) {
        let (mut reads, mut writes) = (wait.reads.clone(), wait.writes.clone());
        if !thread.on.is_set() {
            return (reads, writes);
        }
        let queued = |pipe: &u64| self.pipes.get(pipe).and_then(|state| state.queued);
        reads.retain(|pipe| queued(pipe).is_none_or(|count| count == 0));
        writes.retain(|pipe| queued(pipe).is_none_or(|count| count > 0));
        // It may wait for the end of the other side only.
        match reads.is_empty() && writes.is_empty() && alone {
            true => (wait.reads.clone(), wait.writes.clone()),
            false => (reads, writes),
        }
    }

    /// The same for sockets, each with what it is waited for, but for those that a runtime put into a
    /// set for itself.
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
        let is_users = |end: &&AtSocket| !is_of_runtime(&names.origins, end.ino);
        let users: Vec<&AtSocket> = wait.sockets.iter().filter(is_users).collect();
        let found: Vec<AtSocket> = users.iter().copied().filter_map(way).collect();
        if found.is_empty() {
            return users.into_iter().map(|end| AtSocket { writes: !end.reads, ..*end }).collect();
        }
        // The full one is waited for, whatever else could come.
        match found.iter().any(|end| end.writes) {
            true => found.into_iter().filter(|end| end.writes).collect(),
            false => found,
        }
    }

    /// Whether a thread waits for a lock that was held when its process was forked: the process is
    /// a fork without exec of one that had other threads, and none of its own can have the lock, or
    /// is likely to.
    pub(super) fn inherited(&self, process: &Process, thread: &Thread, names: &Names) -> Option<Because> {
        let crowd = has_crowd_behind(self.facts, names, process);
        let alone = process.tasks.len() == 1;
        let kind = names.awaited.get(&thread.tid);
        // No thread keeps a lock of std's while it waits for something else, nor takes it twice; but
        // stdin's is given to the user.
        let name = names.locks.get(&thread.tid).map_or("", String::as_str);
        let of_std = name.starts_with("std::") && !name.starts_with("std::io::stdio::stdin");
        // The user's code runs under the panic hook's, and keeps guards of stdout's and stderr's.
        let runs_users = ["std::io::stdio::", "std::panicking::HOOK", "std::sys::backtrace::lock::"]
            .iter()
            .any(|lock| name.starts_with(lock));
        match crowd {
            Some(false) => None,
            _ if alone && (of_std || kind == Some(&Awaited::CLibrary)) => Some(Because::InheritedLock),
            Some(true) if of_std && !runs_users => Some(Because::InheritedLock),
            Some(true) if of_std => Some(Because::MaybeInheritedLock),
            Some(true) if alone && kind.is_some_and(Awaited::is_held) => Some(Because::MaybeInheritedLock),
            _ => None,
        }
    }

    /// What keeps the wait of one thread from being proved, beside those that it depends on.
    pub(super) fn doubts(&self, node: &Node<'_>) -> Vec<String> {
        let mut doubts: Vec<String> = Vec::new();
        let Some(wait) = &node.wait else { return doubts };
        let outside = &self.facts.outside;
        let pid = node.process.pid;
        if !node.thread.settled {
            doubts.push(format!("pid {pid} ran between two looks"));
        }
        // A signal, a timer or the like may end it without any other process.
        doubts.extend(node.process.holes.iter().map(|hole| format!("pid {pid}: {hole}")));
        if wait.unseen {
            doubts.push(format!(
                "no holder of the other end was found in the fds of {}; those of {} may not be read",
                plural(outside.read as usize + self.processes.len(), "process"),
                outside.unreadable
            ));
        }
        doubts.extend(node.process.hidden.iter().map(|hidden| format!("pid {pid}: {hidden}")));
        if matches!(node.thread.on, On::Futex { .. } | On::Thread { .. }) {
            return doubts;
        }
        // They might hold anything, and be anybody's children.
        if outside.came {
            doubts.push("a process came between two looks".to_owned());
        }
        if outside.moved {
            doubts.push("an fd was passed on between two looks".to_owned());
        }
        if outside.hides {
            doubts.push("/proc does not show the processes of other users (hidepid)".to_owned());
        }
        // What was made in the tree can leave it only through a socket. Which epoll instance another
        // process has is not seen.
        if self.leads_out && matches!(node.thread.on, On::Epoll { .. }) {
            doubts.push("an epoll instance may have left the test over a socket".to_owned());
        }
        doubts
    }

    /// What keeps every wait on an fd from being proved.
    pub(super) fn doubts_of_all(&self) -> Vec<String> {
        let outside = &self.facts.outside;
        // Whoever gets an end that is on its way can go on with it, however little the one who
        // gets it has to do with this wait.
        let hidden = self.processes.iter().flat_map(|process| {
            process.hidden.iter().map(move |hidden| format!("pid {}: {hidden}", process.pid))
        });
        let mut doubts: Vec<String> = hidden.collect();
        for outsider in outside.holders.iter().filter(|outsider| outsider.fds.iter().any(|fd| fd.carries)) {
            doubts.push(format!(
                "fds are on their way to pid {}, outside of the test, over a socket",
                outsider.pid
            ));
        }
        if outside.unreadable > 0 && self.leads_out {
            doubts.push(format!(
                "the fds of {} may not be read",
                plural(outside.unreadable as usize, "other process")
            ));
        }
        doubts
    }

    /// Whether a process has a socket over which an fd may have left the tree: a unix socket, unless
    /// it listens or its other end is in the tree too. (No other kind carries fds.)
    fn may_leave(&self, process: &Process) -> bool {
        let stays = |ino: u64| {
            let Some(socket) = self.sockets.get(&ino) else { return false };
            let other_kind = socket.domain != 0 && !socket.is_unix();
            let other_end = socket.other_end();
            // A datagram may be sent to anybody with a name, whoever it is connected to.
            other_kind
                || socket.listens
                || !socket.is_datagram()
                    && other_end.is_some_and(|other| self.holders.contains_key(&Thing::Socket(other)))
        };
        process.more_sockets || !process.known_fds().iter().filter_map(Fd::socket).all(stays)
    }
}
