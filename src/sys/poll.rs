//! Waits with a deadline, on every Unix.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The timeout of poll(2) for the time that is left; `None`: no limit. Rounded up; otherwise the last millisecond would
/// be a busy loop.
pub(crate) fn poll_timeout(left: Option<Duration>) -> PollTimeout {
    match left {
        Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    }
}

/// Waits until `fd` is readable or at EOF, at most for `limit` (`None`: no limit).
pub(crate) fn readable(fd: &impl AsFd, limit: Option<Duration>) -> bool {
    any_readable([fd.as_fd()], limit)
}

/// The same for any of several.
pub(crate) fn any_readable<const FDS: usize>(fds: [BorrowedFd<'_>; FDS], limit: Option<Duration>) -> bool {
    // A limit that overflows the clock is no limit.
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let timeout = poll_timeout(until.map(|until| until.saturating_duration_since(Instant::now())));
        match poll(&mut fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)), timeout) {
            Ok(0) if until.is_some_and(|until| Instant::now() >= until) => return false,
            Ok(0) | Err(_) => {}
            Ok(_) => return true,
        }
    }
}
