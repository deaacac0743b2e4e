//! What is to be said of waits at sockets.

use super::explain::{Scene, list};
use super::stuck::Stuck;
use crate::facts::Process;
use crate::proc::sockets::{Peer, Socket};
use crate::proc::waits::{On, Thread};

impl Scene<'_> {
    /// Of a process that waits at a socket whose other end it has itself; `never` says how long.
    pub(super) fn own_socket(
        &self,
        stuck: &Stuck,
        process: &Process,
        never: &str,
    ) -> Option<(String, Option<String>)> {
        let pid = stuck.pid;
        let socket = self.facts.socket(stuck.socket?)?;
        let ends = self.holders(socket.other_end()?, process);
        let others: Vec<i32> = stuck.wakers.iter().copied().filter(|waker| *waker != pid).collect();
        let own = match &ends[..] {
            [end] => format!("its own fd {end}"),
            ends => format!("its own fds {}", list(ends)),
        };
        let held = match &others[..] {
            [] => format!("whose other end is {own}"),
            [other] => format!("whose other end is {own} and with {other}, which is stuck too"),
            others => format!("whose other end is {own} and with {}, which are stuck too", list(others)),
        };
        let who = if process.is_test { format!("the test, pid {pid},") } else { format!("pid {pid}") };
        let what = socket.what();
        let sentence = format!("{who} waits for data on a {what} socket {held}. {never}");
        let fix = format!(
            "have somebody else write to fd {0} while this one waits; to see EOF, close fd {0} before reading to \
             the end{1}.",
            list(&ends),
            if process.forked_without_exec && !process.is_test { ", in a fork right after it" } else { "" }
        );
        Some((sentence, Some(fix)))
    }

    /// What a thread waits for at a socket, and who has its other end: `reads from ..`.
    pub(super) fn clause_of_socket(&self, stuck: &Stuck, thread: &Thread) -> Option<String> {
        let ino = stuck.socket?;
        let holders = match &stuck.wakers[..] {
            [] => "nobody that was found".to_owned(),
            [waker] if *waker == stuck.pid => "it itself".to_owned(),
            wakers => list(wakers),
        };
        Some(match (&thread.on, &self.facts.socket(ino)?.peer) {
            (On::Write { .. }, _) => {
                format!("writes to socket:[{ino}], which is full and read by {holders} only")
            }
            (_, Peer::Queue { .. }) => {
                format!("reads from socket:[{ino}], whose connection {holders} would have to accept")
            }
            _ if stuck.wakers.is_empty() => {
                format!("reads from socket:[{ino}], to which {holders} can write")
            }
            _ => format!("reads from socket:[{ino}], to which only {holders} can write"),
        })
    }

    /// What the test waits for at a socket.
    pub(super) fn waits_at(
        &self,
        socket: &Socket,
        test: &Process,
        name: impl Fn(i32) -> String,
    ) -> Option<String> {
        let Socket { ino, .. } = socket;
        let what = socket.what();
        let article = if what.starts_with('I') { "an" } else { "a" };
        let what = format!("{article} {what} socket");
        if socket.listens {
            let at = socket.name.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
            return Some(format!("the test waits until somebody connects to {what}{at}."));
        }
        let (peer, until) = match &socket.peer {
            Peer::Socket { ino } => (*ino, "writes to the other end, or closes it"),
            Peer::Queue { ino } => (*ino, "accepts the connection"),
            Peer::Nobody => return None,
            Peer::Unknown { why } => {
                return Some(format!(
                    "the test waits at {what}, socket:[{ino}]; its other end is not known: {why}."
                ));
            }
        };
        let has = |process: &&Process| !self.holders(peer, process).is_empty();
        let holders = self.facts.processes.iter().filter(has).take(4);
        let holders: Vec<String> = holders
            .map(|process| {
                if process.pid == test.pid {
                    "the test itself".to_owned()
                } else {
                    format!("pid {}", name(process.pid))
                }
            })
            .collect();
        match &holders[..] {
            [] => None,
            holders => Some(format!("the test waits at {what} until {} {until}.", holders.join(" or "))),
        }
    }

    /// The socket behind one fd of a process.
    pub(super) fn socket(&self, process: &Process, fd: i32) -> Option<&Socket> {
        self.facts.socket(process.fd(fd)?.socket()?)
    }

    /// The fds of one process that are a socket.
    fn holders(&self, socket: u64, process: &Process) -> Vec<i32> {
        process.fds.iter().flatten().filter(|fd| fd.socket() == Some(socket)).map(|fd| fd.fd).collect()
    }
}
