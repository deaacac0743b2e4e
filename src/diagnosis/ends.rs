//! Ends of pipes that are where nobody meant them to be, or that nobody watches.

use super::{Finding, Names, origin_of_inode, plural};
use crate::facts::{Class, Facts, Process};
use crate::proc::fds::end;
use crate::report::escape;

/// Read ends of one process that are at end-of-file, and on which no thread of it waits: lifelines
/// that nobody watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) pid: i32,
    pub(crate) fds: Vec<i32>,
}

/// Finds the read ends at end-of-file.
pub(super) fn unread(facts: &Facts) -> Vec<Unread> {
    let at_end = |ino: u64| facts.pipes.iter().any(|pipe| pipe.ino == ino && pipe.no_writer);
    let leaked = facts.processes.iter().filter(|process| process.class == Class::Leaked && !process.is_test);
    leaked
        .filter_map(|process| {
            let waited_on: Vec<i32> = process.tasks.iter().flat_map(|thread| thread.fds()).collect();
            let ends = process.fds.iter().flatten().filter(|fd| fd.reads() && !fd.writes());
            let ends = ends.filter(|fd| fd.pipe().is_some_and(at_end) && !waited_on.contains(&fd.fd));
            let fds: Vec<i32> = ends.map(|fd| fd.fd).collect();
            (!fds.is_empty()).then_some(Unread { pid: process.pid, fds })
        })
        .collect()
}

/// Adds what is to be said of ends that a program has only because nobody kept them from it.
///
/// A program that is given a pipe on purpose has it as 0, 1 or 2. A higher number that outlived an
/// exec was open in the process that started it, without close-on-exec.
pub(super) fn find(facts: &Facts, names: &Names, findings: &mut Vec<Finding>) {
    /// The most pipes that are told of.
    const TOLD: usize = 8;
    let strayed = |process: &'_ Process| -> Vec<(u64, i32, i32)> {
        let fds = process.fds.iter().flatten().filter(|fd| fd.fd > 2 && !fd.cloexec);
        fds.filter_map(|fd| Some((fd.pipe()?, fd.fd, fd.access))).collect()
    };
    let programs: Vec<&Process> = facts.processes.iter().filter(|process| is_program(process)).collect();
    let mut told: Vec<u64> = Vec::new();
    for process in &programs {
        for (ino, ..) in strayed(process) {
            let Some(origin) = origin_of_inode(&names.origins, ino) else { continue };
            if origin.maker == process.pid || told.contains(&ino) || told.len() >= TOLD {
                continue;
            }
            told.push(ino);
            let ends: Vec<(u64, i32, i32)> =
                strayed(process).into_iter().filter(|(other, ..)| *other == ino).collect();
            let fds: Vec<String> =
                ends.iter().map(|(_, fd, access)| format!("{fd} ({} end)", end(*access))).collect();
            let has = |other: &&&Process| {
                other.pid != process.pid && strayed(other).iter().any(|(other, ..)| *other == ino)
            };
            let more = match programs.iter().filter(has).count() {
                0 => String::new(),
                count => format!(" {} more have it too.", plural(count, "process")),
            };
            let place = origin.place.clone().or_else(|| origin.function.clone());
            let place = place.unwrap_or_else(|| "code without debug information".to_owned());
            findings.push(Finding {
                cause: None,
                sentence: format!(
                    "inherited by mistake: pid {} `{}` has pipe:[{ino}] as fd {} only because no O_CLOEXEC \
                     kept it back; it was made at {place}.{more}",
                    process.pid,
                    escape::command(process),
                    fds.join(" and fd "),
                ),
                fix: Some(format!(
                    "make that pipe with O_CLOEXEC ({place}): `std::io::pipe` and `pipe2(O_CLOEXEC)` do."
                )),
                allow: None,
            });
        }
    }
}

/// Whether a process runs a program of its own, by exec.
fn is_program(process: &Process) -> bool {
    process.class == Class::Leaked && !process.is_test && !process.forked_without_exec
}
