//! The lifeline: a pipe whose write end one process holds, and whose read end tells of its death.
//!
//! Nothing is ever written. While the holder lives the read end is silent; when the holder is
//! gone, however it went, the read end is at end-of-file, and whoever watches it kills what it
//! guards. That holds only as long as nobody else has the write end: a copy in a child that was
//! forked at the wrong moment keeps the line silent for ever. So the write end never leaves the
//! process that makes it: the pipe is made *after* the fork of whoever watches it, and the read
//! end is handed over as a passed fd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// The write end. Dropping it, or dying, tells every watcher.
#[derive(Debug)]
pub(crate) struct Lifeline {
    _write_end: OwnedFd,
}

/// The read end: readable (hung up) once the holder of the [`Lifeline`] is gone.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Lifeline {
    /// Makes a lifeline. Both ends are close-on-exec.
    pub(crate) fn new() -> io::Result<(Lifeline, Watch)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        Ok((Lifeline { _write_end: write }, Watch(read)))
    }
}

impl Watch {
    pub(crate) fn from_fd(fd: OwnedFd) -> Watch {
        Watch(fd)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
