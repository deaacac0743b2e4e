//! Findings about threads that can never make progress, or for which no waker was found.

use super::evidence::Evidence;
use super::stuck::{Because, Doubt, Stuck, fork_among_threads};
use crate::guard::facts::Process;
use crate::proc::fds::Fd;
use crate::proc::sockets::Peer;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;

/// Threads that wait for something that only stuck threads could do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deadlock {
    /// The process of the first thread.
    pub(crate) pid: i32,
    pub(crate) because: Because,
    /// The wait of each thread, in the order in which they wait for each other.
    pub(crate) chain: Vec<Wait>,
    pub(crate) shape: Shape,
    /// What prevents a proof; empty if it is proved.
    pub(crate) doubts: Vec<Doubt>,
    /// The processes of further threads with the same deadlock.
    pub(crate) also: Vec<i32>,
}

/// How the threads of a deadlock depend on each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A thread held a lock at a fork: of the process itself by its parent, or of an ancestor, `forked`.
    InheritedLock { forked_by: i32, forked: i32 },
    /// The same is likely, but the process may hold the lock itself.
    MaybeInheritedLock { forked_by: i32, forked: i32, threads: usize },
    /// It reads, and holds the other end itself.
    OwnEnd(OwnEnd),
    /// It writes to a full socket, and is the only holder of the other end. `threads`: how many threads of
    /// the user the process has, if several.
    OwnReader { ends: Vec<i32>, threads: usize },
    /// No thread is left that could wake it.
    Alone { threads: usize, left_behind: Option<LeftBehind> },
    /// The threads of one process, any of which could wake any other; `joining` are those that only wait for
    /// others to end.
    Threads { threads: usize, joining: Vec<i32> },
    /// They wait for each other in a cycle.
    Ring { any_could_wake: bool },
    /// One thread, whatever it waits for.
    Single,
}

/// The other end of what a thread reads, in its own process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnEnd {
    pub(crate) ends: Vec<i32>,
    /// Other processes with such an end, which are stuck too.
    pub(crate) others: Vec<i32>,
    /// The process inherited it by mistake: it was created without O_CLOEXEC.
    pub(crate) by_mistake: bool,
    /// The others wait on other pipes: each process waits for another to write first.
    pub(crate) crossed: bool,
    /// Both ends of a pair are in its poll set, and `ends` has both.
    pub(crate) both_ends: bool,
    /// The number of threads, if threads other than a runtime's might write.
    pub(crate) threads: Option<usize>,
}

/// Threads that a fork did not copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeftBehind {
    pub(crate) forked_by: i32,
    /// Whether it is certain that there were some.
    pub(crate) sure: bool,
}

/// The wait of one thread, and the processes that could end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) on: WaitsOn,
    /// Processes that could end the wait; all of them are stuck too.
    pub(crate) wakers: Vec<i32>,
}

/// What a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WaitsOn {
    /// The exit of a child.
    Child,
    Thread {
        tid: i32,
    },
    Lock(Lock),
    /// A future, in a `block_on`, while another thread drives the runtime.
    BlockOn,
    FileLock {
        file: String,
    },
    /// Room in a full pipe.
    PipeRoom {
        inode: u64,
    },
    /// Data or EOF of a pipe; `by_mistake` are the fds that keep it open, if all of them were inherited by
    /// mistake.
    PipeData {
        inode: u64,
        by_mistake: Vec<i32>,
    },
    SocketRoom {
        inode: u64,
    },
    /// The acceptance of its connection.
    SocketAccept {
        inode: u64,
    },
    SocketData {
        inode: u64,
    },
    Eventfd,
}

/// A futex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// The kind of lock, if the stack shows it.
    pub(crate) kind: Option<Awaited>,
    /// The static that it lies in.
    pub(crate) name: Option<String>,
    /// The function that waits for it.
    pub(crate) function: Option<String>,
}

impl WaitsOn {
    /// The inode of the pipe or socket.
    pub(crate) fn inode(&self) -> Option<u64> {
        match self {
            WaitsOn::PipeRoom { inode }
            | WaitsOn::PipeData { inode, .. }
            | WaitsOn::SocketRoom { inode }
            | WaitsOn::SocketAccept { inode }
            | WaitsOn::SocketData { inode } => Some(*inode),
            WaitsOn::Child
            | WaitsOn::Thread { .. }
            | WaitsOn::Lock(_)
            | WaitsOn::BlockOn
            | WaitsOn::FileLock { .. }
            | WaitsOn::Eventfd => None,
        }
    }
}

impl Deadlock {
    pub(crate) fn proved(&self) -> bool {
        self.doubts.is_empty()
    }

    /// The deadlock without the numbers of processes, threads and inodes. Of deadlocks with equal keys only
    /// one is reported.
    pub(super) fn key(&self) -> Deadlock {
        let mut key = self.clone();
        key.pid = 0;
        key.also.clear();
        for wait in &mut key.chain {
            (wait.pid, wait.tid) = (0, 0);
            wait.wakers.fill(0);
            match &mut wait.on {
                WaitsOn::PipeRoom { inode }
                | WaitsOn::PipeData { inode, .. }
                | WaitsOn::SocketRoom { inode }
                | WaitsOn::SocketAccept { inode }
                | WaitsOn::SocketData { inode } => *inode = 0,
                WaitsOn::Thread { tid } => *tid = 0,
                WaitsOn::Child
                | WaitsOn::Lock(_)
                | WaitsOn::BlockOn
                | WaitsOn::FileLock { .. }
                | WaitsOn::Eventfd => {}
            }
        }
        match &mut key.shape {
            Shape::InheritedLock { forked_by, forked }
            | Shape::MaybeInheritedLock { forked_by, forked, .. } => {
                *forked_by = 0;
                // Whether it is the process itself makes another sentence.
                *forked = i32::from(*forked == self.pid);
            }
            // The remedy contains the ones that it needs.
            Shape::OwnEnd(end) => {
                end.ends.fill(0);
                end.others.fill(0);
            }
            Shape::Alone { left_behind: Some(left), .. } => left.forked_by = 0,
            Shape::Threads { joining, .. } => joining.fill(0),
            Shape::OwnReader { ends, .. } => ends.fill(0),
            Shape::Alone { .. } | Shape::Ring { .. } | Shape::Single => {}
        }
        key.doubts.iter_mut().for_each(Doubt::forget_pid);
        key
    }

    /// The processes that would have ended the deadlock by watching their lifelines.
    pub(super) fn possible_watchers(&self) -> Vec<i32> {
        match self.shape {
            Shape::Ring { .. } => self.chain.iter().map(|wait| wait.pid).collect(),
            Shape::Single => self.chain.iter().flat_map(|wait| wait.wakers.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// The pipes that the finding says are open by mistake.
    pub(super) fn mistakes(&self) -> impl Iterator<Item = u64> {
        let own = matches!(&self.shape, Shape::OwnEnd(OwnEnd { by_mistake: true, .. }));
        self.chain.iter().filter_map(move |wait| match &wait.on {
            WaitsOn::PipeData { inode, by_mistake } if own || !by_mistake.is_empty() => Some(*inode),
            _ => None,
        })
    }
}

impl Evidence<'_> {
    /// The finding about a stuck thread.
    pub(super) fn deadlock(&self, stuck: &Stuck) -> Option<Deadlock> {
        let (process, thread) = self.thread(stuck.tid)?;
        let (pid, because) = (stuck.pid, stuck.because);
        let among_threads = fork_among_threads(self.names, pid);
        let forked_by = among_threads.map_or_else(|| self.creator(process), |fork| fork.by);
        let forked = among_threads.map_or(pid, |fork| fork.child);
        let mut chain = vec![self.wait(stuck)?];
        let is_futex = matches!(thread.on, On::Futex { .. });
        let shape = match because {
            Because::InheritedLock => Shape::InheritedLock { forked_by, forked },
            Because::MaybeInheritedLock => {
                Shape::MaybeInheritedLock { forked_by, forked, threads: process.tasks.len() }
            }
            Because::OwnWriteEnd if stuck.socket.is_some() => self.own_socket(stuck, process, thread)?,
            Because::OwnWriteEnd => self.own_pipe(stuck, process, thread)?,
            Because::NoReaderRuns if stuck.socket.is_some() && stuck.wakers == [pid] => {
                self.own_reader(stuck, process, thread)?
            }
            Because::Cycle if is_futex && stuck.ring.len() <= 1 => {
                let threaded = self.parent_was_threaded(process);
                let left_behind = (process.tasks.len() == 1 && threaded != Some(false))
                    .then_some(LeftBehind { forked_by, sure: threaded.is_some() });
                Shape::Alone { threads: process.tasks.len(), left_behind }
            }
            Because::Cycle if self.is_thread_group(stuck) => {
                let (members, joining) = self.thread_group(pid)?;
                chain = members;
                Shape::Threads { threads: process.tasks.len(), joining }
            }
            Because::Cycle if stuck.ring.len() > 1 => {
                chain =
                    stuck.ring.iter().map(|tid| self.wait(self.stuck_at(*tid)?)).collect::<Option<_>>()?;
                Shape::Ring { any_could_wake: self.in_futex(&stuck.ring) }
            }
            _ => Shape::Single,
        };
        Some(Deadlock { pid, because, chain, shape, doubts: stuck.doubts.clone(), also: Vec::new() })
    }

    /// The shape for a process that reads a pipe and holds a write end of it itself.
    fn own_pipe(&self, stuck: &Stuck, process: &Process, thread: &Thread) -> Option<Shape> {
        let pipe = stuck.pipe?;
        let mut others = self.writers(pipe);
        others.retain(|other| *other != stuck.pid && stuck.wakers.contains(other));
        let mut elsewhere = self.stuck.iter().filter(|other| others.contains(&other.pid));
        let crossed = elsewhere.any(|other| other.pipe.is_some_and(|other| other != pipe));
        Some(Shape::OwnEnd(OwnEnd {
            ends: self.ends(process, pipe, Fd::writes),
            others,
            by_mistake: self.mistake(stuck).is_some(),
            crossed,
            both_ends: false,
            threads: self.other_threads(process, thread),
        }))
    }

    /// The shape for a process that waits on a socket and holds the other end itself.
    fn own_socket(&self, stuck: &Stuck, process: &Process, thread: &Thread) -> Option<Shape> {
        let socket = self.facts.socket(stuck.socket?)?;
        let mut ends = self.socket_fds(socket.other_end()?, process);
        if stuck.both_ends {
            let is_end = |fd: &i32| {
                process.fd(*fd).and_then(Fd::socket).is_some_and(|ino| socket.ends().contains(&ino))
            };
            ends = thread.fds().into_iter().filter(is_end).collect();
            ends.sort_unstable();
        }
        Some(Shape::OwnEnd(OwnEnd {
            ends,
            others: stuck.wakers.iter().copied().filter(|waker| *waker != stuck.pid).collect(),
            by_mistake: false,
            crossed: false,
            both_ends: stuck.both_ends,
            threads: self.other_threads(process, thread),
        }))
    }

    /// The shape for a process that writes to a socket that only the process itself could read.
    fn own_reader(&self, stuck: &Stuck, process: &Process, thread: &Thread) -> Option<Shape> {
        let socket = self.facts.socket(stuck.socket?)?;
        let ends = self.socket_fds(socket.other_end()?, process);
        Some(Shape::OwnReader { ends, threads: self.other_threads(process, thread).unwrap_or(1) })
    }

    /// The number of threads of a process, if a thread other than this one belongs to the user.
    fn other_threads(&self, process: &Process, thread: &Thread) -> Option<usize> {
        let is_users = |other: &Thread| other.tid != thread.tid && !self.in_runtime(other);
        process.tasks.iter().any(is_users).then_some(process.tasks.len())
    }

    /// The wait of one thread, and the processes that could end it.
    pub(super) fn wait(&self, stuck: &Stuck) -> Option<Wait> {
        let (process, thread) = self.thread(stuck.tid)?;
        // If the set contains one pipe, the wait is reported as one on the pipe; other threads may have
        // further fds.
        let waits_on = |is: fn(&Fd) -> bool| {
            let pipe = stuck.pipe.filter(|_| thread.on.is_set())?;
            let fds = || thread.fds().into_iter().filter_map(|fd| process.fd(fd));
            fds().any(|fd| fd.pipe() == Some(pipe) && is(fd)).then_some(pipe)
        };
        let mut wakers = stuck.wakers.clone();
        let reads = waits_on(Fd::reads);
        if let Some(pipe) = reads {
            let writers = self.writers(pipe);
            wakers.retain(|waker| writers.contains(waker));
        }
        let on = match (&thread.on, stuck.pipe, stuck.socket) {
            (On::Child { .. }, ..) => WaitsOn::Child,
            (On::Thread { tid }, ..) => WaitsOn::Thread { tid: *tid },
            (On::Futex { .. }, ..) if self.blocks_on(thread) => WaitsOn::BlockOn,
            (On::Futex { .. }, ..) => WaitsOn::Lock(self.lock(thread)),
            (On::Lock { fd }, ..) => {
                let file = process.fd(*fd).map_or_else(String::new, |file| file.target.clone());
                WaitsOn::FileLock { file }
            }
            (_, _, Some(inode)) => match (stuck.writes, &self.facts.socket(inode)?.peer) {
                (true, _) => WaitsOn::SocketRoom { inode },
                (_, Peer::Queue { .. }) => WaitsOn::SocketAccept { inode },
                _ => WaitsOn::SocketData { inode },
            },
            (On::Write { .. } | On::Poll { .. } | On::Epoll { .. }, Some(inode), _) if reads.is_none() => {
                WaitsOn::PipeRoom { inode }
            }
            (_, Some(inode), _) => {
                // Only a write end keeps a reader waiting.
                let mistake = self.mistake(stuck).map(|mistake| mistake.write_ends());
                WaitsOn::PipeData { inode, by_mistake: mistake.unwrap_or_default() }
            }
            (_, None, _) => WaitsOn::Eventfd,
        };
        if matches!(on, WaitsOn::Lock(_) | WaitsOn::BlockOn | WaitsOn::Thread { .. }) {
            // Any thread of the process could.
            wakers.clear();
        }
        Some(Wait { pid: stuck.pid, tid: stuck.tid, on, wakers })
    }

    fn lock(&self, thread: &Thread) -> Lock {
        Lock {
            kind: self.names.awaited.get(&thread.tid).cloned(),
            name: self.names.locks.get(&thread.tid).cloned(),
            function: self.called(thread).map(str::to_owned),
        }
    }
}
