//! The events of a supervisor, all waited for in one poll.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;

use crate::sys;
use crate::sys::channel::Channel;
use crate::sys::lifeline::Watch;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wakeup {
    /// A child changed state.
    Children,
    /// The harness has sent a message.
    Request,
    /// The deadline has passed.
    Deadline,
    /// The harness is gone, or no longer needs this supervisor.
    Abandoned,
}

/// The fds that report events of the harness and of children.
pub(super) struct Sources<'a> {
    pub(super) lifeline: &'a Watch,
    pub(super) harness: &'a OwnedFd,
    pub(super) slot: &'a Channel,
    /// A signalfd for SIGCHLD.
    pub(super) children: &'a SignalFd,
}

impl Sources<'_> {
    /// Waits for the next thing to happen.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Wakeup {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Wakeup::Deadline;
            }
            let mut fds = [
                PollFd::new(self.lifeline.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.harness.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.slot.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            ];
            // EINTR and the like: poll again.
            // Without a deadline: until the next request, or the end of a subject without a timeout, while the harness
            // lives.
            if poll(&mut fds, sys::poll_timeout(left)).is_err() {
                continue;
            }
            let [lifeline, harness, slot, children] =
                fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if !lifeline.is_empty() || !harness.is_empty() {
                return Wakeup::Abandoned;
            }
            if slot.contains(PollFlags::POLLIN) {
                return Wakeup::Request;
            }
            if !slot.is_empty() {
                return Wakeup::Abandoned;
            }
            if !children.is_empty() {
                // At most one is pending: SIGCHLD does not queue.
                let _ = self.children.read_signal();
                return Wakeup::Children;
            }
        }
    }
}
