//! Waits that can never end.
//!
//! A thread is stuck for ever iff everything that could wake it is stuck too. So all that wait
//! without a clock are taken to be stuck at first, and each that something else could wake is let
//! go, until nothing changes any more: what remains waits only for itself (the greatest fixpoint;
//! the same as Go's `goroutineleak` profile does for channels).
//!
//! Who could wake: a reader of a pipe, everybody who has a write end, since to write, to close or
//! to exit takes a thread that runs; whoever waits at a unix socket, everybody who has the socket
//! at its other end, or the same one, which shutdown(2) wakes too; a poll set, whoever could wake it
//! through any of its fds; a parent in `wait`, the child; a futex, the other threads of the process.
//! What is not understood (another kind of socket, a signal, another process's memory) counts as
//! something that wakes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nix::libc;

use super::{Awaited, Names, plural};
use crate::facts::{Class, Facts, Process};
use crate::outcome::End;
use crate::proc::fds::Fd;
use crate::proc::sockets::Socket;
use crate::proc::waits::{On, Thread};

/// Why a wait never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Because {
    /// It waits for a lock that a thread held which a fork did not copy.
    InheritedLock,
    /// The same is likely, but it may have taken the lock itself.
    MaybeInheritedLock,
    /// It reads from a pipe or socket of which it has the other end itself, and nobody else with
    /// one runs.
    OwnWriteEnd,
    /// It waits, over others, for itself.
    Cycle,
    /// It writes to a full pipe or socket, and nobody who could read from it runs any more.
    NoReaderRuns,
    /// It reads from a pipe or socket, and nobody who could write to it runs any more.
    NoWriter,
    /// It waits for a file lock of somebody who is stuck.
    StuckHolder,
    /// It waits for the end of a thread that is stuck.
    StuckThread,
    /// It waits for the end of a child that is stuck.
    StuckChild,
}

impl Because {
    /// The value of `because` in the JSON.
    #[cfg(feature = "json")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Because::InheritedLock | Because::MaybeInheritedLock => "inherited_lock",
            Because::OwnWriteEnd => "own_write_end",
            Because::Cycle => "cycle",
            Because::NoReaderRuns => "no_reader_runs",
            Because::NoWriter => "no_writer",
            Because::StuckHolder => "stuck_holder",
            Because::StuckThread => "stuck_thread",
            Because::StuckChild => "stuck_child",
        }
    }
}

/// A thread that nothing was found to wake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stuck {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) because: Because,
    /// The pipe that it waits on, if it is one.
    pub(crate) pipe: Option<u64>,
    /// The socket that it waits on, if it is one and no pipe.
    pub(crate) socket: Option<u64>,
    /// It waits there for room, not for data.
    pub(crate) writes: bool,
    /// It waits at both ends of one pair, and nobody knows which of them matters.
    pub(crate) both_ends: bool,
    /// The processes that could wake it and never will, each once.
    pub(crate) wakers: Vec<i32>,
    /// Those that wait for each other, this one first and each for the next: thread ids. Empty if
    /// it is not one of a ring.
    pub(crate) ring: Vec<i32>,
    /// What keeps this from being a proof, in words; empty if it is one.
    pub(crate) doubts: Vec<String>,
}

impl Stuck {
    pub(crate) fn proved(&self) -> bool {
        self.doubts.is_empty()
    }
}

/// One thread, and who could wake it.
struct Node<'a> {
    process: &'a Process,
    thread: &'a Thread,
    wait: Option<Wait>,
}

/// A wait that only others of the tree can end.
#[derive(Default)]
struct Wait {
    /// Indices of threads.
    wakers: BTreeSet<usize>,
    /// Those that could wake it too, by means that nobody uses to go on with the work: `shutdown`
    /// of the same end, another entry in the poll set. They must be stuck as well, and are not told.
    meddlers: BTreeSet<usize>,
    /// The pipes at which it waits for a writer or for a reader.
    reads: Vec<u64>,
    writes: Vec<u64>,
    /// The sockets that it waits on.
    sockets: Vec<AtSocket>,
    /// The kernel says that there is another end, and nobody was found to have it.
    unseen: bool,
}

/// A socket that a thread waits on.
#[derive(Clone, Copy)]
struct AtSocket {
    ino: u64,
    /// What it asked for.
    reads: bool,
    writes: bool,
    /// Its own process has the other end.
    own: bool,
}

impl Wait {
    /// Everybody who could end it.
    fn all(&self) -> impl Iterator<Item = usize> {
        self.wakers.iter().chain(&self.meddlers).copied()
    }
}

/// Finds the threads that nothing can wake, in the order of the tree.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<Stuck> {
    let alive = |process: &&Process| process.class == Class::Leaked && !has_ended(process, facts);
    let mut nodes: Vec<Node<'_>> = facts
        .processes
        .iter()
        .filter(alive)
        .flat_map(|process| process.tasks.iter().map(move |thread| Node { process, thread, wait: None }))
        .collect();
    let scene = Scene { facts, names, processes: facts.processes.iter().filter(alive).collect() };
    for at in 0..nodes.len() {
        nodes[at].wait = scene.wait(&nodes, at);
    }
    let mut stuck: Vec<bool> = nodes.iter().map(|node| node.wait.is_some()).collect();
    loop {
        let free = |at: &usize| {
            let wait = nodes[*at].wait.as_ref();
            stuck[*at] && wait.is_none_or(|wait| wait.all().any(|waker| !stuck[waker]))
        };
        let freed: Vec<usize> = (0..nodes.len()).filter(free).collect();
        if freed.is_empty() {
            break;
        }
        freed.into_iter().for_each(|at| stuck[at] = false);
    }
    (0..nodes.len()).filter(|at| stuck[*at]).filter_map(|at| scene.conclude(&nodes, at)).collect()
}

/// The test process is in the list of leaked ones only if its time was over.
fn has_ended(process: &Process, facts: &Facts) -> bool {
    process.is_test && facts.end != End::TimedOut
}

/// Whether a process is a fork without exec of one that had several threads; `None` if it is a fork,
/// and nobody knows of how many.
pub(super) fn has_crowd_behind(facts: &Facts, names: &Names, process: &Process) -> Option<bool> {
    if !process.forked_without_exec || process.is_test {
        return Some(false);
    }
    match super::origin_of_process(&names.origins, process.pid).map_or(0, |origin| origin.threads) {
        // Not recorded: its parent may still show.
        0 => {
            let is_parent = |parent: &&Process| process.lineage.first() == Some(&parent.pid);
            let mut parents = facts.processes.iter().filter(is_parent);
            parents.any(|parent| parent.threads > 1 && !has_ended(parent, facts)).then_some(true)
        }
        threads => Some(threads > 1),
    }
}

/// Which end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Reader,
    Writer,
}

struct Scene<'a> {
    facts: &'a Facts,
    names: &'a Names,
    /// Everything that runs below the supervisor.
    processes: Vec<&'a Process>,
}

impl Scene<'_> {
    /// Who could wake a thread; `None` if something outside of the tree or a clock could.
    fn wait(&self, nodes: &[Node<'_>], at: usize) -> Option<Wait> {
        let Node { process, thread, .. } = nodes[at];
        let mut wait = Wait::default();
        match &thread.on {
            On::Read { fd } => self.add_call(&mut wait, nodes, at, *fd, Side::Writer)?,
            On::Write { fd } => self.add_call(&mut wait, nodes, at, *fd, Side::Reader)?,
            On::Poll { fds, forever: true } => self.add_set(&mut wait, nodes, at, fds)?,
            On::Epoll { fds, inodes, forever: true, .. } => {
                for (entry, ino) in fds.chunks_exact(2).zip(inodes) {
                    let fd = process.fd(entry[0])?;
                    // Another file has this number by now, or the kernel does not say.
                    if fd.event == 0 && fd.pipe().or(fd.socket()) != Some(*ino) {
                        return None;
                    }
                }
                self.add_set(&mut wait, nodes, at, fds)?;
                // Whoever has the instance may put another fd into it, which is ready.
                let mut holders = Wait::default();
                self.add_threads(&mut holders, nodes, |holder| may_have(holder, Fd::is_epoll))?;
                wait.meddlers.extend(holders.wakers.into_iter().filter(|other| *other != at));
            }
            On::Child { pid } => {
                let found = self.add_threads(&mut wait, nodes, |child| {
                    child.lineage.first() == Some(&process.pid) && (*pid < 0 || child.pid == *pid)
                })?;
                if !found {
                    return None;
                }
            }
            On::Futex { shared: false, forever: true, .. } => {
                // A handler may write the word, whatever the word is for.
                wait.wakers.extend(threads_of(nodes, process)?.into_iter().filter(|other| *other != at));
            }
            On::Thread { tid } => {
                let same = |node: &Node<'_>| node.process.pid == process.pid && node.thread.tid == *tid;
                wait.wakers.insert(nodes.iter().position(same)?);
            }
            On::Lock { fd } => {
                let target = &process.fd(*fd)?.target;
                let found = self.add_threads(&mut wait, nodes, |other| {
                    other.fds.iter().flatten().any(|held| held.locks && held.target == *target)
                })?;
                if !found {
                    return None;
                }
            }
            _ => return None,
        }
        Some(wait)
    }

    /// Adds the threads of each process that `is` one; tells whether there was any. `None` if one of
    /// them has a thread that is not known.
    fn add_threads(
        &self,
        wait: &mut Wait,
        nodes: &[Node<'_>],
        is: impl Fn(&Process) -> bool,
    ) -> Option<bool> {
        let mut found = false;
        for process in self.processes.iter().filter(|process| is(process)) {
            found = true;
            wait.wakers.extend(threads_of(nodes, process)?);
        }
        Some(found)
    }

    /// Adds whoever could end a call that reads from or writes to an fd.
    fn add_call(&self, wait: &mut Wait, nodes: &[Node<'_>], at: usize, fd: i32, other: Side) -> Option<()> {
        let Some(ino) = nodes[at].process.fd(fd)?.socket() else {
            return self.add(wait, nodes, at, fd, other);
        };
        let socket = self.facts.socket(ino)?;
        // The clock of a poll is in its arguments; that of a socket is an option of it (socket(7)).
        let forever = if other == Side::Writer { socket.reads_forever } else { socket.writes_forever };
        if !forever {
            return None;
        }
        let writes = other == Side::Reader;
        self.add_socket(wait, nodes, at, AtSocket { ino, reads: !writes, writes, own: false })
    }

    fn add_set(&self, wait: &mut Wait, nodes: &[Node<'_>], at: usize, set: &[i32]) -> Option<()> {
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
                self.add_socket(wait, nodes, at, AtSocket { ino, reads, writes, own: false })?;
                continue;
            }
            // Even one that asks for nothing is told of the end of the other side (poll(2)).
            if fd.reads() {
                self.add(wait, nodes, at, fd.fd, Side::Writer)?;
            }
            if fd.writes() {
                self.add(wait, nodes, at, fd.fd, Side::Reader)?;
            }
        }
        Some(())
    }

    /// Adds whoever has the other end of a unix socket, or the same.
    fn add_socket(&self, wait: &mut Wait, nodes: &[Node<'_>], at: usize, end: AtSocket) -> Option<()> {
        let AtSocket { ino, writes, .. } = end;
        let socket = self.facts.socket(ino)?;
        let peer = socket.other_end()?;
        // What a datagram waits for room behind may be in anybody's queue.
        if writes && socket.is_datagram() {
            return None;
        }
        let is_own = |held: &Fd| held.socket() == Some(ino);
        let is_other = |held: &Fd| held.socket() == Some(peer);
        if [ino, peer].iter().any(|ino| self.facts.foreign.contains(ino)) {
            return None;
        }
        let is_end = |held: &Fd| is_own(held) || is_other(held);
        if self.facts.outside.holders.iter().any(|holder| holder.fds.iter().any(is_end)) {
            return None;
        }
        wait.unseen |= !self.add_threads(wait, nodes, |holder| may_have(holder, is_other))?;
        let mut holders = Wait::default();
        self.add_threads(&mut holders, nodes, |holder| may_have(holder, is_own))?;
        wait.meddlers.extend(holders.wakers.into_iter().filter(|other| *other != at));
        let own = nodes[at].process.fds.iter().flatten().any(is_other);
        wait.sockets.push(AtSocket { own, ..end });
        Some(())
    }

    /// Adds whoever has the other end behind an fd that is no socket.
    fn add(&self, wait: &mut Wait, nodes: &[Node<'_>], at: usize, fd: i32, other: Side) -> Option<()> {
        let process = nodes[at].process;
        let fd = process.fd(fd)?;
        if fd.event != 0 {
            // An eventfd: whoever has it can write to it and read from it.
            self.add_threads(wait, nodes, |holder| may_have(holder, |held| held.event == fd.event))?;
            return Some(());
        }
        let pipe = fd.pipe()?;
        if self.facts.foreign.contains(&pipe) {
            return None;
        }
        let is_end = |held: &Fd| {
            held.pipe() == Some(pipe) && if other == Side::Writer { held.writes() } else { held.reads() }
        };
        if self.facts.outside.holders.iter().any(|holder| holder.fds.iter().any(is_end)) {
            return None;
        }
        // At end-of-file it does not wait; it is about to go on.
        if self
            .facts
            .pipe(pipe)
            .is_some_and(|state| if other == Side::Writer { state.no_writer } else { state.no_reader })
        {
            return None;
        }
        wait.unseen |= !self.add_threads(wait, nodes, |holder| may_have(holder, is_end))?;
        match other {
            Side::Writer => wait.reads.push(pipe),
            Side::Reader => wait.writes.push(pipe),
        }
        Some(())
    }

    fn conclude(&self, nodes: &[Node<'_>], at: usize) -> Option<Stuck> {
        let Node { process, thread, wait } = &nodes[at];
        let wait = wait.as_ref()?;
        let mut wakers: Vec<i32> = Vec::new();
        for waker in &wait.wakers {
            let pid = nodes[*waker].process.pid;
            if !wakers.contains(&pid) {
                wakers.push(pid);
            }
        }
        let cycle = closure(nodes, at, |wait| wait.wakers.iter().copied().collect()).contains(&at);
        let sockets = self.sockets(thread, wait);
        let (reads, writes) = self.pipes(thread, wait, sockets.is_empty());
        let at_socket = sockets.iter().find(|end| end.own).or(sockets.first());
        let own_socket = at_socket.is_some_and(|end| end.own);
        let writes_to =
            |pipe: &&u64| process.fds.iter().flatten().any(|fd| fd.pipe() == Some(**pipe) && fd.writes());
        let own = reads.iter().find(writes_to).filter(|_| writes.is_empty());
        // What it has the other end of tells more than what it has not.
        let pipe = own.or(reads.last()).or(writes.last()).filter(|_| own.is_some() || !own_socket);
        let at_socket = at_socket.filter(|_| pipe.is_none());
        let to_write = match &thread.on {
            On::Write { .. } => true,
            _ => at_socket.map_or(reads.is_empty() && !writes.is_empty(), |end| end.writes),
        };
        let to_read = !to_write && writes.is_empty() && (pipe.is_some() || at_socket.is_some());
        let both_ends = at_socket.is_some_and(|end| {
            let peer = self.facts.socket(end.ino).and_then(Socket::other_end);
            !end.writes && sockets.iter().any(|other| Some(other.ino) == peer)
        });
        let because = match &thread.on {
            On::Futex { .. } => self.inherited(process, thread, self.names).unwrap_or(Because::Cycle),
            // Whatever the others do: it would have to do it itself.
            _ if own.is_some() || to_read && at_socket.is_some_and(|end| end.own) => Because::OwnWriteEnd,
            _ if to_write && wakers == [process.pid] => Because::NoReaderRuns,
            _ if cycle => Because::Cycle,
            On::Thread { .. } => Because::StuckThread,
            On::Child { .. } => Because::StuckChild,
            On::Lock { .. } => Because::StuckHolder,
            _ if to_write || !writes.is_empty() => Because::NoReaderRuns,
            _ => Because::NoWriter,
        };
        let closure = closure(nodes, at, |wait| wait.all().collect());
        let doubts = self.doubts(nodes, closure.into_iter().chain([at]).collect());
        let ring = if cycle { ring(nodes, at) } else { Vec::new() };
        Some(Stuck {
            pid: process.pid,
            tid: thread.tid,
            because,
            pipe: pipe.copied(),
            socket: at_socket.map(|end| end.ino),
            writes: to_write,
            both_ends,
            wakers,
            ring,
            doubts,
        })
    }

    /// The pipes at which a thread waits to read and to write. Who has put an fd into a set waits for
    /// one way of it, and the edge of the other is over: what has data is not waited for to be read,
    /// and what is empty has room.
    fn pipes(&self, thread: &Thread, wait: &Wait, alone: bool) -> (Vec<u64>, Vec<u64>) {
        let queued = |pipe: &u64| self.facts.pipe(*pipe).and_then(|state| state.queued);
        let is_set = matches!(thread.on, On::Poll { .. } | On::Epoll { .. });
        let mut reads = wait.reads.clone();
        reads.retain(|pipe| !is_set || queued(pipe).is_none_or(|count| count == 0));
        let mut writes = wait.writes.clone();
        writes.retain(|pipe| !is_set || queued(pipe).is_none_or(|count| count > 0));
        // It may wait for the end of the other side only.
        match reads.is_empty() && writes.is_empty() && alone {
            true => (wait.reads.clone(), wait.writes.clone()),
            false => (reads, writes),
        }
    }

    /// The same for sockets, each with what it is waited for, but for those that a runtime put into a
    /// set for itself.
    fn sockets(&self, thread: &Thread, wait: &Wait) -> Vec<AtSocket> {
        let is_set = matches!(thread.on, On::Poll { .. } | On::Epoll { .. });
        if !is_set {
            return wait.sockets.clone();
        }
        let way = |end: &AtSocket| {
            let socket = self.facts.socket(end.ino)?;
            let has_nothing = socket.queued.is_none_or(|count| count == 0);
            let writes = end.writes && (socket.is_full || !end.reads);
            (writes || has_nothing).then_some(AtSocket { writes, ..*end })
        };
        let is_users = |end: &&AtSocket| !super::is_of_runtime(&self.names.origins, end.ino);
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
    fn inherited(&self, process: &Process, thread: &Thread, names: &Names) -> Option<Because> {
        let crowd = has_crowd_behind(self.facts, names, process);
        let alone = process.tasks.len() == 1;
        let kind = names.awaited.get(&thread.tid);
        // No thread keeps a lock of std's while it waits for something else, nor takes it twice. The
        // one of stdin is given to the user.
        let of_std = names
            .locks
            .get(&thread.tid)
            .is_some_and(|name| name.starts_with("std::") && !name.starts_with("std::io::stdio::stdin"));
        match crowd {
            Some(false) => None,
            _ if alone && (of_std || kind == Some(&Awaited::CLibrary)) => Some(Because::InheritedLock),
            Some(true) if of_std => Some(Because::InheritedLock),
            Some(true) if alone && kind.is_some_and(Awaited::is_held) => Some(Because::MaybeInheritedLock),
            _ => None,
        }
    }

    /// What keeps a wait, and all that it depends on, from being proved.
    fn doubts(&self, nodes: &[Node<'_>], closure: BTreeSet<usize>) -> Vec<String> {
        let mut doubts: Vec<String> = Vec::new();
        let mut add = |doubt: String| {
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        };
        let outside = &self.facts.outside;
        // What was made in the tree can leave it only through a socket.
        let may_have_left =
            outside.unreadable > 0 && self.processes.iter().any(|process| self.leads_out(process));
        for node in closure.iter().map(|at| &nodes[*at]) {
            let Some(wait) = &node.wait else { continue };
            if !node.thread.settled {
                add(format!("pid {} ran between two looks", node.process.pid));
            }
            // A signal, a timer or the like may end it without any other process.
            node.process.holes.iter().for_each(|hole| add(format!("pid {}: {hole}", node.process.pid)));
            if wait.unseen {
                add(format!(
                    "no holder of the other end was found in the fds of {}; those of {} may not be read",
                    plural(outside.read as usize + self.processes.len(), "process"),
                    outside.unreadable
                ));
            }
            node.process.hidden.iter().for_each(|hidden| add(format!("pid {}: {hidden}", node.process.pid)));
            if wait.reads.is_empty() && wait.writes.is_empty() && wait.sockets.is_empty() {
                continue;
            }
            // Whoever gets an end that is on its way can go on with it, however little the one who
            // gets it has to do with this wait.
            for process in &self.processes {
                process.hidden.iter().for_each(|hidden| add(format!("pid {}: {hidden}", process.pid)));
            }
            for outsider in outside.holders.iter().filter(|outsider| outsider.fds.iter().any(|fd| fd.carries))
            {
                add(format!(
                    "fds are on their way to pid {}, outside of the test, over a socket",
                    outsider.pid
                ));
            }
            if may_have_left {
                add(format!(
                    "the fds of {} may not be read",
                    plural(outside.unreadable as usize, "other process")
                ));
            }
        }
        doubts
    }

    /// Whether a process has a socket over which an fd may have left the tree: a unix socket, unless
    /// it listens or its other end is in the tree too. (No other kind carries fds.)
    fn leads_out(&self, process: &Process) -> bool {
        let stays = |ino: u64| {
            let Some(socket) = self.facts.socket(ino) else { return false };
            let other_kind = socket.domain != 0 && !socket.is_unix();
            let is_other = |held: &Fd| held.socket().is_some() && held.socket() == socket.other_end();
            // A datagram may be sent to anybody with a name, whoever it is connected to.
            other_kind
                || socket.listens
                || !socket.is_datagram()
                    && self.processes.iter().any(|other| other.fds.iter().flatten().any(is_other))
        };
        process.more_sockets || !process.fds.iter().flatten().filter_map(Fd::socket).all(stays)
    }
}

/// Every thread that could wake a thread, or that could wake one of those.
fn closure(nodes: &[Node<'_>], at: usize, wakers: impl Fn(&Wait) -> Vec<usize>) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut pending = vec![at];
    while let Some(next) = pending.pop() {
        let wakers = nodes[next].wait.as_ref().map(&wakers).unwrap_or_default();
        pending.extend(wakers.into_iter().filter(|waker| seen.insert(*waker)));
    }
    seen
}

/// The shortest way from a thread over those that could wake it back to itself.
fn ring(nodes: &[Node<'_>], at: usize) -> Vec<i32> {
    let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut pending = VecDeque::from([at]);
    while let Some(next) = pending.pop_front() {
        for waker in nodes[next].wait.iter().flat_map(|wait| &wait.wakers).copied() {
            if waker == at {
                let mut way = vec![next];
                while let Some(before) =
                    way.last().filter(|last| **last != at).and_then(|last| came_from.get(last))
                {
                    way.push(*before);
                }
                return way.iter().rev().map(|at| nodes[*at].thread.tid).collect();
            }
            came_from.entry(waker).or_insert_with(|| {
                pending.push_back(waker);
                next
            });
        }
    }
    Vec::new()
}

/// Whether a process has such an fd. One whose table may not be read may have any.
fn may_have(process: &Process, is: impl Fn(&Fd) -> bool) -> bool {
    process.fds.as_ref().is_none_or(|fds| fds.iter().any(is))
}

/// The threads of a process; `None` if not all are known, so that one may run.
fn threads_of(nodes: &[Node<'_>], process: &Process) -> Option<Vec<usize>> {
    let threads: Vec<usize> = (0..nodes.len()).filter(|at| nodes[*at].process.pid == process.pid).collect();
    (!threads.is_empty() && threads.len() >= process.threads as usize).then_some(threads)
}
