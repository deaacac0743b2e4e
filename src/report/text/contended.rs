//! The evidence about file locks, FIFOs, terminals and shared memory: their waiters and their holders.

use std::fmt::Write;

use nix::libc;

use super::pipes::no_cloexec;
use super::{LISTED, Text};
use crate::diagnosis::Verdict;
use crate::guard::contended::{FdHolder, Fifo, FileLock, SharedMemory, Terminal, Waiter};
use crate::report::words::{not_among, plural, process, process_name};
use crate::report::{escape, sentence};

impl Text {
    pub(super) fn contended(&mut self, verdict: &Verdict) {
        let found = &verdict.facts.contended;
        let blocks: Vec<Vec<String>> = (found.locks.iter().map(|lock| lock_lines(verdict, lock)))
            .chain(found.fifos.iter().map(|fifo| fifo_lines(verdict, fifo)))
            .chain(found.terminals.iter().map(|terminal| terminal_lines(verdict, terminal)))
            .chain(found.memory.iter().map(|memory| memory_lines(verdict, memory)))
            .collect();
        for lines in &blocks {
            self.line("");
            for line in lines {
                self.line(&format!("  {line}"));
            }
        }
    }
}

/// `held by  17 fd 3, no CLOEXEC: inherited`, a line for each.
fn holder_lines(
    verdict: &Verdict,
    what: &str,
    holders: &[FdHolder],
    more: impl Fn(&FdHolder) -> String,
) -> Vec<String> {
    let line = |holder: &FdHolder| {
        let mut line = format!("  {what}  {} fd {}", holder.pid, holder.fd);
        if let Some(outside) = &holder.outside {
            let _ = write!(line, " `{}`, {}", escape::outsider(outside), not_among(&verdict.facts));
        }
        line + no_cloexec(holder.fd, holder.cloexec) + &opened(verdict, &holder.keys) + &more(holder)
    };
    let mut lines: Vec<String> = holders.iter().take(LISTED).map(line).collect();
    if holders.len() > LISTED {
        lines.push(format!("  .. and {} more", holders.len() - LISTED));
    }
    lines
}

/// `, opened at tests/lock.rs:31:10`, if that is known.
fn opened(verdict: &Verdict, keys: &[u64]) -> String {
    let place = sentence::opened(verdict, keys);
    place.map_or_else(String::new, |place| format!(", opened at {place}"))
}

/// The waiting threads: `waited for by  17 fd 5`.
fn waiter_lines(
    verdict: &Verdict,
    how: &str,
    waiters: &[Waiter],
    more: impl Fn(&Waiter) -> String,
) -> Vec<String> {
    let line = |waiter: &Waiter| {
        let thread = if waiter.tid == waiter.pid { String::new() } else { format!(" thread {}", waiter.tid) };
        let fd = waiter.fd.map_or_else(String::new, |fd| format!(" fd {fd}"));
        let opened = opened(verdict, &waiter.keys);
        format!("  {how}  {}{thread}{fd}{opened}{}", waiter.pid, more(waiter))
    };
    let mut lines: Vec<String> = waiters.iter().take(LISTED).map(line).collect();
    if waiters.len() > LISTED {
        lines.push(format!("  .. and {} more", waiters.len() - LISTED));
    }
    lines
}

fn lock_lines(verdict: &Verdict, lock: &FileLock) -> Vec<String> {
    let kind = match lock.kind.as_str() {
        "FLOCK" => "flock",
        "POSIX" => "fcntl or lockf: of a process",
        "OFDLCK" => "fcntl: of an open file",
        other => other,
    };
    let by = match lock.taken_by {
        None => String::new(),
        Some(pid) if pid == verdict.facts.pid => ", taken by the test".to_owned(),
        Some(pid) => format!(", taken by {}", process_name(&verdict.facts, pid)),
    };
    let mut lines = vec![format!("lock on {} ({kind}){by}", escape::text(&lock.path))];
    lines.extend(holder_lines(verdict, "held by   ", &lock.holders, |holder| {
        match lock.taken_by.is_some_and(|pid| pid != holder.pid) {
            true => ", inherited".to_owned(),
            false => String::new(),
        }
    }));
    if lock.holders.is_empty() {
        lines.push("  held by     no process that was found".to_owned());
    }
    lines.extend(waiter_lines(verdict, "wanted by ", &lock.waiters, |_| String::new()));
    lines
}

/// What an fd is open for.
fn mode(access: i32) -> &'static str {
    match access & libc::O_ACCMODE {
        libc::O_RDONLY => "reading",
        libc::O_WRONLY => "writing",
        _ => "both",
    }
}

fn fifo_lines(verdict: &Verdict, fifo: &Fifo) -> Vec<String> {
    let mut lines = vec![format!("FIFO {}", escape::text(&fifo.path))];
    lines.extend(holder_lines(verdict, "open in  ", &fifo.holders, |holder| {
        let blocked =
            fifo.waiters.iter().any(|waiter| (waiter.pid, waiter.fd) == (holder.pid, Some(holder.fd)));
        let blocked = if blocked { "   <- blocked on it" } else { "" };
        format!(", for {}{blocked}", mode(holder.access))
    }));
    let opening: Vec<Waiter> = fifo.waiters.iter().filter(|waiter| waiter.fd.is_none()).cloned().collect();
    lines.extend(waiter_lines(verdict, "opened by", &opening, |waiter| {
        let needs = match mode(waiter.access) {
            "reading" => "writing",
            _ => "reading",
        };
        format!(" for {}: waits until a process opens it for {needs}", mode(waiter.access))
    }));
    let has = |wanted: &[&str]| fifo.holders.iter().any(|holder| wanted.contains(&mode(holder.access)));
    for (waits_for, wanted) in [("reading", "writing"), ("writing", "reading")] {
        let is_wanted = fifo.waiters.iter().any(|waiter| mode(waiter.access) == waits_for);
        if is_wanted && !has(&[wanted, "both"]) {
            lines.push(format!("  no process that was found has it open for {wanted}"));
        }
    }
    lines
}

fn terminal_lines(verdict: &Verdict, terminal: &Terminal) -> Vec<String> {
    let mut line = format!("terminal /dev/pts/{}", terminal.index);
    for (queued, at) in [(terminal.to_master, "at its master"), (terminal.to_slave, "from its master")] {
        if let Some(count) = queued.filter(|count| *count > 0) {
            let _ = write!(line, ", {} to read {at}", plural(count as usize, "byte"));
        }
    }
    if terminal.is_full {
        line.push_str(", full: a write waits until its master is read");
    }
    let mut lines = vec![line];
    let blocked = |holder: &FdHolder| {
        let waits = |waiter: &Waiter| (waiter.pid, waiter.fd) == (holder.pid, Some(holder.fd));
        if terminal.waiters.iter().any(waits) { "   <- blocked on it".to_owned() } else { String::new() }
    };
    lines.extend(holder_lines(verdict, "master  ", &terminal.masters, blocked));
    if terminal.masters.is_empty() {
        lines.push("  master    no process that was found".to_owned());
    }
    lines.extend(holder_lines(verdict, "terminal", &terminal.slaves, blocked));
    if let Some(group) = terminal.foreground {
        let whose = if process(&verdict.facts, group).is_some() {
            format!(", {}", process_name(&verdict.facts, group))
        } else {
            String::new()
        };
        lines.push(format!("  foreground process group {group}{whose}"));
    }
    for stopped in terminal.waiters.iter().filter(|waiter| waiter.fd.is_none()) {
        lines.push(format!("  {} used it in the background, and was stopped for that", stopped.pid));
    }
    lines
}

fn memory_lines(verdict: &Verdict, memory: &SharedMemory) -> Vec<String> {
    let mut lines = vec![format!("shared memory {}", escape::text(&memory.path))];
    for mapper in memory.mapped_by.iter().take(LISTED) {
        let name = match &mapper.outside {
            Some(outside) => {
                format!("{} `{}`, {}", mapper.pid, escape::outsider(outside), not_among(&verdict.facts))
            }
            None if mapper.pid == verdict.facts.pid => format!("{} (the test)", mapper.pid),
            None => process_name(&verdict.facts, mapper.pid),
        };
        let waits = memory.waiters.iter().any(|waiter| waiter.pid == mapper.pid);
        lines
            .push(format!("  mapped by  {name}{}", if waits { "   <- waits for a futex in it" } else { "" }));
    }
    if memory.mapped_by.len() > LISTED {
        lines.push(format!("  .. and {} more", memory.mapped_by.len() - LISTED));
    }
    lines
}
