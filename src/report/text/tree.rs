//! The evidence about processes: the tree, and what each thread is blocked in.

use std::collections::HashSet;
use std::fmt::Write;

use anstyle::Style;
use nix::libc;

use super::pipes::pipe_line;
use super::{CALLERS, LISTED, Text, unknown_line};
use crate::diagnosis::{Cause, Holder, Relation, Verdict, is_daemon};
use crate::guard::facts::{Class, Process};
use crate::guard::report_page::End;
use crate::proc::fds::Fd;
use crate::proc::signals::Ended;
use crate::proc::waits::{On, Thread};
use crate::recorder::call_site::{ResolvedCallSite, SourceLocation};
use crate::report::escape;
use crate::report::words::{long, pipe_end, process_name, signal_name};

impl Text {
    /// The tree of leaked processes below the test.
    pub(super) fn tree(&mut self, verdict: &Verdict) {
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
            End::TimedOut | End::Unguarded { .. } => {
                match facts.processes.iter().find(|process| process.is_test) {
                    Some(test) => describe(verdict, test, false),
                    None => String::new(),
                }
            }
        };
        let subject = if facts.is_command() { "command" } else { "test" };
        if !facts.is_inspected() {
            self.line(&format!("  {} {subject} {}   {state}", facts.pid, escape::text(&verdict.name)));
        }
        if let Some(test) = processes.iter().find(|process| process.is_test) {
            self.wait_and_fds(verdict, test, "       ");
        }
        let below: Vec<&Process> = processes.iter().copied().filter(|process| !process.is_test).collect();
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for process in &below {
            let known = process.lineage.iter().filter(|pid| below.iter().any(|other| other.pid == **pid));
            let fostered = |pid: &i32| usize::from(verdict.exited_parent(*pid).is_some());
            let depth: usize = known.map(|pid| 1 + fostered(pid)).sum();
            let indent = "   ".repeat(depth + fostered(&process.pid));
            let details = self.details(verdict, process, &format!("{indent}       "));
            let is_leaf = below.iter().all(|other| other.lineage.first() != Some(&process.pid));
            let parent = verdict.exited_parent(process.pid).map(|(_, site)| site);
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
                let pids = orphans.filter_map(|pid| Some(verdict.exited_parent(pid)?.0.parent)).collect();
                self.exited_parent(verdict, parent, &pids);
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

    /// The exited program that started processes; `pids` are its pids if it was started several times.
    fn exited_parent(&mut self, verdict: &Verdict, site: &ResolvedCallSite, pids: &HashSet<i32>) {
        let name = self.styled(Style::new().bold(), &escape::words(&site.command_line));
        match (pids.len(), pids.iter().next()) {
            (1, Some(0)) => self.line(&format!("  `- {name}   exited")),
            (1, Some(pid)) => self.line(&format!("  `- {pid} {name}   exited")),
            (count, _) => self.line(&format!("  `- \u{d7}{count} {name}   exited")),
        }
        self.call_site("         ", "spawned", site, verdict.facts.pid);
    }

    /// The lines below a process: what created it, what it waits for, what it holds.
    fn details(&mut self, verdict: &Verdict, process: &Process, indent: &str) -> String {
        let before = std::mem::take(&mut self.out);
        match verdict.names.of_process(process.pid) {
            Some(site) => {
                let how = if process.forked_without_exec { "forked" } else { "spawned" };
                self.call_site(&format!("  {indent}"), how, site, verdict.facts.pid);
            }
            None if verdict.facts.is_inspected() => {
                for line in self.above.get(&process.pid).cloned().unwrap_or_default() {
                    self.line(&format!("  {indent}{line}"));
                }
            }
            None if crate::recorder::hooks::ARE_INSTALLED => {
                let unknown = match verdict.exited_parent(process.pid).map(|(exited, _)| exited.relation) {
                    Some(Relation::Session) => {
                        "a descendant of the exited process above: it is in its session"
                    }
                    Some(Relation::Group) => {
                        "probably a descendant of the exited process above: it is in its process group"
                    }
                    Some(Relation::Pipe) => {
                        "probably a descendant of the exited process above: it has a pipe that was created for it"
                    }
                    Some(Relation::Sequence) => "probably a child of the exited process above",
                    None => &unknown_line(verdict, "started by another program,"),
                };
                self.line(&format!("  {indent}{unknown}"));
            }
            None => {}
        }
        if let Some(test) = verdict.test_of(process.pid) {
            self.line(&format!("  {indent}by the test {}", escape::text(&test)));
        }
        self.wait_and_fds(verdict, process, indent);
        std::mem::replace(&mut self.out, before)
    }

    /// What each thread of a process is blocked in; equal threads share one line.
    fn waits(&mut self, verdict: &Verdict, process: &Process, indent: &str) {
        let mut groups: Vec<(String, Vec<&Thread>)> = Vec::new();
        for thread in &process.tasks {
            let line = wait_line(verdict, process, thread);
            match groups.iter_mut().find(|(known, _)| *known == line) {
                Some((_, threads)) => threads.push(thread),
                None => groups.push((line, vec![thread])),
            }
        }
        let omitted = groups.len().saturating_sub(LISTED);
        for (line, threads) in groups.into_iter().take(LISTED) {
            let label = match (&threads[..], process.tasks.len()) {
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
            self.line(&format!("  {indent}{label}{line}"));
        }
        if omitted > 0 {
            self.line(&format!("  {indent}.. and {omitted} more threads"));
        }
    }

    /// The numbers by which a process has pipes: each stands below, with both ends.
    fn pipes_in_short(&mut self, fds: &[Fd], indent: &str) {
        let held = fds.iter().filter(|fd| fd.pipe().is_some()).take(LISTED);
        let held = held.map(|fd| format!("{} {} end of {}", fd.fd, pipe_end(fd.access), fd.target));
        let held: Vec<String> = held.collect();
        if !held.is_empty() {
            self.line(&format!("  {indent}fds of pipes: {}", held.join(", ")));
        }
    }

    fn wait_and_fds(&mut self, verdict: &Verdict, process: &Process, indent: &str) {
        self.waits(verdict, process, indent);
        for line in signal_lines(verdict, process).into_iter().chain(ended_lines(process)) {
            self.line(&format!("  {indent}{line}"));
        }
        let unread = verdict.unwatched.iter().find(|unread| unread.pid == process.pid);
        if let Some(unread) = unread {
            let mut places: Vec<(Option<&SourceLocation>, Vec<String>)> = Vec::new();
            for fd in unread.fds.iter().take(LISTED) {
                let site = process.pipe(*fd).and_then(|ino| verdict.names.of_inode(ino));
                let place = site.and_then(|site| site.place.as_ref());
                match places.iter_mut().find(|(known, _)| *known == place) {
                    Some((_, fds)) => fds.push(fd.to_string()),
                    None => places.push((place, vec![fd.to_string()])),
                }
            }
            let reported: Vec<String> = places
                .into_iter()
                .map(|(place, fds)| match place {
                    Some(place) => {
                        format!("{} (created at {})", fds.join(", "), escape::text(&place.to_string()))
                    }
                    None => fds.join(", "),
                })
                .collect();
            let what = match unread.fds.len() {
                1 => "a read end at EOF that it does not read: fd".to_owned(),
                count => format!("{count} read ends at EOF that it does not read: fds"),
            };
            self.line(&format!("  {indent}holds {what} {}", reported.join(", ")));
        }
        let Some(fds) = &process.fds else {
            self.line(&format!("  {indent}its fds may not be read"));
            return;
        };
        // Pipes that a thread is blocked on are listed below, and lifelines above.
        let reported = |ino: u64| verdict.stuck.iter().any(|stuck| stuck.pipe == Some(ino));
        let is_unread = |fd: i32| unread.is_some_and(|unread| unread.fds.contains(&fd));
        if verdict.facts.is_inspected() {
            self.pipes_in_short(fds, indent);
            return;
        }
        let fds: Vec<&Fd> = fds
            .iter()
            .filter(|fd| fd.pipe().is_some_and(|ino| !reported(ino)) && !is_unread(fd.fd))
            .collect();
        if !fds.is_empty() {
            let subject = if verdict.facts.is_command() { "command" } else { "test" };
            self.line(&format!("  {indent}pipes it holds of this {subject}"));
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
            // A stray end of the same pipe is reported below.
            let reported = verdict.strays.iter().any(|stray| stray.fd.target == fd.target);
            let Some(ino) = fd.pipe().filter(|ino| !reported && !self.reported.contains(ino)) else {
                continue;
            };
            self.reported.push(ino);
            if let Some(site) = verdict.names.of_inode(ino) {
                self.call_site(&format!("  {indent}     "), "created", site, verdict.facts.pid);
            }
        }
        if fds.len() > LISTED {
            self.line(&format!("  {indent}  .. and {} more", fds.len() - LISTED));
        }
    }
}

/// A process of the tree, together with equal ones.
struct Entry<'a> {
    process: &'a Process,
    indent: String,
    details: String,
    /// The exited program that started it.
    parent: Option<&'a ResolvedCallSite>,
    /// Whether no other process of the tree is its child.
    is_leaf: bool,
    others: Vec<i32>,
}

impl Entry<'_> {
    fn pids(&self) -> impl Iterator<Item = i32> {
        std::iter::once(self.process.pid).chain(self.others.iter().copied())
    }

    /// Whether both can share one entry.
    fn is_like(&self, other: &Entry<'_>) -> bool {
        let of = |process: &Process| {
            let Process { class, state, adopted, threads, forked_without_exec, .. } = process;
            // A process that leads its group or session equals another that leads its own.
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
fn is_like(one: &ResolvedCallSite, other: &ResolvedCallSite) -> bool {
    (&one.command_line, &one.place, &one.callers) == (&other.command_line, &other.place, &other.callers)
}

/// State, age, and position in the tree. `several`: the entry stands for several processes.
fn describe(verdict: &Verdict, process: &Process, several: bool) -> String {
    let facts = &verdict.facts;
    let mut parts = vec![process.state.clone()];
    parts.extend(process.ended.iter().find(|ended| ended.pid == process.pid).and_then(how_ended));
    if let Some(age) = process.age {
        parts.push(format!("age {}", long(age)));
    }
    if process.threads > 1 {
        parts.push(format!("{} threads", process.threads));
    }
    let id = |what: &str, id: i32| match id == process.pid {
        true if several => format!("{what} of its own"),
        true => format!("{what} {id} (its own)"),
        false => format!("{what} {id}"),
    };
    // The test's own group and session are not mentioned.
    if process.pgid != facts.pid {
        parts.push(id("pgid", process.pgid));
    }
    if is_daemon(process, facts) {
        parts.push(id("sid", process.sid));
    }
    if !process.is_test {
        if process.forked_without_exec {
            parts.push("fork, no exec".to_owned());
        }
        if process.adopted {
            parts.push("orphaned: its parent exited first".to_owned());
        }
        if verdict.allowed.contains(&process.pid) {
            parts.push("allowed".to_owned());
        }
    }
    parts.join(", ")
}

/// How a process handles signals that would end it, where that may be relevant.
fn signal_lines(verdict: &Verdict, process: &Process) -> Vec<String> {
    let signals = &process.signals;
    let names =
        |signals: &[i32]| signals.iter().map(|signal| signal_name(*signal)).collect::<Vec<_>>().join(", ");
    let ends = |signals: &[i32]| -> Vec<i32> {
        let ending = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];
        signals.iter().copied().filter(|signal| ending.contains(signal)).collect()
    };
    let mut parts = Vec::new();
    if !signals.pending.is_empty() {
        parts.push(format!("was sent {}, which it blocks", names(&signals.pending)));
    }
    let blocked: Vec<i32> =
        ends(&signals.blocked).into_iter().filter(|signal| !signals.pending.contains(signal)).collect();
    if !blocked.is_empty() {
        parts.push(format!("blocks {}", names(&blocked)));
    }
    // A shell makes background jobs ignore SIGINT, and the parent of the tests may ignore SIGHUP (nohup(1)).
    let ignored: Vec<i32> =
        ends(&signals.ignored).into_iter().filter(|signal| *signal == libc::SIGTERM).collect();
    if !ignored.is_empty() {
        parts.push(format!("ignores {}", names(&ignored)));
    }
    if parts.is_empty() {
        return Vec::new();
    }
    let from = match signals.inherited_from {
        Some(pid) if pid == verdict.facts.pid => ": inherited from the test".to_owned(),
        Some(pid) => format!(": inherited from {}", process_name(&verdict.facts, pid)),
        None => String::new(),
    };
    vec![parts.join("; ") + &from]
}

/// The exit statuses of the children that a process has not waited for.
fn ended_lines(process: &Process) -> Vec<String> {
    let children = process.ended.iter().filter(|ended| ended.pid != process.pid);
    let line = |ended: &Ended| {
        let how = how_ended(ended).unwrap_or_else(|| "ended".to_owned());
        format!("its child {} `{}` {how}, and it has not waited for it", ended.pid, escape::text(&ended.comm))
    };
    children.take(LISTED).map(line).collect()
}

/// `exited 3`, `SIGABRT (6)`; `None` if unknown.
fn how_ended(ended: &Ended) -> Option<String> {
    match (ended.code, ended.signal) {
        (Some(code), _) => Some(format!("exited {code}")),
        (None, Some(signal)) => Some(format!("was ended by {}", signal_name(signal))),
        (None, None) => None,
    }
}

/// What a thread is blocked in: `read(fd 3)  [anon_pipe_read]`, and its stack on further lines.
fn wait_line(verdict: &Verdict, process: &Process, thread: &Thread) -> String {
    if thread.syscall.is_empty() {
        return "what it waits in may not be read".to_owned();
    }
    if thread.on == On::Stopped {
        let by = match process.signals.stopped_by {
            _ if thread.state == "t" => "a debugger".to_owned(),
            // How to end a stop for terminal access is written next to it.
            Some(signal @ (libc::SIGTTIN | libc::SIGTTOU)) => {
                format!("{}: it is not in the foreground of its terminal", signal_name(signal))
            }
            _ => "a signal; SIGCONT would continue it".to_owned(),
        };
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
        On::Open { path, .. } => format!("\"{path}\""),
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
    // It differs between kernels, and helps only readers that know them.
    if let Some(name) = thread.wchan.as_ref().filter(|_| verdict.names.full) {
        let _ = write!(line, "  [{}]", escape::text(name));
    }
    match verdict.stuck_at(thread.tid) {
        Some(stuck) if stuck.proved() => line += "  <- blocked forever",
        Some(_) => line += "  <- nothing was found that wakes it",
        None => {}
    }
    line + &stack(verdict, thread)
}

/// The stack of a thread, on further lines, or nothing.
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
