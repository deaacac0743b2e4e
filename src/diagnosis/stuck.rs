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

use super::Names;
use crate::facts::{Facts, Process};
use crate::outcome::End;

mod graph;
mod wakers;

use graph::Graph;
use wakers::{Node, Scene, Sets};

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
