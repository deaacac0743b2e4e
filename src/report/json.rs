//! The report as JSON: one object a test and line, schema 1. A key with nothing to say is `null`
//! or `[]`, never absent.

use std::time::Duration;

use serde_json::{Value, json};

use crate::diagnosis::{Cause, Holder, Stuck, Verdict};
use crate::facts::{Class, Process};
use crate::outcome::Body;
use crate::proc::fds::end;

/// Writes the line of a test that ran.
pub(crate) fn line(verdict: &Verdict) -> String {
    let facts = &verdict.facts;
    let body = match facts.body {
        Body::Unfinished => "unfinished",
        Body::Passed => "passed",
        Body::Panicked | Body::DidNotPanic | Body::PanickedOtherwise { .. } => "panicked",
        Body::Error => "error",
    };
    let causes: Vec<&str> = verdict.causes().into_iter().map(Cause::name).collect();
    object(
        &verdict.name,
        if verdict.failed() { "failed" } else { "passed" },
        &causes,
        [
            seconds(facts.time),
            json!({ "outcome": body, "seconds": facts.body_time.map(seconds) }),
            facts.processes.iter().map(|found| process(verdict, found)).collect(),
            verdict
                .strays
                .iter()
                .map(|stray| {
                    let fd = &stray.fd;
                    json!({
                        "pid": facts.pid,
                        "fd": fd.fd,
                        "kind": kind(&fd.target),
                        "end": stray.is_pipe().then(|| end(fd.access)),
                        "inode": fd.ino,
                        "cloexec": fd.cloexec,
                        "created_at": verdict.origin_of_inode(fd.ino).and_then(|origin| origin.place.as_deref()),
                        "holders": stray.holders.iter().map(holder).collect::<Value>(),
                    })
                })
                .collect(),
            facts.processes.iter().flat_map(|process| waits(verdict, process)).collect(),
            facts.survivors.iter().map(|survivor| json!(survivor.pid)).collect(),
        ],
    )
}

/// Writes the line of a test that was not run.
pub(crate) fn ignored(name: &str) -> String {
    let none = || json!([]);
    object(
        name,
        "ignored",
        &[],
        [json!(0.0), json!({ "outcome": null, "seconds": null }), none(), none(), none(), none()],
    )
}

fn object(name: &str, outcome: &str, causes: &[&str], rest: [Value; 6]) -> String {
    let [seconds, body, processes, fds, waits, survivors] = rest;
    json!({
        "schema": 1,
        "test": name,
        "outcome": outcome,
        "causes": causes,
        "seconds": seconds,
        "body": body,
        "processes": processes,
        "fds": fds,
        "waits": waits,
        "survivors": survivors,
    })
    .to_string()
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
        "spawned_at": verdict.origin_of_process(process.pid).and_then(|origin| origin.place.as_deref()),
        "killed": process.killed,
    })
}

/// The waits of a process that was killed, a value a thread.
fn waits<'a>(verdict: &'a Verdict, process: &'a Process) -> impl Iterator<Item = Value> + 'a {
    let threads = process.tasks.iter().filter(|_| process.class == Class::Leaked);
    threads.map(move |thread| {
        let stuck = verdict.stuck_at(thread.tid);
        let fd = match thread.fds()[..] {
            [fd] => Some(fd),
            _ => None,
        };
        let proved = stuck.is_some_and(Stuck::proved);
        json!({
            "pid": process.pid,
            "tid": thread.tid,
            "syscall": (!thread.syscall.is_empty()).then_some(&thread.syscall),
            "fd": fd,
            "inode": fd.and_then(|fd| process.pipe(fd)),
            "on": verdict.names.locks.get(&thread.tid),
            "proved": proved,
            "because": stuck.filter(|_| proved).map(|stuck| stuck.because.name()),
        })
    })
}

fn holder(holder: &Holder) -> Value {
    json!({ "pid": holder.pid, "fd": holder.fd, "end": end(holder.access) })
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
