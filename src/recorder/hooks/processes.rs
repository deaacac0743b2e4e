//! Hooks of the calls that create a process, and of exec.
//!
//! `vfork` cannot be hooked: it returns twice, the first time in the child on its caller's stack, and the
//! hook's frame would be gone when it returns again. The child is recorded when it calls an exec, as is that
//! of a raw `clone`. Calls between libc's own functions do not reach the hooks, so `popen`, `system`,
//! `daemon` and `forkpty` have hooks of their own.

use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use core::sync::atomic::Ordering;

use super::abi::{self, KeepErrno};
use super::ends;
use super::log::{Call, Entry, Log, is_first_thread, log};
use super::next::{Next, behind};
use super::observer;

static FORK: Next = Next::new(c"fork");
static FORKPTY: Next = Next::of_other_library(c"forkpty");
static DAEMON: Next = Next::new(c"daemon");
static POPEN: Next = Next::new(c"popen");
static SYSTEM: Next = Next::new(c"system");
static SPAWN: Next = Next::new(c"posix_spawn");
static SPAWNP: Next = Next::new(c"posix_spawnp");
static EXECV: Next = Next::new(c"execv");
static EXECVE: Next = Next::new(c"execve");
static EXECVP: Next = Next::new(c"execvp");
static EXECVPE: Next = Next::new(c"execvpe");
static FEXECVE: Next = Next::new(c"fexecve");
/// Since glibc 2.34.
static EXECVEAT: Next = Next::new(c"execveat");

pub(crate) static ALL: [&Next; 13] = [
    &FORK, &FORKPTY, &DAEMON, &POPEN, &SYSTEM, &SPAWN, &SPAWNP, &EXECV, &EXECVE, &EXECVP, &EXECVPE, &FEXECVE,
    &EXECVEAT,
];

unsafe extern "C" {
    fn fileno(file: *mut c_void) -> c_int;
    fn waitid(kind: c_int, id: u32, information: *mut [u64; 16], options: c_int) -> c_int;
}

/// Calls a function that forks, and records its caller.
///
/// The stack is recorded before the call: parent and child both add the pid afterwards, and either may be
/// killed first.
#[inline(always)]
fn record_fork(call: Call, fork: impl FnOnce() -> c_int) -> c_int {
    let entry = begin();
    observer::forks(false);
    let pid = fork();
    if pid == 0 {
        ends::end_body();
        is_first_thread();
        observer::forks(true);
    }
    if let Some(entry) = entry {
        let _errno = KeepErrno::new();
        match pid {
            0 => entry.finish(call, [abi::own_pid().into(), 0]),
            1.. => entry.finish(call, [pid as u64, 0]),
            _ => entry.forget(),
        }
    }
    pid
}

/// Takes an entry for a fork of this thread.
#[inline(always)]
fn begin() -> Option<&'static Entry> {
    let log = log()?;
    let _errno = KeepErrno::new();
    let entry = log.begin(&log.processes)?;
    entry.note_threads();
    Some(entry)
}

/// Wraps `fork(2)` and records its caller.
#[unsafe(no_mangle)]
#[unsafe(link_section = "childproof_text")]
unsafe extern "C" fn fork() -> c_int {
    let next = behind!(FORK: fn() -> c_int, or -1);
    // SAFETY: the caller's own call.
    record_fork(Call::Fork, || unsafe { next() })
}

/// Wraps `forkpty(3)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn forkpty(
    master: *mut c_int,
    name: *mut c_char,
    terminal: *const c_void,
    size: *const c_void,
) -> c_int {
    let next = behind!(FORKPTY: fn(*mut c_int, *mut c_char, *const c_void, *const c_void) -> c_int, or -1);
    // SAFETY: the caller's pointers are passed on.
    record_fork(Call::Forkpty, || unsafe { next(master, name, terminal, size) })
}

/// Wraps `daemon(3)` and records its caller: the process forks and exits, and the call returns in the child.
#[unsafe(no_mangle)]
unsafe extern "C" fn daemon(stays: c_int, keeps: c_int) -> c_int {
    let next = behind!(DAEMON: fn(c_int, c_int) -> c_int, or -1);
    let caller = abi::own_pid();
    let entry = begin();
    // The child records its pid when it first runs; the log may be read before that.
    if let Some(entry) = entry {
        entry.finish(Call::Daemon, [0, 0]);
    }
    observer::forks(false);
    let end = ends::record(Call::DaemonEnd, Some(0));
    observer::ends(Call::DaemonEnd);
    // SAFETY: it takes any numbers.
    let result = unsafe { next(stays, keeps) };
    let _errno = KeepErrno::new();
    if abi::own_pid() == caller {
        // There was no fork.
        entry.into_iter().chain(end).for_each(Entry::forget);
        observer::goes_on();
    } else {
        ends::end_body();
        is_first_thread();
        if let Some(entry) = entry {
            entry.finish(Call::Daemon, [abi::own_pid().into(), 0]);
        }
    }
    result
}

/// Wraps `system(3)` and records its caller. The shell's pid stays unknown.
#[unsafe(no_mangle)]
unsafe extern "C" fn system(command: *const c_char) -> c_int {
    let next = behind!(SYSTEM: fn(*const c_char) -> c_int, or -1);
    if !command.is_null()
        && let Some(entry) = begin()
    {
        // SAFETY: the command is NUL-terminated, for the shell.
        unsafe { note_shell(entry, command) };
        entry.finish(Call::System, [0, 0]);
    }
    // SAFETY: the caller's pointer is passed on.
    unsafe { next(command) }
}

/// Wraps `popen(3)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    let next = behind!(POPEN: fn(*const c_char, *const c_char) -> *mut c_void, or ptr::null_mut());
    // SAFETY: the caller's pointers are passed on.
    let file = unsafe { next(command, mode) };
    if file.is_null() {
        return file;
    }
    let Some(log) = log() else { return file };
    let _errno = KeepErrno::new();
    if let Some(entry) = log.begin(&log.processes) {
        entry.note_threads();
        // SAFETY: the command is NUL-terminated, for the shell.
        unsafe { note_shell(entry, command) };
        // SAFETY: popen has just made it.
        let pid = unsafe { pid_of(file) };
        entry.finish(Call::Popen, [pid, 0]);
    }
    if let Some(entry) = log.begin(&log.pipes) {
        // SAFETY: popen has just made it.
        let fd = unsafe { fileno(file) };
        entry.note_fds([fd, -1], false);
        let ino = abi::status(fd).map_or(0, |status| status.ino);
        entry.finish(Call::PopenPipe, [ino, ino]);
    }
    file
}

/// Records the start of a shell with a command.
///
/// # Safety
///
/// `command` is NUL-terminated.
unsafe fn note_shell(entry: &Entry, command: *const c_char) {
    let words = [c"sh".as_ptr(), c"-c".as_ptr(), command, ptr::null()];
    // SAFETY: each is NUL-terminated, and the last is null.
    unsafe { entry.note_command(words.as_ptr()) };
}

/// The pid of the shell behind a file of `popen`; 0 if it is not found.
///
/// It follows the file in glibc's `struct _IO_proc_file` (libio/iolibio.h, iopopen.c), whose layout has not
/// changed since 1998: a `FILE` of 216 bytes and the pointer to its functions. The value is checked to be the
/// pid of a child.
///
/// # Safety
///
/// `file` was returned by `popen` and is open.
unsafe fn pid_of(file: *mut c_void) -> u64 {
    const BEHIND: usize = 216 + 8;
    const P_PID: c_int = 1;
    /// `WNOHANG | WEXITED | WNOWAIT`: asks without reaping.
    const ASK: c_int = 1 | 4 | 0x0100_0000;
    if !cfg!(target_pointer_width = "64") {
        return 0;
    }
    // SAFETY: glibc's file of a process is longer than that.
    let place = unsafe { file.byte_add(BEHIND) };
    // SAFETY: an `int` is there.
    let pid = unsafe { place.cast::<c_int>().read() };
    let mut information = [0; 16];
    // SAFETY: the kernel writes a `siginfo_t`, of 128 bytes.
    let is_child = pid > 0 && unsafe { waitid(P_PID, pid as u32, &mut information, ASK) } == 0;
    if is_child { pid as u64 } else { 0 }
}

macro_rules! spawn {
    ($name:ident, $next:ident, $call:ident) => {
        /// Wraps `posix_spawn(3)` or `posix_spawnp(3)` and records its caller.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            pid: *mut c_int,
            path: *const c_char,
            actions: *const c_void,
            attributes: *const c_void,
            arguments: Words,
            environment: Words,
        ) -> c_int {
            let next = behind!(
                $next: fn(*mut c_int, *const c_char, *const c_void, *const c_void, Words, Words) -> c_int,
                or abi::ENOSYS
            );
            let mut child = 0;
            // SAFETY: the caller's pointers are passed on, but for the first, which is ours.
            let result = unsafe { next(&mut child, path, actions, attributes, arguments, environment) };
            if result != 0 {
                return result;
            }
            if !pid.is_null() {
                // SAFETY: the caller wants the pid there.
                unsafe { pid.write(child) };
            }
            if let Some(log) = log() {
                let _errno = KeepErrno::new();
                if let Some(entry) = log.begin(&log.processes) {
                    // SAFETY: libc has just read the same, and started a program with it.
                    unsafe { entry.note_command(arguments) };
                    entry.finish(Call::$call, [child as u64, 0]);
                }
            }
            result
        }
    };
}

spawn!(posix_spawn, SPAWN, Spawn);
spawn!(posix_spawnp, SPAWNP, Spawnp);

/// Records that this process, if it is a fork, calls exec. Async-signal-safe, see [`Log::begin`].
///
/// # Safety
///
/// `arguments` are those of an exec(3).
#[inline(always)]
unsafe fn record_exec(arguments: Words) {
    let Some(log) = log() else { return };
    let pid = abi::own_pid();
    let is_ours = |entry: &&Entry| {
        entry.keys[0].load(Ordering::Relaxed) == u64::from(pid)
            && matches!(entry.call(), Some(Call::Fork | Call::Forkpty | Call::Daemon | Call::Vfork))
    };
    // The most recent entry with this pid: the kernel reuses pids.
    let entry = match log.processes.kept().rev().find(is_ours) {
        Some(entry) => entry,
        None if ends::is_recorded() => return,
        None => {
            let _errno = KeepErrno::new();
            let Some(entry) = record_vfork(log) else { return };
            entry.finish(Call::Vfork, [pid.into(), 0]);
            entry
        }
    };
    // SAFETY: an exec is called with an array of strings, which the kernel reads next.
    unsafe { entry.note_command(arguments) };
    entry.execed.store(1, Ordering::Release);
}

/// Takes an entry for this process on behalf of its parent, whose `vfork` or raw `clone` was not recorded.
#[inline(always)]
fn record_vfork(log: &'static Log) -> Option<&'static Entry> {
    let entry = log.begin(&log.processes)?;
    entry.creator.store(abi::parent_pid(), Ordering::Relaxed);
    Some(entry)
}

type Words = *const *const c_char;

macro_rules! exec {
    ($name:ident, $next:ident, ($($argument:ident: $type:ty),*), $command:ident) => {
        /// Wraps one of exec(3) and records the call.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            let next = behind!($next: fn($($type),*) -> c_int, or -1);
            // Unless it fails, the call ends the test or the program.
            let end = ends::record(Call::Exec, None);
            observer::ends(Call::Exec);
            // SAFETY: they are the caller's, for an exec.
            unsafe { record_exec($command) };
            // SAFETY: the caller's arguments are passed on.
            let result = unsafe { next($($argument),*) };
            if let Some(end) = end {
                end.forget();
            }
            observer::goes_on();
            result
        }
    };
}

exec!(execv, EXECV, (path: *const c_char, arguments: Words), arguments);
exec!(execve, EXECVE, (path: *const c_char, arguments: Words, environment: Words), arguments);
exec!(execvp, EXECVP, (file: *const c_char, arguments: Words), arguments);
exec!(execvpe, EXECVPE, (file: *const c_char, arguments: Words, environment: Words), arguments);
exec!(fexecve, FEXECVE, (fd: c_int, arguments: Words, environment: Words), arguments);
exec!(
    execveat,
    EXECVEAT,
    (directory: c_int, path: *const c_char, arguments: Words, environment: Words, flags: c_int),
    arguments
);
