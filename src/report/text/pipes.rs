//! The evidence about pipes, sockets and fds: which process has which end.

use std::collections::BTreeSet;
use std::fmt::Write;

use nix::libc;

use super::{LISTED, Text, unknown_line};
use crate::diagnosis::{Holder, Stray, Verdict};
use crate::guard::facts::{Class, Facts, Process};
use crate::proc::fds::Fd;
use crate::proc::sockets::{Peer, Socket};
use crate::recorder::call_site::ResolvedCallSite;
use crate::report::words::{not_among, pipe_end, plural, queue, unknown_peer};
use crate::report::{escape, sentence};

/// The most pipes that are listed with their ends.
const PIPES: usize = 6;

impl Text {
    /// The pipes that a thread is blocked on forever, with the holders of each end.
    pub(super) fn blocked_pipes(&mut self, verdict: &Verdict) {
        let mut reported: Vec<u64> = Vec::new();
        let facts = &verdict.facts;
        let blocked = verdict.stuck.iter().filter_map(|stuck| stuck.pipe);
        // Nothing else says what a process has open that no guard is above.
        let all = verdict.pipes.iter().filter(|_| facts.is_inspected()).map(|pipe| pipe.ino);
        let most = if facts.is_inspected() { LISTED } else { PIPES };
        for pipe in blocked.chain(all) {
            if reported.contains(&pipe) || reported.len() >= most {
                continue;
            }
            reported.push(pipe);
            self.line("");
            let is_empty = verdict.facts.pipe(pipe).and_then(|state| state.queued) == Some(0);
            let queue = queue(&verdict.facts, pipe).filter(|_| !is_empty);
            let queue = queue.map(|queue| format!("  {queue}"));
            self.line(&format!("  pipe:[{pipe}]{}", queue.unwrap_or_default()));
            for line in end_lines(verdict, pipe) {
                self.line(&format!("    {line}"));
            }
            match verdict.names.of_inode(pipe) {
                Some(site) => self.call_site("    ", "created", site, verdict.facts.pid),
                None if crate::recorder::hooks::ARE_INSTALLED && !verdict.facts.is_inspected() => {
                    self.line(&format!("    {}", unknown_line(verdict, "created by another program,")));
                }
                None => {}
            }
        }
    }

    /// The sockets that a thread is blocked on, with or without a timeout, and the holders of the other end.
    pub(super) fn sockets(&mut self, verdict: &Verdict) {
        let facts = &verdict.facts;
        let mut reported: Vec<u64> = Vec::new();
        let mut omitted = 0;
        for (process, thread) in facts.tasks() {
            let is_set = thread.on.is_set();
            // What an event loop put into its set to wake itself is nothing that the program waits for.
            let others = thread.fds().into_iter().filter(|fd| !verdict.is_wake_channel(process, thread, *fd));
            // Nothing else says what a process has open that no guard is above.
            let all = process.known_fds().iter().filter(|_| facts.is_inspected()).map(|fd| fd.fd);
            let others = others.chain(all);
            let sockets = others.filter_map(|fd| facts.socket(process.fd(fd)?.socket()?));
            for socket in sockets.collect::<Vec<_>>() {
                if reported.contains(&socket.ino) || is_set && verdict.names.is_of_runtime(socket.ino) {
                    continue;
                }
                if omitted > 0 || reported.len() >= 2 * PIPES {
                    omitted += 1;
                    continue;
                }
                reported.extend(socket.ends());
                self.line("");
                self.line(&format!("  {}", socket_line(facts, socket)));
                for line in socket_end_lines(verdict, socket) {
                    self.line(&format!("    {line}"));
                }
                let sites =
                    socket.ends().into_iter().filter_map(|ino| Some((ino, verdict.names.of_inode(ino)?)));
                let mut reported: Option<&ResolvedCallSite> = None;
                for (ino, site) in sites {
                    // Both ends of a pair are the same entry.
                    if reported.is_some_and(|reported| {
                        (&reported.place, &reported.call) == (&site.place, &site.call)
                    }) {
                        continue;
                    }
                    let how = if ino == socket.ino { "created" } else { "other end created" };
                    self.call_site("    ", how, site, facts.pid);
                    reported = Some(site);
                }
            }
        }
        if omitted > 0 {
            self.line(&format!("  .. and {}", plural(omitted, "more socket")));
        }
    }

    pub(super) fn strays(&mut self, verdict: &Verdict) {
        if verdict.strays.is_empty() {
            return;
        }
        self.line("");
        let subject = if verdict.facts.is_command() { "command" } else { "body" };
        self.line(&format!("  fds that the {subject} left open"));
        let (mut listed, mut unknown) = (0, false);
        let mut groups = groups(verdict);
        // Fds without a known line come last, together.
        groups.sort_by_key(|group| group.site.is_none());
        for group in groups.into_iter().take(LISTED) {
            listed += group.strays.len();
            match &group.strays[..] {
                // Fds that one line created in a loop are one entry.
                [first, _, _, ..] if group.site.is_some() => {
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
            match group.site {
                Some(site) => {
                    let both = if group.strays.len() == 2 { "both " } else { "" };
                    self.call_site("       ", &format!("{both}{}", site.verb()), site, verdict.facts.pid);
                    let tests = group.strays.iter().filter_map(|stray| verdict.test_of_fd(stray.fd.key));
                    let tests: BTreeSet<String> = tests.collect();
                    if !tests.is_empty() {
                        let noun = if tests.len() == 1 { "test" } else { "tests" };
                        let names: Vec<String> = tests.iter().map(|test| escape::text(test)).collect();
                        self.line(&format!("       by the {noun} {}", names.join(", ")));
                    }
                }
                None => unknown = true,
            }
        }
        if unknown && crate::recorder::hooks::ARE_INSTALLED {
            let how = if verdict.strays.iter().all(Stray::is_pipe) { "created" } else { "created or opened" };
            self.line(&format!("       {}", unknown_line(verdict, how)));
        }
        let more = (verdict.facts.stray_count as usize).saturating_sub(listed);
        if more > 0 {
            self.line(&format!("    .. and {more} more"));
        }
    }
}

/// The stray fds that one line of code created.
struct Group<'a> {
    site: Option<&'a ResolvedCallSite>,
    strays: Vec<&'a Stray>,
}

fn groups(verdict: &Verdict) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for stray in &verdict.strays {
        let site = verdict.names.of_fd(stray.fd.key);
        let same = |group: &&mut Group<'_>| match (group.site, site) {
            (Some(one), Some(other)) => {
                // The function suffices if no line is known.
                let is_known =
                    one.place.is_some() || one.function.is_some() && one.function == other.function;
                is_known && one.place == other.place && one.call == other.call
            }
            _ => false,
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.strays.push(stray),
            None => groups.push(Group { site, strays: vec![stray] }),
        }
    }
    groups
}

/// A line for each end of a pipe that a process holds.
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
    let is_known = !facts.outside.is_unseen;
    let only = |reads: bool| is_known && holders.iter().filter(|(_, fd, _)| fd.reads() == reads).count() == 1;
    let mut lines = Vec::new();
    for (pid, fd, outside) in holders.iter().take(LISTED) {
        let mut line = format!("{:<5} end  {pid} fd {}", pipe_end(fd.access), fd.fd);
        if let Some(outside) = outside {
            let _ = write!(line, " `{}`, {}", escape::outsider(outside), not_among(facts));
        }
        line += no_cloexec(fd.fd, fd.cloexec);
        // The process itself waits on another end of it.
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
    let name = socket.name.as_deref().or(socket.local.as_deref());
    let at = name.map_or_else(String::new, |name| format!(" at {}", escape::text(name)));
    match (socket.listens, &socket.remote) {
        (true, _) => drop(write!(line, ", listens{at}")),
        (false, Some(remote)) => drop(write!(line, "{at}, connected to {}", escape::text(remote))),
        (false, None) => line.push_str(&at),
    }
    if let Some(listener) = socket.listener {
        let holders = facts.holders(&|fd| fd.socket() == Some(listener));
        let whose = holders.first().map_or_else(String::new, |(pid, fd, _)| format!(", {pid} fd {}", fd.fd));
        let _ = write!(line, ", accepted from socket:[{listener}]{whose}");
    }
    match (socket.queued, socket.listens) {
        (Some(count @ 1..), true) => {
            let _ = write!(line, ", {} to accept", plural(count as usize, "connection"));
        }
        (Some(count @ 1..), false) => {
            let _ = write!(line, ", {} to read", plural(count as usize, "byte"));
        }
        (Some(0) | None, _) => {}
    }
    if let Peer::Socket { ino } = socket.peer
        && let Some(count) = facts.socket(ino).and_then(|peer| peer.queued).filter(|count| *count > 0)
    {
        let _ = write!(line, ", {} queued at the other end", plural(count as usize, "byte"));
    }
    line
}

/// A line for each fd of this socket or of its other end.
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
                let _ = write!(line, " `{}`, {}", escape::outsider(outside), not_among(facts));
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
            lines.push(format!("{end}  no process that was found{inode}"));
        }
    };
    list("this end ", "", holders(socket.ino));
    match &socket.peer {
        Peer::Socket { ino } => list("other end", &format!(" (socket:[{ino}])"), holders(*ino)),
        Peer::Queue { ino } => {
            list("waits to be accepted from", &format!(" (socket:[{ino}])"), holders(*ino));
        }
        Peer::None if socket.listens => {}
        Peer::None => lines.push("other end  none: not connected, or closed".to_owned()),
        Peer::Unknown { .. } if socket.listens => {}
        Peer::Unknown { why } => lines.push(format!("other end  not known: {}", unknown_peer(*why))),
    }
    lines
}

pub(super) fn pipe_line(fd: &Fd, holders: &[Holder], facts: &Facts) -> String {
    format!(
        "{}  {}  {} end{}; {}",
        fd.fd,
        fd.target,
        pipe_end(fd.access),
        no_cloexec(fd.fd, fd.cloexec),
        other_end(fd.access, holders, facts)
    )
}

/// Not mentioned for the standard streams, which are meant to be inherited.
pub(super) fn no_cloexec(fd: i32, cloexec: bool) -> &'static str {
    if cloexec || fd <= 2 { "" } else { ", no CLOEXEC" }
}

fn stray_line(stray: &Stray, facts: &Facts) -> String {
    let fd = &stray.fd;
    let cloexec = no_cloexec(fd.fd, fd.cloexec);
    let keeper =
        sentence::keeper(&fd.held_by, fd.fd).map_or_else(String::new, |keeper| format!("; {keeper}"));
    if stray.is_pipe() {
        let others = other_end(fd.access, &stray.holders, facts);
        format!("{}  {}  {} end{cloexec}; {others}{keeper}", fd.fd, fd.target, pipe_end(fd.access))
    } else {
        let socket = stray
            .socket
            .as_ref()
            .map_or_else(String::new, |socket| format!("  {}", escape::text(&sentence::socket(socket))));
        format!("{}  {}{socket}{cloexec}{keeper}", fd.fd, escape::text(&fd.target))
    }
}

/// The holders of the other end of a pipe, and the other holders of this one.
fn other_end(access: i32, holders: &[Holder], facts: &Facts) -> String {
    let name = |holder: &Holder| {
        // Stragglers are not in the tree.
        let gone = |process: &&Process| process.pid == holder.pid && process.class == Class::Straggler;
        match facts.processes.iter().find(gone) {
            _ if holder.pid == facts.pid => format!("test fd {}", holder.fd),
            Some(process) => format!(
                "{} `{}`, which exited within the grace, fd {}",
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
    let mut text = if other.is_empty() && access == libc::O_RDWR {
        "other end: the same fd".to_owned()
    } else if other.is_empty() {
        "other end: closed, or held outside the test".to_owned()
    } else {
        format!("other end: {}", list(&other))
    };
    if !same.is_empty() {
        let _ = write!(text, "; this end also: {}", list(&same));
    }
    text
}
