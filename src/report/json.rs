//! The report as JSON: one object per test and line, schema 2. A key without a value is `null` or `[]`, never
//! absent. `JSON.md` documents every key.

mod contended;
#[cfg(feature = "__engine")]
mod inspected;
mod kinds;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

#[cfg(feature = "__engine")]
pub(crate) use inspected::inspected;

use contended::{fifo, lock, memory, terminal};

use super::words::{end_of_output, unknown_peer};
use super::{allow, remedy, sentence};
use crate::diagnosis::{Cause, Finding, Holder, Relation, Stray, Stuck, Verdict};
use crate::guard::facts::{Class, Process};
use crate::guard::report_page::{Body, End, HeldBy, StrayFd};
use crate::proc::fds::{Fd, end};
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::Thread;
use crate::recorder::call_site::{ResolvedCallSite, SourceLocation};

/// Writes the line of a test that ran, with its output if that was caught.
pub(crate) fn line(verdict: &Verdict, output: Option<&str>) -> String {
    let mut line = value(verdict);
    line["output"] = output.map(end_of_output).into();
    line.to_string()
}

fn value(verdict: &Verdict) -> Value {
    let facts = &verdict.facts;
    let body = match facts.body {
        // A command is judged as a whole: its exit code is in `ended`.
        Body::OfCommand if facts.end == (End::Exited { code: 0 }) => "passed",
        Body::OfCommand if matches!(facts.end, End::Exited { .. } | End::Signalled { .. }) => "error",
        Body::Unfinished | Body::OfCommand | Body::Inspected => "unfinished",
        Body::Passed | Body::PanickedAsExpected => "passed",
        Body::Panicked { .. } | Body::DidNotPanic | Body::PanickedOtherwise { .. } => "panicked",
        Body::Error => "error",
    };
    let ended = verdict.call_of_end();
    let leaked = facts.tasks().filter(|(process, _)| process.class == Class::Leaked);
    let causes: Vec<&str> = verdict.causes().into_iter().map(Cause::name).collect();
    json!({
        "schema": 2,
        "test": verdict.name,
        "pid": (facts.pid != 0).then_some(facts.pid),
        "outcome": if verdict.failed() { "failed" } else { "passed" },
        "causes": causes,
        "findings": list(&verdict.findings, |found| finding(verdict, found)),
        "warnings": list(&verdict.warnings, |found| finding(verdict, found)),
        "seconds": seconds(facts.time),
        "body": { "outcome": body, "seconds": facts.body_time.map(seconds) },
        "processes": list(&facts.processes, |found| process(verdict, found)),
        "fds": list(&verdict.strays, |stray| fd(verdict, stray)),
        "pipes": list(inodes(verdict), |ino| pipe(verdict, ino)),
        "sockets": list(&facts.sockets, |found| socket(verdict, found)),
        "locks": list(&facts.contended.locks, |found| lock(verdict, found)),
        "fifos": list(&facts.contended.fifos, |found| fifo(verdict, found)),
        "terminals": list(&facts.contended.terminals, |found| terminal(verdict, found)),
        "shared_memory": list(&facts.contended.memory, memory),
        "waits": list(leaked, |(process, thread)| wait(verdict, process, thread)),
        "survivors": list(facts.survivors.iter().filter(|one| one.pid != 0), |survivor| json!(survivor.pid)),
        "kept": if verdict.keeps() { &facts.kept[..] } else { &[] },
        "ended_at": ended.and_then(|site| site.place.as_ref()).map(SourceLocation::to_string),
        "ended": ended.map(made),
        "notes": sentence::notes(verdict),
        "output": null,
    })
}

/// Writes the line of a test that was not run.
pub(crate) fn ignored(name: &str) -> String {
    json!({
        "schema": 2,
        "test": name,
        "pid": null,
        "outcome": "ignored",
        "causes": [],
        "findings": [],
        "warnings": [],
        "seconds": 0.0,
        "body": { "outcome": null, "seconds": null },
        "processes": [],
        "fds": [],
        "pipes": [],
        "sockets": [],
        "locks": [],
        "fifos": [],
        "terminals": [],
        "shared_memory": [],
        "waits": [],
        "survivors": [],
        "kept": [],
        "ended_at": null,
        "ended": null,
        "notes": [],
        "output": null,
    })
    .to_string()
}

fn list<T>(of: impl IntoIterator<Item = T>, value: impl FnMut(T) -> Value) -> Value {
    of.into_iter().map(value).collect()
}

fn finding(verdict: &Verdict, finding: &Finding) -> Value {
    let (kind, fields) = kinds::of(verdict, &finding.kind);
    json!({
        "cause": finding.cause.map(Cause::name),
        "kind": kind,
        "fields": fields,
        "sentence": sentence::of(verdict, finding),
        "fix": remedy::of(verdict, finding),
        "allow": allow::arguments(finding),
    })
}

fn seconds(time: Duration) -> Value {
    json!((time.as_secs_f64() * 1e6).round() / 1e6)
}

fn process(verdict: &Verdict, process: &Process) -> Value {
    let class = match process.class {
        Class::Leaked if verdict.facts.is_inspected() => "running",
        Class::Leaked => "leaked",
        Class::Straggler => "straggler",
        Class::Unwaited => "unwaited",
    };
    let site = verdict.names.of_process(process.pid);
    let unread = verdict.unwatched.iter().find(|unread| unread.pid == process.pid);
    let children = process.ended.iter().filter(|ended| ended.pid != process.pid);
    let own_end = process.ended.iter().find(|ended| ended.pid == process.pid);
    json!({
        "pid": process.pid,
        "class": class,
        "cmdline": process.command_line,
        "comm": process.comm,
        "state": process.state,
        "age": process.age.map(seconds),
        "pgid": process.pgid,
        "sid": process.sid,
        "threads": process.threads,
        "adopted": process.adopted,
        "forked_without_exec": process.forked_without_exec,
        "test": verdict.test_of(process.pid),
        "lineage": process.lineage,
        "spawned_at": site.and_then(|site| site.place.as_ref()).map(SourceLocation::to_string),
        "spawned": site.map(made),
        "ended_parent": verdict.exited_parent(process.pid).map(|(exited, site)| json!({
            "pid": exited.parent,
            "cmdline": site.command_line,
            "sure": exited.relation == Relation::Session,
            "spawned_at": site.place.as_ref().map(SourceLocation::to_string),
            "spawned": made(site),
        })),
        "unread_fds": unread.map(|unread| &unread.fds[..]).unwrap_or_default(),
        "killed": process.killed,
        "exit": own_end.and_then(|ended| ended.code),
        "exit_signal": own_end.and_then(|ended| ended.signal),
        "ended_children": list(children, |ended| json!({
            "pid": ended.pid, "comm": ended.comm, "exit": ended.code, "exit_signal": ended.signal,
        })),
        "signals": {
            "blocked": process.signals.blocked,
            "ignored": process.signals.ignored,
            "pending": process.signals.pending,
            "inherited_from": process.signals.inherited_from,
            "stopped_by": process.signals.stopped_by,
        },
    })
}

fn fd(verdict: &Verdict, stray: &Stray) -> Value {
    let fd = &stray.fd;
    let site = verdict.names.of_fd(fd.key);
    json!({
        "pid": verdict.facts.pid,
        "fd": fd.fd,
        "kind": kind(&fd.target),
        "target": fd.target,
        "end": stray.is_pipe().then(|| end(fd.access)),
        "inode": fd.ino,
        "cloexec": fd.cloexec,
        "held_by": match fd.held_by {
            HeldBy::Table => "table",
            HeldBy::Thread { .. } => "thread",
            HeldBy::Message => "message",
            HeldBy::Ring => "ring",
            HeldBy::Opaque => "unknown",
        },
        "created_at": site.and_then(|site| site.place.as_ref()).map(SourceLocation::to_string),
        "created": site.map(made),
        "test": verdict.test_of_fd(fd.key),
        "holders": list(&stray.holders, |other| holder(other, None)),
    })
}

/// The call that created a process or fds, or ended the test, with its place.
fn made(site: &ResolvedCallSite) -> Value {
    let stack = if site.stack.is_empty() {
        let first = [site.place.as_ref().map(SourceLocation::to_string), site.function.clone()];
        let first: Vec<String> = first.into_iter().flatten().collect();
        std::iter::once(first.join(" ")).chain(site.callers.iter().cloned()).collect()
    } else {
        site.stack.clone()
    };
    json!({
        "call": site.call,
        "pid": site.creator,
        "thread": (!site.thread.is_empty()).then_some(&site.thread),
        "threads": (site.threads > 0).then_some(site.threads),
        "stack": stack,
    })
}

/// The pipes that leaked processes hold, that a thread is blocked on, or that the body left open.
fn inodes(verdict: &Verdict) -> BTreeSet<u64> {
    let held = verdict.pipes.iter().map(|pipe| pipe.ino);
    let blocked = verdict.stuck.iter().filter_map(|stuck| stuck.pipe);
    let stray = verdict.strays.iter().filter(|stray| stray.is_pipe()).map(|stray| stray.fd.ino);
    held.chain(blocked).chain(stray).collect()
}

fn pipe(verdict: &Verdict, ino: u64) -> Value {
    let facts = &verdict.facts;
    let state = facts.pipe(ino);
    let held = verdict.pipes.iter().filter(|pipe| pipe.ino == ino).flat_map(|pipe| &pipe.holders);
    let strays = verdict.strays.iter().filter(|stray| stray.is_pipe() && stray.fd.ino == ino).map(|stray| {
        let StrayFd { fd, access, cloexec, .. } = stray.fd;
        Holder { pid: facts.pid, fd, access, cloexec }
    });
    let outside = facts.outside.holders.iter().flat_map(|outsider| {
        let ends = outsider.fds.iter().filter(|fd| fd.pipe() == Some(ino));
        ends.map(|fd| {
            let Fd { fd, access, cloexec, .. } = *fd;
            holder(&Holder { pid: outsider.pid, fd, access, cloexec }, Some(&outsider.comm))
        })
    });
    let inside = held.cloned().chain(strays).map(|inside| holder(&inside, None));
    let site = verdict.names.of_inode(ino);
    json!({
        "inode": ino,
        "queued": state.and_then(|state| state.queued),
        "capacity": state.and_then(|state| state.capacity),
        "created_at": site.and_then(|site| site.place.as_ref()).map(SourceLocation::to_string),
        "created": site.map(made),
        "holders": inside.chain(outside).collect::<Value>(),
    })
}

fn socket(verdict: &Verdict, socket: &Socket) -> Value {
    let facts = &verdict.facts;
    let (peer, why) = match &socket.peer {
        Peer::Socket { ino } | Peer::Queue { ino } => (Some(*ino), None),
        Peer::None => (None, None),
        Peer::Unknown { why } => (None, Some(unknown_peer(*why))),
    };
    let held = |(pid, fd, outside): (i32, &Fd, Option<&str>)| {
        let Fd { fd, access, cloexec, .. } = *fd;
        holder(&Holder { pid, fd, access, cloexec }, outside)
    };
    let holders = facts.holders(&|fd| fd.socket() == Some(socket.ino));
    let site = verdict.names.of_inode(socket.ino);
    json!({
        "inode": socket.ino,
        "kind": socket.what(),
        "listens": socket.listens,
        "name": socket.name,
        "local": socket.local,
        "remote": socket.remote,
        "listener": socket.listener,
        "queued": socket.queued,
        "peer": peer,
        "peer_unknown": why,
        "created_at": site.and_then(|site| site.place.as_ref()).map(SourceLocation::to_string),
        "created": site.map(made),
        "holders": list(holders, held),
    })
}

/// A process's fd of a pipe or socket; `outside` is the name of a process that does not belong to the test.
fn holder(holder: &Holder, outside: Option<&str>) -> Value {
    json!({
        "pid": holder.pid,
        "fd": holder.fd,
        "end": end(holder.access),
        "cloexec": holder.cloexec,
        "outside": outside,
    })
}

/// What a thread of a process waits for.
fn wait(verdict: &Verdict, process: &Process, thread: &Thread) -> Value {
    let stuck = verdict.stuck_at(thread.tid);
    let fd = match thread.fds()[..] {
        [fd] => Some(fd),
        _ => None,
    };
    let proved = stuck.is_some_and(Stuck::proved);
    json!({
        "pid": process.pid,
        "tid": thread.tid,
        "thread": thread.name,
        "syscall": (!thread.syscall.is_empty()).then_some(&thread.syscall),
        "wchan": thread.wchan,
        "fd": fd,
        "inode": fd.and_then(|fd| process.fd(fd)).and_then(Fd::pipe_or_socket),
        "on": verdict.names.locks.get(&thread.tid),
        "stack": verdict.names.stacks.get(&thread.tid).map(Vec::as_slice).unwrap_or_default(),
        "proved": proved,
        "because": stuck.filter(|_| proved).map(|stuck| stuck.because.name()),
        "doubts": stuck.map(|stuck| stuck.doubts.iter().map(sentence::doubt).collect::<Vec<_>>()).unwrap_or_default(),
    })
}

/// `pipe`, `socket`, `eventfd` or `file`.
fn kind(target: &str) -> &str {
    if let Some(kind) = target.strip_prefix("anon_inode:") {
        return kind.trim_matches(['[', ']']);
    }
    match target.split_once(":[") {
        Some((kind, _)) => kind,
        None => "file",
    }
}
