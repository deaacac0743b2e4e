//! `CHILDPROOF_TRACE=fds`: prints each pipe's creation, and its last close in a process.
//!
//! The hooks of `close`, `fclose`, `closedir`, `dup2`, `dup3` and `close_range` exist for this and for [`fd_table`]. When tracing is
//! off and that is empty, they only make the call. Not part of the library.

use std::ffi::{c_int, c_uint, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::abi::{self, KeepErrno};
use super::fd_table;
use super::log::{Call, Entry};
use super::next::{Next, behind};
use crate::proc::maps::Maps;
use crate::sys::{self, Pid};

static FCLOSE: Next = Next::new(c"fclose");
static CLOSEDIR: Next = Next::new(c"closedir");

pub(crate) static ALL: [&Next; 2] = [&FCLOSE, &CLOSEDIR];

/// The test process whose pipes are traced, 0 if there is none. Its forks inherit the value.
static TRACED: AtomicU32 = AtomicU32::new(0);

/// Traces the pipes of this process and of its forks.
pub(crate) fn trace() {
    TRACED.store(std::process::id(), Ordering::Relaxed);
}

pub(super) fn is_traced() -> bool {
    TRACED.load(Ordering::Relaxed) != 0
}

thread_local! {
    /// Set while a line is looked up, since that opens and closes files itself.
    static SAYING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Prints a line to fd 2, in one write. Only the test process resolves the line of code: in a fork, another
/// thread's locks may be held forever.
pub(super) fn say(what: std::fmt::Arguments<'_>, entry: &Entry, call: &str) {
    use std::io::Write;
    let pid = std::process::id();
    let mut line = [0u8; 512];
    let mut rest = &mut line[..];
    let _ = write!(rest, "childproof: pid {pid} {what}");
    if pid == TRACED.load(Ordering::Relaxed) && !SAYING.replace(true) {
        let maps = Maps::read(pid as Pid).unwrap_or_default();
        let site = entry.site(Call::Pipe, |address| maps.locate(address));
        let _ = write!(rest, " at {}", crate::recorder::symbols::line_of(&site, &maps));
        SAYING.set(false);
    }
    let _ = write!(rest, " ({call})");
    let left = rest.len();
    let filled = line.len() - left;
    let end = filled.min(line.len() - 1);
    line[end] = b'\n';
    // SAFETY: the first `end + 1` bytes of the buffer are initialised.
    unsafe { libc::write(2, line.as_ptr().cast(), end + 1) };
}

/// A pipe end that is about to be closed.
struct Closing {
    fd: c_int,
    ino: u64,
    access: c_int,
}

/// Inode and access mode of a pipe end; `None` if the fd is something else, such as a named FIFO.
fn pipe_end(fd: c_int) -> Option<(u64, c_int)> {
    let identity = sys::fd_identity(fd).filter(|identity| identity.kind == libc::S_IFIFO)?;
    let mut system = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `system` is writable and large enough.
    unsafe { libc::fstatfs(fd, system.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid value, and fstatfs only overwrites it.
    let system = unsafe { system.assume_init() };
    // `PIPEFS_MAGIC` (include/uapi/linux/magic.h).
    (system.f_type == 0x5049_5045).then_some((identity.ino, identity.access))
}

impl Closing {
    /// The pipe end behind an fd, if it is one and pipes are traced.
    fn look(fd: c_int) -> Option<Closing> {
        if !is_traced() {
            return None;
        }
        pipe_end(fd).map(|(ino, access)| Closing { fd, ino, access })
    }

    /// Reports the close, if this process has no other fd of the same pipe end.
    #[inline(never)]
    fn announce(&self, call: &str) {
        let _errno = KeepErrno::new();
        let mut others = false;
        sys::each_open_fd(|fd| others |= pipe_end(fd).is_some_and(|(ino, _)| ino == self.ino));
        if others {
            return;
        }
        let entry = Entry::empty();
        entry.note_stack();
        let end = crate::proc::fds::end(self.access);
        let Closing { fd, ino, .. } = self;
        say(format_args!("pipe:[{ino}] last fd, {fd} ({end}), closed"), &entry, call);
    }
}

/// Wraps `close(2)` for tracing.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    let closing = Closing::look(fd);
    // SAFETY: the caller's fd is passed on.
    let result = unsafe { libc::syscall(libc::SYS_close, fd) } as c_int;
    fd_table::forget(fd);
    if let Some(closing) = closing.filter(|_| result == 0) {
        closing.announce("close");
    }
    result
}

macro_rules! closes {
    ($name:ident, $next:ident, $fd:path) => {
        /// Wraps the function of that name, which closes an fd within the C library.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(stream: *mut c_void) -> c_int {
            let next = behind!($next: fn(*mut c_void) -> c_int, or -1);
            // SAFETY: the caller's stream, which is open.
            let fd = unsafe { $fd(stream) };
            // SAFETY: the caller's argument is passed on.
            let result = unsafe { next(stream) };
            fd_table::forget(fd);
            result
        }
    };
}

closes!(fclose, FCLOSE, abi::fileno);
closes!(closedir, CLOSEDIR, abi::dirfd);

/// Wraps `dup2(2)`, which closes its second argument.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from == to {
        // Checks that the fd is open, and does nothing else (dup(2)).
        // SAFETY: reads no memory of ours.
        return if unsafe { libc::fcntl(from, libc::F_GETFD) } == -1 { -1 } else { to };
    }
    replace(from, to, 0, "dup2")
}

/// Wraps `dup3(2)`, which closes its second argument.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    replace(from, to, flags, "dup3")
}

fn replace(from: c_int, to: c_int, flags: c_int, call: &str) -> c_int {
    let closing = Closing::look(to);
    // SAFETY: the caller's fds are passed on.
    let result = unsafe { libc::syscall(libc::SYS_dup3, from, to, flags) } as c_int;
    if result != -1 {
        fd_table::forget(to);
    }
    if let Some(closing) = closing.filter(|_| result != -1) {
        closing.announce(call);
    }
    result
}

/// Wraps `close_range(2)` for tracing.
#[unsafe(no_mangle)]
unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    /// The most pipe ends of one call that are reported.
    const MOST: usize = 64;
    let mut closing = [const { None }; MOST];
    if is_traced() && flags & libc::CLOSE_RANGE_CLOEXEC as c_int == 0 {
        let mut free = closing.iter_mut();
        sys::each_open_fd(|fd| {
            let inside = u32::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd));
            if let Some(end) = Closing::look(fd).filter(|_| inside)
                && let Some(free) = free.next()
            {
                *free = Some(end);
            }
        });
    }
    // SAFETY: the caller's numbers are passed on.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } as c_int;
    if result == 0 && flags & libc::CLOSE_RANGE_CLOEXEC as c_int == 0 {
        fd_table::forget_range(first, last);
    }
    let mut ends = closing.iter().flatten().filter(|_| result == 0);
    while let Some(end) = ends.next() {
        // Reports each pipe once, with the last of its fds.
        if ends.clone().all(|later| later.ino != end.ino) {
            end.announce("close_range");
        }
    }
    result
}
