//! Findings about forks of a threaded process with a child that does not go straight on to exec.

use super::evidence::Evidence;
use super::finding::{Cause, CodePlace, Finding, Kind, ThreadedFork};
use super::stuck::Because;
use crate::config::policy::{self, Settings};
use crate::recorder::call_site::ResolvedCallSite;

/// A finding for each line of code with such a fork.
pub(super) fn find(settings: &Settings, evidence: &Evidence<'_>) -> Vec<Finding> {
    let deny = match settings.threaded_fork {
        policy::ThreadedFork::Allow => return Vec::new(),
        policy::ThreadedFork::Warn => false,
        policy::ThreadedFork::Deny => true,
    };
    // A child that hangs because of it has its own finding and needs no warning.
    let is_reported = |site: &ResolvedCallSite| {
        evidence
            .stuck
            .iter()
            .filter(|stuck| matches!(stuck.because, Because::InheritedLock | Because::MaybeInheritedLock))
            .any(|stuck| stuck.pid as u64 == site.keys[0])
    };
    let sites = evidence.names.call_sites.iter();
    let forks = sites.filter(|site| is_one(site) && (deny || !is_reported(site)));
    let mut lines: Vec<(&ResolvedCallSite, usize)> = Vec::new();
    for fork in forks {
        let line = |other: &ResolvedCallSite| (other.place.clone(), other.function.clone(), other.creator);
        match lines.iter_mut().find(|(first, _)| line(first) == line(fork)) {
            Some((_, more)) => *more += 1,
            None => lines.push((fork, 0)),
        }
    }
    let findings = lines.into_iter().map(|(site, more)| {
        let fork = ThreadedFork {
            pid: site.keys[0] as i32,
            creator: site.creator,
            thread: site.thread.clone(),
            threads: site.threads,
            site: CodePlace::of(site),
        };
        Finding::new(deny.then_some(Cause::ThreadedFork), Kind::ThreadedFork { fork, more }, evidence)
    });
    findings.collect()
}

fn is_one(site: &ResolvedCallSite) -> bool {
    site.call == "fork" && site.threads > 1 && !site.execed && !is_commands(site)
}

/// Whether it is a fork by `Command` that never reached its exec: only `pre_exec` ran there, and it returned
/// an error.
fn is_commands(site: &ResolvedCallSite) -> bool {
    let caller = site.functions.iter().skip_while(|name| *name != "fork").nth(1);
    caller.is_some_and(|name| name.trim_start_matches('<').starts_with("std::sys::"))
}
