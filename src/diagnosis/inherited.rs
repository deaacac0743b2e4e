//! Findings about pipe ends that a program inherited by mistake, and lifelines that no thread watches.

use std::collections::HashSet;

use nix::libc;

use super::evidence::Evidence;
use super::finding::{CodePlace, Finding, Kind};
use crate::guard::facts::{Class, Facts, Process};
use crate::proc::fds::Fd;
use crate::recorder::call_site::{Names, ResolvedCallSite};

/// Read ends of a process that are at EOF while no thread of it waits on them: lifelines that are not
/// watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnwatchedLifeline {
    pub(crate) pid: i32,
    pub(crate) fds: Vec<i32>,
}

/// Finds the read ends at EOF. One that a program may have created itself is no lifeline: `make` gives such an end to its jobs
/// as their stdin.
pub(super) fn unwatched(facts: &Facts, names: &Names) -> Vec<UnwatchedLifeline> {
    let is_given = |process: &Process, pipe: u64| match names.of_inode(pipe) {
        Some(site) => site.creator != process.pid,
        None => process.runs_own_program() || facts.is_inspected() || names.call_sites.is_empty(),
    };
    let ended: HashSet<u64> = facts.pipes.iter().filter(|pipe| pipe.no_writer).map(|pipe| pipe.ino).collect();
    let at_end = |ino: u64| ended.contains(&ino);
    let leaked = facts.processes.iter().filter(|process| process.class == Class::Leaked && !process.is_test);
    leaked
        .filter_map(|process| {
            let waited_on: Vec<i32> = process.tasks.iter().flat_map(|thread| thread.fds()).collect();
            let ends = process.known_fds().iter().filter(|fd| fd.reads() && !fd.writes());
            let is_lifeline = |pipe: u64| at_end(pipe) && is_given(process, pipe);
            let ends = ends.filter(|fd| fd.pipe().is_some_and(is_lifeline) && !waited_on.contains(&fd.fd));
            let fds: Vec<i32> = ends.map(|fd| fd.fd).collect();
            (!fds.is_empty()).then_some(UnwatchedLifeline { pid: process.pid, fds })
        })
        .collect()
}

impl Evidence<'_> {
    /// The findings about the unwatched lifelines of some processes.
    pub(super) fn unwatched_of(&self, pids: &[i32]) -> Vec<Finding> {
        let unwatched = self.unwatched.iter().filter(|unwatched| pids.contains(&unwatched.pid));
        let kinds =
            unwatched.cloned().map(|UnwatchedLifeline { pid, fds }| Kind::UnwatchedLifeline { pid, fds });
        kinds.map(|kind| Finding::new(None, kind, self)).collect()
    }
}

/// The ends of one pipe, or a socket, that a program inherited because it was created without close-on-exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) pid: i32,
    /// The inode of the pipe or socket.
    pub(crate) pipe: u64,
    pub(crate) is_socket: bool,
    pub(crate) ends: Vec<InheritedEnd>,
    /// Where it was created.
    pub(crate) created: CodePlace,
}

impl Inherited {
    /// The write ends, which keep a reader of the pipe from its EOF.
    pub(super) fn write_ends(&self) -> Vec<i32> {
        self.ends.iter().filter(|end| end.access != libc::O_RDONLY).map(|end| end.fd).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InheritedEnd {
    pub(crate) fd: i32,
    /// `O_ACCMODE`.
    pub(crate) access: i32,
}

/// Finds such ends. A pipe that is passed to a program on purpose is its fd 0, 1 or 2, or its arguments contain the number. A
/// higher number after an exec was open in the parent without close-on-exec. A program that waits at a socket was given it.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<Inherited> {
    let mut inherited: Vec<Inherited> = Vec::new();
    for process in facts.processes.iter().filter(|process| is_program(process)) {
        for fd in process.known_fds().iter().filter(|fd| fd.fd > 2 && !fd.cloexec) {
            let Some(pipe) = fd.pipe_or_socket().filter(|_| !is_told(process, fd.fd)) else { continue };
            let is_socket = fd.socket().is_some();
            if is_socket && process.tasks.iter().any(|thread| thread.fds().contains(&fd.fd)) {
                continue;
            }
            let end = InheritedEnd { fd: fd.fd, access: fd.access };
            let same = |known: &&mut Inherited| known.pipe == pipe && known.pid == process.pid;
            if let Some(known) = inherited.iter_mut().find(same) {
                known.ends.push(end);
                continue;
            }
            // A pipe that was created with close-on-exec was passed on purpose.
            let by_mistake = |site: &&ResolvedCallSite| site.creator != process.pid && !site.cloexec;
            let is_given = |given: &Fd| {
                given.fd <= 2 && given.pipe_or_socket() == Some(pipe) && given.access == fd.access
            };
            if process.known_fds().iter().any(is_given) {
                // A duplicate of one that was passed: `exec 3>&1`.
                continue;
            }
            let Some(site) = names.of_inode(pipe).filter(by_mistake) else { continue };
            let created = CodePlace::of(site);
            inherited.push(Inherited { pid: process.pid, pipe, is_socket, ends: vec![end], created });
        }
    }
    inherited
}

/// Adds the findings about them, except for pipes that other findings already name.
pub(super) fn add(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    /// The most pipes with a finding.
    const MOST: usize = 8;
    let named = findings.iter().flat_map(|finding| match &finding.kind {
        Kind::Deadlock(deadlock) => deadlock.mistakes().collect(),
        Kind::WaitsFor(waits) => waits.mistakes(),
        _ => Vec::new(),
    });
    let mut known: Vec<u64> = named.collect();
    let most = known.len() + MOST;
    for one in evidence.inherited {
        if known.contains(&one.pipe) || known.len() >= most {
            continue;
        }
        known.push(one.pipe);
        let others = evidence.inherited.iter().filter(|other| other.pipe == one.pipe).count() - 1;
        let Inherited { pid, pipe, is_socket, ends, created } = one.clone();
        let kind = Kind::InheritedByMistake { pid, pipe, is_socket, ends, created, others };
        let finding = Finding::new(None, kind, evidence);
        // What waits at the other end of a socket has been reported with its mend.
        if !is_socket || findings.iter().all(|known| known.remedies != finding.remedies) {
            findings.push(finding);
        }
    }
}

/// Whether the arguments of a program contain the number of an fd.
fn is_told(process: &Process, fd: i32) -> bool {
    let mut arguments = process.command_line.iter().skip(1);
    let is_it = |number: &str| number.parse() == Ok(fd);
    arguments.any(|argument| argument.split(|c: char| !c.is_ascii_digit()).any(is_it))
}

/// Whether a process runs a program of its own, by exec.
fn is_program(process: &Process) -> bool {
    process.class == Class::Leaked && !process.runs_own_program()
}
