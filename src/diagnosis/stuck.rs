//! Finds waits that can never end.
//!
//! A thread is stuck forever iff all its potential wakers are stuck too. So at first all threads that wait
//! without a timeout are assumed to be stuck. Then each thread with a waker that is not stuck is removed,
//! until nothing changes any more: the remaining threads only wait for each other (the greatest fixpoint;
//! Go's `goroutineleak` profile does the same for channels).
//!
//! The potential wakers of a thread are:
//! * on a pipe: each process that holds an end of it, since writing, closing and exiting all take a running
//!   thread (and a holder of the same end may enlarge the pipe, or open the other end by `/proc/self/fd`);
//! * on a unix socket: each process that holds the other end, or the same one, since shutdown(2) wakes too;
//! * in a poll set: the wakers through any of its fds;
//! * for a parent in `wait`: the child;
//! * on a futex: the other threads of the process;
//! * in any wait: the threads of the same process, by pthread_cancel(3), or by killing a child.
//!
//! A wait that is not understood (another kind of socket, a signal, another process's memory) counts as
//! having a waker.
//!
//! Hundreds of processes may wait on one pipe. So the holders of a file are computed once, as a set that all
//! of these refer to, and results are computed once for all threads of one cycle.

use std::collections::HashSet;

use crate::guard::facts::{Facts, Process, UnseenFds};
use crate::guard::report_page::End;
use crate::proc::fds::event_key;
use crate::proc::process::UnseenWaker;
use crate::recorder::call_site::Names;

mod graph;
mod wakers;

use graph::Graph;
use wakers::{Index, Node, Sets};

/// Why a wait never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Because {
    /// It waits for a lock that was held, at a fork, by a thread that the fork did not copy.
    InheritedLock,
    /// The same is likely, but the process may have taken the lock itself.
    MaybeInheritedLock,
    /// It reads a pipe or socket and holds the other end itself, and no other holder of that end is running.
    OwnWriteEnd,
    /// It waits for itself, through others.
    Cycle,
    /// It writes to a full pipe or socket, and no process that could read it is running.
    NoReaderRuns,
    /// It reads a pipe or socket, and no process that could write to it is running.
    NoWriter,
    /// It waits for a file lock of a stuck process.
    StuckHolder,
    /// It waits for a stuck thread to end.
    StuckThread,
    /// It waits for a stuck child to exit.
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

/// What prevents the proof of a deadlock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Doubt {
    /// The process ran between the two snapshots.
    Ran { pid: i32 },
    /// Another possible waker: a timer, a signal handler.
    UnseenWaker { pid: i32, waker: UnseenWaker },
    /// There is another end, and no process that may be read holds it.
    NoHolder { read: usize, unreadable: u32 },
    /// The process may hold files outside of its fd table.
    UnseenFds { pid: i32, place: UnseenFds },
    /// A process of the test was started between the two snapshots.
    ProcessAppeared,
    /// A process of the test received an fd between the two snapshots.
    FdTransferred,
    /// `/proc` hides processes of other users.
    HiddenProcesses,
    /// `/proc` has no process outside of the test's PID namespace.
    OutsideNamespace,
    /// An eventfd may be registered with a cgroup, which writes to it.
    CgroupMayWrite,
    /// An eventfd may be registered with this driver, which the process uses.
    KernelMayWrite { pid: i32, driver: String },
    /// An epoll instance may have been sent out of the test over a socket.
    EpollMayHaveLeft,
    /// Fds are in flight to a process outside of the test.
    FdsOnTheirWayOut { pid: i32 },
    /// The fds of other processes may not be read, and fds may have been sent to them.
    UnreadableFds { processes: u32 },
}

impl Doubt {
    /// Clears the pid: the results are equal for the same doubt about different processes.
    pub(super) fn forget_pid(&mut self) {
        match self {
            Doubt::Ran { pid }
            | Doubt::UnseenWaker { pid, .. }
            | Doubt::UnseenFds { pid, .. }
            | Doubt::KernelMayWrite { pid, .. }
            | Doubt::FdsOnTheirWayOut { pid } => *pid = 0,
            Doubt::NoHolder { .. }
            | Doubt::ProcessAppeared
            | Doubt::FdTransferred
            | Doubt::HiddenProcesses
            | Doubt::OutsideNamespace
            | Doubt::CgroupMayWrite
            | Doubt::EpollMayHaveLeft
            | Doubt::UnreadableFds { .. } => {}
        }
    }
}

/// A thread for which no waker was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stuck {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) because: Because,
    /// The pipe that it waits on, if any.
    pub(crate) pipe: Option<u64>,
    /// The socket that it waits on, if it waits on no pipe.
    pub(crate) socket: Option<u64>,
    /// It waits for room and not for data.
    pub(crate) writes: bool,
    /// It waits on both ends of one pair, and it is unknown which of them matters.
    pub(crate) both_ends: bool,
    /// It is an event loop that waits only for the channels by which its own process wakes it.
    pub(crate) idles: bool,
    /// The processes that could wake it and never will, each once.
    pub(crate) wakers: Vec<i32>,
    /// Thread ids of a cycle of waits that begins with this thread. Empty if it is in none.
    pub(crate) ring: Vec<i32>,
    /// What prevents a proof; empty if it is proved.
    pub(crate) doubts: Vec<Doubt>,
}

impl Stuck {
    pub(crate) fn proved(&self) -> bool {
        self.doubts.is_empty()
    }
}

/// The most threads that are compared.
const THREADS: usize = 2000;

/// The number of threads, if there are too many to compare.
pub(super) fn too_many(facts: &Facts) -> Option<usize> {
    let count = facts.tasks().count();
    (count > THREADS).then_some(count)
}

/// Finds the threads without a waker, in the order of the tree.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<Stuck> {
    if too_many(facts).is_some() {
        return Vec::new();
    }
    let index = Index::new(facts, names);
    let mut sets = Sets::default();
    let mut nodes = index.nodes();
    for at in 0..nodes.len() {
        nodes[at].wait = index.wait(&mut sets, &nodes, at);
    }
    let stuck = stuck(&nodes, &sets);
    Graph::new(&index, &nodes, &sets, &stuck).conclude(names)
}

/// Which threads are stuck: all that wait, except those with a waker that is not stuck.
fn stuck(nodes: &[Node<'_>], sets: &Sets) -> Vec<bool> {
    let mut sets_of: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (set, members) in sets.members.iter().enumerate() {
        members.iter().for_each(|at| sets_of[*at].push(set));
    }
    let mut waiters: Vec<Vec<usize>> = vec![Vec::new(); sets.members.len()];
    for (at, node) in nodes.iter().enumerate() {
        let all = node.wait.iter().flat_map(|wait| wait.wakers.union(&wait.secondary_wakers));
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

/// The parts of the kernel that may write to an eventfd.
fn kernel_writers(facts: &Facts) -> Vec<Doubt> {
    let cgroups = facts.outside.cgroups_notify.then_some(Doubt::CgroupMayWrite);
    let of_process = |process: &Process| {
        let pid = process.pid;
        let notifiers = process.notifiers.iter().cloned();
        notifiers.map(move |driver| Doubt::KernelMayWrite { pid, driver }).collect::<Vec<_>>()
    };
    cgroups.into_iter().chain(facts.processes.iter().flat_map(of_process)).collect()
}

/// The eventfds that a runtime keeps to itself: no other code can have registered them with the kernel.
fn private_events(facts: &Facts, names: &Names) -> HashSet<u64> {
    let all = facts.processes.iter().flat_map(Process::known_fds).map(|fd| fd.event);
    all.filter(|event| *event != 0 && names.is_of_runtime(event_key(*event))).collect()
}

/// The test process is in the list of leaked ones only if it exceeded its timeout.
fn has_ended(process: &Process, facts: &Facts) -> bool {
    process.is_test && facts.end != End::TimedOut
}

/// A fork by a process with threads, and the process that it created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForkAmongThreads {
    pub(super) by: i32,
    pub(super) child: i32,
}

/// Whether a process was forked, without exec, from a threaded process, or comes from such a fork through further forks;
/// `None` if it is a fork and the number of threads is unknown.
pub(super) fn parent_was_threaded(facts: &Facts, names: &Names, process: &Process) -> Option<bool> {
    if !process.forked_without_exec || process.is_test {
        return Some(false);
    }
    if fork_among_threads(names, process.pid).is_some() {
        return Some(true);
    }
    match names.of_process(process.pid).map_or(0, |site| site.threads) {
        // Not recorded, but its parent may still be there.
        0 => {
            let is_parent = |parent: &&Process| process.lineage.first() == Some(&parent.pid);
            let mut parents = facts.processes.iter().filter(is_parent);
            parents.any(|parent| parent.threads > 1 && !has_ended(parent, facts)).then_some(true)
        }
        _ => Some(false),
    }
}

/// The last recorded fork by a threaded process in the line of forks, without exec, that a fork comes from. What was locked
/// then is locked in all of them.
pub(super) fn fork_among_threads(names: &Names, pid: i32) -> Option<ForkAmongThreads> {
    let mut child = pid;
    // The recorded forks may form a ring: the kernel reuses pids.
    for _ in 0..=names.call_sites.len() {
        let site = names.of_process(child).filter(|site| child == pid || !site.execed)?;
        if site.threads > 1 {
            return Some(ForkAmongThreads { by: site.creator, child });
        }
        child = site.creator;
    }
    None
}
