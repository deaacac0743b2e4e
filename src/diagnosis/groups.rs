//! The failures of a run by the line of code that made them: one line that leaks in a helper fails every test that
//! calls it.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};

use super::deadlock::Shape;
use super::finding::{Cause, Finding, Kind};
use super::leaked;
use super::remedy::Remedy;
use super::verdict::Verdict;
use super::waits_for::{Link, LinkOn, RuntimeWait};
use crate::config::registry::ArgumentSyntax;
use crate::guard::facts::Process;
use crate::recorder::call_site::{ResolvedCallSite, SourceLocation};

/// Where a failure comes from, as precisely as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    /// The line that created what was left, or that the test was at.
    Line(SourceLocation),
    /// The function of that line, in a binary without debug information.
    Function(String),
    /// Only the test is known.
    Test(String),
}

/// What failures have in common that are one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    cause: Cause,
    at: At,
}

/// What a line has left or done, as seen in one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A process, by its command line, or its name if that is empty.
    Process {
        command_line: Vec<String>,
        comm: String,
    },
    /// A fork of the test itself, without exec.
    Fork,
    Pipe,
    Fd,
    Panic {
        message: String,
    },
    /// `#[should_panic]`, and no panic.
    NoPanic,
    /// The cause says it.
    Other,
}

/// The tests that failed for one cause at one line.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) cause: Cause,
    pub(crate) at: At,
    /// As in the first test.
    pub(crate) what: What,
    /// Whether it was not the same in all of them.
    pub(crate) varies: bool,
    /// Each once, in the order of their ends.
    pub(crate) tests: Vec<String>,
    /// How often each of them failed there: more than once if there are several rounds.
    pub(crate) times: Vec<u64>,
}

/// What makes two reports the same but for their numbers: where their failures come from, the kinds of all findings,
/// and how the arguments that allow them are written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ReportKey {
    keys: Vec<Key>,
    kinds: Vec<KindKey>,
    syntax: ArgumentSyntax,
}

impl ReportKey {
    fn of(verdict: &Verdict, failures: &[(Key, What)]) -> ReportKey {
        let keys = failures.iter().map(|(key, _)| key.clone()).collect();
        let findings = verdict.findings.iter().chain(&verdict.warnings);
        ReportKey { keys, kinds: findings.map(KindKey::of).collect(), syntax: verdict.syntax }
    }
}

/// The kind of a finding and of its remedies; of a deadlock also its shape, and whether it is proved; of a hang also
/// what each process waits for: one line can hang for different reasons.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct KindKey {
    kind: Discriminant<Kind>,
    remedies: Vec<Discriminant<Remedy>>,
    deadlock: Option<(Discriminant<Shape>, bool)>,
    waits: Vec<(Discriminant<LinkOn>, Vec<Discriminant<RuntimeWait>>)>,
}

impl KindKey {
    fn of(finding: &Finding) -> KindKey {
        let deadlock = match &finding.kind {
            Kind::Deadlock(found) => Some((discriminant(&found.shape), found.doubts.is_empty())),
            _ => None,
        };
        let wait = |link: &Link| {
            let tasks = match &link.on {
                LinkOn::Runtime { waits } | LinkOn::AnyOf { waits } => {
                    waits.iter().map(discriminant).collect()
                }
                _ => Vec::new(),
            };
            (discriminant(&link.on), tasks)
        };
        let waits = match &finding.kind {
            Kind::WaitsFor(found) => found.chain.iter().map(wait).collect(),
            _ => Vec::new(),
        };
        let remedies = finding.remedies.iter().map(discriminant).collect();
        KindKey { kind: discriminant(&finding.kind), remedies, deadlock, waits }
    }
}

/// The failures of a run.
#[derive(Default)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    places: HashMap<Key, usize>,
    /// The position of each test in each group.
    members: HashMap<(usize, String), usize>,
    /// The first test with each report.
    reports: HashMap<ReportKey, String>,
}

impl Groups {
    /// Whether a report that says the same was written.
    pub(crate) fn has_one_like(&self, verdict: &Verdict) -> bool {
        self.reports.contains_key(&ReportKey::of(verdict, &failures(verdict)))
    }

    /// Adds a failed test. `name` is the test's name in the text, with its round if there are several; no report is
    /// written of it if it `says` everything itself. Returns the first test whose report says the same, if this is not
    /// the first.
    pub(crate) fn add(&mut self, verdict: &Verdict, name: &str, says: bool) -> Option<String> {
        let failures = failures(verdict);
        let report = ReportKey::of(verdict, &failures);
        self.count(verdict, failures);
        if says {
            return None;
        }
        let first = self.reports.entry(report).or_insert_with(|| name.to_owned());
        (first != name).then(|| first.clone())
    }

    /// Adds the warnings of a test.
    pub(crate) fn add_warnings(&mut self, verdict: &Verdict) {
        let of = |finding: &Finding| match &finding.kind {
            Kind::ThreadedFork { .. } => Cause::ThreadedFork,
            _ => Cause::LeakedProcess,
        };
        let warnings = verdict.warnings.iter().map(|finding| (of(finding), finding));
        self.count(verdict, lines(verdict, warnings));
    }

    fn count(&mut self, verdict: &Verdict, lines: Vec<(Key, What)>) {
        for (key, what) in lines {
            let Key { cause, at } = key.clone();
            let place = *self.places.entry(key).or_insert_with(|| {
                self.groups.push(Group {
                    cause,
                    at,
                    what: what.clone(),
                    varies: false,
                    tests: Vec::new(),
                    times: Vec::new(),
                });
                self.groups.len() - 1
            });
            let group = &mut self.groups[place];
            group.varies |= group.what != what;
            let member = *self.members.entry((place, verdict.name.clone())).or_insert_with(|| {
                group.tests.push(verdict.name.clone());
                group.times.push(0);
                group.tests.len() - 1
            });
            group.times[member] += 1;
        }
    }

    /// All groups, the largest first, else in the order of their first failure.
    pub(crate) fn largest_first(&self) -> Vec<&Group> {
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.tests.len()));
        groups
    }

    /// Whether one line has failed several tests.
    pub(crate) fn have_a_common_line(&self) -> bool {
        self.groups.iter().any(|group| group.tests.len() > 1)
    }
}

/// The failures of a test, each line once.
fn failures(verdict: &Verdict) -> Vec<(Key, What)> {
    lines(verdict, verdict.failures())
}

fn lines<'a>(verdict: &Verdict, findings: impl Iterator<Item = (Cause, &'a Finding)>) -> Vec<(Key, What)> {
    let mut all: Vec<(Key, What)> = Vec::new();
    for (cause, finding) in findings {
        let mut found = of_finding(verdict, finding);
        if found.is_empty() {
            found.push((None, What::Other));
        }
        for (at, what) in found {
            let at = at.unwrap_or_else(|| At::Test(verdict.name.clone()));
            let key = Key { cause, at };
            if !all.iter().any(|(known, _)| *known == key) {
                all.push((key, what));
            }
        }
    }
    all
}

/// Where one finding comes from: more than one line, if it is about several processes or fds.
fn of_finding(verdict: &Verdict, finding: &Finding) -> Vec<(Option<At>, What)> {
    let line = |place: Option<&SourceLocation>| place.cloned().map(At::Line);
    match &finding.kind {
        Kind::LeakedProcess { pid, others, .. } => {
            let is_left = |process: &&Process| process.pid == *pid || others.contains(&process.pid);
            let processes = verdict.facts.processes.iter().filter(is_left);
            let of = |process: &Process| {
                let by = leaked::created_by(&verdict.names, &verdict.exited, process);
                let place = by.and_then(|by| by.site.place).map(At::Line);
                let at = place.or_else(|| function(verdict.names.of_process(process.pid)?));
                let (command_line, comm) = (process.command_line.clone(), process.comm.clone());
                let is_fork = process.forked_without_exec;
                (at, if is_fork { What::Fork } else { What::Process { command_line, comm } })
            };
            processes.map(of).collect()
        }
        Kind::StrayFd { .. } => {
            let of = |stray: &super::Stray| {
                let site = verdict.names.of_fd(stray.fd.key);
                let place = site.and_then(|site| line(site.place.as_ref()));
                let what = if stray.is_pipe() { What::Pipe } else { What::Fd };
                (place.or_else(|| function(site?)), what)
            };
            verdict.strays.iter().map(of).collect()
        }
        Kind::Panicked { message, place } => {
            vec![(line(place.as_ref()), What::Panic { message: message.clone() })]
        }
        Kind::DidNotPanic => vec![(None, What::NoPanic)],
        kind => vec![(line(kind.place()), What::Other)],
    }
}

fn function(site: &ResolvedCallSite) -> Option<At> {
    site.function.clone().map(At::Function)
}
