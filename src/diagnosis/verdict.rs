//! The verdict on one run of a test or of a command.

use nix::libc;

use super::evidence::Evidence;
use super::inherited::Inherited;
use super::*;
use crate::config::policy::{Level, Policy, Settings};
use crate::config::registry::{ArgumentPosition, ArgumentSyntax};
use crate::guard::facts::{Class, Facts, Process};
use crate::guard::report_page::{Body, End};
use crate::proc::waits::Thread;
use crate::recorder::call_site::{Names, ResolvedCallSite};

/// The verdict on one run of one test.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    /// How the arguments of the test are written.
    pub(crate) syntax: ArgumentSyntax,
    /// The arguments that the test has already and that can be given once.
    pub(crate) given: Vec<&'static str>,
    pub(crate) facts: Facts,
    pub(crate) findings: Vec<Finding>,
    /// The leaked processes that the policy allows.
    pub(crate) allowed: Vec<i32>,
    /// Findings that are reported and do not fail the test.
    pub(crate) warnings: Vec<Finding>,
    /// The stray fds, equal ones merged, with the holders of the other end.
    pub(crate) strays: Vec<Stray>,
    /// The pipes that leaked processes hold, with the holders of each end.
    pub(crate) pipes: Vec<Pipe>,
    /// Read ends at EOF that no thread reads.
    pub(crate) unwatched: Vec<UnwatchedLifeline>,
    /// Processes that have lost their parent, with its program.
    pub(crate) exited: Vec<ExitedParent>,
    /// The threads for which no waker was found.
    pub(crate) stuck: Vec<Stuck>,
    pub(crate) names: Names,
    /// The globs and paths that allow something that was left.
    pub(super) used: Vec<String>,
    /// What limits the report.
    pub(crate) notes: Vec<Note>,
}

/// A limit of the report, other than what the guard itself could not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Too many threads were left to compute which wait for each other.
    TooManyThreads { count: usize },
    /// The test binary has no line information for the user's code.
    NoDebugInformation,
    /// It has line information, in sections that are compressed.
    CompressedLines,
    /// Not all calls could be recorded.
    UnrecordedCalls,
    /// An argument of the test would have no effect: the environment or the command line sets it.
    Overridden { argument: &'static str },
    /// A signal killed the test because a file grew too large; the limit of the run, if any.
    FileSizeLimit { limit: Option<u64> },
    /// A glob of `allow_process` matches the program of a process that was left, without its arguments.
    NeedsArguments { glob: String, line: String },
    /// It is a shared fixture, of the `Harness::shared` at this place.
    SharedFixture { at: String },
    /// The message of a panic is not in the test's output.
    PanicUnseen,
}

impl Verdict {
    /// The verdict on a test without findings.
    pub(super) fn clean(name: &str, facts: Facts) -> Verdict {
        Verdict {
            name: name.to_owned(),
            syntax: ArgumentSyntax { position: ArgumentPosition::Test, has_arguments: false },
            given: Vec::new(),
            facts,
            findings: Vec::new(),
            allowed: Vec::new(),
            warnings: Vec::new(),
            strays: Vec::new(),
            pipes: Vec::new(),
            unwatched: Vec::new(),
            exited: Vec::new(),
            stuck: Vec::new(),
            names: Names::default(),
            used: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.failures().next().is_some()
    }

    /// The findings that fail the test, each with its cause.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (Cause, &Finding)> {
        self.findings.iter().filter_map(|finding| Some((finding.cause?, finding)))
    }

    /// Whether what was stopped is to be kept: it fails the test.
    pub(crate) fn keeps(&self) -> bool {
        let is_why = |cause| matches!(cause, Cause::LeakedProcess | Cause::TimedOut);
        !self.facts.kept.is_empty() && self.failures().any(|(cause, _)| is_why(cause))
    }

    /// The causes, each once.
    pub(crate) fn causes(&self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::new();
        for (cause, _) in self.failures() {
            if !causes.contains(&cause) {
                causes.push(cause);
            }
        }
        causes
    }

    /// The exited parent of a process, and the call that started it.
    pub(crate) fn exited_parent(&self, pid: i32) -> Option<(&ExitedParent, &ResolvedCallSite)> {
        let exited = self.exited.iter().find(|exited| exited.orphan == pid)?;
        Some((exited, self.names.of_process(exited.parent)?))
    }

    /// Which of a command's tests started a process, if known.
    pub(crate) fn test_of(&self, pid: i32) -> Option<String> {
        let mut processes = self.facts.processes.iter();
        let process = processes.find(|process| process.pid == pid && self.facts.is_command())?;
        let exited = self.exited.iter().find(|exited| exited.orphan == pid).map(|exited| exited.parent);
        charged::test_of(&self.names, process, exited)
    }

    /// Which of a command's tests left an fd open, if that is known.
    pub(crate) fn test_of_fd(&self, key: u64) -> Option<String> {
        self.facts.is_command().then(|| charged::test_of_fd(&self.names, key)).flatten()
    }

    /// The call by which the test's process ended before its body returned.
    pub(crate) fn call_of_end(&self) -> Option<&ResolvedCallSite> {
        endings::call_of_end(&self.names, &self.facts)
    }

    /// The user's frames at the fault that ended the test's process, innermost first.
    pub(crate) fn stack_of_end(&self) -> Option<&[String]> {
        let is_signalled = matches!(self.facts.end, End::Signalled { .. });
        let stack = self.names.stacks.get(&self.facts.fault.filter(|_| is_signalled)?)?;
        Some(&stack[..]).filter(|stack| !stack.is_empty())
    }

    /// The wait of a thread, if no waker was found.
    pub(crate) fn stuck_at(&self, tid: i32) -> Option<&Stuck> {
        self.stuck.iter().find(|stuck| stuck.tid == tid)
    }

    /// Whether an fd in a thread's poll set serves to wake the thread's own process.
    pub(crate) fn is_wake_channel(&self, process: &Process, thread: &Thread, fd: i32) -> bool {
        wake_channel::is_one(&self.facts, &self.names, process, thread, fd)
    }

    pub(crate) fn has(&self, cause: Cause) -> bool {
        self.findings.iter().any(|finding| finding.cause == Some(cause))
    }

    /// Removes suggestions without effect: the environment and the command line, which are `outside`, take
    /// precedence over the attribute.
    pub(crate) fn drop_overridden_hints(&mut self, outside: &Policy) {
        for finding in self.findings.iter_mut().chain(&mut self.warnings) {
            let mut arguments = finding.allow.iter().map(Allowance::argument);
            let Some(argument) = arguments.find(|argument| outside.sets(argument)) else { continue };
            finding.allow.clear();
            let note = Note::Overridden { argument };
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }

    /// Adds globs and paths that allow something that was left.
    pub(super) fn using(mut self, used: Vec<String>) -> Verdict {
        self.used.extend(used);
        self
    }

    /// Notes which arguments the test has itself, for those that would take their place.
    fn note_given(&mut self, own: &Policy) {
        let proposed = self.findings.iter().chain(&self.warnings).flat_map(|finding| &finding.allow);
        let given = proposed.map(Allowance::argument).filter(|name| own.sets(name));
        self.given = given.collect();
    }

    /// Adds a finding on what the test's `own` arguments allow and it has not left. A test that failed may not have come
    /// to it.
    pub(crate) fn find_unused(&mut self, own: &Policy, level: Level) {
        self.note_given(own);
        if level == Level::Allow || self.failed() {
            return;
        }
        let processes =
            own.allow_process.iter().map(|glob| (glob, Allowance::Process { glob: glob.clone() }));
        let fds = own.allow_created_by.iter().map(|path| (path, Allowance::CreatedBy { path: path.clone() }));
        let unused = processes.chain(fds).filter(|(text, _)| !self.used.contains(text));
        let unused: Vec<Allowance> = unused.map(|(_, allowance)| allowance).collect();
        if unused.is_empty() {
            return;
        }
        let cause = (level == Level::Deny).then_some(Cause::UnusedAllowance);
        let finding = Finding {
            cause,
            kind: Kind::UnusedAllowances { unused },
            remedies: Vec::new(),
            allow: Vec::new(),
        };
        match cause {
            Some(_) => self.findings.push(finding),
            None => self.warnings.push(finding),
        }
    }

    /// Takes the error that the body returned from its output, where `main` or a test writes it. Notes what may have
    /// truncated the output, if it does not show how the test ended. `limit` is the run's own `RLIMIT_FSIZE`.
    pub(crate) fn add_output(&mut self, output: &str, limit: u64) {
        for finding in &mut self.findings {
            if let Kind::ReturnedError { message } = &mut finding.kind {
                *message = endings::error_in(output);
            }
        }
        if self.facts.end == (End::Signalled { signal: libc::SIGXFSZ }) {
            self.notes.push(Note::FileSizeLimit { limit: Some(limit).filter(|limit| *limit != u64::MAX) });
        } else if matches!(self.facts.body, Body::Panicked { .. }) && !output.contains("panicked at") {
            self.notes.push(Note::PanicUnseen);
        }
    }

    /// The processes of one class, in the order of the tree.
    pub(crate) fn of_class(&self, class: Class) -> impl Iterator<Item = &Process> {
        self.facts.processes.iter().filter(move |process| process.class == class)
    }
}

/// Judges a test by its facts and its policy.
///
/// `names` is empty if nothing was recorded.
pub(crate) fn conclude(name: &str, settings: &Settings, mut facts: Facts, names: Names) -> Verdict {
    if facts.are_clean() {
        return Verdict::clean(name, facts);
    }
    let used = stray::allow(&mut facts, settings, &names);
    let inferred = Inferred::from(&facts, &names);
    judge(name, settings, facts, names, inferred).using(used)
}

/// What is inferred from the processes of a whole tree.
pub(super) struct Inferred {
    pub(super) stuck: Vec<Stuck>,
    pub(super) inherited: Vec<Inherited>,
    pub(super) unwatched: Vec<UnwatchedLifeline>,
    pub(super) exited: Vec<ExitedParent>,
}

impl Inferred {
    pub(super) fn from(facts: &Facts, names: &Names) -> Inferred {
        Inferred {
            stuck: stuck::find(facts, names),
            inherited: inherited::find(facts, names),
            unwatched: inherited::unwatched(facts, names),
            exited: parents::find(facts, names),
        }
    }
}

/// Judges a test by its facts and by what was inferred. The stray fds that the policy allows are not among the facts.
pub(super) fn judge(
    name: &str,
    settings: &Settings,
    facts: Facts,
    names: Names,
    inferred: Inferred,
) -> Verdict {
    let notes = notes(&facts, &names, settings);
    let used = leaked::used(&facts, settings);
    let allowed = leaked::allowed(&facts, settings, &names);
    let Inferred { stuck, inherited, unwatched, exited } = inferred;
    let evidence = Evidence {
        facts: &facts,
        names: &names,
        stuck: &stuck,
        inherited: &inherited,
        unwatched: &unwatched,
        exited: &exited,
    };
    let (findings, warnings) = find(&evidence, settings, &allowed);
    let (strays, pipes) = (stray::fold(&evidence), stray::pipes(&facts));
    Verdict {
        findings,
        warnings,
        allowed,
        strays,
        pipes,
        unwatched,
        exited,
        stuck,
        names,
        used,
        notes,
        ..Verdict::clean(name, facts)
    }
}

/// The findings, and those that are only warnings.
fn find(evidence: &Evidence<'_>, settings: &Settings, allowed: &[i32]) -> (Vec<Finding>, Vec<Finding>) {
    let mut findings = Vec::new();
    hang::find(evidence, &mut findings);
    let first = findings.len();
    endings::add(evidence, settings, &mut findings);
    if !waits_for::more_time_may_help(evidence, &findings) {
        findings[first..].iter_mut().for_each(|finding| finding.allow.clear());
    }
    let mut warnings = Vec::new();
    leaked::add(evidence, settings, allowed, &mut findings, &mut warnings);
    stray::add(evidence, &mut findings);
    inherited::add(evidence, &mut findings);
    endings::add_counts(evidence, settings, &mut findings);
    let forks = forks::find(settings, evidence);
    let (denied, warned): (Vec<Finding>, Vec<Finding>) =
        forks.into_iter().partition(|finding| finding.cause.is_some());
    findings.extend(denied);
    warnings.extend(warned);
    if facts_timed_out(evidence) {
        // An argument would allow the warning, and not the hang that it is shown with.
        warnings.iter_mut().for_each(|warning| warning.allow.clear());
    }
    endings::add_mounts(evidence, &mut findings);
    endings::add_survivors(evidence, &mut findings);
    (findings, warnings)
}

fn facts_timed_out(evidence: &Evidence<'_>) -> bool {
    evidence.facts.end == End::TimedOut
}

fn notes(facts: &Facts, names: &Names, settings: &Settings) -> Vec<Note> {
    let too_many = stuck::too_many(facts).map(|count| Note::TooManyThreads { count });
    let note = if names.compressed { Note::CompressedLines } else { Note::NoDebugInformation };
    let lineless = names.lineless.then_some(note);
    let unrecorded = facts.unrecorded.then_some(Note::UnrecordedCalls);
    let needs_arguments = leaked::needs_arguments(facts, settings);
    [too_many, lineless, unrecorded, needs_arguments].into_iter().flatten().collect()
}
