//! `CHILDPROOF_TRACE=fds`: prints each pipe's creation, and its last close in a process.
//!
//! `close`, `dup2`, `dup3` and `close_range` are defined for this alone, and do nothing but libc's
//! work where nothing is traced.

use std::ffi::{c_int, c_uint};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::{Call, Entry, KeepErrno};
use crate::proc::maps::Maps;
use crate::sys::{self, Pid};

/// The test process whose pipes are traced, 0 if none are. Its forks have this value too.
static TRACED: AtomicU32 = AtomicU32::new(0);

/// Traces the pipes of this process and of its forks.
pub(crate) fn trace() {
    TRACED.store(std::process::id(), Ordering::Relaxed);
}

pub(super) fn is_traced() -> bool {
    TRACED.load(Ordering::Relaxed) != 0
}

thread_local! {
    /// To look up a line is to open and close files.
    static SAYING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Prints a line to fd 2, in one write. The line of code is looked up in the test process alone: a
/// fork of it may have threads' locks in it, and no threads.
pub(super) fn say(what: std::fmt::Arguments<'_>, entry: &Entry, call: &str) {
    use std::io::Write;
    let pid = std::process::id();
    let mut line = [0u8; 512];
    let mut rest = &mut line[..];
    let _ = write!(rest, "childproof: pid {pid} {what}");
    if pid == TRACED.load(Ordering::Relaxed) && !SAYING.replace(true) {
        let maps = Maps::read(pid as Pid).unwrap_or_default();
        let _ = write!(rest, " {}", crate::symbols::line_of(&entry.site(Call::Pipe, call, &maps), &maps));
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

/// The inode of a pipe, and which end it is; `None` if the fd is something else, also a named FIFO.
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
    /// Looks at an fd, if pipes are traced and it is one.
    fn look(fd: c_int) -> Option<Closing> {
        if !is_traced() {
            return None;
        }
        pipe_end(fd).map(|(ino, access)| Closing { fd, ino, access })
    }

    /// Tells that it was closed, if this process has no other fd of the same pipe.
    #[inline(never)]
    fn tell(&self, call: &str) {
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

/// `close(2)`, traced if that was asked for.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    let closing = Closing::look(fd);
    // SAFETY: the caller's fd is passed on.
    let result = unsafe { libc::syscall(libc::SYS_close, fd) } as c_int;
    if let Some(closing) = closing.filter(|_| result == 0) {
        closing.tell("close");
    }
    result
}

/// `dup2(2)`, which closes its second argument.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from == to {
        // Says whether the fd is open, and does nothing else (dup(2)).
        // SAFETY: reads no memory of ours.
        return if unsafe { libc::fcntl(from, libc::F_GETFD) } == -1 { -1 } else { to };
    }
    replace(from, to, 0, "dup2")
}

/// `dup3(2)`, which closes its second argument.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    replace(from, to, flags, "dup3")
}

fn replace(from: c_int, to: c_int, flags: c_int, call: &str) -> c_int {
    let closing = Closing::look(to);
    // SAFETY: the caller's fds are passed on.
    let result = unsafe { libc::syscall(libc::SYS_dup3, from, to, flags) } as c_int;
    if let Some(closing) = closing.filter(|_| result != -1) {
        closing.tell(call);
    }
    result
}

/// `close_range(2)`, traced if that was asked for.
#[unsafe(no_mangle)]
unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    /// The most pipe ends of one call that are told.
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
    let mut ends = closing.iter().flatten().filter(|_| result == 0);
    while let Some(end) = ends.next() {
        // Each pipe once, with the last of its fds.
        if ends.clone().all(|later| later.ino != end.ino) {
            end.tell("close_range");
        }
    }
    result
}
