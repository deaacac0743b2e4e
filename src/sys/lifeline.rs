//! The lifeline: a pipe that shows the death of a process. The process holds the write end; another one
//! watches the read end.
//!
//! Nothing is ever written. While the holder lives, a read blocks; when it is gone, for whatever reason, the
//! read end is at EOF, and the process that watches it kills the processes that it guards. This works only if
//! no other process has the write end: a copy in a child that was forked at the wrong moment would prevent
//! EOF. So the write end never leaves the process that creates it: the pipe is created *after* the fork of
//! the watching process, and the read end is passed over a socket.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Stdio;
use std::time::Duration;

use super::poll::readable;

/// Signals each [`Watch`] when this process is gone: the write end of a pipe that only this process holds.
///
/// childproof guards tests with it, and it can guard your own child processes too. When it is dropped or the
/// process dies, for whatever reason, each [`Watch`] is at EOF. Unlike `PR_SET_PDEATHSIG` it follows the
/// process and not the thread, and reaches grandchildren.
///
/// Both ends are close-on-exec, so a started program does not inherit the write end by mistake. A child that
/// is *forked* while a `Lifeline` exists has a copy of it, and prevents EOF until it exits or calls exec:
/// fork first, then create the lifeline.
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
    write_end: OwnedFd,
}

/// Watches a [`Lifeline`]: the read end, at EOF once the lifeline is gone.
///
/// `Command::stdin(watch)` makes it the stdin of a child; the child gets it back by
/// `Watch::from(std::io::stdin().as_fd().try_clone_to_owned()?)`.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Lifeline {
    /// Creates a lifeline and one watch of it. Both fds are close-on-exec.
    ///
    /// # Errors
    ///
    /// If this process or the machine has too many open files (pipe(2), EMFILE and ENFILE).
    pub fn new() -> io::Result<(Lifeline, Watch)> {
        let (read, write) = io::pipe()?;
        Ok((Lifeline { write_end: write.into() }, Watch(read.into())))
    }

    /// The write end: a fork of this process must close it.
    #[cfg(target_os = "linux")]
    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.write_end.as_fd()
    }
}

impl Watch {
    /// Waits until the lifeline is gone, at most for `limit`; returns whether it is.
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
        readable(&self.0, Some(limit))
    }

    /// Calls `then` on a thread of its own once the lifeline is gone: to send on a channel, to wake a condition
    /// variable, to end the process. If this process ends first, it is never called.
    ///
    /// In an async runtime, register the fd instead: a watch is readable when its lifeline is gone.
    ///
    /// # Errors
    ///
    /// If no thread can be started (pthread_create(3), EAGAIN).
    ///
    /// # Example
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use childproof::Lifeline;
    ///
    /// let (lifeline, watch) = Lifeline::new()?;
    /// let (sender, receiver) = mpsc::channel();
    /// watch.on_gone(move || sender.send("gone").unwrap())?;
    /// drop(lifeline);
    /// assert_eq!(receiver.recv(), Ok("gone"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn on_gone(self, then: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let watching = move || {
            while !readable(&self.0, None) {}
            then();
        };
        std::thread::Builder::new().name("lifeline".to_owned()).spawn(watching).map(drop)
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

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Closes every fd of 3 and above, except those in `except`. For a child that was forked without exec: what it
/// has inherited keeps readers from EOF as long as it lives. Async-signal-safe.
///
/// # Errors
///
/// If the kernel refuses close_range(2), which Linux has since 5.9.
///
/// # Safety
///
/// Nothing in this process may use one of these fds afterwards, nor own it: an `OwnedFd` or a `File` that is
/// dropped later would close an fd that was opened meanwhile under the same number.
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub unsafe fn close_inherited_fds_above_stdio(except: &[BorrowedFd<'_>]) -> io::Result<()> {
    super::close_fds_above_stdio(except)
}

/// Prepares a process that was just forked, in the child, and that ends when `watch` is at EOF: it closes every
/// inherited fd of 3 and above but the watch, also the write end of the lifeline, if the child has a copy of
/// it. Async-signal-safe.
///
/// # Errors
///
/// As [`close_inherited_fds_above_stdio`].
///
/// # Safety
///
/// As [`close_inherited_fds_above_stdio`].
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use childproof::lifeline::{self, Lifeline};
///
/// let (lifeline, watch) = Lifeline::new()?;
/// // SAFETY: the child makes async-signal-safe calls alone, and ends by `_exit`.
/// match unsafe { nix::libc::fork() } {
///     0 => {
///         // The child has a copy of the write end: without this call it would wait for itself.
///         // SAFETY: the child uses no other fd.
///         let armed = unsafe { lifeline::after_fork(&watch) };
///         let code = if armed.is_ok() && watch.wait(Duration::from_secs(60)) { 0 } else { 1 };
///         // SAFETY: ends the child without running destructors of its parent's state.
///         unsafe { nix::libc::_exit(code) }
///     }
///     child => {
///         drop(lifeline);
///         let mut status = 0;
///         // SAFETY: `status` is writable.
///         unsafe { nix::libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0);
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub unsafe fn after_fork(watch: &Watch) -> io::Result<()> {
    super::close_fds_above_stdio(&[watch.as_fd()])
}
