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
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::sys;

/// Tells whoever watches it that this process is gone: a pipe's write end that only it holds.
///
/// It is what guards the tests of childproof, and it guards a child of your own as well. Dropping
/// it, or dying, however that happens, tells every [`Watch`]; unlike `PR_SET_PDEATHSIG` it follows
/// the process and not the thread, and reaches grandchildren.
///
/// Both ends are close-on-exec, so no program that is started gets the write end by mistake. A
/// child that is *forked* while a `Lifeline` exists has a copy of it, and keeps it silent for as
/// long as that child lives and does not call exec: fork first, then make the lifeline.
///
/// # Example
///
/// ```
/// use std::process::Command;
/// use childproof::Lifeline;
///
/// let (lifeline, watch) = Lifeline::new()?;
/// // `cat` reads its stdin to the end, and so lives as long as the lifeline.
/// let mut cat = Command::new("cat").stdin(watch).spawn()?;
/// assert!(cat.try_wait()?.is_none());
/// drop(lifeline);
/// assert!(cat.wait()?.success());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Lifeline {
    _write_end: OwnedFd,
}

/// Watches a [`Lifeline`]: the read end, at end-of-file once the lifeline is gone.
///
/// It becomes the stdin of a child by `Command::stdin(watch)`; the child gets it back by
/// `Watch::from(std::io::stdin().as_fd().try_clone_to_owned()?)`.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Lifeline {
    /// Makes a lifeline and one watch of it. Both fds are close-on-exec.
    ///
    /// # Errors
    ///
    /// If this process or the machine has too many open files (pipe(2), EMFILE and ENFILE).
    pub fn new() -> io::Result<(Lifeline, Watch)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        Ok((Lifeline { _write_end: write }, Watch(read)))
    }
}

impl Watch {
    /// Waits until the lifeline is gone, at most for `limit`; tells whether it is.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use childproof::Lifeline;
    ///
    /// let (lifeline, watch) = Lifeline::new()?;
    /// assert!(!watch.wait(Duration::ZERO));
    /// drop(lifeline);
    /// assert!(watch.wait(Duration::from_secs(5)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn wait(&self, limit: Duration) -> bool {
        sys::readable(&self.0, Some(limit))
    }
}

impl From<OwnedFd> for Watch {
    fn from(fd: OwnedFd) -> Watch {
        Watch(fd)
    }
}

impl From<Watch> for OwnedFd {
    fn from(watch: Watch) -> OwnedFd {
        watch.0
    }
}

impl From<Watch> for Stdio {
    fn from(watch: Watch) -> Stdio {
        Stdio::from(watch.0)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
