//! The report as text: the test, the culprit with its place, the cause, the fix, and then the evidence, the
//! killed processes and what could not be read.

mod contended;
#[cfg(feature = "__engine")]
mod inspected;
mod layout;
mod pipes;
mod tree;

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::failure;
use super::words::{enumerate, plural, rough, signal_name};
use super::{allow, escape, remedy, sentence};
use crate::config::registry::ArgumentPosition;
use crate::diagnosis::{Allowance, Cause, Finding, Kind, Stray, Verdict};
use crate::guard::facts::Class;
use crate::guard::report_page::{Body, End};
use crate::proc::threads::Running;
use crate::recorder::call_site::ResolvedCallSite;

#[cfg(feature = "__engine")]
pub(crate) use inspected::{inspected, killed, listed, refused};
pub(crate) use layout::Layout;
pub(super) use layout::finish;
use layout::{CALLERS, UNKNOWN};

/// The most processes and fds that are listed individually.
const LISTED: usize = 24;

/// The title of a test that forked while it had other threads.
const AMONG_THREADS: &str = "forked among threads";

/// Writes the report of a failed test.
pub(crate) fn report(verdict: &Verdict, layout: Layout) -> String {
    let mut text = Text::new(layout);
    text.write(verdict);
    layout::finish(&text.out, layout.width)
}

/// The line by which cargo-nextest finds the message of a failed test on its stderr, where there is no panic's.
pub(crate) fn error_line(verdict: &Verdict) -> String {
    let first = verdict.findings.first().map(|finding| sentence::of(verdict, finding));
    format!("Error: {}", first.unwrap_or_default())
}

/// The warnings of a test that passed, one a line.
pub(crate) fn warning_lines(verdict: &Verdict) -> Vec<String> {
    let name = escape::text(&verdict.name);
    let of = |warning| format!("{name}: {}", sentence::of(verdict, warning).replace('\n', " "));
    verdict.warnings.iter().map(of).collect()
}

/// Writes the report of a failed test in three lines: another test, or round of a command, `first`, has failed at the
/// same lines, and its report says the rest.
pub(crate) fn folded(verdict: &Verdict, first: &str, layout: Layout) -> String {
    let mut text = Text::new(layout);
    text.head(verdict);
    if let Some((_, finding)) = verdict.failures().next() {
        text.line(&format!("  {}", sentence::of(verdict, finding)));
    }
    let first = escape::text(first);
    text.line(&match verdict.syntax.position {
        ArgumentPosition::CommandLine => format!("  As in the report of {first} above."),
        _ => format!("  As in the report of test {first} above: the same lines of code."),
    });
    text.kept(verdict);
    layout::finish(&text.out, layout.width)
}

/// Writes what a running test waits for. The test has not failed.
pub(crate) fn inspection(verdict: &Verdict, layout: Layout) -> String {
    let mut text = Text { is_inspection: true, ..Text::new(layout) };
    text.head(verdict);
    text.what_is_seen(verdict, false);
    text.notes(sentence::notes(verdict));
    layout::finish(&text.out, layout.width)
}

/// Whether a failed test only panicked, so that its own output explains everything.
pub(crate) fn is_ordinary_panic(verdict: &Verdict) -> bool {
    let only = matches!(&verdict.findings[..], [Finding { kind: Kind::Panicked { .. }, .. }]);
    only && verdict.warnings.is_empty() && sentence::notes(verdict).is_empty()
}

/// Writes the warnings of a test that passed; `None` if there are none.
pub(crate) fn warning(verdict: &Verdict, layout: Layout) -> Option<String> {
    if verdict.warnings.is_empty() {
        return None;
    }
    let mut text = Text::new(layout);
    let label = text.styled(Style::new().bold().fg_color(Some(AnsiColor::Yellow.into())), "WARN");
    let name = text.styled(Style::new().bold(), &escape::text(&verdict.name));
    let title = match &verdict.warnings[0].kind {
        Kind::ThreadedFork { .. } => AMONG_THREADS.to_owned(),
        Kind::UnusedAllowances { .. } => "allows what it did not leave".to_owned(),
        _ => left(verdict).trim_start_matches("; ").to_owned(),
    };
    text.line(&format!("{label}  {name}   {title}"));
    text.line("");
    for warning in &verdict.warnings {
        text.line(&format!("  {}", sentence::of(verdict, warning)));
    }
    let warnings: Vec<&Finding> = verdict.warnings.iter().collect();
    text.fixes(verdict, &warnings);
    Some(layout::finish(&text.out, layout.width))
}

/// One line for a test that passed but left something that the policy allows.
pub(crate) fn pass_note(verdict: &Verdict) -> Option<String> {
    let list = |class, what: &str| {
        let named: Vec<String> = verdict
            .of_class(class)
            .map(|process| format!("{} `{}`", process.pid, escape::command(process)))
            .collect();
        (!named.is_empty()).then(|| format!("{what}: {}", named.join(", ")))
    };
    let parts: Vec<String> = [
        list(Class::Straggler, "ended within the grace"),
        list(Class::Unwaited, "exited and never waited for"),
        list(Class::Leaked, "allowed, and killed"),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

struct Text {
    out: String,
    colour: bool,
    /// The test goes on.
    is_inspection: bool,
    /// What stands below the name of a process, by its pid, in place of the line that started it.
    above: HashMap<i32, Vec<String>>,
    /// The pipes whose creation was reported.
    reported: Vec<u64>,
}

impl Text {
    fn new(layout: Layout) -> Text {
        Text {
            out: String::new(),
            colour: layout.colour,
            is_inspection: false,
            above: HashMap::new(),
            reported: Vec::new(),
        }
    }

    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    fn write(&mut self, verdict: &Verdict) {
        self.head(verdict);
        self.line("");
        let (failures, explanations): (Vec<&Finding>, Vec<&Finding>) =
            verdict.findings.iter().partition(|finding| finding.cause.is_some());
        // For a test that could not be guarded, the head line says everything.
        let is_shown = |finding: &&&Finding| !matches!(finding.kind, Kind::NotGuarded { .. });
        for finding in failures.iter().chain(&explanations).filter(is_shown) {
            self.line(&format!("  {}", sentence::of(verdict, finding)));
        }
        for warning in &verdict.warnings {
            self.line(&format!("  warning: {}", sentence::of(verdict, warning)));
        }
        let all: Vec<&Finding> = verdict.findings.iter().chain(&verdict.warnings).collect();
        self.fixes(verdict, &all);
        self.end(verdict);
        self.tree(verdict);
        self.blocked_pipes(verdict);
        self.sockets(verdict);
        self.contended(verdict);
        self.strays(verdict);
        self.threads(verdict);
        self.line("");
        self.killed(verdict);
        self.notes(sentence::notes(verdict));
    }

    /// Where the test's process was ended before its body returned.
    fn end(&mut self, verdict: &Verdict) {
        if let Some(site) = verdict.call_of_end() {
            self.line("");
            self.call_site("  ", "called", site, verdict.facts.pid);
        } else if let Some(stack) = verdict.stack_of_end() {
            self.line("");
            self.line(&format!("  in {}", escape::text(&stack.join(" < "))));
        }
    }

    /// Where the threads are that were still running, if that is known.
    fn threads(&mut self, verdict: &Verdict) {
        let stack =
            |thread: &Running| verdict.names.stacks.get(&thread.tid).filter(|stack| !stack.is_empty());
        let known = verdict.facts.running.iter().filter_map(|thread| Some((thread, stack(thread)?)));
        for (at, (thread, stack)) in known.take(LISTED).enumerate() {
            if at == 0 {
                self.line("");
                self.line("  threads that were still running");
            }
            let name = if thread.name.is_empty() { "" } else { &format!("  `{}`", thread.name) };
            let line = format!("    {}{name}  in {}", thread.tid, stack.join(" < "));
            self.line(&escape::text(&line));
        }
    }

    fn head(&mut self, verdict: &Verdict) {
        let facts = &verdict.facts;
        let label = match &facts.end {
            _ if verdict.has(Cause::Cut) && !self.is_inspection => "CUT",
            End::TimedOut if self.is_inspection => "RUNS",
            _ if self.is_inspection => "ENDS",
            End::TimedOut => "HUNG",
            End::Unguarded { .. } => "ERROR",
            _ if !facts.body.has_passed() => "FAIL",
            _ if verdict.causes().iter().any(|cause| matches!(cause, Cause::Signal | Cause::EndedEarly)) => {
                "FAIL"
            }
            // It has left nothing.
            _ if verdict.causes() == [Cause::ThreadedFork] => "FAIL",
            _ => "LEAK",
        };
        let body = match self.is_inspection {
            true => format!("for {}", rough(facts.ran)),
            false => body(verdict),
        };
        let label = self.styled(Style::new().bold().fg_color(Some(AnsiColor::Red.into())), label);
        let name = match verdict.syntax.position {
            // The name of a command is its command line.
            ArgumentPosition::CommandLine => format!("`{}`", escape::shortened(&escape::text(&verdict.name))),
            _ => escape::text(&verdict.name),
        };
        let name = self.styled(Style::new().bold(), &name);
        let left = match verdict.causes()[..] {
            _ if self.is_inspection => String::new(),
            [Cause::ThreadedFork] => format!("; {AMONG_THREADS}"),
            _ => left(verdict),
        };
        self.line(&format!("{label}  {name}   {body}{left}"));
    }

    /// What processes that have not failed wait for.
    fn what_is_seen(&mut self, verdict: &Verdict, with_fixes: bool) {
        self.line("");
        let found: Vec<&Finding> =
            verdict.findings.iter().filter(|finding| finding.cause.is_none()).collect();
        for finding in &found {
            self.line(&format!("  {}", sentence::of(verdict, finding)));
        }
        if with_fixes {
            self.fixes(verdict, &found);
        }
        self.tree(verdict);
        self.blocked_pipes(verdict);
        self.sockets(verdict);
        self.contended(verdict);
    }

    fn notes(&mut self, notes: impl IntoIterator<Item = String>) {
        for note in notes {
            self.line(&format!("  note: {}", escape::text(&note)));
        }
    }

    /// The line of code that created something, and the stack if that was requested.
    fn call_site(&mut self, indent: &str, how: &str, site: &ResolvedCallSite, test: i32) {
        let by = if site.creator == test { String::new() } else { format!(", by pid {}", site.creator) };
        let thread = match site.threads {
            0 | 1 => String::new(),
            threads => format!(" by thread `{}`, one of {threads}", escape::text(&site.thread)),
        };
        let mut line = format!(
            "{indent}{how} {}{thread} ({}{by})",
            escape::text(&sentence::code_place(site.place.as_ref(), site.function.as_deref())),
            site.call
        );
        if site.stack.is_empty() && !site.callers.is_empty() {
            line.push(CALLERS);
        }
        for caller in site.callers.iter().filter(|_| site.stack.is_empty()) {
            let _ = write!(line, " < {}", escape::text(caller));
        }
        self.line(&line);
        for frame in &site.stack {
            self.line(&format!("{indent}  {}", escape::text(frame)));
        }
    }

    /// The fixes of the findings, and the arguments that allow them.
    fn fixes(&mut self, verdict: &Verdict, findings: &[&Finding]) {
        if findings.iter().any(|finding| !finding.remedies.is_empty() || !finding.allow.is_empty()) {
            self.line("");
        }
        let fix = self.styled(Style::new().bold(), "fix:");
        let mut reported: Vec<String> = Vec::new();
        for text in findings.iter().filter_map(|finding| remedy::of(verdict, finding)) {
            if !reported.contains(&text) {
                self.line(&format!("  {fix} {text}"));
                reported.push(text);
            }
        }
        let mut all: Vec<&Allowance> = Vec::new();
        for allow in findings.iter().flat_map(|finding| &finding.allow) {
            if !all.contains(&allow) {
                all.push(allow);
            }
        }
        let (longer, allow): (Vec<&Allowance>, Vec<&Allowance>) =
            all.into_iter().partition(|allow| matches!(allow, Allowance::Timeout { .. }));
        for (label, all) in [("wait longer:", longer), ("allow:", allow)] {
            let code = allow::code(verdict.syntax, &all);
            // Some of them have no option for a command.
            if !all.is_empty() && !code.is_empty() {
                let label = self.styled(Style::new().bold(), label);
                self.line(&format!("  {label} {code}{}", allow::replaced(&verdict.given, &all)));
            }
        }
    }

    fn killed(&mut self, verdict: &Verdict) {
        let killed = verdict.facts.processes.iter().filter(|process| process.killed);
        let killed: Vec<String> = killed.map(|process| process.pid.to_string()).collect();
        if !killed.is_empty() {
            let shown = killed.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
            let more = if killed.len() > LISTED {
                format!(" and {} more", killed.len() - LISTED)
            } else {
                String::new()
            };
            self.line(&format!("  killed: {shown}{more}"));
        }
        self.kept(verdict);
    }

    /// What is kept, and how to look at it and to end it.
    fn kept(&mut self, verdict: &Verdict) {
        let [first, ..] = verdict.facts.kept[..] else { return };
        if !verdict.keeps() {
            return;
        }
        let pids: Vec<String> = verdict.facts.kept.iter().map(i32::to_string).collect();
        self.line(&format!("  kept: {} (stopped)", pids.join(", ")));
        self.line(&format!("  look: gdb -p {first}"));
        self.line(&format!("  end: childproof kill {}", pids.join(" ")));
    }
}

/// How the body and the process ended, for the head line.
fn body(verdict: &Verdict) -> String {
    let facts = &verdict.facts;
    let time = |time: Option<Duration>| format!("{:.2} s", time.unwrap_or(facts.ran).as_secs_f64());
    match (&facts.body, &facts.end) {
        (Body::OfCommand, End::Exited { code }) => format!("exited {code} after {}", time(None)),
        (Body::OfCommand, End::Signalled { signal }) => {
            format!("{} after {}", signal_name(*signal), time(None))
        }
        (Body::OfCommand, End::TimedOut) if facts.cut => format!("ran for {}", time(None)),
        (Body::OfCommand, End::TimedOut) => format!("no end after {}", time(None)),
        (Body::Inspected, _) => String::new(),
        (_, End::Unguarded { failure }) => {
            format!("could not be guarded: {}", escape::text(&failure::words(failure)))
        }
        (Body::Unfinished, End::TimedOut) if facts.cut => format!("after {}", rough(facts.ran)),
        (Body::Unfinished, End::TimedOut) => format!("no end after {}", time(None)),
        (Body::Unfinished, End::Exited { code }) => {
            format!("exited {code} after {}", time(None))
        }
        (Body::Unfinished, End::Signalled { signal }) => {
            format!("{} after {}", signal_name(*signal), time(None))
        }
        (Body::Passed, _) => format!("body passed in {}", time(facts.body_time)),
        (Body::PanickedAsExpected, _) => {
            format!("body panicked as expected after {}", time(facts.body_time))
        }
        (Body::Panicked { .. } | Body::PanickedOtherwise { .. }, _) => {
            format!("body panicked after {}", time(facts.body_time))
        }
        (Body::DidNotPanic, _) => format!("body did not panic in {}", time(facts.body_time)),
        (Body::Error, _) => format!("body failed after {}", time(facts.body_time)),
    }
}

/// `; left 1 process and 2 pipe ends`, `; killed 2 processes`, or nothing.
fn left(verdict: &Verdict) -> String {
    let facts = &verdict.facts;
    let leaked = verdict.of_class(Class::Leaked).count();
    if facts.end == End::TimedOut || verdict.has(Cause::Cut) {
        let what = if verdict.keeps() { "kept" } else { "killed" };
        return format!("; {what} {}", plural(leaked, "process"));
    }
    let mut parts = Vec::new();
    if leaked > verdict.allowed.len() {
        parts.push(plural(leaked - verdict.allowed.len(), "process"));
    }
    if facts.unseen {
        parts.push("a process".to_owned());
    }
    if facts.stray_count > 0 {
        let pipes = verdict.strays.iter().all(Stray::is_pipe);
        parts.push(plural(facts.stray_count as usize, if pipes { "pipe end" } else { "fd" }));
    }
    if verdict.has(Cause::Unwaited) {
        parts.push(plural(verdict.of_class(Class::Unwaited).count(), "zombie"));
    }
    if verdict.has(Cause::Threads) {
        parts.push(plural(facts.threads as usize, "thread"));
    }
    if !facts.mounts.is_empty() {
        parts.push(plural(facts.mounts.len(), "mount"));
    }
    if parts.is_empty() { String::new() } else { format!("; left {}", enumerate(&parts)) }
}

/// Why the line that created something is unknown, and how it may have been created.
fn unknown_line(verdict: &Verdict, how: &str) -> String {
    if verdict.facts.unrecorded {
        return UNKNOWN.to_owned();
    }
    format!("{how} by a raw system call or within the C library: {UNKNOWN}")
}
