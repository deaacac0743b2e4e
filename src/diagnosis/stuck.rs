//! Waits that can never end.
//!
//! A thread is stuck for ever iff everything that could wake it is stuck too. So all that wait
//! without a clock are taken to be stuck at first, and each that something else could wake is let
//! go, until nothing changes any more: what remains waits only for itself (the greatest fixpoint;
//! the same as Go's `goroutineleak` profile does for channels).
//!
//! Who could wake: whoever waits at a pipe, everybody who has an end of it, since to write, to close
//! or to exit takes a thread that runs (and who has the same end may make the pipe larger, or open
//! the other by `/proc/self/fd`); whoever waits at a unix socket, everybody who has the socket at its
//! other end, or the same one, which shutdown(2) wakes too; a poll set, whoever could wake it
//! through any of its fds; a parent in `wait`, the child; a futex, the other threads of the process.
//! What is not understood (another kind of socket, a signal, another process's memory) counts as
//! something that wakes.
//!
//! Hundreds of processes may wait at one pipe. So who has it is found once, as a set that all of them
//! refer to, and what follows from one thread is computed once for all that lie on one ring with it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;

use nix::libc;

use super::{Awaited, Names, plural};
use crate::facts::{Class, Facts, PipeState, Process};
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

/// How many threads are compared at most.
const THREADS: usize = 2000;
/// How many doubts of one wait are told.
const DOUBTS: usize = 16;
/// How many threads are looked at for rings, in all.
const STEPS: usize = 10_000_000;

/// One thread, and who could wake it.
struct Node<'a> {
    process: &'a Process,
    /// The place of its process in the scene.
    owner: usize,
    thread: &'a Thread,
    wait: Option<Wait>,
}

/// A wait that only others of the tree can end.
#[derive(Default)]
struct Wait {
    /// Sets of threads.
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

/// Something that a process may hold, and whose holders may wake a thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Thing {
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
enum Source {
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
struct Sets {
    /// `None` if a process has a thread that is not known.
    numbers: HashMap<Source, Option<usize>>,
    members: Vec<Vec<usize>>,
}

/// Why nothing was looked for, if it was not.
pub(super) fn too_many(facts: &Facts) -> Option<String> {
    let count = facts.tasks().count();
    (count > THREADS)
        .then(|| format!("{count} threads were left: which of them wait for each other was not looked for"))
}

/// Finds the threads that nothing can wake, in the order of the tree.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<Stuck> {
    if too_many(facts).is_some() {
        return Vec::new();
    }
    let scene = Scene::new(facts);
    let mut sets = Sets::default();
    let mut nodes = scene.nodes();
    for at in 0..nodes.len() {
        nodes[at].wait = scene.wait(&mut sets, &nodes, at);
    }
    let stuck = stuck(&nodes, &sets);
    Graph::new(&scene, &nodes, &sets, &stuck).conclude(names)
}

/// Which threads are stuck: all that wait, but for those that one that is not could wake.
fn stuck(nodes: &[Node<'_>], sets: &Sets) -> Vec<bool> {
    let mut sets_of: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (set, members) in sets.members.iter().enumerate() {
        members.iter().for_each(|at| sets_of[*at].push(set));
    }
    let mut waiters: Vec<Vec<usize>> = vec![Vec::new(); sets.members.len()];
    for (at, node) in nodes.iter().enumerate() {
        let all = node.wait.iter().flat_map(|wait| wait.wakers.union(&wait.meddlers));
        all.for_each(|set| waiters[*set].push(at));
    }
    let mut stuck: Vec<bool> = nodes.iter().map(|node| node.wait.is_some()).collect();
    let mut free: Vec<usize> = (0..nodes.len()).filter(|at| !stuck[*at]).collect();
    let mut runs = vec![false; sets.members.len()];
    while let Some(at) = free.pop() {
        for set in &sets_of[at] {
            if !std::mem::replace(&mut runs[*set], true) {
                let woken =
                    waiters[*set].iter().filter(|waiter| std::mem::replace(&mut stuck[**waiter], false));
                free.extend(woken);
            }
        }
    }
    stuck
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

/// The facts, by what they are looked up by.
struct Scene<'a> {
    facts: &'a Facts,
    /// Everything that runs below the supervisor.
    processes: Vec<&'a Process>,
    holders: HashMap<Thing, Vec<usize>>,
    locks: HashMap<&'a str, Vec<usize>>,
    /// The processes whose fds may not be read: they may have any.
    blind: Vec<usize>,
    children: HashMap<i32, Vec<usize>>,
    pipes: HashMap<u64, &'a PipeState>,
    sockets: HashMap<u64, &'a Socket>,
    foreign: HashSet<u64>,
    outside: HashSet<Thing>,
    /// An fd may have left the tree over a socket.
    leads_out: bool,
}

impl<'a> Scene<'a> {
    fn new(facts: &'a Facts) -> Scene<'a> {
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
            if let Some(parent) = process.lineage.first() {
                scene.children.entry(*parent).or_default().push(at);
            }
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
    fn nodes(&self) -> Vec<Node<'a>> {
        let threads = |(owner, process): (usize, &&'a Process)| {
            let process: &'a Process = process;
            process.tasks.iter().map(move |thread| Node { process, owner, thread, wait: None })
        };
        self.processes.iter().enumerate().flat_map(threads).collect()
    }

    /// Whether a process has a thing.
    fn has(&self, owner: usize, thing: Thing) -> bool {
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
    fn wait(&self, sets: &mut Sets, nodes: &[Node<'_>], at: usize) -> Option<Wait> {
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
                    let is_same =
                        if fd.event == 0 { fd.pipe().or(fd.socket()) == Some(*ino) } else { *exact };
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
    fn pipes_of(&self, thread: &Thread, wait: &Wait, alone: bool) -> (Vec<u64>, Vec<u64>) {
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
    fn sockets_of(&self, thread: &Thread, wait: &Wait, names: &Names) -> Vec<AtSocket> {
        if !thread.on.is_set() {
            return wait.sockets.clone();
        }
        let way = |end: &AtSocket| {
            let socket = self.sockets.get(&end.ino)?;
            let has_nothing = socket.queued.is_none_or(|count| count == 0);
            let writes = end.writes && (socket.is_full || !end.reads);
            (writes || has_nothing).then_some(AtSocket { writes, ..*end })
        };
        let is_users = |end: &&AtSocket| !super::is_of_runtime(&names.origins, end.ino);
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
        // No thread keeps a lock of std's while it waits for something else, nor takes it twice; but
        // stdin's is given to the user.
        let name = names.locks.get(&thread.tid).map_or("", String::as_str);
        let of_std = name.starts_with("std::") && !name.starts_with("std::io::stdio::stdin");
        // The user's code runs under the panic hook's, and keeps guards of stdout's and stderr's.
        let runs_users = name.starts_with("std::io::stdio::") || name == "std::panicking::HOOK";
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
    fn doubts(&self, node: &Node<'_>) -> Vec<String> {
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
    fn doubts_of_all(&self) -> Vec<String> {
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
        process.more_sockets || !process.fds.iter().flatten().filter_map(Fd::socket).all(stays)
    }
}

/// The threads that are stuck, and what leads from one to the other.
struct Graph<'a> {
    scene: &'a Scene<'a>,
    nodes: &'a [Node<'a>],
    sets: &'a Sets,
    stuck: &'a [bool],
    /// Who could wake those that wait for the same sets.
    lists: RefCell<HashMap<&'a BTreeSet<usize>, Rc<Vec<usize>>>>,
    steps: RefCell<usize>,
}

impl<'a> Graph<'a> {
    fn new(scene: &'a Scene<'a>, nodes: &'a [Node<'a>], sets: &'a Sets, stuck: &'a [bool]) -> Graph<'a> {
        Graph { scene, nodes, sets, stuck, lists: RefCell::default(), steps: RefCell::new(STEPS) }
    }

    /// From each thread to its sets, which come after the threads, and from those to their members.
    fn edges(&self, sets_of: impl Fn(&Wait) -> Vec<usize>) -> Vec<Vec<usize>> {
        let count = self.nodes.len();
        let of_node = |(at, node): (usize, &Node<'_>)| {
            let wait = node.wait.as_ref().filter(|_| self.stuck[at]);
            wait.map(&sets_of).unwrap_or_default().into_iter().map(|set| count + set).collect()
        };
        let nodes = self.nodes.iter().enumerate().map(of_node);
        nodes.chain(self.sets.members.iter().cloned()).collect()
    }

    /// Who could wake a thread, in order. A futex has its own thread in it.
    fn wakers(&self, at: usize) -> Rc<Vec<usize>> {
        let Some(wait) = &self.nodes[at].wait else { return Rc::default() };
        let mut lists = self.lists.borrow_mut();
        let list = lists.entry(&wait.wakers).or_insert_with(|| {
            let all = wait.wakers.iter().flat_map(|set| &self.sets.members[*set]).copied();
            Rc::new(all.collect::<BTreeSet<usize>>().into_iter().collect())
        });
        Rc::clone(list)
    }

    fn conclude(&self, names: &Names) -> Vec<Stuck> {
        let edges = self.edges(|wait| wait.wakers.iter().copied().collect());
        let (rings, count) = components(&edges);
        // How many threads lie on one ring.
        let mut sizes = vec![0; count];
        rings[..self.nodes.len()].iter().for_each(|ring| sizes[*ring] += 1);
        drop(edges);
        let doubts = self.doubts();
        let all = (0..self.nodes.len()).filter(|at| self.stuck[*at]);
        all.filter_map(|at| {
            let is_futex = matches!(self.nodes[at].thread.on, On::Futex { .. });
            let cycle = sizes[rings[at]] > 1 || !is_futex && self.wakers(at).binary_search(&at).is_ok();
            self.conclude_one(at, cycle, doubts[at].clone(), names)
        })
        .collect()
    }

    /// What keeps each wait, and all that it depends on, from being proved.
    fn doubts(&self) -> Vec<Vec<String>> {
        let edges = self.edges(|wait| wait.wakers.union(&wait.meddlers).copied().collect());
        let (parts, count) = components(&edges);
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut texts: Vec<String> = Vec::new();
        let mut number = |doubt: String| {
            *known.entry(doubt).or_insert_with_key(|doubt| {
                texts.push(doubt.clone());
                texts.len() - 1
            })
        };
        // Those of one part depend on each other: they have the same doubts.
        let mut of_part: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); count];
        let mut of_all: Option<Vec<usize>> = None;
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| self.stuck[*at]) {
            let part = &mut of_part[parts[at]];
            part.extend(self.scene.doubts(node).into_iter().map(&mut number));
            if !matches!(node.thread.on, On::Futex { .. } | On::Thread { .. } | On::Child { .. }) {
                let of_all = of_all
                    .get_or_insert_with(|| self.scene.doubts_of_all().into_iter().map(&mut number).collect());
                part.extend(of_all.iter().copied());
            }
        }
        let mut vertices: Vec<Vec<usize>> = vec![Vec::new(); count];
        parts.iter().enumerate().for_each(|(vertex, part)| vertices[*part].push(vertex));
        // What a part leads to has a lower number.
        for part in 0..count {
            let next: BTreeSet<usize> =
                vertices[part].iter().flat_map(|vertex| &edges[*vertex]).map(|next| parts[*next]).collect();
            let mut doubts = std::mem::take(&mut of_part[part]);
            for next in next.into_iter().filter(|next| *next != part) {
                doubts.extend(of_part[next].iter().copied());
            }
            of_part[part] = doubts.into_iter().take(DOUBTS).collect();
        }
        let told = |at: usize| of_part[parts[at]].iter().map(|doubt| texts[*doubt].clone()).collect();
        (0..self.nodes.len()).map(told).collect()
    }

    fn conclude_one(&self, at: usize, cycle: bool, doubts: Vec<String>, names: &Names) -> Option<Stuck> {
        let Node { process, owner, thread, wait } = &self.nodes[at];
        let wait = wait.as_ref()?;
        let mut wakers: Vec<i32> = Vec::new();
        let is_futex = matches!(thread.on, On::Futex { .. });
        for waker in self.wakers(at).iter().filter(|waker| !is_futex || **waker != at) {
            let pid = self.nodes[*waker].process.pid;
            // Those of one process stand beside each other.
            if wakers.last() != Some(&pid) {
                wakers.push(pid);
            }
        }
        let sockets = self.scene.sockets_of(thread, wait, names);
        let (reads, writes) = self.scene.pipes_of(thread, wait, sockets.is_empty());
        let at_socket = sockets.iter().find(|end| end.own).or(sockets.first());
        let own_socket = at_socket.is_some_and(|end| end.own);
        let writes_to = |pipe: &&u64| self.scene.has(*owner, Thing::Writer(**pipe));
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
            let peer = self.scene.sockets.get(&end.ino).and_then(|socket| socket.other_end());
            !end.writes && sockets.iter().any(|other| Some(other.ino) == peer)
        });
        let because = match &thread.on {
            On::Futex { .. } => self.scene.inherited(process, thread, names).unwrap_or(Because::Cycle),
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
        let ring = if cycle { self.ring(at) } else { Vec::new() };
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

    /// The shortest way from a thread over those that could wake it back to itself.
    fn ring(&self, at: usize) -> Vec<i32> {
        let mut came_from: HashMap<usize, usize> = HashMap::new();
        let mut pending = VecDeque::from([at]);
        let mut steps = self.steps.borrow_mut();
        while let Some(next) = pending.pop_front() {
            let is_futex = matches!(self.nodes[next].thread.on, On::Futex { .. });
            let wakers = self.wakers(next);
            if (!is_futex || next != at) && wakers.binary_search(&at).is_ok() {
                let mut way = vec![next];
                while let Some(before) =
                    way.last().filter(|last| **last != at).and_then(|last| came_from.get(last))
                {
                    way.push(*before);
                }
                return way.iter().rev().map(|at| self.nodes[*at].thread.tid).collect();
            }
            // Among thousands a ring that is not told is none too few.
            let Some(left) = steps.checked_sub(wakers.len()) else { break };
            *steps = left;
            for waker in wakers.iter().copied() {
                came_from.entry(waker).or_insert_with(|| {
                    pending.push_back(waker);
                    next
                });
            }
        }
        Vec::new()
    }
}

/// The strongly connected components of a graph, as the number of each vertex's, and how many there are.
/// What a component leads to has a lower number (Tarjan 1972, without recursion).
fn components(edges: &[Vec<usize>]) -> (Vec<usize>, usize) {
    const NONE: usize = usize::MAX;
    let mut part = vec![NONE; edges.len()];
    let mut index = vec![NONE; edges.len()];
    let mut low = vec![0; edges.len()];
    let (mut parts, mut seen) = (0, 0);
    let mut open: Vec<usize> = Vec::new();
    // A vertex, and how many of its edges were followed.
    let mut way: Vec<(usize, usize)> = Vec::new();
    for root in 0..edges.len() {
        if index[root] == NONE {
            way.push((root, 0));
        }
        while let Some((at, followed)) = way.last_mut() {
            let at = *at;
            if index[at] == NONE {
                (index[at], low[at]) = (seen, seen);
                seen += 1;
                open.push(at);
            }
            if let Some(next) = edges[at].get(*followed).copied() {
                *followed += 1;
                if index[next] == NONE {
                    way.push((next, 0));
                } else if part[next] == NONE {
                    low[at] = low[at].min(index[next]);
                }
                continue;
            }
            way.pop();
            if let Some((before, _)) = way.last() {
                low[*before] = low[*before].min(low[at]);
            }
            if low[at] == index[at] {
                while let Some(member) = open.pop() {
                    part[member] = parts;
                    if member == at {
                        break;
                    }
                }
                parts += 1;
            }
        }
    }
    (part, parts)
}

#[cfg(test)]
mod tests {
    use super::components;

    #[test]
    fn a_component_leads_to_lower_ones() {
        // 0 -> 1 <-> 2 -> 3, and 4 alone with itself.
        let (part, count) = components(&[vec![1], vec![2], vec![1, 3], vec![], vec![4]]);
        assert_eq!((count, &part[..]), (4, &[2, 1, 1, 0, 3][..]));
        assert_eq!(components(&[]), (Vec::new(), 0));
    }
}
