//! Processes that were still running after their test.

use super::children;
use super::evidence::Evidence;
use super::finding::{Cause, CodePlace, CreatedBy, Creator, Finding, Kind};
use super::glob::allows;
use super::parents::{ExitedParent, Relation};
use super::verdict::Note;
use crate::config::policy::{Level, Settings};
use crate::guard::facts::{Class, Facts, Process};
use crate::guard::report_page::End;
use crate::proc::process::SYMBOLIZER;
use crate::recorder::call_site::{Names, ResolvedCallSite};

/// Adds the findings about leaked processes outside of `allowed`, and about forked children that returned
/// from the body.
pub(super) fn add(
    evidence: &Evidence<'_>,
    settings: &Settings,
    allowed: &[i32],
    findings: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) {
    let facts = evidence.facts;
    if let Some(pid) = facts.returned_child {
        let created = evidence.names.of_process(pid).map(CodePlace::of);
        let more = facts.returned_children.saturating_sub(1);
        let kind = Kind::ChildReturned { pid, more, created };
        findings.push(Finding::new(Cause::EndedEarly, kind, evidence));
    }
    // At a timeout, and when the run is cut, the children are killed together with the test, which had no
    // time to stop them. The timeout or the cut is the failure, and the children are shown with it.
    if facts.end == End::TimedOut || facts.cut || settings.processes == Level::Allow {
        return;
    }
    let grace = settings.grace;
    let is_denied = settings.processes == Level::Deny;
    let mut add = |kind| {
        let finding = Finding::new(is_denied.then_some(Cause::LeakedProcess), kind, evidence);
        if is_denied { findings.push(finding) } else { warnings.push(finding) }
    };
    if facts.unseen {
        add(Kind::ElusiveProcess { grace });
    }
    let mut leaked = leaked(facts).filter(|process| !allowed.contains(&process.pid));
    let Some(first) = leaked.next() else { return };
    let kind = Kind::LeakedProcess {
        pid: first.pid,
        others: leaked.map(|process| process.pid).collect(),
        grace,
        created: created_by(evidence.names, evidence.exited, first),
    };
    add(kind);
    if is_denied {
        findings.extend(wait_of(evidence, allowed, findings));
    }
}

/// What the first of the leaked processes waits for of which that is known, unless a deadlock explains one of them.
fn wait_of(evidence: &Evidence<'_>, allowed: &[i32], findings: &[Finding]) -> Option<Finding> {
    let facts = evidence.facts;
    if facts.is_inspected() || findings.iter().any(|finding| matches!(finding.kind, Kind::Deadlock(_))) {
        return None;
    }
    // What the tests wait for that it runs, and their guards, explains nothing.
    if let Some(own) = children::own_binary(evidence) {
        return Some(own);
    }
    let mut leaked = leaked(facts).filter(|process| !allowed.contains(&process.pid));
    let waits = leaked.find_map(|process| evidence.waits_of_leaked(process))?;
    Some(Finding::new(None, Kind::WaitsFor(waits), evidence))
}

/// The line that created a process. For a child of a program, that is the line that started the program.
pub(super) fn created_by(names: &Names, exited: &[ExitedParent], process: &Process) -> Option<CreatedBy> {
    let own =
        |pid: i32| names.of_process(pid).or_else(|| system_of(names, process).filter(|_| pid == process.pid));
    let site = |pid: i32| own(pid).filter(|site| site.place.is_some());
    let of = |creator: Creator, pid: i32| Some(CreatedBy { creator, site: CodePlace::of(site(pid)?) });
    let ancestor = |pid: &i32| of(Creator::Ancestor { pid: *pid }, *pid);
    of(Creator::Itself, process.pid).or_else(|| process.lineage.iter().find_map(ancestor)).or_else(|| {
        let exited = exited.iter().find(|exited| exited.orphan == process.pid)?;
        let sure = exited.relation == Relation::Session;
        of(Creator::ExitedParent { pid: exited.parent, sure }, exited.parent)
    })
}

/// The call of `system(3)` whose shell a process is: the only one with this command.
pub(super) fn system_of<'a>(names: &'a Names, process: &Process) -> Option<&'a ResolvedCallSite> {
    let [_, option, command] = &process.command_line[..] else { return None };
    let is_it = |site: &&ResolvedCallSite| {
        site.call == "system"
            && process.lineage.first().is_none_or(|parent| site.creator == *parent)
            && site.command_line.last() == Some(command)
    };
    let mut sites = names.call_sites.iter().filter(is_it);
    let first = sites.next().filter(|_| option == "-c" && names.of_process(process.pid).is_none())?;
    sites.all(|other| other.place == first.place).then_some(first)
}

/// Whether a process has left the session that the test was started in.
pub(crate) fn is_daemon(process: &Process, facts: &Facts) -> bool {
    facts.session != 0 && process.sid != facts.session
}

pub(super) fn leaked(facts: &Facts) -> impl Iterator<Item = &Process> {
    facts.processes.iter().filter(|process| process.class == Class::Leaked && !process.is_test)
}

/// The leaked processes that the policy allows.
pub(super) fn allowed(facts: &Facts, settings: &Settings, names: &Names) -> Vec<i32> {
    let is_allowed = |process: &&Process| {
        settings.processes == Level::Allow || is_allowed(process, settings) || is_sanitizers(process, names)
    };
    leaked(facts).filter(is_allowed).map(|process| process.pid).collect()
}

/// Whether a sanitizer has started a process to read lines for its report. Its fork is a raw system call, so the recorder
/// does not see it.
fn is_sanitizers(process: &Process, names: &Names) -> bool {
    process.comm == SYMBOLIZER && names.of_process(process.pid).is_none()
}

fn is_allowed(process: &Process, settings: &Settings) -> bool {
    let line = line(process);
    settings.allow_process.iter().any(|glob| allows(glob, &line))
}

/// The globs that allow a process that was left.
pub(super) fn used(facts: &Facts, settings: &Settings) -> Vec<String> {
    let lines: Vec<String> = leaked(facts).map(line).collect();
    let is_used = |glob: &&String| lines.iter().any(|line| allows(glob, line));
    settings.allow_process.iter().filter(is_used).cloned().collect()
}

/// The command line of a process, or its name if it has none.
fn line(process: &Process) -> String {
    let line = process.command_line.join(" ");
    if line.is_empty() { process.comm.clone() } else { line }
}

/// A glob that names the program of a process that was left, and not its arguments.
pub(super) fn needs_arguments(facts: &Facts, settings: &Settings) -> Option<Note> {
    let left = leaked(facts).filter(|process| !is_allowed(process, settings)).map(line);
    left.flat_map(|line| settings.allow_process.iter().map(move |glob| (glob, line.clone())))
        .find(|(glob, line)| allows(&format!("{glob} *"), line))
        .map(|(glob, line)| Note::NeedsArguments { glob: glob.clone(), line })
}
