//! Hooks of the calls that create fds: pipes, sockets and anonymous files.
//!
//! Those of files that have a path are in [`super::opens`].

use core::ffi::{c_char, c_int, c_uint, c_void};

use super::abi::{self, KeepErrno, O_CLOEXEC};
use super::log::{Call, event_key, fd_key, log};
use super::next::{Next, behind};
use super::observer;

static PIPE: Next = Next::new(c"pipe");
static PIPE2: Next = Next::new(c"pipe2");
static SOCKETPAIR: Next = Next::new(c"socketpair");
static SOCKET: Next = Next::new(c"socket");
static ACCEPT: Next = Next::new(c"accept");
static ACCEPT4: Next = Next::new(c"accept4");
static EVENTFD: Next = Next::new(c"eventfd");
static EPOLL_CREATE: Next = Next::new(c"epoll_create");
static EPOLL_CREATE1: Next = Next::new(c"epoll_create1");
static TIMERFD_CREATE: Next = Next::new(c"timerfd_create");
/// Since glibc 2.27.
static MEMFD_CREATE: Next = Next::new(c"memfd_create");
static INOTIFY_INIT: Next = Next::new(c"inotify_init");
static INOTIFY_INIT1: Next = Next::new(c"inotify_init1");

pub(crate) static ALL: [&Next; 13] = [
    &PIPE,
    &PIPE2,
    &SOCKETPAIR,
    &SOCKET,
    &ACCEPT,
    &ACCEPT4,
    &EVENTFD,
    &EPOLL_CREATE,
    &EPOLL_CREATE1,
    &TIMERFD_CREATE,
    &MEMFD_CREATE,
    &INOTIFY_INIT,
    &INOTIFY_INIT1,
];

fn inode(fd: c_int) -> u64 {
    abi::status(fd).map_or(0, |status| status.ino)
}

/// Records that the hook's caller created a pair of fds.
///
/// # Safety
///
/// `fds` points to two fds.
#[inline(always)]
unsafe fn record_pair(call: Call, fds: *const c_int, cloexec: bool) {
    let Some(log) = log() else { return };
    let _errno = KeepErrno::new();
    let Some(entry) = log.begin(&log.pipes) else { return };
    // SAFETY: the caller's promise.
    let [one, other] = unsafe { *fds.cast::<[c_int; 2]>() };
    entry.note_fds([one, other], cloexec);
    let ino = inode(one);
    // Both ends of a pipe have the same inode.
    entry.finish(call, [ino, if call == Call::Socketpair { inode(other) } else { ino }]);
    if call != Call::Socketpair {
        observer::pipe_made(entry, [one, other]);
    }
}

/// Records that the hook's caller created an fd.
#[inline(always)]
fn record(call: Call, fd: c_int, cloexec: bool) {
    let Some(log) = log() else { return };
    let _errno = KeepErrno::new();
    let Some(entry) = log.begin(&log.others) else { return };
    entry.note_fds([fd, -1], cloexec);
    // Inodes of pipes and sockets come from one counter. See `Entry::keys` for the others.
    let key = match call {
        Call::Socket | Call::Accept | Call::Accept4 => inode(fd),
        Call::Eventfd => abi::eventfd_id(fd).map_or(0, event_key),
        _ => 0,
    };
    let kind = match call {
        Call::Eventfd => 1,
        Call::TimerfdCreate => 2,
        Call::EpollCreate | Call::EpollCreate1 => 3,
        Call::InotifyInit | Call::InotifyInit1 => 4,
        Call::MemfdCreate => 5,
        _ => return entry.finish(call, [key, 0]),
    };
    entry.finish(call, [key, fd_key(kind, abi::own_pid(), fd)]);
    observer::fd_made(entry, fd);
}

/// Wraps `pipe(2)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe(fds: *mut c_int) -> c_int {
    let next = behind!(PIPE: fn(*mut c_int) -> c_int, or -1);
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { next(fds) };
    if result == 0 {
        // SAFETY: the call has written them.
        unsafe { record_pair(Call::Pipe, fds, false) };
    }
    result
}

/// Wraps `pipe2(2)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe2(fds: *mut c_int, flags: c_int) -> c_int {
    let next = behind!(PIPE2: fn(*mut c_int, c_int) -> c_int, or -1);
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { next(fds, flags) };
    if result == 0 {
        // SAFETY: the call has written them.
        unsafe { record_pair(Call::Pipe2, fds, flags & O_CLOEXEC != 0) };
    }
    result
}

/// Wraps `socketpair(2)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int {
    let next = behind!(SOCKETPAIR: fn(c_int, c_int, c_int, *mut c_int) -> c_int, or -1);
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { next(domain, kind, protocol, fds) };
    if result == 0 {
        // SAFETY: the call has written them. `SOCK_CLOEXEC` is `O_CLOEXEC`.
        unsafe { record_pair(Call::Socketpair, fds, kind & O_CLOEXEC != 0) };
    }
    result
}

macro_rules! makes_fd {
    ($name:ident, $next:ident, $call:ident, ($($argument:ident: $type:ty),*), cloexec: $cloexec:expr) => {
        /// Wraps the system call of that name and records its caller.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            let next = behind!($next: fn($($type),*) -> c_int, or -1);
            // SAFETY: the caller's arguments are passed on.
            let fd = unsafe { next($($argument),*) };
            if fd >= 0 {
                record(Call::$call, fd, $cloexec);
            }
            fd
        }
    };
}

// All the close-on-exec flags have the same value.
makes_fd!(socket, SOCKET, Socket, (domain: c_int, kind: c_int, protocol: c_int), cloexec: kind & O_CLOEXEC != 0);
makes_fd!(accept, ACCEPT, Accept, (fd: c_int, address: *mut c_void, size: *mut c_uint), cloexec: false);
makes_fd!(
    accept4,
    ACCEPT4,
    Accept4,
    (fd: c_int, address: *mut c_void, size: *mut c_uint, flags: c_int),
    cloexec: flags & O_CLOEXEC != 0
);
makes_fd!(eventfd, EVENTFD, Eventfd, (value: c_uint, flags: c_int), cloexec: flags & O_CLOEXEC != 0);
makes_fd!(epoll_create, EPOLL_CREATE, EpollCreate, (size: c_int), cloexec: false);
makes_fd!(epoll_create1, EPOLL_CREATE1, EpollCreate1, (flags: c_int), cloexec: flags & O_CLOEXEC != 0);
makes_fd!(timerfd_create, TIMERFD_CREATE, TimerfdCreate, (clock: c_int, flags: c_int), cloexec: flags & O_CLOEXEC != 0);
// `MFD_CLOEXEC`.
makes_fd!(memfd_create, MEMFD_CREATE, MemfdCreate, (name: *const c_char, flags: c_uint), cloexec: flags & 1 != 0);
makes_fd!(inotify_init, INOTIFY_INIT, InotifyInit, (), cloexec: false);
makes_fd!(inotify_init1, INOTIFY_INIT1, InotifyInit1, (flags: c_int), cloexec: flags & O_CLOEXEC != 0);
