//! The program that a process came from whose own parent has ended, and that nobody can ask any more.

use super::{Names, Origin, origin_of_process};
use crate::facts::{Class, Facts, Process};

/// A process whose parent has ended, and which program that probably was, or one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) orphan: i32,
    pub(crate) parent: i32,
    /// By its process group or session, which the parent led. Otherwise it is the last program that
    /// had been started before and has ended.
    pub(crate) sure: bool,
}

/// Finds the ended parents, as far as the test itself or a fork of it has started them.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<Ended> {
    let alive = || facts.processes.iter().filter(|process| process.class != Class::Unwaited);
    let has_ended = |pid: u64| alive().all(|process| process.pid as u64 != pid);
    let programs: Vec<&Origin> = names
        .origins
        .iter()
        .filter(|origin| origin.is_process && (origin.execed || origin.call != "fork"))
        .filter(|origin| has_ended(origin.keys[0]))
        .collect();
    let is_orphan = |process: &&Process| {
        process.class == Class::Leaked
            && process.adopted
            && process.lineage.iter().all(|pid| *pid == facts.pid)
            && origin_of_process(&names.origins, process.pid).is_none()
    };
    let parent = |process: &Process| {
        let led = |origin: &&&Origin| [process.pgid, process.sid].contains(&(origin.keys[0] as i32));
        let before = programs.iter().map(|origin| origin.keys[0] as i32).filter(|pid| *pid < process.pid);
        let (parent, sure) = match programs.iter().find(led) {
            Some(leader) => (leader.keys[0] as i32, true),
            None => (before.max()?, false),
        };
        Some(Ended { orphan: process.pid, parent, sure })
    };
    facts.processes.iter().filter(is_orphan).filter_map(parent).collect()
}
