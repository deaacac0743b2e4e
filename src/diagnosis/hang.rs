//! Selects the deadlocks to report: those that cause others and are not caused by them.

use std::collections::HashSet;

use super::children;
use super::deadlock::Deadlock;
use super::evidence::Evidence;
use super::finding::{Finding, Kind};
use super::remedy::Remedy;
use super::stuck::{Because, Stuck};
use crate::guard::report_page::End;
use crate::proc::sockets::Socket;

/// The most deadlocks that are reported one by one.
const REPORTED: usize = 4;

/// Adds a finding for each wait that causes others. If there is none and the test has timed out, adds what
/// the test waits for.
pub(super) fn find(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    let mut known: Vec<(Deadlock, Vec<Remedy>)> = Vec::new();
    for root in Roots::of(evidence) {
        let Some(deadlock) = evidence.deadlock(root) else { continue };
        let finding = Finding::new(None, Kind::Deadlock(deadlock.clone()), evidence);
        // Many children that hang on one lock are one finding.
        let same = |(other, remedies): &&mut (Deadlock, Vec<Remedy>)| {
            *remedies == finding.remedies && is_same(evidence, other, &deadlock)
        };
        match known.iter_mut().find(same) {
            Some((first, _)) => first.also.push(root.pid),
            None => known.push((deadlock, finding.remedies)),
        }
    }
    let inspected = of_inspected(evidence, &known);
    if known.is_empty() && evidence.facts.end == End::TimedOut {
        let waits = evidence.waits_for();
        let unwatched =
            waits.as_ref().map(|waits| evidence.unwatched_of(&waits.wakers())).unwrap_or_default();
        findings.extend(waits.map(|waits| Finding::new(None, Kind::WaitsFor(waits), evidence)));
        findings.extend(unwatched);
    }
    if evidence.facts.end == End::TimedOut {
        findings.extend(children::own_binary(evidence));
    }
    findings.extend(children::blocked(evidence));
    let more = known.len().saturating_sub(REPORTED);
    for (deadlock, mut remedies) in known.into_iter().take(REPORTED) {
        // A remedy that two waits share is shown once.
        remedies.retain(|remedy| findings.iter().all(|known| !known.remedies.contains(remedy)));
        let unwatched = evidence.unwatched_of(&deadlock.possible_watchers());
        let kind = Kind::Deadlock(deadlock);
        findings.push(Finding { cause: None, kind, remedies, allow: Vec::new() });
        findings.extend(unwatched);
    }
    if more > 0 {
        findings.push(Finding::new(None, Kind::MoreDeadlocks { count: more }, evidence));
    }
    findings.extend(inspected);
}

/// What processes wait for that no guard is above, where that is none of the deadlocks that are known.
fn of_inspected(evidence: &Evidence<'_>, known: &[(Deadlock, Vec<Remedy>)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !evidence.facts.is_inspected() {
        return findings;
    }
    let deadlocked = |deadlock: &Deadlock| {
        let waits = deadlock.chain.iter().map(|wait| wait.pid);
        waits.chain(deadlock.also.clone()).chain([deadlock.pid]).collect::<Vec<i32>>()
    };
    let known: Vec<i32> = known.iter().flat_map(|(deadlock, _)| deadlocked(deadlock)).collect();
    for waits in evidence.waits_of_inspected(&known).into_iter().take(REPORTED) {
        let unwatched = evidence.unwatched_of(&waits.wakers());
        findings.push(Finding::new(None, Kind::WaitsFor(waits), evidence));
        findings.extend(unwatched);
    }
    findings
}

/// Whether two deadlocks differ only in numbers, and their processes run the same program.
fn is_same(evidence: &Evidence<'_>, one: &Deadlock, other: &Deadlock) -> bool {
    let program = |deadlock: &Deadlock| {
        let process = evidence.process(deadlock.pid)?;
        Some((process.runs_own_program(), process.is_test, &process.command_line))
    };
    program(one) == program(other) && one.key() == other.key()
}

/// Whether a wait causes others: it waits for itself, or for something that does not exist.
fn is_root(stuck: &Stuck) -> bool {
    match stuck.because {
        Because::InheritedLock | Because::MaybeInheritedLock | Because::OwnWriteEnd | Because::Cycle => true,
        _ => stuck.wakers.is_empty() || stuck.wakers == [stuck.pid],
    }
}

/// The waits that cause others; each cycle and each thread group once.
struct Roots<'a> {
    evidence: &'a Evidence<'a>,
    rings: Vec<HashSet<i32>>,
    /// The processes that one finding about all threads covers.
    groups: Vec<i32>,
    pairs: Vec<(i32, Option<u64>)>,
}

impl<'a> Roots<'a> {
    fn of(evidence: &'a Evidence<'a>) -> Vec<&'a Stuck> {
        let is_root = |stuck: &&Stuck| {
            (is_root(stuck) || evidence.mistake(stuck).is_some()) && !evidence.is_of_event_loop(stuck)
        };
        let mut roots: Vec<&Stuck> = evidence.stuck.iter().filter(is_root).collect();
        // A futex wait may involve any other thread, so it comes last. Of overlapping cycles the shortest is
        // reported.
        roots.sort_by_key(|stuck| {
            (!stuck.proved(), stuck.because, evidence.in_futex(&stuck.ring), stuck.ring.len())
        });
        let mut seen = Roots { evidence, rings: Vec::new(), groups: Vec::new(), pairs: Vec::new() };
        roots.retain(|root| !seen.is_known_cycle(root) && !seen.is_known_pair(root));
        roots
    }

    /// Whether a cycle is covered by another finding, or is no finding by itself.
    fn is_known_cycle(&mut self, root: &Stuck) -> bool {
        if root.because != Because::Cycle {
            return false;
        }
        let stuck = self.evidence.stuck;
        let ring: HashSet<i32> = root.ring.iter().copied().collect();
        // One member of the cycle would wait even without the others.
        let is_other = |other: &Stuck| other.because != Because::Cycle && is_root(other);
        if stuck.iter().any(|other| is_other(other) && ring.contains(&other.tid))
            || self.rings.iter().any(|known| !known.is_disjoint(&ring))
        {
            return true;
        }
        // A futex wait for threads that wait for something else: those are reported.
        if ring.is_empty() && !root.wakers.is_empty() {
            return true;
        }
        // It could wake itself, but others could too, so it does not wait for itself.
        if ring.len() == 1 && root.wakers.len() > 1 {
            return true;
        }
        // All threads of a process that could wake each other are one finding.
        if self.evidence.is_thread_group(root) {
            // A thread that waits for another process in a ring explains why the others wait for it.
            let is_ours = |tid: &i32| self.evidence.thread(*tid).is_some_and(|(own, _)| own.pid == root.pid);
            let in_known_ring =
                |known: &HashSet<i32>| known.iter().any(is_ours) && !known.iter().all(is_ours);
            if self.groups.contains(&root.pid)
                || self.rings.iter().any(in_known_ring)
                || stuck.iter().any(|other| other.pid == root.pid && is_other(other))
            {
                return true;
            }
            self.groups.push(root.pid);
        }
        self.rings.push(ring);
        false
    }

    /// Whether it is the second of two threads of one process at the two ends of a pair; both are one
    /// finding.
    fn is_known_pair(&mut self, root: &Stuck) -> bool {
        let facts = self.evidence.facts;
        let peer = root.socket.and_then(|ino| facts.socket(ino)).and_then(Socket::other_end);
        if root.because != Because::OwnWriteEnd || peer.is_none() {
            return false;
        }
        if self.pairs.contains(&(root.pid, peer)) {
            return true;
        }
        self.pairs.push((root.pid, root.socket));
        false
    }
}
