//! Selects the recorded calls that a report needs: those that created what was left.

use super::facts::{Class, EvidenceLimit, Facts, Process, Unrecorded};
use super::report_page::{Body, End};
use crate::config::policy::{Settings, ThreadedFork};
use crate::recorder::call_site::{CallSite, ResourceKind};
use crate::recorder::hooks;
use crate::sys::Pid;

/// The most programs that are listed as possible origins of a process.
const PROGRAMS: usize = 16;

/// Finds the calls that created what was left, and forks of a threaded process if the policy asks for them.
pub(super) fn look_up(log: &hooks::Recorder, settings: &Settings, facts: &mut Facts) {
    let reported = |process: &&Process| match process.class {
        Class::Leaked => true,
        Class::Unwaited => settings.deny_unwaited,
        // It may hold the other end of a stray fd.
        Class::Straggler => !facts.strays.is_empty(),
    };
    let mut keys = keys(facts, &reported);
    let is_left = !keys.is_empty();
    if facts.body == Body::Unfinished && matches!(facts.end, End::Exited { .. } | End::Signalled { .. }) {
        keys.push((ResourceKind::End, facts.pid as u64));
    }
    let mut call_sites = log.sites(&keys, settings.threaded_fork != ThreadedFork::Allow);
    if has_orphans(facts, &reported, &call_sites) {
        call_sites.extend(log.programs(&keys, PROGRAMS));
    }
    let is_alone = |process: &Process| process.is_test && process.dead_children.is_empty();
    if facts.end == End::TimedOut && facts.processes.iter().all(is_alone) {
        // The test may wait for what the last one should have done.
        call_sites.extend(log.last_process());
    }
    facts.call_sites = call_sites;
    if is_left {
        facts.limits.extend(unrecorded().map(|why| EvidenceLimit::NotRecorded { why }));
        facts.unrecorded = !log.is_complete();
    }
}

/// Why this program's calls are not recorded, if they are not.
fn unrecorded() -> Option<Unrecorded> {
    match (hooks::ARE_INSTALLED, cfg!(feature = "sites")) {
        (true, _) => None,
        (false, true) => Some(Unrecorded::OtherLibc),
        (false, false) => Some(Unrecorded::WithoutFeature),
    }
}

/// The same for a command, with the log of its program.
#[cfg(all(feature = "__engine", target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) fn look_up_of_command(
    log: &crate::recorder::program_log::ProgramLog,
    settings: &Settings,
    facts: &mut Facts,
) {
    facts.strays = super::fds_of_command::strays(log, settings.fds);
    facts.stray_count = facts.strays.len() as u32;
    let reported = |process: &&Process| process.class == Class::Leaked;
    let keys = keys(facts, &reported);
    let mut call_sites = log.sites(&keys);
    if has_orphans(facts, &reported, &call_sites) {
        call_sites.extend(log.other_programs(&keys, PROGRAMS));
    }
    facts.call_sites = call_sites;
    facts.unrecorded = !keys.is_empty() && !log.is_complete();
}

/// The processes and fds for which a call is looked up.
fn keys(facts: &Facts, reported: &dyn Fn(&&Process) -> bool) -> Vec<(ResourceKind, u64)> {
    let mut keys: Vec<(ResourceKind, u64)> = Vec::new();
    for process in facts.processes.iter().filter(reported) {
        keys.push((ResourceKind::Process, process.pid as u64));
        keys.extend(process.lineage.iter().map(|pid| (ResourceKind::Process, *pid as u64)));
        // The others may wait for a child that has failed.
        keys.extend(process.dead_children.iter().map(|pid| (ResourceKind::Process, *pid as u64)));
        let fds = process.known_fds().iter();
        keys.extend(fds.filter_map(|fd| Some((ResourceKind::Fds, fd.creation_key()?))));
    }
    keys.extend(
        facts.strays.iter().filter(|stray| stray.key != 0).map(|stray| (ResourceKind::Fds, stray.key)),
    );
    let opened = facts.contended.fds().flatten().map(|key| (ResourceKind::Fds, *key));
    keys.extend(opened);
    keys.extend(facts.returned_child.map(|pid| (ResourceKind::Process, pid as u64)));
    keys
}

/// Whether a process is left that no recorded call created.
fn has_orphans(facts: &Facts, reported: &dyn Fn(&&Process) -> bool, call_sites: &[CallSite]) -> bool {
    let has_site = |pid: Pid| {
        let made = |site: &CallSite| site.kind == ResourceKind::Process && site.keys[0] == pid as u64;
        call_sites.iter().any(made)
    };
    let mut left = facts.processes.iter().filter(reported);
    // The pid of the shell of `system` is not recorded.
    let may_be_systems = |process: &Process| {
        process.lineage == [facts.pid]
            && matches!(&process.command_line[..], [_, option, _] if option == "-c")
    };
    left.any(|process| (process.adopted || may_be_systems(process)) && !has_site(process.pid))
}
