//! The evidence that findings are drawn from: the facts, the resolved addresses, and the stuck threads.

use super::inherited::{Inherited, UnwatchedLifeline};
use super::parents::ExitedParent;
use super::stuck::Stuck;
use crate::guard::facts::{Facts, Process};
use crate::proc::fds::Fd;
use crate::proc::sockets::Socket;
use crate::proc::waits::{On, Thread};
use crate::recorder::call_site::{Names, SourceLocation};

/// Everything that is known of one test.
pub(super) struct Evidence<'a> {
    pub(super) facts: &'a Facts,
    pub(super) names: &'a Names,
    pub(super) stuck: &'a [Stuck],
    pub(super) inherited: &'a [Inherited],
    pub(super) unwatched: &'a [UnwatchedLifeline],
    pub(super) exited: &'a [ExitedParent],
}

impl<'a> Evidence<'a> {
    pub(super) fn process(&self, pid: i32) -> Option<&'a Process> {
        self.facts.processes.iter().find(|process| process.pid == pid)
    }

    pub(super) fn thread(&self, tid: i32) -> Option<(&'a Process, &'a Thread)> {
        self.facts.tasks().find(|(_, thread)| thread.tid == tid)
    }

    pub(super) fn stuck_at(&self, tid: i32) -> Option<&'a Stuck> {
        self.stuck.iter().find(|stuck| stuck.tid == tid)
    }

    /// The fds of a process that are ends of a pipe and satisfy `is`.
    pub(super) fn ends(&self, process: &Process, pipe: u64, is: impl Fn(&Fd) -> bool) -> Vec<i32> {
        let ends = process.known_fds().iter().filter(|fd| fd.pipe() == Some(pipe) && is(fd));
        ends.map(|fd| fd.fd).collect()
    }

    /// The fds of a process that refer to a socket.
    pub(super) fn socket_fds(&self, socket: u64, process: &Process) -> Vec<i32> {
        process.known_fds().iter().filter(|fd| fd.socket() == Some(socket)).map(|fd| fd.fd).collect()
    }

    /// The processes that hold a write end of a pipe, or may hold one.
    pub(super) fn writers(&self, pipe: u64) -> Vec<i32> {
        let writes = |fd: &Fd| fd.pipe() == Some(pipe) && fd.writes();
        let processes = self.facts.processes.iter();
        processes
            .filter(|process| process.fds.as_ref().is_none_or(|fds| fds.iter().any(writes)))
            .map(|process| process.pid)
            .collect()
    }

    /// The processes other than this one that hold an fd with this property.
    pub(super) fn holders_of(&self, process: &Process, is: impl Fn(&Fd) -> bool) -> Vec<i32> {
        let others = self.facts.processes.iter().filter(|other| other.pid != process.pid);
        let holders = others.filter(|other| other.known_fds().iter().any(&is));
        holders.take(4).map(|other| other.pid).collect()
    }

    /// The socket behind one fd of a process.
    pub(super) fn socket(&self, process: &Process, fd: i32) -> Option<&'a Socket> {
        self.facts.socket(process.fd(fd)?.socket()?)
    }

    /// The line that created a pipe or a socket.
    pub(super) fn place_of(&self, inode: u64) -> Option<&'a SourceLocation> {
        self.names.of_inode(inode)?.place.as_ref()
    }

    /// The process that forked another. Of an orphan that no guard has seen it is not known: 0.
    pub(super) fn creator(&self, process: &Process) -> i32 {
        self.names
            .of_process(process.pid)
            .map(|site| site.creator)
            .or_else(|| process.lineage.first().copied())
            .or_else(|| (self.facts.is_inspected() && !process.adopted).then_some(process.parent))
            .unwrap_or(self.facts.pid)
    }

    /// Whether a thread waits in an async runtime, outside of the code of a task.
    pub(super) fn in_runtime(&self, thread: &Thread) -> bool {
        self.names.in_runtime.contains(&thread.tid)
    }

    /// Whether a thread waits for a future, in a `block_on` in the user's code, without driving the runtime
    /// itself.
    pub(super) fn blocks_on(&self, thread: &Thread) -> bool {
        matches!(thread.on, On::Futex { .. })
            && self.called(thread).is_some_and(|called| called.ends_with("Handle::block_on"))
    }

    /// The function of other code that the user's code called and the thread is in.
    pub(super) fn called(&self, thread: &Thread) -> Option<&'a str> {
        self.names.called.get(&thread.tid).map(String::as_str)
    }

    /// Whether a thread of a process is in one of these functions.
    pub(super) fn calls(&self, process: &Process, functions: &[&str]) -> bool {
        let mut calls = process.tasks.iter().filter_map(|thread| self.called(thread));
        calls.any(|called| functions.iter().any(|function| called.ends_with(function)))
    }

    /// Whether a thread of a process reads a line, a number of bytes, or any available data, so it may not
    /// need EOF.
    pub(super) fn reads_a_part(&self, process: &Process) -> bool {
        self.calls(process, &["read_line", "read_until", "read_exact", "::read"])
    }

    pub(super) fn is_stopped(&self, pid: i32) -> bool {
        is_stopped(self.facts, pid)
    }

    /// The write ends that keep a pipe open, if all of them were inherited by mistake.
    pub(super) fn open_by_mistake(&self, pipe: u64) -> Option<&'a Inherited> {
        let inherited = |pid: i32| {
            let ends = self.ends(self.process(pid)?, pipe, Fd::writes);
            let known = self.inherited.iter().find(|known| known.pipe == pipe && known.pid == pid)?;
            let all = ends.iter().all(|end| known.ends.iter().any(|known| known.fd == *end));
            (all && !ends.is_empty()).then_some(known)
        };
        let writes = |fd: &Fd| fd.pipe() == Some(pipe) && fd.writes();
        if self.facts.outside.holders.iter().any(|holder| holder.fds.iter().any(writes)) {
            return None;
        }
        let found: Option<Vec<&Inherited>> = self.writers(pipe).into_iter().map(inherited).collect();
        found?.into_iter().next()
    }

    /// The same for the pipe that a thread reads.
    pub(super) fn mistake(&self, stuck: &Stuck) -> Option<&'a Inherited> {
        let (_, thread) = self.thread(stuck.tid)?;
        let reads = matches!(thread.on, On::Read { .. }) || thread.on.is_set();
        self.open_by_mistake(stuck.pipe.filter(|_| reads)?)
    }

    /// Whether a process was forked, without exec, from a threaded process; `None` if it is a fork and the
    /// number of threads is unknown.
    pub(super) fn parent_was_threaded(&self, process: &Process) -> Option<bool> {
        super::stuck::parent_was_threaded(self.facts, self.names, process)
    }
}

/// Whether a thread of a process is stopped by a signal or a debugger.
pub(crate) fn is_stopped(facts: &Facts, pid: i32) -> bool {
    let mut processes = facts.processes.iter();
    processes.any(|process| process.pid == pid && process.tasks.iter().any(|thread| thread.on == On::Stopped))
}
