//! The recorder of creation sites: which line made a pipe or a process.
//!
//! The library defines `pipe`, `pipe2`, `socketpair`, `posix_spawn`, `posix_spawnp` and `fork` in
//! the test binary, where they win over libc's (ld.so(8), symbol lookup order). Each does what
//! libc's does and, in a test process or a fork of it, writes down who called: the inode or the
//! pid, and the return addresses. The memory is shared with the supervisor, so it can be read
//! whatever became of the test. Nothing is looked up in it, and no address is given a name, unless
//! a test fails. Inodes and not fd numbers are kept: `dup` and `close` need no hook.
//!
//! A program that was started by exec has another binary and is not recorded, nor are raw
//! syscalls (rustix).

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;

use crate::sys::{Pid, Shared};

/// How many calls of one test are kept, and how many frames of each.
const CALLS: usize = 4096;
const FRAMES: usize = 32;

/// What was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Call {
    Pipe = 1,
    Pipe2,
    Socketpair,
    Spawn,
    Spawnp,
    Fork,
}

const NAMES: [(Call, &str); 6] = [
    (Call::Pipe, "pipe"),
    (Call::Pipe2, "pipe2"),
    (Call::Socketpair, "socketpair"),
    (Call::Spawn, "posix_spawn"),
    (Call::Spawnp, "posix_spawnp"),
    (Call::Fork, "fork"),
];

/// The calls of one test, in shared memory. All zeroes is a valid value: none yet. Pages that no
/// call has reached are never touched, and cost nothing.
#[repr(C)]
pub(crate) struct Log {
    /// The supervisor's pid: what it does itself is not recorded.
    owner: AtomicU32,
    used: AtomicU32,
    entries: [Entry; CALLS],
}

#[repr(C)]
struct Entry {
    /// The call; 0 while the entry is being written.
    call: AtomicU32,
    maker: AtomicU32,
    /// Inodes of pipes and sockets; the pid of a process.
    keys: [AtomicU64; 2],
    frames: [AtomicU64; FRAMES],
}

/// One call that was recorded.
pub(crate) struct Recorded {
    pub(crate) call: &'static str,
    pub(crate) maker: Pid,
    pub(crate) keys: [u64; 2],
    /// Return addresses, the innermost first.
    pub(crate) frames: Vec<u64>,
}

impl Recorded {
    /// Whether it made a process, and not a pair of fds.
    pub(crate) fn is_process(&self) -> bool {
        matches!(self.call, "fork" | "posix_spawn" | "posix_spawnp")
    }
}

static LOG: AtomicPtr<Log> = AtomicPtr::new(std::ptr::null_mut());

impl Log {
    /// Maps a log and has this process's children record into it. `owner` is this process.
    pub(crate) fn install(owner: Pid) -> io::Result<Shared<Log>> {
        let log: Shared<Log> = Shared::zeroed()?;
        log.owner.store(owner as u32, Ordering::Relaxed);
        LOG.store((&raw const *log).cast_mut(), Ordering::Release);
        Ok(log)
    }

    /// Forgets the test before.
    pub(crate) fn reset(&self) {
        let used = self.used.load(Ordering::Acquire) as usize;
        if used == 0 {
            return;
        }
        for entry in self.entries.iter().take(used) {
            entry.call.store(0, Ordering::Relaxed);
        }
        self.used.store(0, Ordering::Release);
    }

    /// Every call that was written to its end.
    pub(crate) fn calls(&self) -> Vec<Recorded> {
        let used = self.used.load(Ordering::Acquire) as usize;
        let entries = self.entries.iter().take(used);
        entries
            .filter_map(|entry| {
                let code = entry.call.load(Ordering::Acquire);
                let (_, call) = NAMES.iter().find(|(call, _)| *call as u32 == code)?;
                let frames = entry.frames.iter().map(|frame| frame.load(Ordering::Relaxed));
                Some(Recorded {
                    call,
                    maker: entry.maker.load(Ordering::Relaxed) as Pid,
                    keys: [entry.keys[0].load(Ordering::Relaxed), entry.keys[1].load(Ordering::Relaxed)],
                    frames: frames.take_while(|frame| *frame != 0).collect(),
                })
            })
            .collect()
    }

    /// Takes an entry and writes the stack of the caller into it. Async-signal-safe but for the
    /// unwinder, which looks up unwind tables without a lock (`_dl_find_object`, glibc 2.35), and
    /// with a lock that `fork` takes care of before.
    fn begin(&self) -> Option<&Entry> {
        // SAFETY: `getpid` has no preconditions.
        let maker = unsafe { libc::getpid() } as u32;
        if maker == self.owner.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.used.fetch_add(1, Ordering::AcqRel) as usize;
        let Some(entry) = self.entries.get(at) else {
            // Full: what comes is not recorded, and the count must not run over.
            self.used.store(CALLS as u32, Ordering::Release);
            return None;
        };
        entry.maker.store(maker, Ordering::Relaxed);
        let mut stack = Stack { entry, count: 0 };
        // SAFETY: `frame` has the type that the unwinder calls, and `stack` outlives the call.
        unsafe { _Unwind_Backtrace(frame, (&raw mut stack).cast()) };
        let count = stack.count;
        if let Some(end) = entry.frames.get(count) {
            end.store(0, Ordering::Relaxed);
        }
        Some(entry)
    }
}

impl Entry {
    fn end(&self, call: Call, keys: [u64; 2]) {
        self.keys[0].store(keys[0], Ordering::Relaxed);
        self.keys[1].store(keys[1], Ordering::Relaxed);
        self.call.store(call as u32, Ordering::Release);
    }
}

struct Stack<'a> {
    entry: &'a Entry,
    count: usize,
}

unsafe extern "C" {
    // The unwinder of the C++ ABI, which Rust's panics are built on (libgcc_s, libunwind).
    fn _Unwind_Backtrace(
        trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn frame(context: *mut c_void, argument: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    const STOP: c_int = 4;
    // SAFETY: `argument` is the `Stack` that `begin` passed, and nobody else has it.
    let stack = unsafe { &mut *argument.cast::<Stack<'_>>() };
    // SAFETY: `context` is valid during this call.
    let address = unsafe { _Unwind_GetIP(context) };
    match stack.entry.frames.get(stack.count) {
        Some(slot) if address != 0 => {
            slot.store(address as u64, Ordering::Relaxed);
            stack.count += 1;
            GO_ON
        }
        _ => STOP,
    }
}

/// The log, if this process is one that records.
fn log() -> Option<&'static Log> {
    // SAFETY: null, or the log that `install` mapped for ever.
    unsafe { LOG.load(Ordering::Acquire).as_ref() }
}

/// Keeps `errno` as the call has left it.
struct KeepErrno(c_int);

impl KeepErrno {
    fn new() -> KeepErrno {
        KeepErrno(Errno::last_raw())
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        Errno::set_raw(self.0);
    }
}

fn inode(fd: c_int) -> u64 {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `stat` is writable and large enough.
    unsafe { libc::fstat(fd, stat.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid value, and fstat only overwrites it.
    unsafe { stat.assume_init() }.st_ino
}

/// Writes down that the caller's caller has made a pair of fds.
fn record_pair(call: Call, fds: *const c_int) {
    let Some(log) = log() else { return };
    let _errno = KeepErrno::new();
    let Some(entry) = log.begin() else { return };
    // SAFETY: the call has succeeded, so there are two fds behind the pointer.
    let [one, other] = unsafe { *fds.cast::<[c_int; 2]>() };
    entry.end(call, [inode(one), inode(other)]);
}

/// `pipe(2)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe(fds: *mut c_int) -> c_int {
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { libc::syscall(libc::SYS_pipe2, fds, 0) } as c_int;
    if result == 0 {
        record_pair(Call::Pipe, fds);
    }
    result
}

/// `pipe2(2)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe2(fds: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { libc::syscall(libc::SYS_pipe2, fds, flags) } as c_int;
    if result == 0 {
        record_pair(Call::Pipe2, fds);
    }
    result
}

/// `socketpair(2)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int {
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { libc::syscall(libc::SYS_socketpair, domain, kind, protocol, fds) } as c_int;
    if result == 0 {
        record_pair(Call::Socketpair, fds);
    }
    result
}

/// libc's own function, found behind ours.
struct Next(AtomicPtr<c_void>, &'static CStr);

impl Next {
    const fn new(name: &'static CStr) -> Next {
        Next(AtomicPtr::new(std::ptr::null_mut()), name)
    }

    fn get(&self) -> *mut c_void {
        let known = self.0.load(Ordering::Relaxed);
        if !known.is_null() {
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

/// Finds libc's functions. Before `main`, because to look for them later might be to wait for a
/// lock of the loader in a process that was forked while it was held.
pub(crate) fn prepare() {
    for next in [&FORK, &SPAWN, &SPAWNP] {
        next.get();
    }
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
    let entry = log().and_then(Log::begin);
    let pid = next();
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
                    entry.end(Call::$call, [child as u64, 0]);
                }
            }
            result
        }
    };
}

spawn!(posix_spawn, SPAWN, Spawn);
spawn!(posix_spawnp, SPAWNP, Spawnp);
