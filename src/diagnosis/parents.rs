//! The program that a process came from whose own parent has ended, and that nobody can ask any more.

use super::{Names, Origin, origin_of_process};
use crate::facts::{Class, Facts, Makes, Process};

/// A process whose parent has ended, and which program that probably was, or one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) orphan: i32,
    pub(crate) parent: i32,
    pub(crate) by: By,
}

/// How it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// It is in the session that the parent led, which nobody joins but by descent.
    Session,
    /// It is in the process group that the parent led: so are others that were put there, such as all
    /// programs of a shell's pipeline.
    Group,
    /// The parent is the last program that had been started before it, and has ended.
    Order,
}

/// Finds the ended parents, as far as the test itself or a fork of it has started them.
pub(super) fn find(facts: &Facts, names: &Names) -> Vec<Ended> {
    let alive = || facts.processes.iter().filter(|process| process.class != Class::Unwaited);
    let has_ended = |pid: u64| alive().all(|process| process.pid as u64 != pid);
    let programs: Vec<&Origin> = names
        .origins
        .iter()
        .filter(|origin| origin.makes == Makes::Process && (origin.execed || origin.call != "fork"))
        .filter(|origin| has_ended(origin.keys[0]))
        .collect();
    let is_orphan = |process: &&Process| {
        process.class == Class::Leaked
            && process.adopted
            && process.lineage.iter().all(|pid| *pid == facts.pid)
            && origin_of_process(&names.origins, process.pid).is_none()
    };
    let parent = |process: &Process| {
        let is = |pid: i32| programs.iter().any(|origin| origin.keys[0] as i32 == pid);
        let before = programs.iter().map(|origin| origin.keys[0] as i32).filter(|pid| *pid < process.pid);
        let (parent, by) = match process {
            process if is(process.sid) => (process.sid, By::Session),
            process if is(process.pgid) => (process.pgid, By::Group),
            _ => (before.max()?, By::Order),
        };
        Some(Ended { orphan: process.pid, parent, by })
    };
    facts.processes.iter().filter(is_orphan).filter_map(parent).collect()
}
