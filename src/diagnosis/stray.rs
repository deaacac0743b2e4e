//! Stray fds, and who holds which end of a pipe.

use std::collections::HashMap;

use nix::libc;

use super::{Allow, Cause, Finding, Origin, plural};
use crate::facts::{Facts, Process};
use crate::outcome::{End, StrayFd};
use crate::policy::Settings;
use crate::proc::fds::Fd;

/// The most fds that are named in a sentence.
const NAMED: usize = 8;

/// The most functions that are allowed one by one.
const MAKERS: usize = 4;

/// One end of a pipe in somebody's hands.
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
    /// Everybody else who holds the same file.
    pub(crate) holders: Vec<Holder>,
}

impl Stray {
    pub(crate) fn is_pipe(&self) -> bool {
        self.fd.target.starts_with("pipe:[")
    }
}

/// A pipe that a leaked process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pipe {
    pub(crate) ino: u64,
    pub(crate) holders: Vec<Holder>,
}

/// Takes out the fds that were made where the policy expects it, and those that a runtime keeps for itself.
pub(super) fn allow(facts: &mut Facts, settings: &Settings, origins: &[Origin]) {
    let before = facts.strays.len();
    facts.strays.retain(|stray| {
        let Some(origin) = super::origin_of_inode(origins, stray.ino) else { return true };
        let is_expected = |function: &String| {
            settings.allow_created_by.iter().any(|prefix| is_below(path_of(function), prefix))
        };
        !origin.is_kept && !origin.functions.iter().any(is_expected)
    });
    let gone = (before - facts.strays.len()) as u32;
    facts.stray_count = facts.stray_count.saturating_sub(gone);
}

/// The path by which a function is allowed: `<crate::Type as Trait>::function` is in `crate` too.
fn path_of(function: &str) -> &str {
    function.trim_start_matches('<')
}

/// Whether a path is this one or below it: `server::Pool` is not below `server::Po`.
fn is_below(path: &str, prefix: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    path.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with(is_name) || !prefix.ends_with(is_name))
}

/// The arguments that let just these pass, by the functions that made them; `None` if one has none.
fn allow_makers(strays: &[Stray], origins: &[Origin]) -> Option<Vec<Allow>> {
    let mut makers: Vec<&str> = Vec::new();
    for stray in strays {
        let function = super::origin_of_inode(origins, stray.fd.ino)?.function.as_deref()?;
        // Without type parameters and closures, and what cannot stand in a string.
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let path = path_of(function).split(|c| !is_path(c)).next()?.trim_end_matches(':');
        // `fn`, `dyn` or `u32` would be many others' too, as would a type of std's that a trait is for.
        let is_stds = ["std::", "core::", "alloc::"].iter().any(|begin| path.starts_with(begin));
        if is_stds || !path.contains("::") {
            return None;
        }
        if !makers.contains(&path) {
            makers.push(path);
        }
    }
    (makers.len() <= MAKERS)
        .then(|| makers.into_iter().map(|path| Allow::new("allow_created_by", path)).collect())
}

/// Joins each stray fd with the other holders of its file.
pub(super) fn fold(facts: &Facts) -> Vec<Stray> {
    facts
        .strays
        .iter()
        .map(|fd| {
            let others = facts.strays.iter().filter(|other| other.target == fd.target && other.fd != fd.fd);
            let mut holders: Vec<Holder> = others
                .map(|other| Holder {
                    pid: facts.pid,
                    fd: other.fd,
                    access: other.access,
                    cloexec: other.cloexec,
                })
                .collect();
            holders.extend(holders_of(facts, &fd.target));
            Stray { fd: fd.clone(), holders }
        })
        .collect()
}

/// The pipes in the hands of leaked processes, each once.
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

/// The test's own strays are in `strays`; at a timeout its table was read like the others'.
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

/// Adds what is to be said of stray fds.
pub(super) fn find(facts: &Facts, strays: &[Stray], origins: &[Origin], findings: &mut Vec<Finding>) {
    let count = facts.stray_count as usize;
    let Some(first) = strays.first() else {
        if count > 0 {
            findings.push(Finding {
                cause: Some(Cause::StrayFd),
                sentence: format!(
                    "the body left {} open beyond those that were written down, which are allowed: what they are \
                     is not known.",
                    plural(count, "fd")
                ),
                fix: Some("close what is allowed too, and see what is left.".to_owned()),
                allow: vec![Allow::new("fds", "off")],
            });
        }
        return;
    };
    let pipes = strays.iter().filter(|stray| stray.is_pipe()).count();
    let noun = if pipes == strays.len() { "pipe end" } else { "fd" };
    let numbers: Vec<String> = strays.iter().take(NAMED).map(|stray| stray.fd.fd.to_string()).collect();
    let more = if count > numbers.len() { ", .." } else { "" };
    let mut sentence =
        format!("the body left {} open: fd {}{more}.", plural(count, noun), numbers.join(", "));
    let mut fix = fix(first, strays, facts.pid);
    if facts.threads > 0 {
        let them = if count == 1 { "it" } else { "them" };
        let threads = plural(facts.threads as usize, "thread");
        sentence.push_str(&format!(" {threads} still ran, and may own {them}{}.", super::running(facts)));
        fix = format!(
            "if a thread owns {them}, have it end and join it: what it owns is closed then. Otherwise {fix}"
        );
    }
    findings.push(Finding {
        cause: Some(Cause::StrayFd),
        sentence,
        fix: Some(fix),
        allow: allow_makers(strays, origins)
            .filter(|_| count == strays.len())
            .unwrap_or_else(|| vec![Allow::new("fds", if pipes == 0 { "pipes" } else { "off" })]),
    });
}

/// What mends one stray fd, and that it holds for the others.
fn fix(stray: &Stray, all: &[Stray], test: i32) -> String {
    let fd = stray.fd.fd;
    let other = stray
        .holders
        .iter()
        .find(|holder| stray.is_pipe() && holder.pid == test && holder.access != stray.fd.access);
    let covered = [Some(fd), other.map(|other| other.fd)];
    let rest = all.iter().map(|stray| stray.fd.fd).filter(|fd| !covered.contains(&Some(*fd)));
    let rest: Vec<String> = rest.map(|fd| fd.to_string()).collect();
    let rest = match &rest[..] {
        [] => String::new(),
        [fd] => format!(" Do the same with fd {fd}."),
        fds => {
            let more = if fds.len() > NAMED { ", .." } else { "" };
            format!(" Do the same with fds {}{more}.", fds[..fds.len().min(NAMED)].join(", "))
        }
    };
    one_fix(stray, other) + &rest
}

fn one_fix(stray: &Stray, other: Option<&Holder>) -> String {
    let fd = stray.fd.fd;
    if !stray.is_pipe() {
        return format!(
            "close fd {fd} before the test ends: drop its owner, or do not `forget` or `leak` it."
        );
    }
    if let Some(other) = other {
        return format!(
            "close fd {fd} and fd {}, the ends of one pipe, before the test ends: drop their owners.",
            other.fd
        );
    }
    let (this, effect) = match stray.fd.access {
        libc::O_RDONLY => ("read", "a writer to this pipe would never get EPIPE"),
        _ => ("write", "a reader of this pipe would never see EOF"),
    };
    format!("close the {this} end, fd {fd}, before the test ends: as long as it is open, {effect}.")
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
