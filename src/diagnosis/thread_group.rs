//! Processes with all threads waiting, and async runtimes among them.

use super::deadlock::Wait;
use super::evidence::Evidence;
use super::stuck::{Because, Stuck};
use crate::proc::waits::{On, Thread};
use crate::recorder::awaited::Awaited;

impl Evidence<'_> {
    /// Whether a member of a cycle waits for a futex: the next member is then only one of those that could
    /// wake it.
    pub(super) fn in_futex(&self, ring: &[i32]) -> bool {
        ring.iter()
            .any(|tid| self.thread(*tid).is_some_and(|(_, thread)| matches!(thread.on, On::Futex { .. })))
    }

    /// Whether all members of a cycle are threads of one process, and any thread of it might be the next.
    pub(super) fn is_thread_group(&self, stuck: &Stuck) -> bool {
        let is_own = |tid: &i32| self.thread(*tid).is_some_and(|(process, _)| process.pid == stuck.pid);
        stuck.because == Because::Cycle
            && stuck.ring.iter().all(is_own)
            && (stuck.ring.len() > 1 && self.in_futex(&stuck.ring) || self.idles(stuck))
    }

    /// The user's threads of such a process, those that only wait for others to end last, and the list of
    /// these.
    pub(super) fn thread_group(&self, pid: i32) -> Option<(Vec<Wait>, Vec<i32>)> {
        let of_runtime = |stuck: &&Stuck| {
            let in_runtime = |thread: &Thread| self.in_runtime(thread) && !self.blocks_on(thread);
            stuck.idles
                || self.is_of_libtest(stuck.tid)
                || self.thread(stuck.tid).is_some_and(|(_, thread)| in_runtime(thread))
        };
        let all = self.stuck.iter().filter(|other| other.pid == pid);
        let users: Vec<&Stuck> = all.filter(|stuck| !of_runtime(stuck)).collect();
        let (joining, causes): (Vec<&Stuck>, Vec<&Stuck>) =
            users.into_iter().partition(|stuck| self.joins(stuck));
        let waits = causes.iter().chain(&joining).map(|stuck| self.wait(stuck)).collect::<Option<_>>()?;
        Some((waits, joining.iter().map(|stuck| stuck.tid).collect()))
    }

    /// Whether a thread waits for another to end: it is not the cause.
    fn joins(&self, stuck: &Stuck) -> bool {
        self.thread(stuck.tid).is_some_and(|(_, thread)| {
            matches!(thread.on, On::Thread { .. })
                || self.names.awaited.get(&stuck.tid) == Some(&Awaited::Scope)
        })
    }

    /// Whether a thread belongs to a runtime and waits for work, whatever the tasks wait for.
    pub(super) fn idles(&self, stuck: &Stuck) -> bool {
        stuck.pipe.is_none()
            && stuck.socket.is_none()
            && self.thread(stuck.tid).is_some_and(|(process, thread)| {
                process.runs_own_program() && matches!(thread.on, On::Epoll { .. }) && self.in_runtime(thread)
            })
    }

    /// Whether a thread waits only for its own process, which has an event loop: this is how such a program
    /// idles, and no cause. For the test's own runtime it is a cause if no task can make progress.
    pub(super) fn is_of_event_loop(&self, stuck: &Stuck) -> bool {
        if stuck.idles {
            return !self.idles(stuck);
        }
        let Some((process, thread)) = self.thread(stuck.tid) else { return false };
        let is_alone = || stuck.wakers.iter().all(|waker| *waker == stuck.pid);
        let waits_inside = matches!(thread.on, On::Futex { .. } | On::Thread { .. })
            || stuck.because == Because::OwnWriteEnd && process.tasks.len() > 1;
        let mut others = self.stuck.iter().filter(|other| other.pid == stuck.pid);
        waits_inside && is_alone() && !process.runs_own_program() && others.any(|other| other.idles)
    }
}
