//! Starts a program from a process that may have threads, in such a way that `wait` does not see it as a
//! child.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, c_char, c_int};
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use nix::libc;

use super::fd::each_open_fd;
use super::process::{Pid, check, exit_now};

/// A keeper that cannot start its program exits with this plus the errno.
const FAILED: i32 = 100;

/// The exit code of a keeper after its program was killed.
pub(crate) const KILLED: i32 = FAILED;

/// The test binary with arguments, environment and fds, prepared so that the start needs no allocation.
pub(crate) struct Program {
    // Owns the strings behind the pointers.
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// The fds of 3 and above that it inherits, ascending.
    keep: Vec<RawFd>,
}

impl Program {
    /// This program with this process's arguments. `keep` are fds of 3 and above; all others are closed.
    pub(crate) fn own<'a>(
        environment: impl Iterator<Item = (&'a OsStr, &'a OsStr)>,
        mut keep: Vec<RawFd>,
    ) -> io::Result<Program> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
        let arguments = std::env::args_os().map(|argument| text(argument.as_bytes()));
        let arguments = arguments.collect::<io::Result<Vec<CString>>>()?;
        let variables = environment
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<Vec<CString>>>()?;
        let pointers = |of: &[CString]| -> Vec<*const c_char> {
            of.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        keep.sort_unstable();
        Ok(Program {
            argv: pointers(&arguments),
            envp: pointers(&variables),
            _arguments: arguments,
            _environment: variables,
            keep,
        })
    }

    /// Starts it as an ordinary child, with `stdin`, and with `null` as stdout and stderr; both fds are 3 or
    /// more.
    pub(crate) fn start_as_child(&self, stdin: RawFd, null: RawFd) -> io::Result<Pid> {
        match check(fork_raw() as c_int)? {
            0 => {
                // No signal handler of this process may run in the child.
                block_all();
                self.begin(stdin, null)
            }
            pid => Ok(pid),
        }
    }

    /// Starts it in the same way as the child of a keeper. Returns the pid of the keeper: a child of this
    /// process that exits when the program has exited.
    ///
    /// A plain `wait` of this process does not see the keeper, since it has no exit signal (`__WCLONE`,
    /// waitpid(2)). The keeper runs no code but the following, and has no fd open.
    pub(crate) fn start_with_keeper(&self, stdin: RawFd, null: RawFd) -> io::Result<Pid> {
        // A raw system call, as in `fork_raw`.
        // SAFETY: all zero is a fork without an exit signal on every architecture. The child makes
        // async-signal-safe calls only: other threads may hold any lock.
        let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        match check(pid as c_int)? {
            0 => self.keep(stdin, null),
            pid => Ok(pid),
        }
    }

    /// The code of the keeper.
    fn keep(&self, stdin: RawFd, null: RawFd) -> ! {
        block_all();
        // SAFETY: a NUL-terminated name.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"()".as_ptr()) };
        let pid = fork_raw();
        match pid {
            0 => self.begin(stdin, null),
            -1 => exit_now(FAILED + errno()),
            _ => {}
        }
        // SAFETY: nothing of this process uses an fd from here on.
        if unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) } == -1 {
            each_open_fd(|fd| {
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_close, fd) };
            });
        }
        let mut status = 0;
        loop {
            let options = libc::__WALL | libc::WUNTRACED;
            // SAFETY: `status` is writable, and no usage is asked for.
            let waited = unsafe { libc::syscall(libc::SYS_wait4, pid, &raw mut status, options, 0) };
            if waited != -1 && libc::WIFSTOPPED(status) {
                // The guard must not stay stopped.
                // SAFETY: reads no memory. The child is not reaped, so its pid is not reused.
                unsafe { libc::syscall(libc::SYS_kill, pid, libc::SIGCONT) };
            } else if waited != -1 || errno() != libc::EINTR {
                break;
            }
        }
        exit_now(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { KILLED })
    }

    /// Execs the program, in a fresh fork.
    fn begin(&self, stdin: RawFd, null: RawFd) -> ! {
        let placed = |from: RawFd, to: RawFd| {
            // SAFETY: reads no memory of ours. The process is about to be another program.
            unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) != -1 }
        };
        if placed(stdin, 0) && placed(null, 1) && placed(null, 2) {
            drop(self.exec());
        }
        exit_now(FAILED + errno())
    }

    /// Replaces the process by the program, with fds 0 to 2 unchanged. Returns only if that fails, with the
    /// error.
    pub(crate) fn exec(&self) -> io::Error {
        let mut next: u32 = 3;
        let mut is_closed = true;
        let mut at = 0;
        while at <= self.keep.len() {
            let end = if at < self.keep.len() { self.keep[at] as u32 } else { u32::MAX };
            if next < end {
                let last = if end == u32::MAX { end } else { end - 1 };
                // SAFETY: the process is about to be another program, which knows nothing of these.
                is_closed &= unsafe { libc::syscall(libc::SYS_close_range, next, last, 0) } != -1;
            }
            next = end.saturating_add(1);
            at += 1;
        }
        if !is_closed {
            each_open_fd(|fd| {
                if fd > 2 && !self.keep.contains(&fd) {
                    // SAFETY: as above.
                    unsafe { libc::syscall(libc::SYS_close, fd) };
                }
            });
        }
        reset_signals();
        let (path, argv, envp) = (c"/proc/self/exe".as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        // A raw system call, which bypasses the recorder.
        // SAFETY: the arrays end with a null, and what they point to is in `self`.
        unsafe { libc::syscall(libc::SYS_execve, path, argv, envp) };
        io::Error::last_os_error()
    }
}

/// `clone(SIGCHLD)` — forks without calling `fork`, of which pthread_atfork(3) handlers may wait for locks,
/// and which the recorder records.
///
/// The child may only make async-signal-safe calls: other threads may hold any lock.
fn fork_raw() -> libc::c_long {
    // SAFETY: as the child does nothing else (see above). The flags come first everywhere but on s390x.
    #[cfg(not(target_arch = "s390x"))]
    return unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    // SAFETY: as above.
    #[cfg(target_arch = "s390x")]
    return unsafe { libc::syscall(libc::SYS_clone, 0, libc::SIGCHLD, 0, 0, 0) };
}

/// Decodes the exit code of a keeper, or of a child before its exec: the error if the program could not be
/// started.
pub(crate) fn keeper_error(code: i32) -> Option<io::Error> {
    (code > FAILED).then(|| io::Error::from_raw_os_error(code - FAILED))
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn block_all() {
    // SAFETY: a zeroed set is valid.
    let mut all: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `all` is writable.
    unsafe { libc::sigfillset(&mut all) };
    // SAFETY: `all` is a set, and the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &all, ptr::null_mut()) };
}

/// Resets every signal that has a handler, and SIGPIPE, to its default, and unblocks all signals, as
/// `Command` does.
fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: an all-zero sigaction is a valid value, and means SIG_DFL.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: `action` is writable; a signal that has no action is an error.
        let known = unsafe { libc::sigaction(signal, ptr::null(), &mut action) } == 0;
        let is_caught = action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN;
        if known && (is_caught || signal == libc::SIGPIPE) {
            action.sa_sigaction = libc::SIG_DFL;
            action.sa_flags = 0;
            // SAFETY: SIG_DFL runs no code of ours.
            unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
        }
    }
    // SAFETY: a zeroed set is an empty one.
    let none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `none` is a set, and the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()) };
}
