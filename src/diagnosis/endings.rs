//! Findings about how the body and the process of a test ended, and about what was left in the process.

use nix::libc;

use super::evidence::Evidence;
use super::finding::{Cause, Child, CodePlace, Ending, Finding, Kind};
use super::running::{Hang, RunningTest};
use crate::config::policy::Settings;
use crate::guard::facts::{Class, Facts};
use crate::guard::report_page::{Body, End};
use crate::recorder::call_site::{Names, ResolvedCallSite, ResourceKind, SourceLocation};

/// The call with which the test's process ended before its body returned.
pub(super) fn call_of_end<'a>(names: &'a Names, facts: &Facts) -> Option<&'a ResolvedCallSite> {
    // Several threads may have called it; one of them was first.
    let is_it = |site: &&ResolvedCallSite| match facts.end {
        End::Exited { code } => site.call == "exec" || site.keys[1] == u64::from(code as u8),
        End::Signalled { signal } => site.call == "abort" && signal == libc::SIGABRT,
        End::TimedOut | End::Unguarded { .. } => false,
    };
    names.call_sites.iter().rev().filter(|site| site.kind == ResourceKind::End).find(is_it)
}

/// Adds the findings about the end of the body and of the process.
pub(super) fn add(evidence: &Evidence<'_>, settings: &Settings, findings: &mut Vec<Finding>) {
    let facts = evidence.facts;
    let body = match &facts.body {
        Body::Unfinished | Body::Passed | Body::PanickedAsExpected | Body::OfCommand | Body::Inspected => {
            None
        }
        Body::Panicked { message, file, line, column } => {
            let place = SourceLocation { file: file.clone(), line: *line, column: *column };
            let place = Some(place).filter(|place| !place.file.is_empty());
            Some((Cause::Panicked, Kind::Panicked { message: message.clone(), place }))
        }
        Body::Error => Some((Cause::Error, Kind::ReturnedError { message: None })),
        Body::DidNotPanic => Some((Cause::Panicked, Kind::DidNotPanic)),
        Body::PanickedOtherwise { message } => {
            Some((Cause::Panicked, Kind::PanickedOtherwise { message: message.clone() }))
        }
    };
    findings.extend(body.map(|(cause, kind)| Finding::new(cause, kind, evidence)));
    let end = end(evidence, settings);
    findings.extend(end.map(|(cause, kind)| Finding::new(cause, kind, evidence)));
}

fn end(evidence: &Evidence<'_>, settings: &Settings) -> Option<(Cause, Kind)> {
    let facts = evidence.facts;
    // They have not come to any.
    if facts.is_inspected() {
        return None;
    }
    let body_returned = !matches!(facts.body, Body::Unfinished | Body::OfCommand);
    let site = call_of_end(evidence.names, facts);
    let call = site.map(|site| site.call.clone());
    let called = site.map(CodePlace::of);
    Some(match &facts.end {
        // A command may end with any exit code, which is not a finding.
        End::Exited { .. } | End::Signalled { .. } if facts.is_command() => return None,
        End::Exited { code } => {
            let when = match code {
                _ if facts.unchecked => Ending::Unchecked,
                code if *code != 0 && facts.body.has_passed() => Ending::AtExit,
                // Its descendants still had their grace.
                _ if facts.cut && body_returned => {
                    return Some((
                        Cause::Cut,
                        Kind::Cut { ran: facts.ran, body_returned, hangs: None, tests: Vec::new() },
                    ));
                }
                _ if body_returned => return None,
                _ => Ending::InBody,
            };
            (Cause::EndedEarly, Kind::EndedEarly { code: *code, when, call, called })
        }
        End::Signalled { signal } => {
            let fault = || {
                let place = evidence.names.lines.get(&facts.fault?)?;
                Some(CodePlace { place: Some(place.clone()), function: None })
            };
            let is_by_fault = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT].contains(signal);
            let called = called.or_else(|| fault().filter(|_| is_by_fault));
            (Cause::Signal, Kind::Signalled { signal: *signal, body_returned, called })
        }
        End::TimedOut if facts.cut => {
            let (hangs, tests) = hangs(evidence);
            (Cause::Cut, Kind::Cut { ran: facts.ran, body_returned, hangs, tests })
        }
        End::TimedOut => {
            let limit = settings.timeout.unwrap_or_default();
            let (hangs, tests) = hangs(evidence);
            (Cause::TimedOut, Kind::TimedOut { limit, body_returned, hangs, tests })
        }
        End::Unguarded { failure } => (Cause::Unguarded, Kind::NotGuarded { failure: failure.clone() }),
    })
}

/// The line that the test or the command is at, or the tests that the command runs. libtest's own thread is never the hang.
fn hangs(evidence: &Evidence<'_>) -> (Option<Hang>, Vec<RunningTest>) {
    let pid = evidence.facts.pid;
    let tests = evidence.running_tests();
    let has_line = tests.is_empty() && !evidence.is_of_libtest(pid);
    (evidence.hang(pid).filter(|_| has_line), tests)
}

/// The error that a body has returned, as std writes it to stderr: `Error: ` and its `Debug`, which may have several lines.
pub(super) fn error_in(output: &str) -> Option<String> {
    /// The most bytes that are kept.
    const MOST: usize = 4096;
    const MARK: &str = "Error: ";
    let begins = output.rmatch_indices(MARK).map(|(at, _)| at);
    let begin = begins.into_iter().find(|at| *at == 0 || output[..*at].ends_with('\n'))?;
    let message = output[begin + MARK.len()..].trim_end();
    let end = (0..=MOST.min(message.len())).rev().find(|end| message.is_char_boundary(*end))?;
    Some(message[..end].to_owned())
}

/// Adds the findings about zombies and threads, where the policy denies them.
pub(super) fn add_counts(evidence: &Evidence<'_>, settings: &Settings, findings: &mut Vec<Finding>) {
    let facts = evidence.facts;
    let unwaited = facts.processes.iter().filter(|process| process.class == Class::Unwaited);
    let children: Vec<Child> =
        unwaited.map(|process| Child { pid: process.pid, name: process.comm.clone() }).collect();
    if settings.deny_unwaited && !children.is_empty() {
        let created = first_place(evidence, children.iter().map(|child| child.pid));
        findings.push(Finding::new(Cause::Unwaited, Kind::Unwaited { children, created }, evidence));
    }
    if settings.deny_threads && facts.threads > 0 {
        let running = facts.running.clone();
        let at = running.iter().find_map(|thread| evidence.names.lines.get(&thread.tid)).cloned();
        let kind = Kind::Threads { count: facts.threads, running, at };
        findings.push(Finding::new(Cause::Threads, kind, evidence));
    }
}

/// Adds the finding about mounts that are left.
pub(super) fn add_mounts(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    let mounts = &evidence.facts.mounts;
    if !mounts.is_empty() {
        let kind = Kind::LeftMounts { mounts: mounts.clone() };
        findings.push(Finding::new(Cause::LeftMount, kind, evidence));
    }
}

/// Adds the findings about processes that could not be killed.
pub(super) fn add_survivors(evidence: &Evidence<'_>, findings: &mut Vec<Finding>) {
    for survivor in &evidence.facts.survivors {
        let kind = Kind::Unkillable {
            pid: survivor.pid,
            name: survivor.name.clone(),
            because: survivor.because.clone(),
            created: first_place(evidence, std::iter::once(survivor.pid)),
        };
        findings.push(Finding::new(Cause::Unkillable, kind, evidence));
    }
}

/// The first known line of the code that created these processes.
fn first_place(evidence: &Evidence<'_>, mut pids: impl Iterator<Item = i32>) -> Option<CodePlace> {
    pids.find_map(|pid| {
        let site = evidence.names.of_process(pid)?;
        site.place.is_some().then(|| CodePlace::of(site))
    })
}

#[cfg(test)]
mod tests {
    use super::error_in;

    #[test]
    fn the_error_of_a_body_is_the_last_one_in_its_output() {
        assert_eq!(error_in("Error: a\nwords\nError: Os { code: 2 }\n").as_deref(), Some("Os { code: 2 }"));
        assert_eq!(error_in("Error: b\n\nCaused by:\n    c\n").as_deref(), Some("b\n\nCaused by:\n    c"));
        assert_eq!(error_in("an Error: a\n"), None);
        assert_eq!(error_in(""), None);
        let long = error_in(&format!("Error: x{}", "é".repeat(4096))).unwrap_or_default();
        assert_eq!(long.len(), 4095);
    }
}
