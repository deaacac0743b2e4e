//! Every unsafe call of the harness, each with the reason why it holds here.
//!
//! The functions are named for the syscall they make; what they are for stands with their
//! callers. Nothing in here allocates after a fork unless it says so.

#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_ulong, c_void};
use std::io::{self, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use crate::registry::Test;

/// A process id as the kernel counts it.
pub(crate) type Pid = i32;

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

// ---------------------------------------------------------------------------------------------
// Processes

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The forking process; the child's pid.
    Parent(Pid),
}

/// `fork()` — starts a process that is a copy of this one.
///
/// Callers are single-threaded when they call this: `Harness::run` counts its threads first, and
/// fork server and supervisor never start one. That is what makes allocation, locks and the whole
/// of `std` usable in the child (fork(2), "async-signal-safe functions").
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the process has one thread (see above), so no lock is held by a thread that the
    // child would lack.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// `exit_group(code)` — ends the process without running anything of the program's own. Past the recorder.
pub(crate) fn exit_now(code: i32) -> ! {
    loop {
        // SAFETY: the call takes any value and does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

/// `kill(pid, signal)` — for a pid that cannot be recycled: an unreaped child or this process.
pub(crate) fn kill(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: `kill` reads no memory of ours. The caller pins the pid.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// `getpgid(pid)` — the process group of a child that is not reaped yet.
pub(crate) fn getpgid(pid: Pid) -> io::Result<Pid> {
    // SAFETY: `getpgid` reads no memory of ours.
    check(unsafe { libc::getpgid(pid) })
}

/// `pidfd_open(pid, 0)` — a handle on the process that has this pid now (Linux 5.3).
///
/// The pid may have been recycled before the call: the caller rechecks what it knows of the
/// process *after* it, and only then trusts the handle.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call reads no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd as c_int)?;
    // SAFETY: the kernel has just made this fd for us (close-on-exec), nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `pidfd_send_signal(pidfd, signal, NULL, 0)` — signals just that process (Linux 5.1).
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: c_int) -> io::Result<()> {
    let info = ptr::null::<libc::siginfo_t>();
    // SAFETY: the fd is open for the length of the borrow, and a null siginfo is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    check(result as c_int).map(drop)
}

/// What `waitid` tells of one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) pid: Pid,
    pub(crate) state: ChildState,
}

/// How a child was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// It called `exit` with this code.
    Exited(i32),
    /// This signal ended it. A plain number: real-time signals have no name in nix.
    Signalled(i32),
    /// It is stopped.
    Stopped,
    /// It has made this process its tracer (`PTRACE_TRACEME`), and waits for a word on this signal.
    Trapped(i32),
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Children {
    /// `ECHILD`: no child is left, dead or alive. The kernel's word for "clean".
    None,
    /// There are children, and none has anything to tell.
    Quiet,
    /// This one has.
    Ready(Waited),
}

/// `waitid(..)` — asks about one child (`pid`) or any (`None`), without ever blocking.
///
/// `flags` are the states asked for and `WNOWAIT`; `WNOHANG` and `__WALL` are always set. Without
/// `__WALL` a child whose exit signal is not SIGCHLD (a raw `clone`) would look like no child.
pub(crate) fn waitid(pid: Option<Pid>, flags: c_int) -> io::Result<Children> {
    let (kind, id) = match pid {
        Some(pid) => (libc::P_PID, pid as libc::id_t),
        None => (libc::P_ALL, 0),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = flags | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` is a siginfo_t that the kernel may write.
    let result = unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) };
    if let Err(error) = check(result) {
        return match error.raw_os_error() {
            Some(libc::ECHILD) => Ok(Children::None),
            Some(libc::EINTR) => Ok(Children::Quiet),
            _ => Err(error),
        };
    }
    // SAFETY: all-zero bytes are a valid siginfo_t, and the kernel only overwrites them.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves them zero when nothing is ready.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(Children::Quiet);
    }
    // SAFETY: as above; nonzero si_pid says that the fields were filled.
    let status = unsafe { info.si_status() };
    let state = match info.si_code {
        libc::CLD_EXITED => ChildState::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => ChildState::Signalled(status),
        libc::CLD_TRAPPED => ChildState::Trapped(status),
        _ => ChildState::Stopped,
    };
    Ok(Children::Ready(Waited { pid, state }))
}

/// Whether this process has a child, dead or alive.
pub(crate) fn has_children() -> bool {
    !matches!(waitid(None, libc::WEXITED | libc::WNOWAIT), Ok(Children::None))
}

/// `ptrace(PTRACE_DETACH, pid, NULL, signal)` — lets a child that has made this process its tracer go on,
/// with the signal that it was stopped for. Nothing, if it has not.
pub(crate) fn ptrace_detach(pid: Pid, signal: c_int) {
    let (none, signal) = (ptr::null_mut::<c_void>(), signal as usize as *mut c_void);
    // SAFETY: reads and writes no memory of ours.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, none, signal) };
}

/// `unshare(CLONE_THREAD)` — whether this process has more threads than one: with one it does nothing,
/// and with more it fails (unshare(2)). Async-signal-safe.
pub(crate) fn is_threaded() -> bool {
    // SAFETY: changes nothing, and reads no memory of ours.
    let result = unsafe { libc::unshare(libc::CLONE_THREAD) };
    check(result).is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

// ---------------------------------------------------------------------------------------------
// Signals

/// The signal mask as the harness was given it.
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

impl Mask {
    /// Reads the mask of this thread.
    pub(crate) fn current() -> io::Result<Mask> {
        let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: a null set changes nothing; the old mask is written to `mask`.
        let result = unsafe { libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
        check(result)?;
        // SAFETY: a zeroed sigset_t is valid, and the call has filled it.
        Ok(Mask(unsafe { mask.assume_init() }))
    }

    /// The mask as one bit a signal, signal 1 the lowest: what an exec'ed fork server is told.
    pub(crate) fn bits(&self) -> u64 {
        (1..=64)
            // SAFETY: `mask` is an initialized set, and the signal number is in range.
            .filter(|signal| unsafe { libc::sigismember(&self.0, *signal) } == 1)
            .fold(0, |bits, signal| bits | 1 << (signal - 1))
    }

    /// The mask that has these [`Mask::bits`] in another process.
    pub(crate) fn from_bits(bits: u64) -> Mask {
        // SAFETY: a zeroed sigset_t is valid.
        let mut mask = unsafe { mem::zeroed() };
        // SAFETY: `mask` is writable memory of the right type.
        unsafe { libc::sigemptyset(&mut mask) };
        for signal in (1..=64).filter(|signal| bits & (1 << (signal - 1)) != 0) {
            // SAFETY: `mask` was made by sigemptyset; signals libc reserves for itself are refused.
            unsafe { libc::sigaddset(&mut mask, signal) };
        }
        Mask(mask)
    }
}

/// `sigaction(signal, SIG_IGN)` — ignores a signal.
pub(crate) fn ignore_signal(signal: c_int) {
    set_disposition(signal, libc::SIG_IGN);
}

/// `sigaction(SIGCHLD, SIG_DFL)` — where it is ignored, so that children that end can be waited for.
pub(crate) fn stop_ignoring_children() {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null action changes nothing; the present one is written to `action`.
    let result = unsafe { libc::sigaction(libc::SIGCHLD, ptr::null(), &mut action) };
    if result == 0 && action.sa_sigaction == libc::SIG_IGN {
        default_signal(libc::SIGCHLD);
    }
}

/// `sigaction(signal, SIG_DFL)` — gives a signal its default effect back.
pub(crate) fn default_signal(signal: c_int) {
    set_disposition(signal, libc::SIG_DFL);
}

fn set_disposition(signal: c_int, disposition: libc::sighandler_t) {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = disposition;
    // SAFETY: SIG_IGN and SIG_DFL run no code of ours.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
}

/// `sigtimedwait({signal}, NULL, limit)` — takes a pending signal that this process has blocked, or
/// waits for it.
#[cfg(feature = "sites")]
pub(crate) fn wait_for_signal(signal: c_int, limit: Duration) {
    let mut set = nix::sys::signal::SigSet::empty();
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        set.add(signal);
    }
    let limit = nix::sys::time::TimeSpec::from_duration(limit);
    // SAFETY: set and time are valid for the length of the call, and no siginfo is asked for.
    unsafe { libc::sigtimedwait(set.as_ref(), ptr::null_mut(), limit.as_ref()) };
}

// ---------------------------------------------------------------------------------------------
// Memory

/// A value in memory that is shared with every process forked from this one.
///
/// `T` is made of atomics only ([`crate::outcome::Page`]): two processes may touch it at once.
pub(crate) struct Shared<T: 'static> {
    at: &'static T,
}

impl<T: Sync> Shared<T> {
    /// `mmap(MAP_SHARED|MAP_ANONYMOUS)` — zeroed memory; it stays mapped until the process ends.
    ///
    /// # Safety of the type
    ///
    /// All-zero bytes must be a valid `T`; `Page` is the only one, and says so.
    pub(crate) fn zeroed() -> io::Result<Shared<T>> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let size = mem::size_of::<T>();
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
        let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is page-aligned, as large as `T`, zeroed (a valid `T`, see above),
        // and never unmapped, so the reference is good for ever.
        Ok(Shared { at: unsafe { &*at.cast::<T>() } })
    }
}

impl<T> Shared<T> {
    /// A second handle on the same memory.
    pub(crate) fn another(&self) -> Shared<T> {
        Shared { at: self.at }
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.at
    }
}

/// The next test of the registry's list.
pub(crate) fn registered(test: *mut Test) -> Option<&'static Test> {
    // SAFETY: only `Test::register` puts pointers into the list, and only to statics.
    unsafe { test.as_ref() }
}

/// `process_vm_readv(pid, ..)` — reads the memory of another process; `None` if that may not be
/// read, or not all of it is there.
pub(crate) fn read_memory(pid: Pid, address: u64, length: usize) -> Option<Vec<u8>> {
    let base = usize::try_from(address).ok()?;
    let mut bytes = vec![0; length];
    let remote = [RemoteIoVec { base, len: length }];
    let pid = nix::unistd::Pid::from_raw(pid);
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote).ok()?;
    (read == length).then_some(bytes)
}

/// `dladdr(address, &info)` — the exported function that an address of this process lies in or
/// behind.
#[cfg(feature = "sites")]
pub(crate) fn exported_name(address: u64) -> Option<String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is writable; any address may be asked for.
    if unsafe { libc::dladdr(address as *const c_void, info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: null pointers are valid values, and dladdr has filled them.
    let info = unsafe { info.assume_init() };
    if info.dli_sname.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated name in a library that is never unloaded: the ones asked for are
    // libc and the loader.
    let name = unsafe { CStr::from_ptr(info.dli_sname) };
    Some(name.to_string_lossy().into_owned())
}

/// `mmap(PROT_READ, MAP_PRIVATE)` — the contents of a file, mapped for good.
///
/// It has to stay as it is: a program or a library that is mapped for execution already, of which
/// the same is asked.
#[cfg(feature = "sites")]
pub(crate) fn map_file(file: &std::fs::File) -> io::Result<&'static [u8]> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let fd = file.as_raw_fd();
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing.
    let at = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `length` bytes are mapped there, never unmapped, and nobody writes to them.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), length) })
}

// ---------------------------------------------------------------------------------------------
// File descriptors

/// `pidfd_getfd(pidfd, fd, 0)` — a second, close-on-exec number in this process for an fd of
/// another (Linux 5.6).
pub(crate) fn pidfd_getfd(pidfd: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call reads no memory of ours.
    let new = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    Ok(own(check(new as c_int)?))
}

/// `kcmp(one, other, KCMP_FILES)` — whether two threads have one table of fds; `None` if the kernel
/// does not tell.
pub(crate) fn have_same_files(one: Pid, other: Pid) -> Option<bool> {
    /// include/uapi/linux/kcmp.h
    const KCMP_FILES: c_int = 2;
    // SAFETY: the call reads no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    check(order as c_int).ok().map(|order| order == 0)
}

/// `kcmp(pid, pid, KCMP_EPOLL_TFD)` — whether an fd of a process is the file that one of its epoll
/// instances has in the `nth` entry of that number; `None` if the kernel does not tell.
pub(crate) fn is_in_epoll(pid: Pid, epoll: RawFd, fd: RawFd, nth: u32) -> Option<bool> {
    /// include/uapi/linux/kcmp.h
    const KCMP_EPOLL_TFD: c_int = 7;
    // `struct kcmp_epoll_slot`: the instance, the number, how many of that number come before.
    let slot = [epoll as u32, fd as u32, nth];
    // SAFETY: the kernel reads the three words of `slot`, which outlives the call.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, slot.as_ptr()) };
    match check(order as c_int) {
        Ok(order) => Some(order == 0),
        // Nobody has that number any more, or no entry has.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT)) => Some(false),
        Err(_) => None,
    }
}

/// `ioctl(fd, FIONREAD)` — how many bytes wait to be read behind an fd.
pub(crate) fn queued(fd: &OwnedFd) -> Option<u32> {
    let mut count: c_int = 0;
    // SAFETY: FIONREAD writes an int, and `count` is one.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) }).ok()?;
    u32::try_from(count).ok()
}

/// `getsockopt(SOL_SOCKET, name)` — an option of a socket that is an int.
pub(crate) fn socket_option(socket: &OwnedFd, name: c_int) -> Option<i32> {
    let mut value: c_int = 0;
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `size` bytes, which `value` has.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut size) }).ok()?;
    Some(value)
}

/// `getsockopt(SO_RCVTIMEO)`, `getsockopt(SO_SNDTIMEO)` — whether a timeout is set.
pub(crate) fn has_timeout(socket: &OwnedFd, name: c_int) -> Option<bool> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `size` bytes, which `value` has, and any bytes are a timeval.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut size) }).ok()?;
    Some((value.tv_sec, value.tv_usec) != (0, 0))
}

/// Takes ownership of an fd that the kernel has just given us.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass fds out of a received SCM_RIGHTS message, signalfd or dup, which
    // nobody else has seen.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `fcntl(fd, F_DUPFD_CLOEXEC, least)` — a second, close-on-exec number for an fd.
pub(crate) fn dup_above(fd: RawFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: reads no memory of ours; a wrong fd is an error.
    let new = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) })?;
    Ok(own(new))
}

/// `dup2(from, to)` — makes `to` another number of `from`, without close-on-exec.
pub(crate) fn dup2(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: reads no memory of ours. `to` is 0, 1 or 2, which nothing in here owns.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// What makes an open file the same one: two fds with equal identities are one open file to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FdIdentity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// `S_IFMT` of the file.
    pub(crate) kind: u32,
    /// `O_ACCMODE` of the open file.
    pub(crate) access: i32,
}

/// `fstat(fd)` — what the kernel says of an open file; `None` if it is not open. Async-signal-safe.
pub(crate) fn fstat(fd: RawFd) -> Option<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable and large enough.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) }).ok()?;
    // SAFETY: fstat succeeded, so it filled the buffer.
    Some(unsafe { stat.assume_init() })
}

/// `fstat(fd)`, `fcntl(fd, F_GETFL)` — who an fd is; `None` if it is not open.
pub(crate) fn fd_identity(fd: RawFd) -> Option<FdIdentity> {
    let stat = fstat(fd)?;
    // SAFETY: reads no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) }).ok()?;
    Some(FdIdentity {
        dev: stat.st_dev,
        ino: stat.st_ino,
        kind: stat.st_mode & libc::S_IFMT,
        access: flags & libc::O_ACCMODE,
    })
}

/// `fstat(fd)`, `fcntl(fd, F_GETFL)` — whether an fd is open and not the file that it was. The
/// access mode is only looked at if `by_access`.
pub(crate) fn is_other_file(fd: RawFd, old: &FdIdentity, by_access: bool) -> bool {
    if by_access {
        return fd_identity(fd).is_some_and(|new| new != *old);
    }
    let Some(new) = fstat(fd) else { return false };
    (new.st_dev, new.st_ino, new.st_mode & libc::S_IFMT) != (old.dev, old.ino, old.kind)
}

/// `fcntl(fd, F_GETFD)` — whether the fd is closed by an exec; `None` if it is not open.
pub(crate) fn is_cloexec(fd: RawFd) -> Option<bool> {
    // SAFETY: reads no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFD) }).ok()?;
    Some(flags & libc::FD_CLOEXEC != 0)
}

/// `pselect6(..)`, `poll(..)` — whether every open fd is one of `known`, which are ascending.
///
/// Says no also where it cannot tell. `/proc/self/fd` would tell always, but in a process that is
/// as young as its test the kernel has to make all of that directory first.
pub(crate) fn nothing_open_but<T>(known: &[(RawFd, T)]) -> bool {
    const LONG: usize = c_ulong::BITS as usize;
    const MOST: usize = 1 << 14;
    // No fd is there from `end` on. select reads a bit set as far as the table of fds goes, a
    // multiple of 64, and leaves alone what is behind ("ignores any file descriptor in these sets
    // that is greater than the maximum", select(2), BUGS); a bit of an fd that is not open is an
    // error, and other bits come back as zeroes. So a word that is accepted and stays is behind.
    let highest = known.last().map_or(0, |(fd, _)| usize::try_from(*fd).unwrap_or(0));
    let mut end = (highest + 1).next_multiple_of(64);
    loop {
        if end > MOST {
            return false;
        }
        let mut set = [0 as c_ulong; MOST / LONG + 1];
        set[end / LONG] = c_ulong::MAX;
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (count, none) = (end + LONG, ptr::null::<c_void>());
        let except = set.as_mut_ptr();
        // SAFETY: `except` has at least `count` bits, and no other set is given.
        let result = unsafe { libc::syscall(libc::SYS_pselect6, count, none, none, except, &now, none) };
        if result == 0 && set[end / LONG] == c_ulong::MAX {
            break;
        }
        // Of more than 64 the kernel makes a power of two (`alloc_fdtable`, fs/file.c).
        end = (end + 1).next_power_of_two();
    }
    // None is there below `end` either, but for the known ones. Plain loops: most tests are debug
    // builds, in which an iterator's step costs ten times as much, and there are 64 a test.
    let (mut begin, mut passed) = (0, 0);
    while begin < end {
        let mut fds = [libc::pollfd { fd: -1, events: 0, revents: 0 }; 64];
        let mut at = 0;
        while at < fds.len() {
            let fd = (begin + at) as RawFd;
            if passed < known.len() && known[passed].0 == fd {
                passed += 1;
            } else {
                fds[at].fd = fd;
            }
            at += 1;
        }
        // SAFETY: `fds` is writable and has as many entries as are told.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) } == -1 {
            return false;
        }
        at = 0;
        while at < fds.len() {
            // What is known is not asked for: poll ignores an fd of -1.
            if fds[at].fd != -1 && fds[at].revents != libc::POLLNVAL {
                return false;
            }
            at += 1;
        }
        begin += fds.len();
    }
    true
}

/// Calls `see` with the number of each open fd of this process, ascending, but for the one that is
/// used to look.
///
/// Reads `/proc/self/fd` with `getdents64`, without allocating. Where that cannot be opened (every
/// fd in use, no `/proc` in a chroot, another uid) each number up to the limit is asked for instead.
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

/// Calls `see` with each entry of a directory that is a number, and the fd that is used to look.
/// Async-signal-safe as far as `see` is.
pub(crate) fn list_numbers(directory: &CStr, mut see: impl FnMut(i32, BorrowedFd<'_>)) -> io::Result<()> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let directory = own(check(unsafe { libc::open(directory.as_ptr(), flags) })?);
    let own_number = directory.as_raw_fd();
    // Aligned for `linux_dirent64`; some eighty entries a call. More would be a page of stack that
    // every test process has to copy.
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
        // struct linux_dirent64: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name.
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

/// How many processes and threads this user may have; at most `u64::MAX`, which is no limit.
pub(crate) fn process_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &mut limit) } == 0;
    if known { limit.rlim_cur } else { u64::MAX }
}

fn probe_fds(see: impl FnMut(RawFd)) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    // A limit may have been lowered below fds that are open, or be "infinite".
    let most = if known { limit.rlim_max.clamp(4096, 1 << 20) as RawFd } else { 4096 };
    (0..most).filter(|fd| is_cloexec(*fd).is_some()).for_each(see);
}

/// A borrow of one of the standard fds.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: only for 0, 1 and 2, which stay open as long as the process.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// `socketpair(AF_UNIX, SOCK_SEQPACKET)` — two ends that keep messages apart, both close-on-exec.
pub(crate) fn socket_pair() -> io::Result<[OwnedFd; 2]> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two fds.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    Ok(ends.map(own))
}

/// `socket(AF_NETLINK, .., NETLINK_SOCK_DIAG)` — asks the kernel about sockets (sock_diag(7)). A read that
/// finds no answer does not wait.
pub(crate) fn sock_diag() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: reads no memory of ours.
    check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) }).map(own)
}

/// The most fds that one message carries.
pub(crate) const FDS: usize = 3;

/// A control message that carries fds (cmsg(3)): its head, and room for them right behind it.
#[repr(C)]
struct Rights {
    head: libc::cmsghdr,
    fds: [RawFd; FDS],
}

impl Rights {
    const HEAD: usize = size_of::<libc::cmsghdr>();

    /// The length of a message with so many fds, without what pads it.
    const fn length(fds: usize) -> usize {
        Rights::HEAD + fds * size_of::<RawFd>()
    }

    fn empty() -> Rights {
        // SAFETY: all-zero bytes are a valid control message.
        unsafe { mem::zeroed() }
    }

    /// The head of a message that comes in two parts, with these rights.
    fn header(&mut self, parts: &mut [libc::iovec; 2], length: usize) -> libc::msghdr {
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        message.msg_control = ptr::from_mut(self).cast();
        message.msg_controllen = length as _;
        message
    }
}

/// `sendmsg(2)` — sends a message that lies in two pieces of memory, and fds with it, at most [`FDS`]. Takes no memory.
pub(crate) fn send(socket: &OwnedFd, parts: [&[u8]; 2], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let part = |part: &[u8]| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    let mut parts = parts.map(part);
    let mut rights = Rights::empty();
    rights.head.cmsg_level = libc::SOL_SOCKET;
    rights.head.cmsg_type = libc::SCM_RIGHTS;
    rights.head.cmsg_len = Rights::length(fds.len().min(FDS)) as _;
    for (place, fd) in rights.fds.iter_mut().zip(fds) {
        *place = fd.as_raw_fd();
    }
    let length = if fds.is_empty() { 0 } else { size_of::<Rights>() };
    let message = rights.header(&mut parts, length);
    // SAFETY: `message` refers to memory of the caller's and of this frame, with its true lengths; the
    // kernel only reads it.
    while unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) } == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// `recvmsg(2)` — waits for a message and takes it into two pieces of memory; gives its length and the fds
/// that came with it, close-on-exec. Takes no memory: it is called in fresh forks.
pub(crate) fn receive(
    socket: &OwnedFd,
    parts: [&mut [u8]; 2],
) -> io::Result<(usize, [Option<OwnedFd>; FDS])> {
    let part = |part: &mut [u8]| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
    let mut parts = parts.map(part);
    let mut rights = Rights::empty();
    let mut message = rights.header(&mut parts, size_of::<Rights>());
    let length = loop {
        // SAFETY: `message` refers to memory of the caller's and of this frame, with its true lengths.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(length) = usize::try_from(length) {
            break length;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let is_rights = rights.head.cmsg_level == libc::SOL_SOCKET && rights.head.cmsg_type == libc::SCM_RIGHTS;
    let bytes = if is_rights { rights.head.cmsg_len } else { 0 };
    let fd = |at: usize| (bytes >= Rights::length(at + 1) as _).then(|| own(rights.fds[at]));
    Ok((length, [fd(0), fd(1), fd(2)]))
}

/// `setsockopt(SO_SNDTIMEO)` — a send that finds nobody reading fails after `seconds`.
pub(crate) fn limit_sends(socket: &OwnedFd, seconds: i64) -> io::Result<()> {
    let time = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let size = mem::size_of_val(&time) as libc::socklen_t;
    let value = (&raw const time).cast::<c_void>();
    // SAFETY: `value` points to a timeval of `size` bytes for the length of the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, value, size) })
        .map(drop)
}

/// Waits until `fd` has something to say, at most for `limit` (`None`: as long as it takes).
pub(crate) fn readable(fd: &impl AsFd, limit: Option<Duration>) -> bool {
    // A limit beyond the end of time is none.
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let timeout = match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if until.is_some_and(|until| Instant::now() >= until) => return false,
            Ok(0) | Err(_) => {}
            Ok(_) => return true,
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The process's own environment and title

/// `setenv` — in a process with one thread.
pub(crate) fn set_env(name: &str, value: &OsStr) {
    // SAFETY: called in supervisors, which have one thread.
    unsafe { std::env::set_var(name, value) };
}

/// `unsetenv` — in a process with one thread.
pub(crate) fn remove_env(name: &str) {
    // SAFETY: called in an exec'ed fork server before any user code, with one thread.
    unsafe { std::env::remove_var(name) };
}

/// The way of a fresh fork of a supervisor to a process of its own, made ready before the fork.
///
/// A fork maps its program anew, 16 pages at each first touch, and copies each page that it writes to:
/// 3 us each, for every test. In an unoptimised build every small function lies in a corner of its own.
/// So here is one function, and nothing in it but system calls.
pub(crate) struct Entrance<'a> {
    supervisor: Pid,
    close: [RawFd; 8],
    desk: RawFd,
    mask: &'a Mask,
    argv: &'a Argv,
    /// argv as it was.
    arguments: *const c_void,
    length: usize,
    comm: *const c_char,
}

impl<'a> Entrance<'a> {
    /// `close` is closed at once, -1 being nothing, and `desk` when there is a job.
    pub(crate) fn new(
        supervisor: Pid,
        close: [RawFd; 8],
        desk: RawFd,
        mask: &'a Mask,
        argv: &'a Argv,
        comm: &'a CStr,
    ) -> Entrance<'a> {
        let (arguments, length) = (argv.original.as_ptr().cast(), argv.original.len());
        Entrance { supervisor, close, desk, mask, argv, arguments, length, comm: comm.as_ptr() }
    }

    /// Leaves the supervisor, in the fork. Ends the process if the supervisor is gone.
    ///
    /// It is still called as the supervisor is, and as deaf: whoever waits for a job is no test yet.
    pub(crate) fn leave(&self) {
        // SAFETY: reads no memory of ours.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: `getppid` has no preconditions.
        if unsafe { libc::getppid() } != self.supervisor {
            // It died between the fork and the line above.
            exit_now(1);
        }
        // SAFETY: reads no memory of ours.
        unsafe { libc::setpgid(0, 0) };
        let mut at = 0;
        while at < self.close.len() {
            if self.close[at] != -1 {
                // SAFETY: the caller forgets its owner: nobody uses the number again.
                unsafe { libc::syscall(libc::SYS_close, self.close[at]) };
            }
            at += 1;
        }
    }

    /// Goes the rest of the way, with the fds for stdout and stderr, which the caller forgets the owners
    /// of. Ends the process if there is no output.
    pub(crate) fn go(&self, output: [RawFd; 2]) {
        let [stdout, stderr] = output;
        // Past the recorder: these are the supervisor's fds.
        // SAFETY: reads no memory of ours, and nothing in here owns 1.
        let out = unsafe { libc::syscall(libc::SYS_dup3, stdout, 1, 0) };
        // SAFETY: as above, of 2.
        let err = unsafe { libc::syscall(libc::SYS_dup3, stderr, 2, 0) };
        if out == -1 || err == -1 {
            exit_now(1);
        }
        // SAFETY: nobody uses the number again.
        unsafe { libc::syscall(libc::SYS_close, self.desk) };
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_close, stdout) };
        if stderr != stdout {
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_close, stderr) };
        }
        // A test before may have changed the flags of /dev/null: it is one file for all of them.
        // SAFETY: reads no memory of ours.
        unsafe { libc::fcntl(0, libc::F_SETFL, 0) };
        // `std::env::args` reads this very memory.
        // SAFETY: the region is ours (see `Argv::at`) and as long, and there is one thread.
        unsafe { libc::memcpy(self.argv.start as *mut c_void, self.arguments, self.length) };
        // SAFETY: a NUL-terminated name in memory that the fork has copied.
        unsafe { libc::prctl(libc::PR_SET_NAME, self.comm) };
        // SAFETY: the mask came from the kernel.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.mask.0, ptr::null_mut()) };
    }
}

/// The memory in which the kernel finds this process's argv (`/proc/PID/cmdline`).
pub(crate) struct Argv {
    start: usize,
    original: Vec<u8>,
}

impl Argv {
    /// Finds the region. `bounds` are the fields `arg_start` and `arg_end` of `/proc/self/stat`.
    pub(crate) fn at(bounds: (usize, usize)) -> Argv {
        let (start, end) = bounds;
        let length = end.saturating_sub(start);
        // SAFETY: the kernel put argv there when it started the program; the region lies on the
        // initial stack, is readable and writable, and is never unmapped.
        let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, length) };
        Argv { start, original: bytes.to_vec() }
    }

    /// Shows a title, given in parts, instead of argv, cut to the room that argv had.
    pub(crate) fn show(&self, title: &[&str]) {
        // SAFETY: the region is ours and as long (see `at`), and this process has one thread, so nobody
        // else reads or writes argv meanwhile.
        let region = unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.original.len()) };
        let Some((end, mut room)) = region.split_last_mut() else { return };
        for part in title {
            let (shown, rest) = room.split_at_mut(part.len().min(room.len()));
            shown.copy_from_slice(&part.as_bytes()[..shown.len()]);
            room = rest;
        }
        room.fill(0);
        *end = 0;
    }

    /// The original arguments.
    pub(crate) fn arguments(&self) -> Vec<String> {
        crate::proc::process::arguments(&self.original)
    }
}

// ---------------------------------------------------------------------------------------------
// Before main

type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

/// Runs before every other constructor of the program (std keeps argc and argv in `.00099`); see
/// `forkserver::Takeover`.
#[used]
#[unsafe(link_section = ".init_array.00101")]
static TAKE_OVER_EARLY: Constructor = take_over_early;

/// Runs among the last constructors of the program.
#[used]
#[unsafe(link_section = ".init_array")]
static TAKE_OVER_LATE: Constructor = take_over_late;

extern "C" fn take_over_early(_: c_int, _: *const *const c_char, _: *const *const c_char) {
    crate::sites::prepare();
    crate::forkserver::take_over_early();
}

extern "C" fn take_over_late(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    crate::forkserver::take_over_late(|| run_later_constructors(argc, argv, envp));
}

/// Runs the constructors that the linker happened to place behind ours, so that a fork server
/// has run every one of them: a body must find the world that `main` would have found.
fn run_later_constructors(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    unsafe extern "C" {
        // Defined by every ELF linker around the section (ld's and lld's default layout).
        static __init_array_start: [Constructor; 0];
        static __init_array_end: [Constructor; 0];
    }
    let mut at = (&raw const __init_array_start).cast::<Constructor>();
    let end = (&raw const __init_array_end).cast::<Constructor>();
    let mut passed_ours = false;
    while at < end {
        // SAFETY: `at` lies between the bounds of the section, which holds one pointer a slot.
        let constructor = unsafe { at.read() };
        // SAFETY: still within the section, or one past its end.
        at = unsafe { at.add(1) };
        if passed_ours {
            constructor(argc, argv, envp);
        }
        passed_ours |= constructor as usize == take_over_late as *const () as usize;
    }
}

/// `atexit(handler)` — has `handler` run when the process calls `exit`.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: `handler` is a function of this program and stays.
    unsafe { libc::atexit(handler) };
}

static STACK_END: AtomicUsize = AtomicUsize::new(0);
static OLD_STACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Tells a stack overflow of the main thread from other faults, as Rust's start-up does.
///
/// A process that is taken over before `main` has not run that start-up: without this, an endless
/// recursion would end with SIGSEGV and no word of why.
pub(crate) fn watch_stack() {
    const SIZE: usize = 64 * 1024;
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the call has no preconditions.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: `attributes` is writable; this thread exists.
    if unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) } != 0 {
        return;
    }
    let (mut low, mut size) = (ptr::null_mut(), 0);
    // SAFETY: pthread_getattr_np has filled the attributes.
    unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &mut low, &mut size) };
    // SAFETY: the attributes were made above and are not used again.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    STACK_END.store(low as usize, Ordering::Relaxed);

    let memory = Box::leak(vec![0u8; SIZE].into_boxed_slice()).as_mut_ptr();
    OLD_STACK.store(memory.cast(), Ordering::Relaxed);
    let stack = libc::stack_t { ss_sp: memory.cast(), ss_flags: 0, ss_size: SIZE };
    // SAFETY: the memory is leaked, so the alternate stack stays good.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: `on_fault` makes only async-signal-safe calls.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    const MESSAGE: &[u8] =
        b"\nthread 'main' has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";
    // SAFETY: the kernel passes a siginfo of a fault, because of SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: faults fill the field.
    let address = unsafe { info.si_addr() } as usize;
    let end = STACK_END.load(Ordering::Relaxed);
    // The main stack may end some pages above its limit (stack gap); a probe hits just below.
    if (end.saturating_sub(64 * 1024)..end + 64 * 1024).contains(&address) {
        // SAFETY: write(2) and abort(3) are async-signal-safe.
        unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
        // SAFETY: as above.
        unsafe { libc::abort() };
    }
    // Not ours: the fault happens again with its default effect.
    set_disposition(signal, libc::SIG_DFL);
}
