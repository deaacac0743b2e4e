//! The calls that make a process, and those by which it goes on to another program.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use nix::errno::Errno;
use nix::libc;

use super::{Call, Entry, KeepErrno, Log, ends, log};

/// libc's own function, found behind ours.
pub(super) struct Next(AtomicPtr<c_void>, &'static CStr);

impl Next {
    pub(super) const fn new(name: &'static CStr) -> Next {
        Next(AtomicPtr::new(std::ptr::null_mut()), name)
    }

    pub(super) fn get(&self) -> *mut c_void {
        let known = self.0.load(Ordering::Relaxed);
        if !known.is_null() || PREPARED.load(Ordering::Relaxed) {
            return known;
        }
        // SAFETY: the name is NUL-terminated.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.1.as_ptr()) };
        self.0.store(found, Ordering::Relaxed);
        found
    }
}

static FORK: Next = Next::new(c"fork");
static SPAWN: Next = Next::new(c"posix_spawn");
static SPAWNP: Next = Next::new(c"posix_spawnp");
static EXECV: Next = Next::new(c"execv");
static EXECVE: Next = Next::new(c"execve");
static EXECVP: Next = Next::new(c"execvp");
static EXECVPE: Next = Next::new(c"execvpe");
static FEXECVE: Next = Next::new(c"fexecve");
/// glibc 2.34.
static EXECVEAT: Next = Next::new(c"execveat");

/// Everything was looked for: what is not known is not there.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// Finds libc's functions. Before `main`, because to look for them later might be to wait for a
/// lock of the loader in a process that was forked while it was held.
pub(crate) fn prepare() {
    let processes = [&FORK, &SPAWN, &SPAWNP, &EXECV, &EXECVE, &EXECVP, &EXECVPE, &FEXECVE, &EXECVEAT];
    for next in processes.iter().chain(&ends::ALL) {
        next.get();
    }
    PREPARED.store(true, Ordering::Relaxed);
}

/// `fork(2)`, and who called it.
///
/// The stack is written before: parent and child know the pid, and either may be killed first.
#[unsafe(no_mangle)]
unsafe extern "C" fn fork() -> libc::pid_t {
    let next = FORK.get();
    if next.is_null() {
        Errno::set_raw(libc::ENOSYS);
        return -1;
    }
    // SAFETY: it is libc's `fork`, which has this type.
    let next: extern "C" fn() -> libc::pid_t = unsafe { mem::transmute(next) };
    let entry = {
        let _errno = KeepErrno::new();
        log().and_then(Log::begin).inspect(|entry| entry.note_threads())
    };
    let pid = next();
    if pid == 0 {
        ends::end_body();
    }
    if let (Some(entry), 0..) = (entry, pid) {
        let _errno = KeepErrno::new();
        // SAFETY: `getpid` has no preconditions.
        let child = if pid == 0 { unsafe { libc::getpid() } } else { pid };
        entry.end(Call::Fork, [child as u64, 0]);
    }
    pid
}

type Spawn = unsafe extern "C" fn(
    *mut libc::pid_t,
    *const c_char,
    *const libc::posix_spawn_file_actions_t,
    *const libc::posix_spawnattr_t,
    *const *mut c_char,
    *const *mut c_char,
) -> c_int;

macro_rules! spawn {
    ($name:ident, $next:ident, $call:ident) => {
        /// `posix_spawn(3)` or `posix_spawnp(3)`, and who called it.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            pid: *mut libc::pid_t,
            path: *const c_char,
            actions: *const libc::posix_spawn_file_actions_t,
            attributes: *const libc::posix_spawnattr_t,
            arguments: *const *mut c_char,
            environment: *const *mut c_char,
        ) -> c_int {
            let next = $next.get();
            if next.is_null() {
                return libc::ENOSYS;
            }
            // SAFETY: it is libc's function of that name, which has this type.
            let next: Spawn = unsafe { mem::transmute(next) };
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
                if let Some(entry) = log.begin() {
                    // SAFETY: libc has just read the same, and started a program with it.
                    unsafe { entry.note_command(arguments.cast()) };
                    entry.end(Call::$call, [child as u64, 0]);
                }
            }
            result
        }
    };
}

spawn!(posix_spawn, SPAWN, Spawn);
spawn!(posix_spawnp, SPAWNP, Spawnp);

/// Writes down that this process, if it was forked, goes on to another program. Async-signal-safe:
/// it reads and writes shared memory only.
///
/// # Safety
///
/// `arguments` are those of an exec(3).
unsafe fn record_exec(arguments: Words) {
    let Some(log) = log() else { return };
    // SAFETY: `getpid` has no preconditions.
    let pid = unsafe { libc::getpid() } as u64;
    let is_ours = |entry: &&Entry| {
        entry.call.load(Ordering::Acquire) == Call::Fork as u32
            && entry.keys[0].load(Ordering::Relaxed) == pid
    };
    // The last of that pid: numbers come again.
    if let Some(entry) = log.kept().rev().find(is_ours) {
        // SAFETY: an exec is called with an array of strings, which the kernel reads next.
        unsafe { entry.note_command(arguments) };
        entry.execed.store(1, Ordering::Release);
    }
}

type Words = *const *const c_char;

macro_rules! exec {
    ($name:ident, $next:ident, ($($argument:ident: $type:ty),*), $command:ident) => {
        /// One of exec(3), and that it was called.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            let next = $next.get();
            if next.is_null() {
                Errno::set_raw(libc::ENOSYS);
                return -1;
            }
            // It is the end of the test, unless it comes back.
            let end = ends::record(Call::Exec, None);
            // SAFETY: they are the caller's, for an exec.
            unsafe { record_exec($command) };
            // SAFETY: it is libc's function of that name, which has this type.
            let next: unsafe extern "C" fn($($type),*) -> c_int = unsafe { mem::transmute(next) };
            // SAFETY: the caller's arguments are passed on.
            let result = unsafe { next($($argument),*) };
            if let Some(end) = end {
                end.forget();
            }
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
