//! The report as text: the test, what leaked in numbers, the sentence that explains, the
//! evidence, the fix, what was killed and what could not be read.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::escape;
use crate::diagnosis::{
    Allow, By, Cause, Finding, Holder, Origin, Stray, Verdict, enumerate, is_daemon, plural, signal_name,
};
use crate::facts::{Class, Facts, PipeState, Process};
use crate::outcome::{Body, End};
use crate::proc::fds::{Fd, end};
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::{On, Thread};
use crate::registry::{Form, Place};

/// The most processes and fds that are listed one by one.
const LISTED: usize = 24;
/// The most characters of a sentence in one line.
const WIDTH: usize = 100;
/// The most pipes whose ends are listed.
const PIPES: usize = 6;

/// What is to be said in short of a test that did it.
const AMONG_THREADS: &str = "forked among threads";

/// Stands before callers until all are written: none of a name has it, since it is escaped there.
const CALLERS: char = '\0';

/// Writes the report of a failed test. `colour` adds escape sequences for a terminal.
pub(crate) fn report(verdict: &Verdict, colour: bool) -> String {
    let mut text = Text::new(colour);
    text.write(verdict);
    without_repetition(&text.out)
}

/// Says of callers that are the same as the last ones above that they are.
///
/// At the end, because processes that are alike are found by their lines.
fn without_repetition(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // With the end of their line.
    let mut last = "";
    for line in text.split_inclusive('\n') {
        match line.split_once(CALLERS) {
            None => out.push_str(line),
            Some((line, callers)) if callers == last => {
                out.push_str(line);
                out.push_str(" < as above\n");
            }
            Some((line, callers)) => {
                out.push_str(line);
                out.push_str(callers);
                last = callers;
            }
        }
    }
    out
}

/// Writes the warnings of a test that passed; `None` if there are none.
pub(crate) fn warning(verdict: &Verdict, colour: bool) -> Option<String> {
    if verdict.warnings.is_empty() {
        return None;
    }
    let mut text = Text::new(colour);
    let label = text.styled(Style::new().bold().fg_color(Some(AnsiColor::Yellow.into())), "WARN");
    let name = text.styled(Style::new().bold(), &escape::text(&verdict.name));
    text.line(&format!("{label}  {name}   {AMONG_THREADS}"));
    text.line("");
    for warning in &verdict.warnings {
        text.wrapped("  ", 2, &escape::text(&warning.sentence));
    }
    text.line("");
    let warnings: Vec<&Finding> = verdict.warnings.iter().collect();
    text.fixes_of(verdict.form, &warnings);
    Some(text.out)
}

/// One line for a test that passed and yet left something that the policy lets pass.
pub(crate) fn aside(verdict: &Verdict) -> Option<String> {
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
    /// The pipes whose line was told.
    told: Vec<u64>,
}

impl Text {
    fn new(colour: bool) -> Text {
        Text { out: String::new(), colour, told: Vec::new() }
    }

    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// A sentence in lines that fit a terminal: `begin` before the first, spaces before the others.
    fn wrapped(&mut self, begin: &str, indent: usize, sentence: &str) {
        let mut line = begin.to_owned();
        let mut width = 0;
        for word in sentence.split(' ') {
            let length = word.chars().count();
            if width > 0 && width + 1 + length > WIDTH {
                let full = std::mem::replace(&mut line, " ".repeat(indent));
                self.line(&full);
                width = 0;
            }
            if width > 0 {
                line.push(' ');
                width += 1;
            }
            line.push_str(word);
            width += length;
        }
        self.line(&line);
    }

    fn styled(&self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    fn write(&mut self, verdict: &Verdict) {
        self.head(verdict);
        self.line("");
        for finding in &verdict.findings {
            self.wrapped("  ", 2, &escape::text(&finding.sentence));
        }
        self.warnings(verdict);
        self.end(verdict);
        self.tree(verdict);
        self.blocked_pipes(verdict);
        self.sockets(verdict);
        self.strays(verdict);
        self.fixes(verdict);
        for note in &verdict.facts.notes {
            self.line(&format!("  note: {}", escape::text(note)));
        }
    }

    /// Where the test's process was ended before its body came back.
    fn end(&mut self, verdict: &Verdict) {
        if let Some(origin) = verdict.origin_of_end() {
            self.line("");
            self.origin("  ", "called", origin, verdict.facts.pid);
        }
    }

    /// What is told beside the failure.
    fn warnings(&mut self, verdict: &Verdict) {
        for warning in &verdict.warnings {
            self.wrapped("  warning: ", 2, &escape::text(&warning.sentence));
        }
    }

    fn head(&mut self, verdict: &Verdict) {
        let facts = &verdict.facts;
        let label = match &facts.end {
            End::TimedOut => "HUNG",
            End::Lost { .. } => "LOST",
            _ if !facts.body.has_passed() => "FAIL",
            _ if verdict.causes().iter().any(|cause| matches!(cause, Cause::Signal | Cause::EndedEarly)) => {
                "FAIL"
            }
            // It has left nothing.
            _ if verdict.causes() == [Cause::ThreadedFork] => "FAIL",
            _ => "LEAK",
        };
        let time = |time: Option<Duration>| seconds(time.unwrap_or(facts.ran));
        let body = match (&facts.body, &facts.end) {
            (_, End::Lost { .. }) => "not judged".to_owned(),
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
            (Body::Panicked | Body::PanickedOtherwise { .. }, _) => {
                format!("body panicked after {}", time(facts.body_time))
            }
            (Body::DidNotPanic, _) => format!("body did not panic in {}", time(facts.body_time)),
            (Body::Error, _) => format!("body failed after {}", time(facts.body_time)),
        };
        let label = self.styled(Style::new().bold().fg_color(Some(AnsiColor::Red.into())), label);
        let name = self.styled(Style::new().bold(), &escape::text(&verdict.name));
        let left = match verdict.causes()[..] {
            [Cause::ThreadedFork] => format!("; {AMONG_THREADS}"),
            _ => left(verdict),
        };
        self.line(&format!("{label}  {name}   {body}{left}"));
    }

    /// The tree of leaked processes below the test.
    fn tree(&mut self, verdict: &Verdict) {
        let facts = &verdict.facts;
        let shown = |process: &&Process| match process.class {
            Class::Leaked => true,
            Class::Unwaited => verdict.has(Cause::Unwaited),
            Class::Straggler => false,
        };
        let processes: Vec<&Process> = facts.processes.iter().filter(shown).collect();
        if processes.is_empty() {
            return;
        }
        self.line("");
        let state = match &facts.end {
            End::Exited { code } => format!("exited {code}"),
            End::Signalled { signal } => signal_name(*signal),
            End::TimedOut | End::Lost { .. } => {
                match facts.processes.iter().find(|process| process.is_test) {
                    Some(test) => describe(verdict, test, false),
                    None => String::new(),
                }
            }
        };
        self.line(&format!("  {} test {}   {state}", facts.pid, escape::text(&verdict.name)));
        if let Some(test) = processes.iter().find(|process| process.is_test) {
            self.wait_and_fds(verdict, test, "       ");
        }
        let below: Vec<&Process> = processes.iter().copied().filter(|process| !process.is_test).collect();
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for process in &below {
            let known = process.lineage.iter().filter(|pid| below.iter().any(|other| other.pid == **pid));
            let fostered = |pid: &i32| usize::from(verdict.ended_parent(*pid).is_some());
            let depth: usize = known.map(|pid| 1 + fostered(pid)).sum();
            let indent = "   ".repeat(depth + fostered(&process.pid));
            let details = self.details(verdict, process, &format!("{indent}       "));
            let is_leaf = below.iter().all(|other| other.lineage.first() != Some(&process.pid));
            let parent = verdict.ended_parent(process.pid).map(|(_, origin)| origin);
            let entry = Entry { process, parent, indent, details, is_leaf, others: Vec::new() };
            match entries.iter_mut().find(|known| known.is_like(&entry)) {
                Some(known) => known.others.push(process.pid),
                None => entries.push(entry),
            }
        }
        let mut shown_parent = None;
        for entry in entries.iter().take(LISTED) {
            let Entry { process, parent, indent, details, others, .. } = entry;
            if let Some(parent) = parent
                && !shown_parent.is_some_and(|shown| is_like(shown, parent))
            {
                let of_it = entries.iter().filter(|entry| entry.parent.is_some_and(|of| is_like(of, parent)));
                let orphans = of_it.flat_map(Entry::pids);
                let pids = orphans.filter_map(|pid| Some(verdict.ended_parent(pid)?.0.parent)).collect();
                self.ended_parent(verdict, parent, &pids);
            }
            shown_parent = *parent;
            let name = self.styled(Style::new().bold(), &escape::command(process));
            let description = describe(verdict, process, !others.is_empty());
            if others.is_empty() {
                self.line(&format!("  {indent}`- {} {name}   {description}", process.pid));
            } else {
                let pids: Vec<String> = others.iter().take(8).map(i32::to_string).collect();
                let more = if others.len() > pids.len() { ", .." } else { "" };
                let count = others.len() + 1;
                self.line(&format!("  {indent}`- \u{d7}{count} {name}   {description}"));
                self.line(&format!("  {indent}       pids {}, {}{more}", process.pid, pids.join(", ")));
            }
            self.out.push_str(details);
        }
        if entries.len() > LISTED {
            let left: usize = entries.iter().skip(LISTED).map(|entry| 1 + entry.others.len()).sum();
            self.line(&format!("  .. and {left} more"));
        }
    }

    /// The program that processes came from, and that is not there any more; `pids` if it was started
    /// several times.
    fn ended_parent(&mut self, verdict: &Verdict, origin: &Origin, pids: &HashSet<i32>) {
        let name = self.styled(Style::new().bold(), &escape::words(&origin.command_line));
        match (pids.len(), pids.iter().next()) {
            (1, Some(pid)) => self.line(&format!("  `- {pid} {name}   has ended")),
            (count, _) => self.line(&format!("  `- \u{d7}{count} {name}   have ended")),
        }
        self.origin("         ", "spawned", origin, verdict.facts.pid);
    }

    /// The lines below a process: where it was made, what it waits for, what it holds.
    fn details(&mut self, verdict: &Verdict, process: &Process, indent: &str) -> String {
        let before = std::mem::take(&mut self.out);
        match verdict.origin_of_process(process.pid) {
            Some(origin) => {
                let how = if process.forked_without_exec { "forked" } else { "spawned" };
                self.origin(&format!("  {indent}"), how, origin, verdict.facts.pid);
            }
            None if crate::sites::UNKNOWN.is_none() => {
                let unknown = match verdict.ended_parent(process.pid).map(|(ended, _)| ended.by) {
                    Some(By::Session) => "started by that one, or below it: it is of its session",
                    Some(By::Group) => {
                        "probably started by that one, or below it: it is of its process group"
                    }
                    Some(By::Order) => "probably started by that one, the last before it that has ended",
                    None => &unknown_line(verdict, "started by another program,"),
                };
                self.line(&format!("  {indent}{unknown}"));
            }
            None => {}
        }
        self.wait_and_fds(verdict, process, indent);
        std::mem::replace(&mut self.out, before)
    }

    /// What each thread of a process is blocked in; those that are alike are one line.
    fn waits(&mut self, verdict: &Verdict, process: &Process, indent: &str) {
        let mut groups: Vec<(String, Vec<&Thread>)> = Vec::new();
        for thread in &process.tasks {
            let line = wait_line(verdict, process, thread);
            match groups.iter_mut().find(|(known, _)| *known == line) {
                Some((_, threads)) => threads.push(thread),
                None => groups.push((line, vec![thread])),
            }
        }
        let hidden = groups.len().saturating_sub(LISTED);
        for (line, threads) in groups.into_iter().take(LISTED) {
            let who = match (&threads[..], process.tasks.len()) {
                (_, 1) => String::new(),
                ([thread], _) if thread.tid == process.pid => "main thread: ".to_owned(),
                ([thread], _) if thread.name == process.comm => format!("thread {}: ", thread.tid),
                ([thread], _) => format!("thread {} `{}`: ", thread.tid, escape::text(&thread.name)),
                ([first, ..], _) => {
                    let tids: Vec<String> =
                        threads.iter().take(LISTED).map(|thread| thread.tid.to_string()).collect();
                    let more = if threads.len() > LISTED { ", .." } else { "" };
                    let name = match threads.iter().all(|thread| thread.name == first.name) {
                        true => escape::text(&first.name),
                        false => format!("{}`, `..", escape::text(&first.name)),
                    };
                    format!("\u{d7}{} threads {}{more} `{name}`: ", threads.len(), tids.join(", "))
                }
                ([], _) => continue,
            };
            let line = line.replacen('\n', &format!("\n  {indent}  "), usize::MAX);
            self.line(&format!("  {indent}{who}{line}"));
        }
        if hidden > 0 {
            self.line(&format!("  {indent}.. and {hidden} more threads"));
        }
    }

    fn wait_and_fds(&mut self, verdict: &Verdict, process: &Process, indent: &str) {
        self.waits(verdict, process, indent);
        let unread = verdict.unread.iter().find(|unread| unread.pid == process.pid);
        if let Some(unread) = unread {
            let mut places: Vec<(Option<&str>, Vec<String>)> = Vec::new();
            for fd in unread.fds.iter().take(LISTED) {
                let origin = process.pipe(*fd).and_then(|ino| verdict.origin_of_inode(ino));
                let place = origin.and_then(|origin| origin.place.as_deref());
                match places.iter_mut().find(|(known, _)| *known == place) {
                    Some((_, fds)) => fds.push(fd.to_string()),
                    None => places.push((place, vec![fd.to_string()])),
                }
            }
            let told: Vec<String> = places
                .into_iter()
                .map(|(place, fds)| match place {
                    Some(place) => format!("{} (created at {})", fds.join(", "), escape::text(place)),
                    None => fds.join(", "),
                })
                .collect();
            let what = match unread.fds.len() {
                1 => "a read end at EOF that nobody reads: fd".to_owned(),
                count => format!("{count} read ends at EOF that nobody reads: fds"),
            };
            self.line(&format!("  {indent}holds {what} {}", told.join(", ")));
        }
        let Some(fds) = &process.fds else {
            self.line(&format!("  {indent}its fds may not be read"));
            return;
        };
        // The pipes that somebody is blocked on stand below, and lifelines above.
        let told = |ino: u64| verdict.stuck.iter().any(|stuck| stuck.pipe == Some(ino));
        let is_unread = |fd: i32| unread.is_some_and(|unread| unread.fds.contains(&fd));
        let fds: Vec<&Fd> =
            fds.iter().filter(|fd| fd.pipe().is_some_and(|ino| !told(ino)) && !is_unread(fd.fd)).collect();
        if !fds.is_empty() {
            self.line(&format!("  {indent}pipes it holds of this test"));
        }
        for fd in fds.iter().take(LISTED) {
            let others =
                verdict.pipes.iter().find(|pipe| Some(pipe.ino) == fd.pipe()).map(|pipe| &pipe.holders[..]);
            let own = Holder { pid: process.pid, fd: fd.fd, access: fd.access, cloexec: fd.cloexec };
            let strays =
                verdict.strays.iter().filter(|stray| stray.fd.target == fd.target).map(|stray| Holder {
                    pid: verdict.facts.pid,
                    fd: stray.fd.fd,
                    access: stray.fd.access,
                    cloexec: stray.fd.cloexec,
                });
            let holders: Vec<Holder> = others
                .unwrap_or_default()
                .iter()
                .cloned()
                .chain(strays)
                .filter(|holder| *holder != own)
                .collect();
            let line = pipe_line(fd, &holders, &verdict.facts);
            self.line(&format!("  {indent}  {line}"));
            // A stray end of the same pipe tells it below.
            let told = verdict.strays.iter().any(|stray| stray.fd.target == fd.target);
            let Some(ino) = fd.pipe().filter(|ino| !told && !self.told.contains(ino)) else { continue };
            self.told.push(ino);
            if let Some(origin) = verdict.origin_of_inode(ino) {
                self.origin(&format!("  {indent}     "), "created", origin, verdict.facts.pid);
            }
        }
        if fds.len() > LISTED {
            self.line(&format!("  {indent}  .. and {} more", fds.len() - LISTED));
        }
    }

    /// The pipes that somebody is blocked on for ever: who has which end.
    fn blocked_pipes(&mut self, verdict: &Verdict) {
        let mut told: Vec<u64> = Vec::new();
        for pipe in verdict.stuck.iter().filter_map(|stuck| stuck.pipe) {
            if told.contains(&pipe) || told.len() >= PIPES {
                continue;
            }
            told.push(pipe);
            self.line("");
            let queue = verdict.facts.pipe(pipe).and_then(PipeState::queue);
            let queue = queue.map(|queue| format!("  {queue}"));
            self.line(&format!("  pipe:[{pipe}]{}", queue.unwrap_or_default()));
            for line in end_lines(verdict, pipe) {
                self.line(&format!("    {line}"));
            }
            match verdict.origin_of_inode(pipe) {
                Some(origin) => self.origin("    ", "created", origin, verdict.facts.pid),
                None if crate::sites::UNKNOWN.is_none() => {
                    self.line(&format!("    {}", unknown_line(verdict, "created by another program,")));
                }
                None => {}
            }
        }
    }

    /// The sockets that somebody is blocked on, for ever or not: who is at the other end.
    fn sockets(&mut self, verdict: &Verdict) {
        let facts = &verdict.facts;
        let mut told: Vec<u64> = Vec::new();
        let mut hidden = 0;
        for (process, thread) in facts.tasks() {
            let is_set = thread.on.is_set();
            let sockets = thread.fds().into_iter().filter_map(|fd| facts.socket(process.fd(fd)?.socket()?));
            for socket in sockets.collect::<Vec<_>>() {
                // What a runtime put into its set for itself is nothing that a task waits at.
                if told.contains(&socket.ino) || is_set && verdict.is_of_runtime(socket.ino) {
                    continue;
                }
                if hidden > 0 || told.len() >= 2 * PIPES {
                    hidden += 1;
                    continue;
                }
                told.extend(socket.ends());
                self.line("");
                self.line(&format!("  {}", socket_line(facts, socket)));
                for line in socket_end_lines(verdict, socket) {
                    self.line(&format!("    {line}"));
                }
                let mut ends = socket.ends().into_iter();
                if let Some(origin) = ends.find_map(|ino| verdict.origin_of_inode(ino)) {
                    self.origin("    ", "created", origin, facts.pid);
                }
            }
        }
        if hidden > 0 {
            self.line(&format!("  .. and {}", plural(hidden, "more socket")));
        }
    }

    fn strays(&mut self, verdict: &Verdict) {
        if verdict.strays.is_empty() {
            return;
        }
        self.line("");
        self.line("  fds that the body left open");
        let (mut listed, mut unknown) = (0, false);
        for group in groups(verdict).into_iter().take(LISTED) {
            listed += group.strays.len();
            match &group.strays[..] {
                // Those of one line in a loop are one entry.
                [first, _, _, ..] if group.origin.is_some() => {
                    let numbers: Vec<String> =
                        group.strays.iter().take(LISTED).map(|stray| stray.fd.fd.to_string()).collect();
                    let more = if group.strays.len() > LISTED { ", .." } else { "" };
                    let what = if first.is_pipe() { "pipe ends" } else { "fds" };
                    let count = group.strays.len();
                    self.line(&format!("    \u{d7}{count}  {what}: fd {}{more}", numbers.join(", ")));
                }
                strays => {
                    for stray in strays {
                        self.line(&format!("    {}", stray_line(stray, &verdict.facts)));
                    }
                }
            }
            match group.origin {
                Some(origin) => {
                    let how = if group.strays.len() == 2 { "both created" } else { "created" };
                    self.origin("       ", how, origin, verdict.facts.pid);
                }
                None => unknown = true,
            }
        }
        if unknown && crate::sites::UNKNOWN.is_none() {
            let unknown = match verdict.strays.iter().all(Stray::is_pipe) {
                true => unknown_line(verdict, "created"),
                false => {
                    "its line is not known: only those of pipes, socket pairs and processes are recorded"
                        .to_owned()
                }
            };
            self.line(&format!("       {unknown}"));
        }
        let more = (verdict.facts.stray_count as usize).saturating_sub(listed);
        if more > 0 {
            self.line(&format!("    .. and {more} more"));
        }
    }

    /// The line of code that made something, and the stack above it if that was asked for.
    fn origin(&mut self, indent: &str, how: &str, origin: &Origin, test: i32) {
        let by = if origin.maker == test { String::new() } else { format!(", by pid {}", origin.maker) };
        let thread = match origin.threads {
            0 | 1 => String::new(),
            threads => format!(" by thread `{}`, one of {threads}", escape::text(&origin.thread)),
        };
        let mut line = format!("{indent}{how} {}{thread} ({}{by})", escape::text(&origin.at()), origin.call);
        if origin.stack.is_empty() && !origin.callers.is_empty() {
            line.push(CALLERS);
        }
        for caller in origin.callers.iter().filter(|_| origin.stack.is_empty()) {
            let _ = write!(line, " < {}", escape::text(caller));
        }
        self.line(&line);
        for frame in &origin.stack {
            self.line(&format!("{indent}  {}", escape::text(frame)));
        }
    }

    fn fixes_of(&mut self, form: Form, findings: &[&Finding]) {
        let fix = self.styled(Style::new().bold(), "fix:");
        for finding in findings {
            if let Some(text) = &finding.fix {
                self.wrapped(&format!("  {fix} "), 7, &escape::text(text));
            }
        }
        self.allow(form, findings);
    }

    /// All that would let the test pass, in one, as it is written in the code.
    fn allow(&mut self, form: Form, findings: &[&Finding]) {
        let mut all: Vec<&Allow> = Vec::new();
        for allow in findings.iter().flat_map(|finding| &finding.allow) {
            if !all.contains(&allow) {
                all.push(allow);
            }
        }
        if all.is_empty() {
            return;
        }
        // Those that are there already are to stay.
        let others = form.has_arguments.then(|| "..".to_owned());
        let arguments = others.into_iter().chain(all.iter().map(|allow| allow.to_string()));
        let arguments = || arguments.collect::<Vec<_>>().join(", ");
        let code = match form.place {
            Place::Test => format!("#[childproof::test({})]", arguments()),
            Place::Guard => format!("#[childproof::guard({})]", arguments()),
            Place::Policy => {
                let policy = if form.has_arguments { "policy" } else { "Policy::new()" };
                let calls: String = all.into_iter().map(call).collect();
                format!("test_with(.., {policy}{calls}, ..)")
            }
        };
        let allow = self.styled(Style::new().bold(), "allow:");
        self.line(&format!("  {allow} {code}"));
    }

    fn fixes(&mut self, verdict: &Verdict) {
        let findings: Vec<&Finding> = verdict.findings.iter().chain(&verdict.warnings).collect();
        if findings.iter().any(|finding| finding.fix.is_some() || !finding.allow.is_empty()) {
            self.line("");
        }
        self.fixes_of(verdict.form, &findings);
        let killed: Vec<String> = verdict
            .facts
            .processes
            .iter()
            .filter(|process| process.killed)
            .map(|process| process.pid.to_string())
            .collect();
        if !killed.is_empty() {
            let shown = killed.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
            let more = if killed.len() > LISTED {
                format!(" and {} more", killed.len() - LISTED)
            } else {
                String::new()
            };
            self.line(&format!("  killed: {shown}{more}"));
        }
    }
}

/// The method of `Policy` that an argument is.
fn call(Allow { argument, value }: &Allow) -> String {
    match (*argument, value.as_str()) {
        ("timeout", limit) => {
            format!(".timeout(Duration::from_secs({}))", limit.trim_end_matches('s'))
        }
        ("processes", _) => ".allow_processes()".to_owned(),
        ("unwaited", _) => ".allow_unwaited()".to_owned(),
        ("threads", _) => ".allow_threads()".to_owned(),
        ("threaded_fork", _) => ".threaded_fork(ThreadedFork::Allow)".to_owned(),
        ("fds", "pipes") => ".fds(Fds::Pipes)".to_owned(),
        ("fds", _) => ".fds(Fds::Off)".to_owned(),
        (argument, value) => format!(".{argument}(\"{value}\")"),
    }
}

/// A process of the tree, with those that are like it.
struct Entry<'a> {
    process: &'a Process,
    indent: String,
    details: String,
    /// The program that it came from, if that has ended.
    parent: Option<&'a Origin>,
    /// Nobody else of the tree is its child.
    is_leaf: bool,
    others: Vec<i32>,
}

impl Entry<'_> {
    fn pids(&self) -> impl Iterator<Item = i32> {
        std::iter::once(self.process.pid).chain(self.others.iter().copied())
    }

    /// Whether both can be told as one.
    fn is_like(&self, other: &Entry<'_>) -> bool {
        let of = |process: &Process| {
            let Process { class, state, adopted, threads, forked_without_exec, .. } = process;
            // One that leads its group or session is like another that leads its own.
            let group = (process.pgid != process.pid).then_some(process.pgid);
            let session = (process.sid != process.pid).then_some(process.sid);
            (*class, state.clone(), *adopted, *threads, *forked_without_exec, group, session)
        };
        let parents = match (self.parent, other.parent) {
            (Some(parent), Some(of_other)) => is_like(parent, of_other),
            (parent, of_other) => parent == of_other,
        };
        self.is_leaf
            && other.is_leaf
            && parents
            && self.details == other.details
            && self.process.command_line == other.process.command_line
            && self.process.comm == other.process.comm
            && self.process.lineage == other.process.lineage
            && of(self.process) == of(other.process)
    }
}

/// Whether two programs are the same one, started by the same line.
fn is_like(one: &Origin, other: &Origin) -> bool {
    (&one.command_line, &one.place, &one.callers) == (&other.command_line, &other.place, &other.callers)
}

/// The stray fds that one line of code has made.
struct Group<'a> {
    origin: Option<&'a Origin>,
    strays: Vec<&'a Stray>,
}

fn groups(verdict: &Verdict) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for stray in &verdict.strays {
        let origin = verdict.origin_of_inode(stray.fd.ino);
        let same = |group: &&mut Group<'_>| match (group.origin, origin) {
            (Some(one), Some(other)) => {
                // The function will do where no line is known.
                let is_known =
                    one.place.is_some() || one.function.is_some() && one.function == other.function;
                is_known && one.place == other.place && one.call == other.call
            }
            _ => false,
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.strays.push(stray),
            None => groups.push(Group { origin, strays: vec![stray] }),
        }
    }
    groups
}

/// `; left 1 process and 2 pipe ends`, `; killed 2 processes`, or nothing.
fn left(verdict: &Verdict) -> String {
    let facts = &verdict.facts;
    let leaked = verdict.of_class(Class::Leaked).count();
    if facts.end == End::TimedOut {
        return format!("; killed {}", plural(leaked, "process"));
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
    if parts.is_empty() { String::new() } else { format!("; left {}", enumerate(&parts)) }
}

/// Why it is not known which line has made something, behind how it may have been made.
fn unknown_line(verdict: &Verdict, how: &str) -> String {
    if verdict.facts.unrecorded {
        return "its line is not known".to_owned();
    }
    format!("{how} by a raw system call or within the C library: its line is not known")
}

/// State, age, and how the process stands in the tree. `several`: it stands for others like it.
fn describe(verdict: &Verdict, process: &Process, several: bool) -> String {
    let facts = &verdict.facts;
    let mut parts = vec![process.state.clone()];
    if let Some(age) = process.age {
        parts.push(format!("age {:.1} s", age.as_secs_f64()));
    }
    if process.threads > 1 {
        parts.push(format!("{} threads", process.threads));
    }
    let id = |what: &str, id: i32, other: &str| match id == process.pid {
        true if several => format!("{what} of its own"),
        true => format!("{what} {id} (its own)"),
        false => format!("{what} {id}{other}"),
    };
    parts.push(id("pgid", process.pgid, if process.pgid == facts.pid { " (the test's)" } else { "" }));
    parts.push(id("sid", process.sid, if is_daemon(process, facts) { " (not the test's)" } else { "" }));
    if !process.is_test {
        if process.forked_without_exec {
            parts.push("fork, no exec".to_owned());
        }
        if process.adopted {
            parts.push("adopted: its parent has exited".to_owned());
        }
        if verdict.allowed.contains(&process.pid) {
            parts.push("allowed".to_owned());
        }
    }
    parts.join(", ")
}

/// What a thread is blocked in: `read(fd 3)  [anon_pipe_read]`, and in further lines where.
fn wait_line(verdict: &Verdict, process: &Process, thread: &Thread) -> String {
    if thread.syscall.is_empty() {
        return "what it waits in may not be read".to_owned();
    }
    if thread.on == On::Stopped {
        let by = if thread.state == "t" { "a debugger" } else { "a signal; SIGCONT would let it go on" };
        return format!("is stopped by {by}{}", stack(verdict, thread));
    }
    let numbers = |fds: &[i32]| {
        let shown: Vec<String> = fds.iter().step_by(2).take(8).map(i32::to_string).collect();
        let more = if fds.len() > 16 { ", .." } else { "" };
        format!("{}{more}", shown.join(", "))
    };
    let argument = match &thread.on {
        On::Read { fd } | On::Write { fd } | On::Fd { fd } | On::Lock { fd } => format!("fd {fd}"),
        On::Poll { fds, .. } => format!("fds {}", numbers(fds)),
        On::Epoll { epoll, fds, .. } => format!("fd {epoll}: {}", numbers(fds)),
        On::Child { pid } if *pid > 0 => pid.to_string(),
        On::Child { .. } => "any child".to_owned(),
        On::Futex { .. } => verdict.names.locks.get(&thread.tid).cloned().unwrap_or_default(),
        On::Thread { tid } => format!("end of thread {tid}"),
        On::Open { path } => format!("\"{path}\""),
        On::Other | On::Sleep | On::Signal | On::Stopped => String::new(),
    };
    let mut line = escape::text(&thread.syscall);
    let file = match &thread.on {
        On::Fd { fd } | On::Lock { fd } | On::Read { fd } | On::Write { fd } => process.fd(*fd),
        _ => None,
    };
    match file {
        Some(file) => drop(write!(line, "({argument}: {})", escape::text(&file.target))),
        None if argument.is_empty() => {}
        None => drop(write!(line, "({})", escape::text(&argument))),
    }
    if let Some(name) = &thread.wchan {
        let _ = write!(line, "  [{}]", escape::text(name));
    }
    match verdict.stuck_at(thread.tid) {
        Some(stuck) if stuck.proved() => line += "  <- for ever",
        Some(_) => line += "  <- nothing was found that wakes it",
        None => {}
    }
    line + &stack(verdict, thread)
}

/// Where a thread is in its program: further lines, or nothing.
fn stack(verdict: &Verdict, thread: &Thread) -> String {
    let Some(stack) = verdict.names.stacks.get(&thread.tid).filter(|stack| !stack.is_empty()) else {
        return String::new();
    };
    let frames: Vec<String> = stack.iter().map(|frame| escape::text(frame)).collect();
    match &frames[..] {
        [first, callers @ ..] if !verdict.names.full && !callers.is_empty() => {
            format!("\nin {first}{CALLERS} < {}", callers.join(" < "))
        }
        [only] if !verdict.names.full => format!("\nin {only}"),
        frames => format!("\n{}", frames.join("\n")),
    }
}

/// A line for each end of a pipe that somebody has.
fn end_lines(verdict: &Verdict, pipe: u64) -> Vec<String> {
    let facts = &verdict.facts;
    let mut holders = facts.holders(&|fd| fd.pipe() == Some(pipe));
    // Readers first.
    holders.sort_by_key(|(_, fd, _)| !fd.reads());
    let blocked: Vec<(i32, i32)> = facts
        .tasks()
        .flat_map(|(process, thread)| thread.fds().into_iter().map(move |fd| (process.pid, fd)))
        .collect();
    let is_blocked = |pid: i32, fd: i32| blocked.contains(&(pid, fd));
    let only = |reads: bool| holders.iter().filter(|(_, fd, _)| fd.reads() == reads).count() == 1;
    let mut lines = Vec::new();
    for (pid, fd, outside) in holders.iter().take(LISTED) {
        let mut line = format!("{:<5} end  {pid} fd {}", end(fd.access), fd.fd);
        if let Some(outside) = outside {
            let _ = write!(line, " `{}`, outside of the test", escape::text(outside));
        }
        line += no_cloexec(fd.fd, fd.cloexec);
        // Whoever waits at another end of it.
        let own = |is: fn(&Fd) -> bool| {
            holders.iter().any(|(other, held, _)| {
                other == pid && held.fd != fd.fd && is(held) && is_blocked(*other, held.fd)
            })
        };
        let role = match (own(Fd::reads), own(Fd::writes)) {
            (true, _) => "the reader itself",
            (_, true) => "the writer itself",
            _ => "",
        };
        line += &match (is_blocked(*pid, fd.fd), only(fd.reads()), role) {
            (true, ..) => "   <- blocked on it".to_owned(),
            (_, true, "") => "   <- the only one".to_owned(),
            (_, true, role) => format!("   <- the only one: {role}"),
            (_, false, "") => String::new(),
            (_, false, role) => format!("   <- {role}"),
        };
        lines.push(line);
    }
    if holders.len() > LISTED {
        lines.push(format!(".. and {} more", holders.len() - LISTED));
    }
    lines
}

/// `socket:[123]  unix stream, 3 bytes to read, 0 at the other end`.
fn socket_line(facts: &Facts, socket: &Socket) -> String {
    let mut line = format!("socket:[{}]  {}", socket.ino, socket.what());
    if socket.listens {
        let at =
            socket.name.as_deref().map_or_else(String::new, |name| format!(" at {}", escape::text(name)));
        let _ = write!(line, ", listens{at}");
    }
    match (socket.queued, socket.listens) {
        (Some(count), true) => drop(write!(line, ", {} to accept", plural(count as usize, "connection"))),
        (Some(count), false) => drop(write!(line, ", {} to read", plural(count as usize, "byte"))),
        (None, _) => {}
    }
    if let Peer::Socket { ino } = socket.peer
        && let Some(count) = facts.socket(ino).and_then(|peer| peer.queued)
    {
        let _ = write!(line, ", {count} at the other end");
    }
    line
}

/// A line for each fd that is this socket or its other end.
fn socket_end_lines(verdict: &Verdict, socket: &Socket) -> Vec<String> {
    let facts = &verdict.facts;
    let holders = |ino: u64| facts.holders(&|fd| fd.socket() == Some(ino));
    let is_blocked = |pid: i32, fd: i32| {
        facts.tasks().any(|(process, thread)| process.pid == pid && thread.fds().contains(&fd))
    };
    let mut lines = Vec::new();
    let mut list = |end: &str, inode: &str, holders: Vec<(i32, &Fd, Option<&str>)>| {
        for (pid, fd, outside) in holders.iter().take(LISTED) {
            let mut line = format!("{end}  {pid} fd {}{inode}", fd.fd);
            if let Some(outside) = outside {
                let _ = write!(line, " `{}`, outside of the test", escape::text(outside));
            }
            line += no_cloexec(fd.fd, fd.cloexec);
            if is_blocked(*pid, fd.fd) {
                line += "   <- blocked on it";
            }
            lines.push(line);
        }
        if holders.len() > LISTED {
            lines.push(format!(".. and {} more", holders.len() - LISTED));
        }
        if holders.is_empty() {
            lines.push(format!("{end}  nobody that was found{inode}"));
        }
    };
    list("this end ", "", holders(socket.ino));
    match &socket.peer {
        Peer::Socket { ino } => list("other end", &format!(" (socket:[{ino}])"), holders(*ino)),
        Peer::Queue { ino } => {
            list("waits to be accepted from", &format!(" (socket:[{ino}])"), holders(*ino));
        }
        Peer::Nobody if socket.listens => {}
        Peer::Nobody => lines.push("other end  nobody: not connected, or closed".to_owned()),
        Peer::Unknown { .. } if socket.listens => {}
        Peer::Unknown { why } => lines.push(format!("other end  not known: {why}")),
    }
    lines
}

fn pipe_line(fd: &Fd, holders: &[Holder], facts: &Facts) -> String {
    format!(
        "{}  {}  {} end{}; {}",
        fd.fd,
        fd.target,
        end(fd.access),
        no_cloexec(fd.fd, fd.cloexec),
        other_end(fd.access, holders, facts)
    )
}

/// Worth a word but for the standard fds, which are meant to be inherited.
fn no_cloexec(fd: i32, cloexec: bool) -> &'static str {
    if cloexec || fd <= 2 { "" } else { ", no CLOEXEC" }
}

fn stray_line(stray: &Stray, facts: &Facts) -> String {
    let fd = &stray.fd;
    let cloexec = no_cloexec(fd.fd, fd.cloexec);
    if stray.is_pipe() {
        let others = other_end(fd.access, &stray.holders, facts);
        format!("{}  {}  {} end{cloexec}; {others}", fd.fd, fd.target, end(fd.access))
    } else {
        format!("{}  {}{cloexec}", fd.fd, escape::text(&fd.target))
    }
}

/// Who holds the other end of a pipe, and who else this one.
fn other_end(access: i32, holders: &[Holder], facts: &Facts) -> String {
    let name = |holder: &Holder| {
        // The tree has no stragglers.
        let gone = |process: &&Process| process.pid == holder.pid && process.class == Class::Straggler;
        match facts.processes.iter().find(gone) {
            _ if holder.pid == facts.pid => format!("test fd {}", holder.fd),
            Some(process) => format!(
                "{} `{}`, which ended within the grace, fd {}",
                holder.pid,
                escape::command(process),
                holder.fd
            ),
            None => format!("{} fd {}", holder.pid, holder.fd),
        }
    };
    let (same, other): (Vec<&Holder>, Vec<&Holder>) =
        holders.iter().partition(|holder| holder.access == access);
    let list = |holders: &[&Holder]| {
        let mut names: Vec<String> = holders.iter().take(LISTED).map(|holder| name(holder)).collect();
        if let Some(more) = holders.len().checked_sub(LISTED).filter(|more| *more > 0) {
            names.push(format!(".. and {more} more"));
        }
        names.join(", ")
    };
    let mut text = if other.is_empty() {
        "other end: nobody here".to_owned()
    } else {
        format!("other end: {}", list(&other))
    };
    if !same.is_empty() {
        let _ = write!(text, "; this end also: {}", list(&same));
    }
    text
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::without_repetition;

    #[test]
    fn callers_are_told_again_only_after_others() {
        let text = "a\0 < b\nc\0 < b\nd\n\0 < b\ne\0 < f\na\0 < b\n";
        let expected = "a < b\nc < as above\nd\n < as above\ne < f\na < b\n";
        assert_eq!(without_repetition(text), expected);
    }
}
