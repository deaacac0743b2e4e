//! Finds the program that started a process, if that has exited: the kernel then no longer shows it as the
//! parent.

use super::charged::test_of_call;
use crate::guard::facts::{Class, Facts, Process};
use crate::guard::report_page::Body;
use crate::proc::fds::Fd;
use crate::recorder::call_site::{Names, ResolvedCallSite, ResourceKind};

/// A process without its parent, and the program that was probably its parent or another ancestor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExitedParent {
    pub(crate) orphan: i32,
    pub(crate) parent: i32,
    pub(crate) relation: Relation,
}

/// What the relation is concluded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The process is in the session that the parent led; processes only get into a session by descent.
    Session,
    /// The process is in the process group that the parent led. Other processes may have been moved there
    /// too, such as all programs of a shell pipeline.
    Group,
    /// One of its standard streams is a pipe that was created for the parent, by the line that started it.
    Pipe,
    /// The parent is the last program that was started before the process, and has exited.
    Sequence,
}

/// Finds the exited parents, if the test itself or a fork of it started them.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<ExitedParent> {
    let alive = || facts.processes.iter().filter(|process| process.class != Class::Unwaited);
    let has_exited = |pid: u64| alive().all(|process| process.pid as u64 != pid);
    let programs: Vec<&ResolvedCallSite> = names
        .call_sites
        .iter()
        .filter(|site| site.kind == ResourceKind::Process && (site.execed || site.call != "fork"))
        .filter(|site| has_exited(site.keys[0]))
        .collect();
    let is_orphan = |process: &&Process| {
        process.class == Class::Leaked
            && process.adopted
            && process.lineage.iter().all(|pid| *pid == facts.pid)
            && names.of_process(process.pid).is_none()
    };
    // Calls of several tests are in one log: a suite's, or those of a command that may be one.
    let has_tests = facts.body == Body::OfCommand || programs.iter().any(|site| site.test != 0);
    let owner = |site: &ResolvedCallSite| (site.test, has_tests.then(|| test_of_call(site)).flatten());
    let parent = |process: &Process| {
        let is = |pid: i32| programs.iter().any(|site| site.keys[0] as i32 == pid);
        let before = || programs.iter().filter(|site| (1..process.pid as u64).contains(&site.keys[0]));
        let streams = process.known_fds().iter().filter(|fd| fd.fd <= 2).filter_map(Fd::pipe);
        let created: Vec<&ResolvedCallSite> =
            streams.filter_map(|pipe| names.of_inode(pipe)).filter(|site| site.place.is_some()).collect();
        let by_pipe = before()
            .rfind(|site| created.iter().any(|pipe| pipe.place == site.place && owner(pipe) == owner(site)));
        // The shell of `system`, whose pid is not known: 0. Its command names the program.
        let is_systems = |site: &&ResolvedCallSite| site.call == "system" && names_program(site, process);
        let mut systems = programs.iter().copied().filter(is_systems);
        let system = systems.next().filter(|_| systems.next().is_none());
        // Which of several tests it was must not be guessed: it would fail for another one's process.
        let is_ones =
            |site: &&ResolvedCallSite| !has_tests || before().all(|other| owner(other) == owner(site));
        let last = || before().max_by_key(|site| site.keys[0]).copied();
        let (parent, relation) = match process {
            process if is(process.sid) => (process.sid, Relation::Session),
            process if is(process.pgid) => (process.pgid, Relation::Group),
            _ => match by_pipe {
                Some(site) => (site.keys[0] as i32, Relation::Pipe),
                // Its pipe was created by another line than the one of the last program.
                None if system.is_none() && !created.is_empty() => return None,
                None => (system.or_else(last).filter(is_ones)?.keys[0] as i32, Relation::Sequence),
            },
        };
        Some(ExitedParent { orphan: process.pid, parent, relation })
    };
    facts.processes.iter().filter(is_orphan).filter_map(parent).collect()
}

/// Whether the command of a shell names the program of a process.
fn names_program(site: &ResolvedCallSite, process: &Process) -> bool {
    let program = process.command_line.first().and_then(|program| program.rsplit('/').next());
    let is_part = |c: char| c.is_alphanumeric() || "-_.+".contains(c);
    let mut words = site.command_line.iter().flat_map(|command| command.split(|c| !is_part(c)));
    program.is_some_and(|program| words.any(|word| word == program))
}
