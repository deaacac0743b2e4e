//! Findings about stray fds, and the holders of both ends of pipes.

use std::collections::HashMap;

use nix::libc;

use super::allowance::Allowance;
use super::evidence::Evidence;
use super::finding::{Cause, CodePlace, Finding, Kind, StrayNumber};
use super::stray_socket::{self, StraySocket};
use crate::config::policy::Settings;
use crate::guard::facts::{Facts, Process};
use crate::guard::report_page::{End, HeldBy, StrayFd};
use crate::guard::strays::FIFO;
use crate::proc::fds::Fd;
use crate::recorder::call_site::Names;

/// The most functions with an argument each.
const CREATORS: usize = 4;

/// An fd of a process that is an end of a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    pub(crate) access: i32,
    pub(crate) cloexec: bool,
}

/// A stray fd of the test process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    pub(crate) fd: StrayFd,
    /// The other fds of the same file.
    pub(crate) holders: Vec<Holder>,
    /// If it is a socket that was asked about.
    pub(crate) socket: Option<StraySocket>,
}

impl Stray {
    pub(crate) fn is_pipe(&self) -> bool {
        is_pipe(&self.fd)
    }
}

/// A pipe that a leaked process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pipe {
    pub(crate) ino: u64,
    pub(crate) holders: Vec<Holder>,
}

/// Removes the fds that were created in code which the policy allows, and those that a runtime keeps for
/// itself. Returns the paths that allow one.
pub(super) fn allow(facts: &mut Facts, settings: &Settings, names: &Names) -> Vec<String> {
    let (before, mut used) = (facts.strays.len(), Vec::new());
    facts.strays.retain(|stray| {
        let Some(site) = names.of_fd(stray.key) else { return true };
        let allows =
            |prefix: &&String| site.functions.iter().any(|function| is_below(path_of(function), prefix));
        let expected = used.len();
        used.extend(settings.allow_created_by.iter().filter(allows).cloned());
        !site.is_kept && used.len() == expected
    });
    let gone = (before - facts.strays.len()) as u32;
    facts.stray_count = facts.stray_count.saturating_sub(gone);
    used
}

/// The path by which a function is matched: `<crate::Type as Trait>::function` is in `crate` too.
fn path_of(function: &str) -> &str {
    function.trim_start_matches('<')
}

/// Whether a path is this one or below it: `server::Pool` is not below `server::Po`.
fn is_below(path: &str, prefix: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    path.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with(is_name) || !prefix.ends_with(is_name))
}

/// The arguments that allow exactly these stray fds, by the functions that created them; `None` if one is
/// unknown.
pub(super) fn allow_creators(evidence: &Evidence<'_>) -> Option<Vec<Allowance>> {
    let mut creators: Vec<&str> = Vec::new();
    for stray in &evidence.facts.strays {
        let function = evidence.names.of_fd(stray.key)?.function.as_deref()?;
        // Without type parameters and closures, and without characters that cannot be in a string.
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let path = path_of(function).split(|c| !is_path(c)).next()?.trim_end_matches(':');
        // `fn`, `dyn` or `u32` would match many other functions too, as would a type of std that implements a
        // trait.
        let is_stds = ["std::", "core::", "alloc::"].iter().any(|begin| path.starts_with(begin));
        if is_stds || !path.contains("::") {
            return None;
        }
        if !creators.contains(&path) {
            creators.push(path);
        }
    }
    let by = |path: &str| Allowance::CreatedBy { path: path.to_owned() };
    (creators.len() <= CREATORS).then(|| creators.into_iter().map(by).collect())
}

/// Groups stray fds of the same file, with the file's other holders.
pub(super) fn fold(evidence: &Evidence<'_>) -> Vec<Stray> {
    let facts = evidence.facts;
    facts
        .strays
        .iter()
        .map(|fd| {
            let others = facts.strays.iter().filter(|other| other.target == fd.target && *other != fd);
            let mut holders: Vec<Holder> = others
                .map(|other| Holder {
                    pid: facts.pid,
                    fd: other.fd,
                    access: other.access,
                    cloexec: other.cloexec,
                })
                .collect();
            holders.extend(holders_of(facts, &fd.target));
            Stray { fd: fd.clone(), holders, socket: stray_socket::of(evidence, fd) }
        })
        .collect()
}

/// The pipes that leaked processes hold, each once.
pub(super) fn pipes(facts: &Facts) -> Vec<Pipe> {
    let mut pipes: Vec<Pipe> = Vec::new();
    let mut places: HashMap<u64, usize> = HashMap::new();
    for process in &facts.processes {
        for fd in process.known_fds() {
            let Some(ino) = fd.pipe() else { continue };
            let at = *places.entry(ino).or_insert_with(|| {
                pipes.push(Pipe { ino, holders: Vec::new() });
                pipes.len() - 1
            });
            if counts(facts, process) {
                pipes[at].holders.push(holder(process, fd));
            }
        }
    }
    pipes
}

/// The test's own stray fds are in `strays`; at a timeout its fd table was read like the others'.
fn counts(facts: &Facts, process: &Process) -> bool {
    facts.end == End::TimedOut || !process.is_test
}

fn holder(process: &Process, fd: &Fd) -> Holder {
    Holder { pid: process.pid, fd: fd.fd, access: fd.access, cloexec: fd.cloexec }
}

fn holders_of<'a>(facts: &'a Facts, target: &'a str) -> impl Iterator<Item = Holder> + 'a {
    facts.processes.iter().filter(move |process| counts(facts, process)).flat_map(move |process| {
        let fds = process.known_fds().iter().filter(move |fd| fd.target == target);
        fds.map(move |fd| holder(process, fd))
    })
}

/// Adds the finding about stray fds.
pub(super) fn add(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    let facts = evidence.facts;
    let count = facts.stray_count as usize;
    if count == 0 {
        return;
    }
    if facts.strays.is_empty() {
        findings.push(Finding::new(Cause::StrayFd, Kind::UnlistedFds { count }, evidence));
        return;
    }
    let fds = facts.strays.iter().map(|stray| StrayNumber {
        fd: stray.fd,
        inode: stray.ino,
        key: stray.key,
        is_pipe: is_pipe(stray),
        held_by: stray.held_by.clone(),
        socket: stray_socket::of(evidence, stray),
        fifo: stray.target.strip_suffix(FIFO).map(str::to_owned),
    });
    let created = facts.strays.iter().find_map(|stray| {
        let site = evidence.names.of_fd(stray.key)?;
        site.place.is_some().then(|| CodePlace::of(site))
    });
    let kind = Kind::StrayFd {
        count,
        fds: fds.collect(),
        threads: facts.threads,
        running: facts.running.clone(),
        created,
    };
    findings.push(Finding::new(Cause::StrayFd, kind, evidence));
}

/// The stray fds that should be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseFds {
    pub(crate) fd: i32,
    /// `O_ACCMODE`, if it is a pipe end.
    pub(crate) access: Option<i32>,
    /// The other end of the same pipe, if that is also stray.
    pub(crate) other: Option<i32>,
    pub(crate) rest: Vec<i32>,
    /// What keeps it open.
    pub(crate) held_by: HeldBy,
    /// The number of fds, if threads were running that may own them.
    pub(crate) owners: Option<usize>,
}

/// Whether all stray fds come from `popen(3)`.
pub(super) fn is_of_popen(evidence: &Evidence<'_>) -> bool {
    let strays = &evidence.facts.strays;
    let is_popens =
        |stray: &StrayFd| evidence.names.of_fd(stray.key).is_some_and(|site| site.call == "popen");
    !strays.is_empty() && strays.iter().all(is_popens)
}

/// The remedy for stray fds; `None` if there are none.
pub(super) fn close(evidence: &Evidence<'_>) -> Option<CloseFds> {
    let strays = &evidence.facts.strays;
    let first = strays.first()?;
    let is_other = |other: &&StrayFd| other.target == first.target && other.access != first.access;
    let other = strays.iter().find(|other| is_pipe(first) && is_other(other)).map(|other| other.fd);
    let rest = strays.iter().map(|stray| stray.fd).filter(|fd| *fd != first.fd && Some(*fd) != other);
    Some(CloseFds {
        fd: first.fd,
        access: is_pipe(first).then_some(first.access),
        other,
        rest: rest.collect(),
        held_by: first.held_by.clone(),
        owners: (evidence.facts.threads > 0).then_some(evidence.facts.stray_count as usize),
    })
}

pub(super) fn is_pipe(fd: &StrayFd) -> bool {
    (fd.target.starts_with("pipe:[") || fd.target.ends_with(FIFO)) && fd.access & libc::O_PATH == 0
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn a_path_is_below_whole_names() {
        for (path, prefix, expected) in [
            ("server::Pool::grow", "server", true),
            ("server::Pool::grow", "server::", true),
            ("server::Pool::grow", "server::Pool", true),
            ("server::Pool<T>::grow", "server::Pool", true),
            ("server::Pool::grow", "server::Pool::grow", true),
            ("server::Pool::grow", "server::Po", false),
            ("server::Pool::grow", "serve", false),
            ("server::Pool::grow", "pool", false),
        ] {
            assert_eq!(is_below(path, prefix), expected, "{path} {prefix}");
        }
    }
}
