//! System calls on file descriptors.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Pid;
use super::process::check;

/// `pidfd_getfd(pidfd, fd, 0)` — duplicates an fd of another process into this one, with close-on-exec (Linux
/// 5.6).
pub(crate) fn pidfd_getfd(pidfd: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call reads no memory of ours.
    let new = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    Ok(own(check(new as c_int)?))
}

/// `pidfd_open(tid, PIDFD_THREAD)`, `pidfd_getfd(..)` — duplicates an fd from the table of one thread (Linux
/// 6.9).
pub(crate) fn fd_of_thread(tid: Pid, fd: RawFd) -> io::Result<OwnedFd> {
    /// include/uapi/linux/pidfd.h
    const PIDFD_THREAD: c_int = libc::O_EXCL;
    // SAFETY: the call reads no memory of ours.
    let thread = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) };
    pidfd_getfd(&own(check(thread as c_int)?), fd)
}

/// `kcmp(one, other, KCMP_FILES)` — whether two threads share one fd table; `None` if the kernel does not
/// say.
pub(crate) fn have_same_files(one: Pid, other: Pid) -> Option<bool> {
    /// include/uapi/linux/kcmp.h
    const KCMP_FILES: c_int = 2;
    // SAFETY: the call reads no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    check(order as c_int).ok().map(|order| order == 0)
}

/// `kcmp(one, other, KCMP_FILE)` — whether an fd of two processes refers to the same open file; `None` if one of them does
/// not have it, or the kernel does not say.
pub(crate) fn have_same_file(one: Pid, other: Pid, fd: RawFd) -> Option<bool> {
    /// include/uapi/linux/kcmp.h
    const KCMP_FILE: c_int = 0;
    // SAFETY: the call reads no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILE, fd, fd) };
    check(order as c_int).ok().map(|order| order == 0)
}

/// `kcmp(pid, pid, KCMP_EPOLL_TFD)` — whether an fd of a process refers to the file that one of its epoll
/// instances has registered as the `nth` entry with that number; `None` if the kernel does not say.
pub(crate) fn is_in_epoll(pid: Pid, epoll: RawFd, fd: RawFd, nth: u32) -> Option<bool> {
    /// include/uapi/linux/kcmp.h
    const KCMP_EPOLL_TFD: c_int = 7;
    // `struct kcmp_epoll_slot`: the epoll fd, the fd number, how many entries of that number come before.
    let slot = [epoll as u32, fd as u32, nth];
    // SAFETY: the kernel reads the three words of `slot`, which outlives the call.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, slot.as_ptr()) };
    match check(order as c_int) {
        Ok(order) => Some(order == 0),
        // No fd has that number any more, or no entry.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT)) => Some(false),
        Err(_) => None,
    }
}

/// `ioctl(fd, FIONREAD)` — how many bytes can be read from an fd.
pub(crate) fn queued(fd: &OwnedFd) -> Option<u32> {
    let mut count: c_int = 0;
    // SAFETY: FIONREAD writes an int, and `count` is one.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) }).ok()?;
    u32::try_from(count).ok()
}

/// `ioctl(fd, TIOCGWINSZ)` — the width of a terminal in columns; `None` if it is not a terminal, or its width
/// is unknown.
pub(crate) fn terminal_width(fd: &impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a `winsize`, and `size` is one.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// `tcgetpgrp(fd)` — the foreground process group of this process's terminal.
#[cfg(feature = "__engine")]
pub(crate) fn foreground_group(terminal: &impl AsFd) -> Option<Pid> {
    // SAFETY: reads and writes no memory of ours.
    let group = unsafe { libc::tcgetpgrp(terminal.as_fd().as_raw_fd()) };
    (group > 0).then_some(group)
}

/// `tcsetpgrp(fd, group)` — makes another one of this session the foreground group.
#[cfg(feature = "__engine")]
pub(crate) fn set_foreground_group(terminal: &impl AsFd, group: Pid) -> io::Result<()> {
    // SAFETY: reads and writes no memory of ours.
    check(unsafe { libc::tcsetpgrp(terminal.as_fd().as_raw_fd(), group) }).map(drop)
}

/// Takes ownership of an fd that the kernel has just returned.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass fds out of a received SCM_RIGHTS message, signalfd or dup, which
    // no other code has seen.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `fcntl(fd, F_DUPFD_CLOEXEC, least)` — duplicates an fd to a number of at least `least`, with
/// close-on-exec.
pub(crate) fn dup_above(fd: RawFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: reads no memory of ours; a wrong fd is an error.
    let new = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) })?;
    Ok(own(new))
}

/// `dup2(from, to)` — makes `to` a duplicate of `from`, without close-on-exec.
pub(crate) fn dup2(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: reads no memory of ours. `to` is 0, 1 or 2, which nothing in here owns.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// `open("/dev/null")`, `dup2(null, to)` — replaces one of 0, 1 and 2 by /dev/null.
pub(crate) fn null_at(to: RawFd) -> io::Result<()> {
    let null = null()?;
    dup2(null.as_raw_fd(), to)
}

/// `open("/dev/null")` — with a number of 3 or more, close-on-exec.
pub(crate) fn null() -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let null = own(check(unsafe { libc::open(c"/dev/null".as_ptr(), flags) })?);
    dup_above(null.as_raw_fd(), 3)
}

/// Identifies an open file: two fds with equal identities are treated as one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FdIdentity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// `S_IFMT` of the file.
    pub(crate) kind: u32,
    /// `O_ACCMODE` of the open file, and `O_PATH`.
    pub(crate) access: i32,
}

/// `fstat(fd)` — the status of an open file; `None` if it is not open. Async-signal-safe.
pub(crate) fn fstat(fd: RawFd) -> Option<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable and large enough.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) }).ok()?;
    // SAFETY: fstat succeeded, so it filled the buffer.
    Some(unsafe { stat.assume_init() })
}

/// `fstat(fd)`, `fcntl(fd, F_GETFL)` — the identity of an fd; `None` if it is not open.
pub(crate) fn fd_identity(fd: RawFd) -> Option<FdIdentity> {
    let stat = fstat(fd)?;
    // SAFETY: reads no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) }).ok()?;
    Some(FdIdentity {
        dev: stat.st_dev,
        ino: stat.st_ino,
        kind: stat.st_mode & libc::S_IFMT,
        access: flags & (libc::O_ACCMODE | libc::O_PATH),
    })
}

/// `stat("/proc/self/fd")` — the number of open fds; `None` where the kernel does not report it (before Linux
/// 6.2). Async-signal-safe.
pub(crate) fn count_open_fds() -> Option<usize> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path is NUL-terminated, and `stat` is writable and large enough.
    check(unsafe { libc::stat(c"/proc/self/fd".as_ptr(), stat.as_mut_ptr()) }).ok()?;
    // SAFETY: stat succeeded, so it filled the buffer.
    let size = unsafe { stat.assume_init() }.st_size;
    usize::try_from(size).ok().filter(|count| *count > 0)
}

/// `fcntl(fd, F_GETFD)` — whether close-on-exec is set; `None` if the fd is not open.
pub(crate) fn is_cloexec(fd: RawFd) -> Option<bool> {
    // SAFETY: reads no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFD) }).ok()?;
    Some(flags & libc::FD_CLOEXEC != 0)
}

/// Calls `see` with each open fd of this process, ascending, except the one that is used to read the list.
///
/// Reads `/proc/self/fd` with `getdents64`, without allocating. Where that cannot be opened (every fd in use,
/// no `/proc` in a chroot, another uid) each number up to the limit is tried instead.
pub(crate) fn each_open_fd(mut see: impl FnMut(RawFd)) {
    let listed = list_numbers(c"/proc/self/fd", |fd, own| {
        if fd != own.as_raw_fd() {
            see(fd);
        }
    });
    if listed.is_err() {
        probe_fds(see);
    }
}

/// Calls `see` with each directory entry that is a number, and with the fd of the directory.
/// Async-signal-safe if `see` is.
pub(crate) fn list_numbers(directory: &CStr, mut see: impl FnMut(i32, BorrowedFd<'_>)) -> io::Result<()> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let directory = own(check(unsafe { libc::open(directory.as_ptr(), flags) })?);
    let own_number = directory.as_raw_fd();
    // Aligned for `linux_dirent64`; about eighty entries per call. A larger buffer would use another page of
    // stack, which every test process would have to copy.
    let mut buffer = [0u64; 256];
    loop {
        let size = mem::size_of_val(&buffer);
        // SAFETY: the kernel writes at most `size` bytes into the buffer.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, own_number, buffer.as_mut_ptr(), size) };
        let filled = check(filled as c_int)? as usize;
        if filled == 0 {
            return Ok(());
        }
        // SAFETY: the first `filled` bytes were just written, and u8 has no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), filled) };
        let mut at = 0;
        // Fields of `struct linux_dirent64`: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name.
        while let Some(&[low, high]) = bytes.get(at + 16..at + 18) {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let name = bytes.get(at + 19..at + length).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if let Some(number) = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()) {
                see(number, directory.as_fd());
            }
            if length == 0 {
                break;
            }
            at += length;
        }
    }
}

fn probe_fds(see: impl FnMut(RawFd)) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    // The limit may have been lowered below open fds, or be infinite.
    let most = if known { limit.rlim_max.clamp(4096, 1 << 20) as RawFd } else { 4096 };
    (0..most).filter(|fd| is_cloexec(*fd).is_some()).for_each(see);
}

/// A borrow of one of the standard fds.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: only for 0, 1 and 2, which stay open as long as the process.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// `write(fd, text)` until all of it is written or a write fails. `fd` is 0, 1 or 2.
pub(crate) fn print_to(fd: RawFd, text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match nix::unistd::write(borrow(fd), rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// `fgetxattr(fd, "security.capability")` — whether an executable has file capabilities (capabilities(7)).
#[cfg(feature = "__engine")]
pub(crate) fn has_capabilities(file: &std::fs::File) -> bool {
    let name = c"security.capability";
    // SAFETY: the name is NUL-terminated, and nothing is written where the size is 0.
    unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// `poll(fd)` — whether the other end of a socket is closed.
pub(crate) fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// `close_range` — closes every fd of 3 and above, except those in `except`. Async-signal-safe.
pub(crate) fn close_fds_above_stdio(except: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut first = 3;
    loop {
        let kept = except.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd >= first).min();
        let last = kept.map_or(u32::MAX, |fd| fd as u32 - 1);
        if kept != Some(first) {
            // SAFETY: reads no memory of ours. The caller of the public function vouches for the fds.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first as u32, last, 0) };
            check(result as c_int)?;
        }
        match kept {
            Some(fd) => first = fd + 1,
            None => return Ok(()),
        }
    }
}
