//! The report as JSON: one object a test and line, schema 1. A key with nothing to say is `null`
//! or `[]`, never absent. `JSON.md` tells users what each key means.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::diagnosis::{Allow, By, Cause, Finding, Holder, Origin, Stray, Stuck, Verdict};
use crate::facts::{Class, Process};
use crate::outcome::{Body, StrayFd};
use crate::proc::fds::{Fd, end};
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::Thread;

/// Writes the line of a test that ran.
pub(crate) fn line(verdict: &Verdict) -> String {
    let facts = &verdict.facts;
    let body = match facts.body {
        Body::Unfinished => "unfinished",
        Body::Passed | Body::PanickedAsExpected => "passed",
        Body::Panicked | Body::DidNotPanic | Body::PanickedOtherwise { .. } => "panicked",
        Body::Error => "error",
    };
    let ended = verdict.origin_of_end();
    let leaked = facts.tasks().filter(|(process, _)| process.class == Class::Leaked);
    let causes: Vec<&str> = verdict.causes().into_iter().map(Cause::name).collect();
    json!({
        "schema": 1,
        "test": verdict.name,
        "pid": (facts.pid != 0).then_some(facts.pid),
        "outcome": if verdict.failed() { "failed" } else { "passed" },
        "causes": causes,
        "findings": list(&verdict.findings, finding),
        "warnings": list(&verdict.warnings, finding),
        "seconds": seconds(facts.time),
        "body": { "outcome": body, "seconds": facts.body_time.map(seconds) },
        "processes": list(&facts.processes, |found| process(verdict, found)),
        "fds": list(&verdict.strays, |stray| fd(verdict, stray)),
        "pipes": list(inodes(verdict), |ino| pipe(verdict, ino)),
        "sockets": list(&facts.sockets, |found| socket(verdict, found)),
        "waits": list(leaked, |(process, thread)| wait(verdict, process, thread)),
        "survivors": list(&facts.survivors, |survivor| json!(survivor.pid)),
        "ended_at": ended.and_then(|origin| origin.place.as_deref()),
        "ended": ended.map(made),
        "notes": facts.notes,
    })
    .to_string()
}

/// Writes the line of a test that was not run.
pub(crate) fn ignored(name: &str) -> String {
    json!({
        "schema": 1,
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
        "waits": [],
        "survivors": [],
        "ended_at": null,
        "ended": null,
        "notes": [],
    })
    .to_string()
}

fn list<T>(of: impl IntoIterator<Item = T>, value: impl FnMut(T) -> Value) -> Value {
    of.into_iter().map(value).collect()
}

fn finding(finding: &Finding) -> Value {
    let allow: Vec<String> = finding.allow.iter().map(Allow::to_string).collect();
    json!({
        "cause": finding.cause.map(Cause::name),
        "sentence": finding.sentence,
        "fix": finding.fix,
        "allow": (!allow.is_empty()).then(|| allow.join(", ")),
    })
}

fn seconds(time: Duration) -> Value {
    json!((time.as_secs_f64() * 1e6).round() / 1e6)
}

fn process(verdict: &Verdict, process: &Process) -> Value {
    let class = match process.class {
        Class::Leaked => "leaked",
        Class::Straggler => "straggler",
        Class::Unwaited => "unwaited",
    };
    let origin = verdict.origin_of_process(process.pid);
    let unread = verdict.unread.iter().find(|unread| unread.pid == process.pid);
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
        "lineage": process.lineage,
        "spawned_at": origin.and_then(|origin| origin.place.as_deref()),
        "spawned": origin.map(made),
        "ended_parent": verdict.ended_parent(process.pid).map(|(ended, origin)| json!({
            "pid": ended.parent,
            "cmdline": origin.command_line,
            "sure": ended.by == By::Session,
            "spawned_at": origin.place,
            "spawned": made(origin),
        })),
        "unread_fds": unread.map(|unread| &unread.fds[..]).unwrap_or_default(),
        "killed": process.killed,
    })
}

fn fd(verdict: &Verdict, stray: &Stray) -> Value {
    let fd = &stray.fd;
    let origin = verdict.origin_of_inode(fd.ino);
    json!({
        "pid": verdict.facts.pid,
        "fd": fd.fd,
        "kind": kind(&fd.target),
        "target": fd.target,
        "end": stray.is_pipe().then(|| end(fd.access)),
        "inode": fd.ino,
        "cloexec": fd.cloexec,
        "created_at": origin.and_then(|origin| origin.place.as_deref()),
        "created": origin.map(made),
        "holders": list(&stray.holders, |other| holder(other, None)),
    })
}

/// The call that made a process or fds, or ended the test, and from where.
fn made(origin: &Origin) -> Value {
    let stack = if origin.stack.is_empty() {
        let first = [&origin.place, &origin.function].into_iter().flatten().cloned().collect::<Vec<_>>();
        std::iter::once(first.join(" ")).chain(origin.callers.iter().cloned()).collect()
    } else {
        origin.stack.clone()
    };
    json!({
        "call": origin.call,
        "pid": origin.maker,
        "thread": (!origin.thread.is_empty()).then_some(&origin.thread),
        "threads": (origin.threads > 0).then_some(origin.threads),
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
    let origin = verdict.origin_of_inode(ino);
    json!({
        "inode": ino,
        "queued": state.and_then(|state| state.queued),
        "capacity": state.and_then(|state| state.capacity),
        "created_at": origin.and_then(|origin| origin.place.as_deref()),
        "created": origin.map(made),
        "holders": inside.chain(outside).collect::<Value>(),
    })
}

fn socket(verdict: &Verdict, socket: &Socket) -> Value {
    let facts = &verdict.facts;
    let (peer, why) = match &socket.peer {
        Peer::Socket { ino } | Peer::Queue { ino } => (Some(*ino), None),
        Peer::Nobody => (None, None),
        Peer::Unknown { why } => (None, Some(why)),
    };
    let held = |(pid, fd, outside): (i32, &Fd, Option<&str>)| {
        let Fd { fd, access, cloexec, .. } = *fd;
        holder(&Holder { pid, fd, access, cloexec }, outside)
    };
    let holders = facts.holders(&|fd| fd.socket() == Some(socket.ino));
    let origin = verdict.origin_of_inode(socket.ino);
    json!({
        "inode": socket.ino,
        "kind": socket.what(),
        "listens": socket.listens,
        "name": socket.name,
        "queued": socket.queued,
        "peer": peer,
        "peer_unknown": why,
        "created_at": origin.and_then(|origin| origin.place.as_deref()),
        "created": origin.map(made),
        "holders": list(holders, held),
    })
}

/// One end of a pipe, or a socket, in somebody's hands; `outside` is the name of one that is not of the test.
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
        "doubts": stuck.map(|stuck| &stuck.doubts[..]).unwrap_or_default(),
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
