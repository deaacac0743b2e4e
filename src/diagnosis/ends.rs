//! Ends of pipes that are where nobody meant them to be, or that nobody watches.

use std::collections::HashSet;

use super::{Finding, Names, Origin, origin_of_inode};
use crate::facts::{Class, Facts, Process};
use crate::proc::fds::{Fd, end};
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
    let ended: HashSet<u64> = facts.pipes.iter().filter(|pipe| pipe.no_writer).map(|pipe| pipe.ino).collect();
    let at_end = |ino: u64| ended.contains(&ino);
    let leaked = facts.processes.iter().filter(|process| process.class == Class::Leaked && !process.is_test);
    leaked
        .filter_map(|process| {
            let waited_on: Vec<i32> = process.tasks.iter().flat_map(|thread| thread.fds()).collect();
            let ends = process.known_fds().iter().filter(|fd| fd.reads() && !fd.writes());
            let ends = ends.filter(|fd| fd.pipe().is_some_and(at_end) && !waited_on.contains(&fd.fd));
            let fds: Vec<i32> = ends.map(|fd| fd.fd).collect();
            (!fds.is_empty()).then_some(Unread { pid: process.pid, fds })
        })
        .collect()
}

/// The ends of one pipe that a program has only because nobody kept them from it.
pub(super) struct Strayed<'a> {
    pub(super) process: &'a Process,
    pub(super) ino: u64,
    pub(super) fds: Vec<&'a Fd>,
    /// Where the pipe was made.
    pub(super) place: String,
}

impl Strayed<'_> {
    /// What would keep it back.
    pub(super) fn fix(&self) -> String {
        format!("make that pipe with O_CLOEXEC ({}): `std::io::pipe` and `pipe2(O_CLOEXEC)` do.", self.place)
    }
}

/// Finds such ends. A program that is given a pipe on purpose has it as 0, 1 or 2. A higher number
/// that outlived an exec was open in the process that started it, without close-on-exec.
pub(super) fn strayed<'a>(facts: &'a Facts, names: &Names) -> Vec<Strayed<'a>> {
    let mut strayed: Vec<Strayed<'a>> = Vec::new();
    for process in facts.processes.iter().filter(|process| is_program(process)) {
        for fd in process.known_fds().iter().filter(|fd| fd.fd > 2 && !fd.cloexec) {
            let Some(ino) = fd.pipe() else { continue };
            let same = |known: &&mut Strayed<'_>| known.ino == ino && known.process.pid == process.pid;
            if let Some(known) = strayed.iter_mut().find(same) {
                known.fds.push(fd);
                continue;
            }
            let origin = origin_of_inode(&names.origins, ino);
            // What was made with close-on-exec was let through on purpose.
            let by_mistake = |origin: &&Origin| origin.maker != process.pid && !origin.cloexec;
            let is_given =
                |given: &Fd| given.fd <= 2 && given.pipe() == Some(ino) && given.access == fd.access;
            if process.known_fds().iter().any(is_given) {
                // A second number for one that it was given: `exec 3>&1`.
                continue;
            }
            let Some(origin) = origin.filter(by_mistake) else { continue };
            let place = origin.place.clone().or_else(|| origin.function.clone());
            let place = place.unwrap_or_else(|| "code without debug information".to_owned());
            strayed.push(Strayed { process, ino, fds: vec![fd], place });
        }
    }
    strayed
}

/// Adds what is to be said of them, but for the pipes that were told of already.
pub(super) fn find(strayed: &[Strayed<'_>], mut told: Vec<u64>, findings: &mut Vec<Finding>) {
    /// The most pipes that are told of.
    const TOLD: usize = 8;
    let most = told.len() + TOLD;
    for one in strayed {
        if told.contains(&one.ino) || told.len() >= most {
            continue;
        }
        told.push(one.ino);
        let fds: Vec<String> =
            one.fds.iter().map(|fd| format!("{} ({} end)", fd.fd, end(fd.access))).collect();
        let more = match strayed.iter().filter(|other| other.ino == one.ino).count() - 1 {
            0 => "",
            1 => " 1 more process has it too.",
            count => &format!(" {count} more processes have it too."),
        };
        findings.push(Finding {
            cause: None,
            sentence: format!(
                "inherited by mistake: pid {} `{}` has pipe:[{}] as fd {} only because no O_CLOEXEC kept it back; \
                 it was made at {}.{more}",
                one.process.pid,
                escape::command(one.process),
                one.ino,
                fds.join(" and fd "),
                one.place
            ),
            fix: Some(one.fix()),
            allow: Vec::new(),
        });
    }
}

/// Whether a process runs a program of its own, by exec.
fn is_program(process: &Process) -> bool {
    process.class == Class::Leaked && !process.runs_own_program()
}
