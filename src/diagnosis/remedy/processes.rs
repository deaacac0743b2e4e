//! Remedies of leaked processes.

use nix::libc;

use super::Remedy;
use crate::diagnosis::evidence::Evidence;
use crate::diagnosis::finding::Kind;
use crate::diagnosis::leaked::{is_daemon, system_of};
use crate::guard::facts::{Class, Disposition, Process};
use crate::recorder::call_site::ResolvedCallSite;

impl Evidence<'_> {
    pub(super) fn remedy_of_leak(&self, process: &Process) -> Remedy {
        let facts = self.facts;
        let pid = process.pid;
        let site = self.names.of_process(pid);
        let by_test = site.is_some_and(|site| site.creator == facts.pid);
        let is_child = by_test || !process.adopted && process.lineage.first() == Some(&facts.pid);
        let started = self.started_by_library(process);
        if let Some(remedy) = started {
            return remedy;
        }
        // The test and its descendants are in the supervisor's session, unless they have left it.
        let has_left = is_daemon(process, facts);
        if has_left && !is_child {
            return Remedy::StopDaemon { pid };
        }
        // A process that created a session leads a group as well, but may be alone in it.
        let is_alone = || facts.processes.iter().all(|other| other.pid == pid || other.pgid != pid);
        if process.pgid == pid && !(has_left && is_alone()) {
            return Remedy::KillGroup { pid, signal: self.signal_for_group(pid) };
        }
        if process.adopted && !by_test {
            let parent = self.exited.iter().find(|exited| exited.orphan == pid);
            let site = parent.and_then(|exited| self.names.of_process(exited.parent));
            let known = parent.map(|exited| exited.parent).or_else(|| process.lineage.first().copied());
            // Its parent may have been the command itself.
            if facts.is_command() && known.is_none_or(|pid| pid == facts.pid) && site.is_none() {
                return Remedy::WaitInCommand;
            }
            if parent.is_some_and(|exited| exited.parent == process.pgid) {
                let pgid = process.pgid;
                return Remedy::KillParentsGroup { pgid, signal: self.signal_for_group(pgid) };
            }
            if process.forked_without_exec {
                return Remedy::EndForkWithParent;
            }
            let site = known.filter(|pid| *pid != facts.pid).and_then(|pid| self.names.of_process(pid));
            let exec = site.is_some_and(|site| runs_one_command(&site.command_line, &process.command_line));
            return Remedy::StartParentInGroup { parent: site.and_then(|site| site.place.clone()), exec };
        }
        // The command may be written in any language.
        let is_rusts =
            |site: &ResolvedCallSite| site.place.as_ref().is_some_and(|place| place.file.ends_with(".rs"));
        if facts.is_command() && is_child && !site.is_some_and(is_rusts) {
            return Remedy::EndBeforeCommand;
        }
        if process.forked_without_exec || is_child && site.is_some_and(is_spawned_without_std) {
            return Remedy::KillAndWaitpid { pid };
        }
        if is_child && self.has_descendant_left(pid) {
            return Remedy::KillAllOfChild { pid };
        }
        if is_child && site.is_some_and(|site| site.is_tokios) {
            return Remedy::KillTokioChild;
        }
        if is_child {
            return Remedy::KillAndWait;
        }
        Remedy::StopWithParent
    }

    /// The remedy for the first of the leaked processes that SIGTERM does not end, though none was sent that is pending.
    pub(super) fn remedy_of_deaf(&self, kind: &Kind) -> Option<Remedy> {
        let Kind::LeakedProcess { pid, others, .. } = kind else { return None };
        let all = std::iter::once(pid).chain(others).filter_map(|pid| self.process(*pid));
        all.filter(|process| !process.holds_back(libc::SIGTERM)).find_map(|process| {
            let by_term = process.takes(libc::SIGTERM);
            if !by_term.is_deaf() {
                return None;
            }
            let signals =
                [libc::SIGTERM, libc::SIGINT].into_iter().filter(|signal| process.takes(*signal) == by_term);
            Some(Remedy::EndDeaf {
                pid: process.pid,
                ignores: by_term == Disposition::Ignored,
                signals: signals.collect(),
                inherited_from: process.signals.inherited_from,
            })
        })
    }

    /// What ends all processes of a group that are left.
    pub(super) fn signal_for_group(&self, pgid: i32) -> i32 {
        let mut group = self
            .facts
            .processes
            .iter()
            .filter(|process| process.class == Class::Leaked && process.pgid == pgid);
        if group.any(|process| process.takes(libc::SIGTERM).is_deaf()) {
            libc::SIGKILL
        } else {
            libc::SIGTERM
        }
    }

    /// Whether a process is left that another one has started, which is left too.
    pub(super) fn has_descendant_left(&self, pid: i32) -> bool {
        let is_below = |process: &&Process| !process.adopted && process.lineage.contains(&pid);
        self.facts.processes.iter().filter(is_below).any(|process| process.class == Class::Leaked)
    }

    /// The remedy for a process that a function of the C library started, which has its own way to end it.
    fn started_by_library(&self, process: &Process) -> Option<Remedy> {
        let pid = process.pid;
        if system_of(self.names, process).is_some() {
            return Some(Remedy::EndSystem { pid });
        }
        let exited = self.exited.iter().find(|exited| exited.orphan == pid).map(|exited| exited.parent);
        let mut pids = [pid].into_iter().chain(process.lineage.iter().copied()).chain(exited);
        let site =
            pids.find_map(|pid| self.names.of_process(pid)).filter(|site| site.creator == self.facts.pid)?;
        let is_itself = site.keys[0] == pid as u64;
        match site.call.as_str() {
            "popen" => Some(Remedy::ClosePopen),
            "system" => Some(Remedy::EndJobsOfSystem),
            "forkpty" if is_itself => Some(Remedy::EndForkpty { pid }),
            "daemon" if is_itself && process.forked_without_exec => Some(Remedy::NoDaemonInBody { pid }),
            _ => None,
        }
    }
}

/// Whether the caller of `posix_spawn(3)` is not std, so that there is no `Child`. Not known without names of functions.
pub(super) fn is_spawned_without_std(site: &ResolvedCallSite) -> bool {
    let is_own = |function: &&String| **function != site.call && !function.starts_with("childproof::");
    let caller = site.functions.iter().find(is_own);
    let is_std = |function: &String| function.trim_start_matches('<').starts_with("std::");
    site.call.starts_with("posix_spawn") && caller.is_some_and(|caller| !is_std(caller))
}

/// Whether a shell was started for a single command, which could replace the shell by exec.
fn runs_one_command(shell: &[String], command: &[String]) -> bool {
    let does_more = |script: &str| script.contains(|c: char| ";&|()<>`$\n".contains(c));
    is_shell(shell) && shell != command && shell.iter().skip(1).all(|argument| !does_more(argument))
}

/// Whether the program of a command line is a shell.
fn is_shell(command_line: &[String]) -> bool {
    let name = command_line.first().and_then(|program| program.rsplit('/').next());
    matches!(name, Some("sh" | "bash" | "dash" | "ash" | "ksh" | "zsh"))
}
