//! Follows waits from the test's own thread to the last waiter.

use super::{AtSocket, Link, LinkOn};
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::wake_channel;
use crate::guard::facts::Process;
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;

/// The longest chain that is followed.
const LONGEST: usize = 12;
/// The total number of threads that are visited.
const STEPS: usize = 2000;

/// A chain, and the index of the link that the last one waits for.
pub(super) type Way = (Vec<Link>, Option<usize>);

impl Evidence<'_> {
    /// Follows the waits from one thread to the last waiter: one that waits for a link of the chain, or that
    /// does not lead to exactly one other thread.
    pub(super) fn walk(&self, process: &Process, thread: &Thread) -> Way {
        let mut steps = STEPS;
        self.follow(process, thread, &[], &mut steps)
    }

    /// The same from the thread of a process that waits for something, if it has threads.
    pub(super) fn walk_process(&self, process: &Process) -> Option<Way> {
        let mut steps = STEPS;
        self.follow_process(process, &[], &mut steps)
    }

    fn follow(&self, process: &Process, thread: &Thread, before: &[Link], steps: &mut usize) -> Way {
        let link = Link { pid: process.pid, tid: thread.tid, on: self.link_on(process, thread) };
        let mut chain = before.to_vec();
        chain.push(link);
        *steps = steps.saturating_sub(1);
        let Some(link) = chain.last().filter(|_| chain.len() < LONGEST && *steps > 0) else {
            return (chain, None);
        };
        let next = Next { at: chain.len(), ..self.next(process, link) };
        // A link of the chain closes a cycle.
        let closes = next.pids.iter().find_map(|pid| chain.iter().position(|link| link.pid == *pid));
        let closes = closes
            .or_else(|| next.tids.iter().find_map(|tid| chain.iter().position(|link| link.tid == *tid)));
        let only = next.pids.len() + next.tids.len() == 1;
        if let Some(at) = closes.filter(|_| only) {
            return (chain, Some(at));
        }
        let mut ways: Vec<Way> = Vec::new();
        for tid in &next.tids {
            let found = process.tasks.iter().find(|other| other.tid == *tid);
            ways.extend(found.map(|other| self.follow(process, other, &chain, steps)));
        }
        // What the tests wait for that a child runs again is no cause.
        let others = next.pids.iter().filter_map(|pid| self.process(*pid));
        for other in others.filter(|other| !self.runs_tests_again(other)) {
            if chain.iter().all(|link| link.pid != other.pid) {
                ways.extend(self.follow_process(other, &chain, steps));
            }
        }
        self.choose(ways, &next).unwrap_or((chain, None))
    }

    /// Follows a process, by its thread that waits for something; idle threads do not count.
    fn follow_process(&self, process: &Process, before: &[Link], steps: &mut usize) -> Option<Way> {
        let idles = |thread: &&Thread| wake_channel::idles(self.facts, self.names, process, thread);
        let busy = process.tasks.iter().filter(|thread| !idles(thread));
        let mut ways: Vec<Way> = busy.map(|thread| self.follow(process, thread, before, steps)).collect();
        if ways.is_empty() {
            let first = process.tasks.first()?;
            return Some(self.follow(process, first, before, steps));
        }
        if let Some(ring) = ways.iter().position(|(_, ring)| ring.is_some()) {
            return Some(ways.swap_remove(ring));
        }
        // A wait for another process or a lock explains more than one for time, for a connection or for a thread. What is
        // waited for at a connection that was accepted is another thread than the one that accepts.
        let at_connection = before.last().is_some_and(|link| matches!(link.on, LinkOn::Socket(_)));
        ways.sort_by_key(|(chain, _)| match &chain.get(before.len())?.on {
            LinkOn::Threads { kind: Some(kind), .. } if kind.is_held() => Some(0),
            LinkOn::Threads { kind, .. } if at_connection && may_be_locked(process, kind.as_ref()) => Some(1),
            LinkOn::Threads { .. } | LinkOn::Thread { .. } | LinkOn::EventLoop => Some(5),
            on if on.is_vague() => Some(3),
            LinkOn::Connection { .. } => Some(if at_connection { 4 } else { 2 }),
            _ => Some(0),
        });
        ways.into_iter().next()
    }

    /// The way to follow: one that closes a cycle, or the only one.
    fn choose(&self, mut ways: Vec<Way>, next: &Next) -> Option<Way> {
        let closes = |(_, ring): &Way| ring.is_some();
        if let Some(ring) = ways.iter().position(closes) {
            if next.any_counts || ways.iter().all(closes) {
                return Some(ways.swap_remove(ring));
            }
            // Another process is not in the cycle, and may end the wait.
            ways.retain(|way| !closes(way));
        }
        if ways.len() > 1 {
            // A process that waits for another of them is not the last.
            let firsts: Vec<i32> =
                ways.iter().filter_map(|(chain, _)| chain.get(next.at).map(|link| link.pid)).collect();
            let leads_on =
                |(chain, _): &Way| chain.iter().skip(next.at + 1).any(|link| firsts.contains(&link.pid));
            if ways.iter().any(leads_on) {
                ways.retain(leads_on);
            }
        }
        match ways.len() {
            1 => ways.pop(),
            _ => None,
        }
    }

    /// What could end a wait: other processes, and threads of the same one.
    fn next(&self, process: &Process, link: &Link) -> Next {
        let mut next = Next { pids: link.on.wakers(), tids: Vec::new(), any_counts: false, at: 0 };
        next.pids.sort_unstable();
        next.pids.dedup();
        match &link.on {
            LinkOn::Thread { tid } => next.tids.push(*tid),
            // What waits for a connection does not hold the lock: servers do so all the time.
            LinkOn::Threads { kind, tids, .. } if may_be_locked(process, kind.as_ref()) => {
                let accepts = |tid: &i32| {
                    let thread = process.tasks.iter().find(|thread| thread.tid == *tid);
                    thread.is_some_and(|thread| {
                        matches!(self.link_on(process, thread), LinkOn::Connection { .. } | LinkOn::EventLoop)
                    })
                };
                next.tids.extend(tids.iter().filter(|tid| !accepts(tid)));
            }
            LinkOn::Threads { tids, .. } => next.tids.extend(tids),
            // All of them must be waited for, or each one may matter.
            LinkOn::AnyChild { .. } | LinkOn::Runtime { .. } | LinkOn::AnyOf { .. } => {
                next.any_counts = true;
                // A runtime with nothing to wait for but its own threads.
                if link.on.is_idle_runtime() {
                    next.tids.extend(self.busy_threads(process, link.tid));
                }
            }
            // Two that open FIFOs in two orders.
            LinkOn::Opening { .. } => {
                let fifos = &self.facts.contended.fifos;
                let opens = |tid: i32| {
                    fifos.iter().position(|fifo| {
                        fifo.waiters.iter().any(|waiter| waiter.fd.is_none() && waiter.tid == tid)
                    })
                };
                if let Some(own) = opens(link.tid) {
                    let tasks = self.facts.tasks().filter(|(other, _)| other.pid != link.pid);
                    let others = tasks.filter(|(_, thread)| opens(thread.tid).is_some_and(|at| at != own));
                    next.pids.extend(others.map(|(other, _)| other.pid));
                }
            }
            LinkOn::Polling => {
                next.any_counts = true;
                next.pids = self.children(process).iter().map(|child| child.pid).collect();
            }
            // Its own process holds the other end: another thread uses it.
            LinkOn::Socket(AtSocket { own, holders, .. }) if !own.is_empty() && holders.is_empty() => {
                let others = process.tasks.iter().filter(|other| other.tid != link.tid);
                let others = others.filter(
                    |other| matches!(&other.on, On::Read { fd } | On::Write { fd } if own.contains(fd)),
                );
                next.tids.extend(others.map(|other| other.tid));
            }
            _ => {}
        }
        next
    }
}

/// Whether a thread waits for a lock. Those of other languages are built on semaphores or futexes of their own.
fn may_be_locked(process: &Process, kind: Option<&Awaited>) -> bool {
    match kind {
        Some(Awaited::Semaphore) | None => !process.runs_own_program(),
        Some(kind) => kind.is_held(),
    }
}

/// What could end a wait.
struct Next {
    pids: Vec<i32>,
    tids: Vec<i32>,
    /// Of several, one that waits for a link of the chain is sufficient.
    any_counts: bool,
    /// How many links precede them.
    at: usize,
}
