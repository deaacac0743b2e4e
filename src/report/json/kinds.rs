//! The kinds of findings in JSON, each with its fields.

use serde_json::{Map, Value, json};

use super::super::allow;
use super::seconds;
use crate::diagnosis::{
    AtSocket, CodePlace, Creator, DeadChild, Deadlock, Ending, Kind, Link, LinkOn, RunningTest, RuntimeWait,
    Shape, SocketRole, StraySocket, Verdict, Wait, WaitsFor, WaitsOn, Way,
};
use crate::guard::facts::LeftMount;
use crate::proc::fds::end;
use crate::proc::threads::Running;
use crate::recorder::call_site::SourceLocation;
use crate::report::failure;
use crate::report::sentence;

/// Every kind with the names of its fields, as JSON.md lists them.
pub(super) const KINDS: [(&str, &[&str]); 26] = [
    ("deadlock", &["pid", "because", "proved", "shape", "chain", "doubts", "also"]),
    ("more_deadlocks", &["count"]),
    ("waits_for", &["tid", "on", "inodes", "fds", "wakers", "chain", "ring", "dead"]),
    ("own_binary", &["pid", "filters", "place"]),
    ("blocked_signal", &["pid", "signals", "place"]),
    ("inherited_by_mistake", &["pid", "inode", "fds", "ends", "place", "others"]),
    ("unwatched_lifeline", &["pid", "fds"]),
    ("panicked", &["message", "place"]),
    ("did_not_panic", &[]),
    ("panicked_otherwise", &["message"]),
    ("returned_error", &["message"]),
    ("ended_early", &["code", "when", "call", "place"]),
    ("child_returned", &["pid", "more", "place"]),
    ("signalled", &["signal", "body_returned", "place"]),
    ("timed_out", &["limit", "body_returned", "place", "tests"]),
    ("cut", &["ran", "body_returned", "place", "tests"]),
    ("not_guarded", &["operation", "errno", "why"]),
    ("leaked_process", &["pid", "others", "grace", "creator", "creator_pid", "place"]),
    ("elusive_process", &["grace"]),
    ("stray_fd", &["count", "fds", "inodes", "sockets", "threads", "place"]),
    ("unlisted_fds", &["count"]),
    ("unwaited", &["pids", "place"]),
    ("threads", &["count", "threads"]),
    ("left_mounts", &["mounts"]),
    ("unused_allowances", &["arguments"]),
    ("threaded_fork", &["pid", "creator", "thread", "threads", "place", "more"]),
];

/// The fields of a process that could not be killed, which is not a leak of the test. It ends the list.
pub(super) const UNKILLABLE: (&str, &[&str]) = ("unkillable", &["pid", "name", "why", "place"]);

/// Every kind, including the last one.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    KINDS.into_iter().chain([UNKILLABLE])
}

/// The name of a kind, and its fields.
pub(super) fn of(verdict: &Verdict, kind: &Kind) -> (&'static str, Map<String, Value>) {
    let (name, values) = values(verdict, kind);
    let names = all().find(|(known, _)| *known == name).map_or(&[][..], |(_, names)| names);
    debug_assert_eq!(names.len(), values.len(), "the fields of {name}");
    (name, names.iter().map(|name| (*name).to_owned()).zip(values).collect())
}

/// The tests of a command that ran.
fn running(tests: &[RunningTest]) -> Value {
    let one = |test: &RunningTest| {
        let place = test.hang.as_ref().map(|hang| hang.place.to_string());
        json!({ "test": test.name, "place": place })
    };
    tests.iter().map(one).collect()
}

/// A stray socket.
fn socket(fd: i32, socket: &StraySocket) -> Value {
    let role = match socket.role {
        SocketRole::Listening => "listening",
        SocketRole::Accepted => "accepted",
        SocketRole::Connected => "connected",
        SocketRole::Paired => "paired",
        SocketRole::Unconnected => "unconnected",
    };
    let StraySocket { what, address, remote, .. } = socket;
    json!({ "fd": fd, "kind": what, "role": role, "address": address, "remote": remote })
}

/// The values of the fields, in the order of [`KINDS`].
#[allow(clippy::too_many_lines, reason = "one list of fields a kind")]
fn values(verdict: &Verdict, kind: &Kind) -> (&'static str, Vec<Value>) {
    match kind {
        Kind::Deadlock(found) => ("deadlock", deadlock(found)),
        Kind::MoreDeadlocks { count } => ("more_deadlocks", vec![json!(count)]),
        Kind::WaitsFor(found) => ("waits_for", waits_for(found)),
        Kind::OwnBinary { pid, filters, created } => {
            ("own_binary", vec![json!(pid), json!(filters), code(created.as_ref())])
        }
        Kind::Blocked { pid, signals, created } => {
            ("blocked_signal", vec![json!(pid), json!(signals), code(created.as_ref())])
        }
        Kind::InheritedByMistake { pid, pipe, is_socket: _, ends, created, others } => {
            let fds: Vec<i32> = ends.iter().map(|held| held.fd).collect();
            let ends: Vec<&str> = ends.iter().map(|held| end(held.access)).collect();
            let place = code(Some(created));
            (
                "inherited_by_mistake",
                vec![json!(pid), json!(pipe), json!(fds), json!(ends), place, json!(others)],
            )
        }
        Kind::UnwatchedLifeline { pid, fds } => ("unwatched_lifeline", vec![json!(pid), json!(fds)]),
        Kind::Panicked { message, place } => ("panicked", vec![json!(message), at(place.as_ref(), None)]),
        Kind::DidNotPanic => ("did_not_panic", vec![]),
        Kind::PanickedOtherwise { message } => ("panicked_otherwise", vec![json!(message)]),
        Kind::ReturnedError { message } => ("returned_error", vec![json!(message)]),
        Kind::EndedEarly { code: exit, when, call, called } => {
            let when = match when {
                Ending::InBody => "in_body",
                Ending::Unchecked => "unchecked",
                Ending::AtExit => "at_exit",
            };
            ("ended_early", vec![json!(exit), json!(when), json!(call), code(called.as_ref())])
        }
        Kind::ChildReturned { pid, more, created } => {
            ("child_returned", vec![json!(pid), json!(more), code(created.as_ref())])
        }
        Kind::Signalled { signal, body_returned, called } => {
            ("signalled", vec![json!(signal), json!(body_returned), code(called.as_ref())])
        }
        Kind::TimedOut { limit, body_returned, tests, .. } => {
            ("timed_out", vec![seconds(*limit), json!(body_returned), at(kind.place(), None), running(tests)])
        }
        Kind::Cut { ran, body_returned, tests, .. } => {
            ("cut", vec![seconds(*ran), json!(body_returned), at(kind.place(), None), running(tests)])
        }
        Kind::NotGuarded { failure } => (
            "not_guarded",
            vec![json!(failure::operation(failure)), json!(failure.errno()), json!(failure::words(failure))],
        ),
        Kind::LeakedProcess { pid, others, grace, created } => {
            let (creator, creator_pid) = match created.as_ref().map(|by| by.creator) {
                None => (None, None),
                Some(Creator::Itself) => (Some("itself"), None),
                Some(Creator::Ancestor { pid }) => (Some("ancestor"), Some(pid)),
                Some(Creator::ExitedParent { pid, sure: true }) => (Some("exited_parent"), Some(pid)),
                // The pid of the shell of `system` is not known.
                Some(Creator::ExitedParent { pid, sure: false }) => {
                    (Some("probable_parent"), Some(pid).filter(|pid| *pid != 0))
                }
            };
            let place = code(created.as_ref().map(|by| &by.site));
            let values =
                vec![json!(pid), json!(others), seconds(*grace), json!(creator), json!(creator_pid), place];
            ("leaked_process", values)
        }
        Kind::ElusiveProcess { grace } => ("elusive_process", vec![seconds(*grace)]),
        Kind::StrayFd { count, fds, threads, running: _, created } => {
            let inodes: Vec<u64> = fds.iter().map(|stray| stray.inode).collect();
            let sockets: Vec<Value> =
                fds.iter().filter_map(|stray| Some(socket(stray.fd, stray.socket.as_ref()?))).collect();
            let fds: Vec<i32> = fds.iter().map(|stray| stray.fd).collect();
            let place = code(created.as_ref());
            ("stray_fd", vec![json!(count), json!(fds), json!(inodes), json!(sockets), json!(threads), place])
        }
        Kind::UnlistedFds { count } => ("unlisted_fds", vec![json!(count)]),
        Kind::Unwaited { children, created } => {
            let pids: Vec<i32> = children.iter().map(|child| child.pid).collect();
            ("unwaited", vec![json!(pids), code(created.as_ref())])
        }
        Kind::Threads { count, running, at: _ } => {
            let line = |thread: &Running| at(verdict.names.lines.get(&thread.tid), None);
            let named =
                |thread: &Running| json!({ "tid": thread.tid, "name": thread.name, "place": line(thread) });
            ("threads", vec![json!(count), running.iter().map(named).collect()])
        }
        Kind::ThreadedFork { fork, more } => {
            let place = code(Some(&fork.site));
            let ids = [json!(fork.pid), json!(fork.creator), json!(fork.thread), json!(fork.threads)];
            ("threaded_fork", ids.into_iter().chain([place, json!(more)]).collect())
        }
        Kind::LeftMounts { mounts } => {
            let mount = |mount: &LeftMount| json!({ "at": mount.at, "what": mount.what, "why": mount.why });
            ("left_mounts", vec![mounts.iter().map(mount).collect()])
        }
        Kind::UnusedAllowances { unused } => {
            ("unused_allowances", vec![unused.iter().map(allow::argument).collect()])
        }
        Kind::Unkillable { pid, name, because, created } => {
            let known = verdict.names.of_process(*pid).map(CodePlace::of);
            let place = code(created.as_ref().or(known.as_ref()));
            let pid = (*pid != 0).then_some(pid);
            ("unkillable", vec![json!(pid), json!(name), json!(failure::unkillable(because)), place])
        }
    }
}

fn deadlock(found: &Deadlock) -> Vec<Value> {
    let shape = match found.shape {
        Shape::InheritedLock { .. } => "inherited_lock",
        Shape::MaybeInheritedLock { .. } => "maybe_inherited_lock",
        Shape::OwnEnd(_) => "own_end",
        Shape::OwnReader { .. } => "own_reader",
        Shape::Alone { .. } => "alone",
        Shape::Threads { .. } => "threads",
        Shape::Ring { .. } => "ring",
        Shape::Single => "single",
    };
    let doubts: Vec<String> = found.doubts.iter().map(sentence::doubt).collect();
    vec![
        json!(found.pid),
        json!(found.because.name()),
        json!(found.proved()),
        json!(shape),
        found.chain.iter().map(wait).collect(),
        json!(doubts),
        json!(found.also),
    ]
}

/// One link of a chain.
fn wait(wait: &Wait) -> Value {
    let (on, lock) = match &wait.on {
        WaitsOn::Child => ("child", None),
        WaitsOn::Thread { .. } => ("thread", None),
        WaitsOn::Lock(lock) => ("lock", lock.name.clone().or_else(|| lock.function.clone())),
        WaitsOn::BlockOn => ("block_on", None),
        WaitsOn::FileLock { file } => ("file_lock", Some(file.clone())),
        WaitsOn::PipeRoom { .. } => ("pipe_room", None),
        WaitsOn::PipeData { .. } => ("pipe_data", None),
        WaitsOn::SocketRoom { .. } => ("socket_room", None),
        WaitsOn::SocketAccept { .. } => ("socket_accept", None),
        WaitsOn::SocketData { .. } => ("socket_data", None),
        WaitsOn::Eventfd => ("eventfd", None),
    };
    let thread = match wait.on {
        WaitsOn::Thread { tid } => Some(tid),
        _ => None,
    };
    json!({
        "pid": wait.pid,
        "tid": wait.tid,
        "on": on,
        "inode": wait.on.inode(),
        "lock": lock,
        "thread": thread,
        "wakers": wait.wakers,
    })
}

fn waits_for(found: &WaitsFor) -> Vec<Value> {
    let links: Vec<Value> = found.chain.iter().map(link).collect();
    let of_first = |name: &str| links.first().map_or(Value::Null, |first| first[name].clone());
    let firsts = ["tid", "on", "inodes", "fds"].map(of_first);
    let wakers = json!(found.wakers());
    let dead = |dead: &DeadChild| json!({ "pid": dead.pid, "name": dead.name, "status": dead.status, "place": code(dead.created.as_ref()) });
    let dead: Value = found.dead.iter().map(dead).collect();
    let ring = json!(found.ring_link().map(|link| link.pid));
    firsts.into_iter().chain([wakers, json!(links), ring, dead]).collect()
}

/// One link of the chain from the test to the last waiter.
#[allow(clippy::too_many_lines, reason = "one list of cases")]
fn link(link: &Link) -> Value {
    let (mut inodes, mut fds): (Vec<u64>, Vec<i32>) = (Vec::new(), Vec::new());
    let (mut path, mut thread) = (None, None);
    let on = match &link.on {
        LinkOn::Stopped => "stopped",
        LinkOn::Child { .. } => "child",
        LinkOn::AnyChild { .. } => "any_child",
        LinkOn::Thread { tid } => {
            thread = Some(*tid);
            "thread"
        }
        LinkOn::Threads { .. } => "threads",
        LinkOn::Runtime { waits } => {
            fds.extend(waits.iter().filter_map(RuntimeWait::fd));
            "runtime"
        }
        LinkOn::AnyOf { waits } => {
            fds.extend(waits.iter().filter_map(RuntimeWait::fd));
            "any_of"
        }
        LinkOn::EventLoop => "event_loop",
        LinkOn::Connection { inode } => {
            inodes.push(*inode);
            "connection"
        }
        LinkOn::UnknownPeer { inode, .. } => {
            inodes.push(*inode);
            "unknown_peer"
        }
        LinkOn::Socket(AtSocket { inode, way, own, .. }) => {
            inodes.push(*inode);
            fds.extend(own);
            match way {
                Way::Data => "socket_data",
                Way::Room => "socket_room",
                Way::Accept => "socket_accept",
            }
        }
        LinkOn::PipeRoom { inode, .. } => {
            inodes.push(*inode);
            "pipe_room"
        }
        LinkOn::PipeData { inodes: pipes, .. } => {
            inodes.extend(pipes);
            "pipe_data"
        }
        LinkOn::OwnPipe { inode, fds: own, .. } => {
            inodes.push(*inode);
            fds.extend(own);
            "own_pipe"
        }
        LinkOn::FileLock { file, .. } => {
            path = Some(file);
            "file_lock"
        }
        LinkOn::Opening { path: opened } => {
            path = Some(opened);
            "opening"
        }
        LinkOn::Fifo { path: fifo, own, .. } => {
            fds.extend(own);
            path = Some(fifo);
            "fifo"
        }
        LinkOn::Datagram { inode } => {
            inodes.push(*inode);
            "datagram"
        }
        LinkOn::SharedFutex { path: memory, .. } => {
            path = Some(memory);
            "shared_futex"
        }
        LinkOn::Call { file, .. } => {
            fds.extend(file.iter().map(|(fd, _)| *fd));
            path = file.as_ref().map(|(_, path)| path);
            "call"
        }
        LinkOn::Terminal { fd, path: terminal, .. } => {
            fds.push(*fd);
            path = Some(terminal);
            "terminal"
        }
        LinkOn::Polling => "polling",
        LinkOn::Sleep => "sleep",
        LinkOn::Signal => "signal",
        LinkOn::Unknown => "unknown",
    };
    json!({
        "pid": link.pid,
        "tid": link.tid,
        "on": on,
        "inodes": inodes,
        "fds": fds,
        "path": path,
        "thread": thread,
        "wakers": link.on.wakers(),
    })
}

fn code(code: Option<&CodePlace>) -> Value {
    code.map_or(Value::Null, |code| at(code.place.as_ref(), code.function.as_deref()))
}

/// A line of code; `null` if unknown.
fn at(place: Option<&SourceLocation>, function: Option<&str>) -> Value {
    match place {
        None => Value::Null,
        Some(place) => json!({
            "file": place.file,
            "line": place.line,
            "column": (place.column > 0).then_some(place.column),
            "function": function,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::all;

    /// JSON.md lists every kind with its fields, and no other.
    #[test]
    fn the_manual_lists_every_kind_with_its_fields() {
        let manual = include_str!("../../../JSON.md");
        let listed: Vec<&str> = manual.lines().filter(|line| line.starts_with("| kind `")).collect();
        let expected: Vec<String> = all()
            .map(|(kind, fields)| {
                let fields: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
                format!(
                    "| kind `{kind}` | {} |",
                    if fields.is_empty() { "-".into() } else { fields.join(", ") }
                )
            })
            .collect();
        for line in &expected {
            assert!(
                listed.iter().any(|listed| listed.starts_with(line.as_str())),
                "JSON.md has no line {line}"
            );
        }
        assert_eq!(listed.len(), expected.len(), "{listed:#?}");
    }
}
