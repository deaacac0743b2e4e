//! What is to be said of waits at sockets.

use super::explain::{Scene, fds, list};
use super::stuck::Stuck;
use crate::facts::Process;
use crate::proc::fds::Fd;
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::{On, Thread};

impl Scene<'_> {
    /// Of a process that waits at a socket whose other end it has itself; `never` says how long.
    pub(super) fn own_socket(
        &self,
        stuck: &Stuck,
        process: &Process,
        thread: &Thread,
        never: &str,
    ) -> Option<(String, Option<String>)> {
        let pid = stuck.pid;
        let socket = self.facts.socket(stuck.socket?)?;
        let ends = self.holders(socket.other_end()?, process);
        let others: Vec<i32> = stuck.wakers.iter().copied().filter(|waker| *waker != pid).collect();
        let others = match &others[..] {
            [] => String::new(),
            [other] => format!(" and also in {other}, which is stuck too"),
            others => format!(" and also in {}, which are stuck too", list(others)),
        };
        let (who, what) = (who(process), socket.with_article());
        let in_fork = process.forked_without_exec && !process.is_test;
        if stuck.both_ends {
            let is_end = |fd: &i32| {
                process.fd(*fd).and_then(Fd::socket).is_some_and(|ino| socket.ends().contains(&ino))
            };
            let mut both: Vec<i32> = thread.fds().into_iter().filter(is_end).collect();
            both.sort_unstable();
            let sentence = format!(
                "{who} waits for data on {what}: {}, both ends of one pair{others}, are in its poll set. {never}",
                fds(&both)
            );
            let fix = format!(
                "have somebody write to the one of {} that is not awaited; to see EOF, close that one before reading \
                 to the end.",
                fds(&both)
            );
            return Some((sentence, Some(fix)));
        }
        let held = format!("whose other end is its own {}{others}", fds(&ends));
        if let Some((crowd, fix)) = self.writer_among_threads(process, thread, &fds(&ends)) {
            return Some((format!("{who} waits for data on {what} {held}, {crowd}. {never}"), Some(fix)));
        }
        let sentence = format!("{who} waits for data on {what} {held}. {never}");
        let fix = format!(
            "have somebody else write to {0} while this one waits; to see EOF, close {0} before reading to the end{1}.",
            fds(&ends),
            if in_fork { ", in a fork right after it" } else { "" }
        );
        Some((sentence, Some(fix)))
    }

    /// Of a process that writes to a socket which only itself could read; `never` says how long.
    pub(super) fn full_socket(
        &self,
        stuck: &Stuck,
        process: &Process,
        thread: &Thread,
        never: &str,
    ) -> Option<(String, Option<String>)> {
        let socket = self.facts.socket(stuck.socket?)?;
        let ends = fds(&self.holders(socket.other_end()?, process));
        let in_runtime = self.in_runtime(thread);
        let is_users = |other: &Thread| other.tid != thread.tid && !self.in_runtime(other);
        let crowd = match process.tasks.iter().any(is_users) {
            true => format!(", and all its {} threads wait", process.tasks.len()),
            false => String::new(),
        };
        let sentence = format!(
            "{} writes to {} that is full, and only itself could read {ends}, the other end{crowd}. {never}",
            who(process),
            socket.with_article(),
        );
        let reader = if in_runtime { "task" } else { "thread" };
        let fix = format!("read {ends} in another {reader}, or close it: then writing fails with EPIPE.");
        Some((sentence, Some(fix)))
    }

    /// What gives the reader of a socket its EOF, if whoever has the other end waits for what it does
    /// then.
    pub(super) fn fix_of_socket(&self, socket: u64, writer: &Process) -> Option<String> {
        let ends = self.holders(self.facts.socket(socket)?.other_end()?, writer);
        let ends = self.ends_of(writer, &ends, socket)?;
        Some(format!(
            "call `shutdown(Shutdown::Write)` on {ends} before reading to the end; or write to it first."
        ))
    }

    /// What a thread waits for at a socket, and who has its other end: `reads from ..`. `only` stands
    /// before the `holders` if there are any.
    pub(super) fn clause_of_socket(&self, stuck: &Stuck, only: &str, holders: &str) -> Option<String> {
        let ino = stuck.socket?;
        Some(match (stuck.writes, &self.facts.socket(ino)?.peer) {
            (true, _) => {
                format!("writes to socket:[{ino}], which is full and read by {holders} only")
            }
            (_, Peer::Queue { .. }) => {
                format!("reads from socket:[{ino}], whose connection {holders} would have to accept")
            }
            _ => format!("reads from socket:[{ino}], to which {only}{holders} can write"),
        })
    }

    /// What the test waits for at a socket.
    pub(super) fn waits_at(
        &self,
        socket: &Socket,
        test: &Process,
        thread: &Thread,
    ) -> Option<(String, Option<String>)> {
        let Socket { ino, .. } = socket;
        let what = socket.with_article();
        if socket.listens {
            let at = socket.name.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
            return Some((format!("the test waits until somebody connects to {what}{at}."), None));
        }
        let is_set = thread.on.is_set();
        let writes = matches!(thread.on, On::Write { .. }) || is_set && socket.is_full;
        let (peer, until) = match &socket.peer {
            Peer::Socket { ino } if writes => (*ino, "reads from the other end, or closes it"),
            Peer::Socket { ino } => (*ino, "writes to the other end, or closes it"),
            Peer::Queue { ino } => (*ino, "accepts the connection"),
            Peer::Nobody => return None,
            Peer::Unknown { why } => {
                let sentence =
                    format!("the test waits at {what}, socket:[{ino}]; its other end is not known: {why}.");
                return Some((sentence, None));
            }
        };
        // A set has a timeout of its own. What may not be asked for has no domain either.
        let forever = if writes { socket.writes_forever } else { socket.reads_forever };
        let timeout = if is_set || forever || socket.domain == 0 { "" } else { ", or its timeout is over" };
        let own = self.holders(peer, test);
        let others = self.holders_of(test, |held| held.socket() == Some(peer));
        let fix = if own.is_empty() { self.fix_of_stopped(&others) } else { None };
        let itself = match own.is_empty() {
            true => None,
            false => Some(format!("the test itself ({})", fds(&own))),
        };
        let holders: Vec<String> = itself.into_iter().chain(self.named(&others)).collect();
        if holders.is_empty() {
            return None;
        }
        let mut holders = holders.join(" or ");
        if holders.ends_with("which is stopped") {
            holders.push(',');
        }
        let sentence = match writes {
            true => format!("the test writes to {what} that is full, until {holders} {until}{timeout}."),
            false => format!("the test waits at {what} until {holders} {until}{timeout}."),
        };
        Some((sentence, fix))
    }

    /// The socket behind one fd of a process.
    pub(super) fn socket(&self, process: &Process, fd: i32) -> Option<&Socket> {
        self.facts.socket(process.fd(fd)?.socket()?)
    }

    /// The fds of one process that are a socket.
    fn holders(&self, socket: u64, process: &Process) -> Vec<i32> {
        process.known_fds().iter().filter(|fd| fd.socket() == Some(socket)).map(|fd| fd.fd).collect()
    }
}

/// A process at the head of a sentence.
fn who(process: &Process) -> String {
    match process.is_test {
        true => format!("the test, pid {},", process.pid),
        false => format!("pid {}", process.pid),
    }
}
