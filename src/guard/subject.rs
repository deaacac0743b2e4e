//! The subject of a guard, and the differences between the body of a test, a suite and a command.

use std::time::Duration;

use super::report_page::{HeldBy, Phase, ReportPage, StrayFd};
use crate::proc::fds::pipe_of;
use crate::proc::sockets::{Asker, Socket};
use crate::sys::{self, Pid, Shared};

/// The most stray sockets that the kernel is asked about.
const STRAY_SOCKETS: usize = 64;

/// What runs below a supervisor.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// The forked body of a test, which reports through a page of shared memory.
    Body { pid: Pid, page: &'a Shared<ReportPage> },
    /// A fork that runs all tests on threads, see [`suite`](super::suite). The page is about the process; how each test
    /// ended is in memory that the harness reads itself.
    Suite { pid: Pid, page: &'a Shared<ReportPage> },
    /// A program that was started by exec. It does not know its guard.
    Command { pid: Pid },
}

impl Subject<'_> {
    /// The subject's first process.
    pub(crate) fn pid(&self) -> Pid {
        match self {
            Subject::Body { pid, .. } | Subject::Suite { pid, .. } | Subject::Command { pid } => *pid,
        }
    }

    /// The page that it reports through.
    fn page(&self) -> Option<&ReportPage> {
        match self {
            Subject::Body { page, .. } | Subject::Suite { page, .. } => Some(page),
            Subject::Command { .. } => None,
        }
    }

    /// Whether it has stopped itself for inspection. Other stops are not the guard's concern.
    pub(super) fn asks_for_a_look(&self) -> bool {
        self.page().is_some_and(|page| page.phase() == Phase::Stopped)
    }

    /// The thread at a fault for which it has stopped itself.
    pub(super) fn fault(&self) -> Option<Pid> {
        self.page()?.fault()
    }

    /// The threads that ran on when the body had returned.
    pub(super) fn running(&self) -> Vec<Pid> {
        let running = |page: &ReportPage| page.running().iter().map(|thread| thread.tid).collect();
        self.page().filter(|page| page.threads() > 0).map(running).unwrap_or_default()
    }

    /// Whether the body has returned and the process is recording what is left.
    pub(super) fn has_returned(&self) -> bool {
        self.page().is_some_and(|page| page.phase() == Phase::BodyEnded)
    }

    /// The exit code of a test process that does nothing else than exit.
    pub(super) fn exit_code(&self) -> i32 {
        if self.page().is_some_and(|page| page.body().has_passed()) { 0 } else { 101 }
    }

    /// The time since it reported that it was about to exit.
    pub(super) fn since_over(&self) -> Option<Duration> {
        self.page()?.since_over()
    }

    /// The pipes that it recorded as left open.
    pub(super) fn stray_pipes(&self) -> Vec<String> {
        let Some(page) = self.page() else { return Vec::new() };
        let (strays, _) = page.strays();
        let pipes = strays.into_iter().filter(|stray| pipe_of(&stray.target).is_some());
        pipes.map(|stray| stray.target).collect()
    }

    /// The sockets that it recorded as left open, asked about while it is stopped and still has them.
    pub(super) fn stray_sockets(&self) -> Vec<Socket> {
        let Subject::Body { pid, page } = self else { return Vec::new() };
        let (strays, _) = page.strays();
        let mut sockets = strays.iter().filter(|stray| stray.held_by == HeldBy::Table && stray.is_socket());
        let Some(first) = sockets.next() else { return Vec::new() };
        let (asker, pidfd) = (Asker::new(), sys::pidfd_open(*pid).ok());
        let ask = |stray: &StrayFd| asker.ask(*pid, pidfd.as_ref(), stray.fd, stray.ino).0;
        [first].into_iter().chain(sockets).take(STRAY_SOCKETS).map(ask).collect()
    }

    /// The descendants that existed before it began, and are not its own.
    pub(super) fn preexisting(&self) -> Vec<Pid> {
        self.page().map(ReportPage::preexisting).unwrap_or_default()
    }
}
