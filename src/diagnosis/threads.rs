//! What is to be said of the threads of one process that all wait, and of an async runtime's among them.

use super::explain::{Scene, list};
use super::stuck::{Because, Stuck};
use super::{Awaited, plural};
use crate::facts::Process;
use crate::proc::waits::{On, Thread};

/// The most waits that stand in one sentence.
const CLAUSES: usize = 6;

impl Scene<'_> {
    /// Whether one of a ring waits for a futex: the next one is then anybody who could wake it.
    pub(super) fn in_futex(&self, ring: &[i32]) -> bool {
        ring.iter()
            .any(|tid| self.find(*tid).is_some_and(|(_, thread)| matches!(thread.on, On::Futex { .. })))
    }

    /// Whether a ring is of one process, and any thread of that might be the next.
    pub(super) fn is_crowd(&self, stuck: &Stuck) -> bool {
        let is_own = |tid: &i32| self.find(*tid).is_some_and(|(process, _)| process.pid == stuck.pid);
        stuck.because == Because::Cycle
            && stuck.ring.iter().all(is_own)
            && (stuck.ring.len() > 1 && self.in_futex(&stuck.ring) || self.idles(stuck))
    }

    /// The threads of such a process, each with what it waits for.
    pub(super) fn crowd(
        &self,
        stuck: &Stuck,
        process: &Process,
        never: &str,
    ) -> Option<(String, Option<String>)> {
        let pid = stuck.pid;
        let all: Vec<&Stuck> = self.stuck.iter().filter(|other| other.pid == pid).collect();
        let of_runtime =
            |stuck: &&Stuck| self.find(stuck.tid).is_some_and(|(_, thread)| self.in_runtime(thread));
        let users: Vec<&Stuck> = all.iter().copied().filter(|stuck| !of_runtime(stuck)).collect();
        if users.is_empty() {
            let who = match stuck.proved() {
                true => "and none of its tasks can go on.",
                false => "and nothing was found that will let its tasks go on.",
            };
            return Some((format!("the runtime of pid {pid} waits, {who} {never}"), None));
        }
        let ending = match stuck.proved() {
            true => "It can never go on.",
            false => "Nothing was found that will let it go on.",
        };
        if let [only] = &users[..]
            && self.find(only.tid).is_some_and(|(_, thread)| matches!(thread.on, On::Child { .. }))
        {
            let who = self.name_of(process, only.tid);
            // What is to be mended is the child.
            return Some((format!("{who} of pid {pid} {}. {ending} {never}", self.does(only)?), None));
        }
        // Whoever waits for the end of another is not the cause.
        let joins = |stuck: &&Stuck| {
            self.find(stuck.tid).is_some_and(|(_, thread)| {
                matches!(thread.on, On::Thread { .. })
                    || self.names.awaited.get(&stuck.tid) == Some(&Awaited::Scope)
            })
        };
        let (joining, causes): (Vec<&Stuck>, Vec<&Stuck>) = users.iter().partition(|stuck| joins(stuck));
        let count = process.tasks.len();
        let sentence = if let ([cause], [join]) = (&causes[..], &joining[..]) {
            let all = if count == 2 { "both threads".to_owned() } else { format!("all {count} threads") };
            format!(
                "{} of pid {pid} {}, and {all} of the process wait: {} only for this one's end. {ending} {never}",
                self.name_of(process, cause.tid),
                self.does(cause)?,
                self.name_of(process, join.tid),
            )
        } else {
            let mut clauses: Vec<(String, Vec<i32>)> = Vec::new();
            for member in causes.iter().chain(&joining) {
                let does = self.does(member)?;
                match clauses.iter_mut().find(|(known, _)| *known == does) {
                    Some((_, tids)) => tids.push(member.tid),
                    None => clauses.push((does, vec![member.tid])),
                }
            }
            let more = clauses.len() > CLAUSES;
            let mut clauses: Vec<String> = clauses
                .into_iter()
                .take(CLAUSES)
                .map(|(does, tids)| match &tids[..] {
                    [tid] => format!("{} {does}", self.name_of(process, *tid)),
                    tids => format!("each of threads {} {does}", list(tids)),
                })
                .collect();
            if more {
                clauses.push("and so on".to_owned());
            }
            let ending = match stuck.proved() {
                true => "all wait, and none can go on",
                false => "all wait, and nothing was found that will let them go on",
            };
            let who = plural(users.len(), "thread");
            format!("{who} of pid {pid} {ending}: {}. {never}", clauses.join("; "))
        };
        let fix = self.fix_of_crowd(if causes.is_empty() { &users } else { &causes }, !joining.is_empty());
        Some((sentence, Some(fix)))
    }

    /// What lets such threads go on; `joined`: somebody waits for the end of one of them.
    fn fix_of_crowd(&self, causes: &[&Stuck], joined: bool) -> String {
        let kinds = || causes.iter().filter_map(|stuck| self.names.awaited.get(&stuck.tid));
        // Who waits for a lock may wait for one that has something else to wait for.
        let other = kinds().filter(|kind| !kind.is_held()).min();
        let locks: Vec<(Option<&String>, u64)> = causes
            .iter()
            .filter(|stuck| self.names.awaited.get(&stuck.tid) == Some(&Awaited::Lock))
            .filter_map(|stuck| match self.find(stuck.tid)?.1.on {
                On::Futex { address, .. } => Some((self.names.locks.get(&stuck.tid), address)),
                _ => None,
            })
            .collect();
        match other {
            None if locks.iter().any(|lock| Some(lock) != locks.first()) => {
                "take locks in the same order everywhere, and join no thread while holding what it needs."
                    .to_owned()
            }
            None if joined && kinds().any(|kind| *kind == Awaited::Lock) => {
                "let go of a lock before the join of a thread that needs it. If who joins does not hold it, look who \
                 took it and did not give it back: the same thread, or a guard that was forgotten."
                    .to_owned()
            }
            None => Awaited::fix(kinds().min()).to_owned(),
            Some(kind) => Awaited::fix(Some(kind)).to_owned(),
        }
    }

    /// `the main thread`, `thread 17 \`writer\``.
    pub(super) fn name_of(&self, process: &Process, tid: i32) -> String {
        if tid == process.pid {
            return "the main thread".to_owned();
        }
        let name =
            self.find(tid).map(|(_, thread)| thread.name.as_str()).filter(|name| *name != process.comm);
        match name {
            Some(name) => format!("thread {tid} `{name}`"),
            None => format!("thread {tid}"),
        }
    }

    /// Of a process that has the other end of what a thread of it waits at, and other threads that
    /// might use that: what is to be said of these, and what to do about it.
    pub(super) fn writer_among_threads(
        &self,
        process: &Process,
        thread: &Thread,
        ends: &str,
    ) -> Option<(String, String)> {
        let is_users = |other: &&Thread| other.tid != thread.tid && !self.in_runtime(other);
        let others: Vec<&Thread> = process.tasks.iter().filter(is_users).collect();
        let look = match &others[..] {
            [] => return None,
            [other] => {
                let name = self.name_of(process, other.tid);
                let stuck = self.stuck.iter().find(|stuck| stuck.tid == other.tid);
                let does = stuck.and_then(|stuck| self.does(stuck));
                // Who else could write there is told before.
                let does = does.map(|does| does.split(", ").next().unwrap_or_default().to_owned());
                format!(
                    "look why {name}{} does not write to {ends}",
                    does.map_or_else(String::new, |does| format!(", which {does},"))
                )
            }
            _ => format!("look why none of the other threads writes to {ends}"),
        };
        let crowd = format!("and all its {} threads wait", process.tasks.len());
        Some((crowd, format!("{look}; to see EOF, close it first.")))
    }

    /// Whether a thread is a runtime's that waits for work, whatever its tasks wait for.
    pub(super) fn idles(&self, stuck: &Stuck) -> bool {
        stuck.pipe.is_none()
            && stuck.socket.is_none()
            && self
                .find(stuck.tid)
                .is_some_and(|(_, thread)| matches!(thread.on, On::Epoll { .. }) && self.in_runtime(thread))
    }

    /// Whether a thread waits in an async runtime, not in a task's own code.
    pub(super) fn in_runtime(&self, thread: &Thread) -> bool {
        self.names.in_runtime.contains(&thread.tid)
    }
}
