//! The recorder of creation sites: which line made a pipe or a process.
//!
//! The library defines `pipe`, `pipe2`, `socketpair`, `posix_spawn`, `posix_spawnp`, `fork`, `exit` and others in
//! the test binary, where they win over libc's (ld.so(8), symbol lookup order). Each does what
//! libc's does and, in a test process or a fork of it, writes down who called: the inode or the
//! pid, and the return addresses. The memory is shared with the supervisor, so it can be read
//! whatever became of the test. Nothing is looked up in it, and no address is given a name, unless
//! a test fails. Inodes and not fd numbers are kept: `dup` and `close` need no hook for that; those
//! in `trace` are for `CHILDPROOF_TRACE=fds` alone.
//!
//! Of a fork it is also kept how many threads the process had, and whether the child went on to an
//! `exec`: the child of a threaded process that does not may wait for ever for a lock of a thread
//! that it does not have (fork(2), signal-safety(7)).
//!
//! A program that was started by exec has another binary and is not recorded, nor are raw
//! syscalls (rustix). Where libc is not glibc, or is linked statically, there is no libc behind
//! ours to go on to: there `sites_off` takes the place of this module.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;

use crate::facts::{Makes, Site};
use crate::proc::maps::Maps;
use crate::sys::{self, Pid, Shared};
use crate::threads;

mod ends;
mod processes;
mod trace;

pub(crate) use ends::end_body;
pub(crate) use processes::prepare;
pub(crate) use trace::trace;
use trace::{is_traced, say};

/// Why no line is known, if that is so.
pub(crate) const UNKNOWN: Option<&str> = None;

/// How many calls of one test are kept: the first [`FIRST`], and the last ones. What a test sets up at its
/// beginning stays, and so does what it did just before its end.
const CALLS: usize = 4096;
const FIRST: usize = CALLS / 2;
/// How many frames of each are kept.
const FRAMES: usize = 32;
/// The kernel's room for the name of a thread.
const THREAD: usize = 16;
/// How much of the command line of a program that is started is kept.
const COMMAND: usize = 128;

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
    Exec,
    Exit,
    UnderscoreExit,
    QuickExit,
    Abort,
}

const NAMES: [(Call, &str); 11] = [
    (Call::Pipe, "pipe"),
    (Call::Pipe2, "pipe2"),
    (Call::Socketpair, "socketpair"),
    (Call::Spawn, "posix_spawn"),
    (Call::Spawnp, "posix_spawnp"),
    (Call::Fork, "fork"),
    (Call::Exec, "exec"),
    (Call::Exit, "exit"),
    (Call::UnderscoreExit, "_exit"),
    (Call::QuickExit, "quick_exit"),
    (Call::Abort, "abort"),
];

/// The calls of one test, in shared memory. All zeroes is a valid value: none yet. Pages that no
/// call has reached are never touched, and cost nothing.
#[repr(C)]
pub(crate) struct Log {
    /// The supervisor's pid: what it does itself is not recorded.
    owner: AtomicU32,
    /// How many calls there were.
    calls: AtomicU64,
    entries: [Entry; CALLS],
}

#[repr(C)]
struct Entry {
    /// The call; 0 while the entry is being written.
    call: AtomicU32,
    maker: AtomicU32,
    /// Inodes of pipes and sockets; the pid of a process that is made; of an end the pid and the exit code, which is
    /// `u64::MAX` if there is none.
    keys: [AtomicU64; 2],
    /// Of a fork or an end: how many threads the process had, 0 if that could not be read.
    threads: AtomicU32,
    /// Of a fork: the child has called an `exec`, whatever came of it.
    execed: AtomicU32,
    /// Of fds: they were made with close-on-exec.
    cloexec: AtomicU32,
    /// Of a fork or an end: the name of the thread that called, NUL-terminated.
    thread: [AtomicU8; THREAD],
    /// The arguments of the program that was started, each with its NUL, and one more at the end.
    command: [AtomicU8; COMMAND],
    frames: [AtomicU64; FRAMES],
}

/// Where a call is kept, by how many were made before it.
fn place_of(before: u64) -> usize {
    let last = (CALLS - FIRST) as u64;
    match before.checked_sub(CALLS as u64) {
        None => before as usize,
        Some(more) => FIRST + (more % last) as usize,
    }
}

impl Call {
    fn makes(self) -> Makes {
        match self {
            Call::Pipe | Call::Pipe2 | Call::Socketpair => Makes::Fds,
            Call::Spawn | Call::Spawnp | Call::Fork => Makes::Process,
            Call::Exec | Call::Exit | Call::UnderscoreExit | Call::QuickExit | Call::Abort => Makes::End,
        }
    }
}

/// The memory in which a supervisor finds the calls of its test.
pub(crate) type Recorder = Shared<Log>;

static LOG: AtomicPtr<Log> = AtomicPtr::new(std::ptr::null_mut());

/// Where on the stack the body begins, 0 if it does not run: what lies above are frames of the harness.
static BODY: AtomicUsize = AtomicUsize::new(0);

/// Notes that the body runs on top of the caller's frame, in which `place` lies.
pub(crate) fn begin_body(place: &impl Sized) {
    BODY.store(std::ptr::from_ref(place).addr(), Ordering::Relaxed);
    ends::begin();
}

impl Log {
    /// Maps a log and has this process's children record into it. `owner` is this process.
    pub(crate) fn install(owner: Pid) -> io::Result<Recorder> {
        let log: Recorder = Shared::zeroed()?;
        log.owner.store(owner as u32, Ordering::Relaxed);
        LOG.store((&raw const *log).cast_mut(), Ordering::Release);
        Ok(log)
    }

    /// Forgets the test before.
    pub(crate) fn reset(&self) {
        if self.calls.load(Ordering::Acquire) > 0 {
            self.kept().for_each(|entry| entry.call.store(0, Ordering::Relaxed));
            self.calls.store(0, Ordering::Release);
        }
    }

    /// The calls that are kept, in the order in which they were made. No entry is touched that none has
    /// reached: that would take memory.
    fn kept(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        let calls = self.calls.load(Ordering::Acquire);
        let used = calls.min(CALLS as u64) as usize;
        let (first, last) = self.entries[..used].split_at(used.min(FIRST));
        // The place of the next call is that of the oldest.
        let oldest = if used == CALLS { place_of(calls) - FIRST } else { 0 };
        let (newer, older) = last.split_at(oldest);
        first.iter().chain(older).chain(newer)
    }

    /// The calls that made one of `keys` (what was made, and its pid or inode), and the
    /// `forks` among threads whose child did not go on to exec, if they are asked for.
    pub(crate) fn sites(&self, keys: &[(Makes, u64)], forks: bool) -> Vec<Site> {
        if keys.is_empty() && !forks {
            return Vec::new();
        }
        self.entries(|call, entry| {
            entry.keys().iter().any(|key| *key != 0 && keys.contains(&(call.makes(), *key)))
                || forks && *call == Call::Fork && entry.is_threaded_fork()
        })
    }

    /// The last `most` programs that were started and are none of `but`.
    pub(crate) fn programs(&self, but: &[(Makes, u64)], most: usize) -> Vec<Site> {
        let mut programs = self.entries(|call, entry| {
            let starts = call.makes() == Makes::Process && (*call != Call::Fork || entry.has_execed());
            starts && !but.contains(&(Makes::Process, entry.keys()[0]))
        });
        programs.split_off(programs.len().saturating_sub(most))
    }

    /// Every call that was written to its end and is wanted.
    fn entries(&self, wanted: impl Fn(&Call, &Entry) -> bool) -> Vec<Site> {
        // The test was a fork of this process: what is mapped here was mapped there.
        let mut maps = None;
        let entries = self.kept().filter_map(|entry| {
            let (call, name) = entry.call().filter(|(call, _)| wanted(call, entry))?;
            let maps = maps.get_or_insert_with(|| Maps::read(std::process::id() as Pid).unwrap_or_default());
            Some(entry.site(*call, name, maps))
        });
        entries.collect()
    }

    /// Whether there was room for every call of the test.
    pub(crate) fn is_complete(&self) -> bool {
        self.calls.load(Ordering::Acquire) <= CALLS as u64
    }

    /// Takes an entry and writes the stack of the caller into it. Async-signal-safe but for the
    /// unwinder, which looks up unwind tables without a lock (`_dl_find_object`, glibc 2.35), and
    /// with a lock that `fork` takes care of before.
    // Always inlined, like its callers and what it calls: three frames less save the unwinder 0.4 us a call.
    #[inline(always)]
    fn begin(&self) -> Option<&Entry> {
        // SAFETY: `getpid` has no preconditions.
        let maker = unsafe { libc::getpid() } as u32;
        if maker == self.owner.load(Ordering::Relaxed) {
            return None;
        }
        let entry = self.entries.get(place_of(self.calls.fetch_add(1, Ordering::AcqRel)))?;
        entry.call.store(0, Ordering::Release);
        entry.maker.store(maker, Ordering::Relaxed);
        entry.threads.store(0, Ordering::Relaxed);
        entry.execed.store(0, Ordering::Relaxed);
        entry.thread[0].store(0, Ordering::Relaxed);
        entry.command[0].store(0, Ordering::Relaxed);
        entry.note_stack();
        Some(entry)
    }
}

impl Entry {
    fn empty() -> Entry {
        Entry {
            call: AtomicU32::new(0),
            maker: AtomicU32::new(0),
            keys: [const { AtomicU64::new(0) }; 2],
            threads: AtomicU32::new(0),
            execed: AtomicU32::new(0),
            cloexec: AtomicU32::new(0),
            thread: [const { AtomicU8::new(0) }; THREAD],
            command: [const { AtomicU8::new(0) }; COMMAND],
            frames: [const { AtomicU64::new(0) }; FRAMES],
        }
    }

    /// Writes down the return addresses of the caller. See [`Log::begin`] for what it is safe in.
    #[inline(always)]
    fn note_stack(&self) {
        let mut stack = Stack { entry: self, count: 0, end: usize::MAX };
        let body = BODY.load(Ordering::Relaxed);
        // The stack of another thread may lie anywhere: above, it is not the body's.
        if (&raw const stack).addr() < body {
            stack.end = body;
        }
        // SAFETY: `frame` has the type that the unwinder calls, and `stack` outlives the call.
        unsafe { _Unwind_Backtrace(frame, (&raw mut stack).cast()) };
        let count = stack.count;
        if let Some(end) = self.frames.get(count) {
            end.store(0, Ordering::Relaxed);
        }
    }

    /// Writes down which thread is about to fork or to end the process, and how many there are. Async-signal-safe.
    fn note_threads(&self) {
        self.threads.store(threads::count(), Ordering::Relaxed);
        for (to, from) in self.thread.iter().zip(thread_name()) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Takes the entry back: what it tells of has not happened.
    fn forget(&self) {
        self.call.store(0, Ordering::Release);
    }

    /// What was called; `None` while the entry is being written.
    fn call(&self) -> Option<&'static (Call, &'static str)> {
        let code = self.call.load(Ordering::Acquire);
        NAMES.iter().find(|(call, _)| *call as u32 == code)
    }

    /// Writes down the program that is started, as far as there is room. Async-signal-safe.
    ///
    /// # Safety
    ///
    /// `arguments` is null, or an array of NUL-terminated strings with a null pointer at its end.
    unsafe fn note_command(&self, arguments: *const *const c_char) {
        if arguments.is_null() {
            return;
        }
        let mut used = 0;
        let mut next = arguments;
        loop {
            // SAFETY: there is a pointer at each place up to the null one, where this ends.
            let word = unsafe { *next };
            if word.is_null() {
                break;
            }
            // SAFETY: behind one that is not null there is another.
            next = unsafe { next.add(1) };
            // SAFETY: the word is NUL-terminated.
            let bytes = unsafe { CStr::from_ptr(word) }.to_bytes_with_nul();
            // The last two are the NUL of a word that is cut, and the one at the end.
            for byte in bytes {
                if used < COMMAND - 2 {
                    self.command[used].store(*byte, Ordering::Relaxed);
                    used += 1;
                }
            }
            if used == COMMAND - 2 {
                self.command[used].store(0, Ordering::Relaxed);
                used += 1;
                break;
            }
        }
        self.command[used].store(0, Ordering::Relaxed);
    }

    fn command_line(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.command.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        let words = bytes.split(|byte| *byte == 0).take_while(|word| !word.is_empty());
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    fn has_execed(&self) -> bool {
        self.execed.load(Ordering::Acquire) != 0
    }

    fn is_threaded_fork(&self) -> bool {
        self.threads.load(Ordering::Relaxed) > 1 && !self.has_execed()
    }

    fn keys(&self) -> [u64; 2] {
        [self.keys[0].load(Ordering::Relaxed), self.keys[1].load(Ordering::Relaxed)]
    }

    fn site(&self, call: Call, name: &str, maps: &Maps) -> Site {
        let frames = self.frames.iter().map(|frame| frame.load(Ordering::Relaxed));
        let thread = self.thread.iter().map(|byte| byte.load(Ordering::Relaxed));
        let thread: Vec<u8> = thread.take_while(|byte| *byte != 0).collect();
        Site {
            call: name.to_owned(),
            makes: call.makes(),
            maker: self.maker.load(Ordering::Relaxed) as Pid,
            keys: self.keys(),
            threads: self.threads.load(Ordering::Relaxed),
            thread: String::from_utf8_lossy(&thread).into_owned(),
            execed: self.has_execed(),
            cloexec: self.cloexec.load(Ordering::Relaxed) != 0,
            command_line: self.command_line(),
            frames: frames
                .take_while(|frame| *frame != 0)
                .filter_map(|address| maps.locate(address))
                .collect(),
        }
    }

    fn end(&self, call: Call, keys: [u64; 2]) {
        self.keys[0].store(keys[0], Ordering::Relaxed);
        self.keys[1].store(keys[1], Ordering::Relaxed);
        self.call.store(call as u32, Ordering::Release);
    }
}

struct Stack<'a> {
    entry: &'a Entry,
    count: usize,
    /// The frames that lie at or above this address are not kept.
    end: usize,
}

unsafe extern "C" {
    // The unwinder of the C++ ABI, which Rust's panics are built on (libgcc_s, libunwind).
    fn _Unwind_Backtrace(
        trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut c_void, interrupted: *mut c_int) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
}

extern "C" fn frame(context: *mut c_void, argument: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    const STOP: c_int = 4;
    // SAFETY: `argument` is the `Stack` that `begin` passed, and nobody else has it.
    let stack = unsafe { &mut *argument.cast::<Stack<'_>>() };
    let mut interrupted = 0;
    // SAFETY: `context` is valid during this call, as is the place for the flag.
    let address = unsafe { _Unwind_GetIPInfo(context, &mut interrupted) };
    // A signal came to it in the middle of anything, also where its stack cannot be walked. What the handler
    // called is known by now.
    if interrupted != 0 {
        return STOP;
    }
    // SAFETY: `context` is valid during this call.
    let place = unsafe { _Unwind_GetCFA(context) };
    match stack.entry.frames.get(stack.count) {
        Some(slot) if address != 0 && place < stack.end => {
            slot.store(address as u64, Ordering::Relaxed);
            stack.count += 1;
            GO_ON
        }
        _ => STOP,
    }
}

/// The name of the calling thread, filled up with zeroes; `main` for the first thread, whose name
/// to the kernel is that of the program. Async-signal-safe.
fn thread_name() -> [u8; THREAD] {
    let mut name = [0; THREAD];
    if nix::unistd::gettid() == nix::unistd::getpid() {
        name[..4].copy_from_slice(b"main");
        return name;
    }
    // SAFETY: the kernel writes at most 16 bytes into the buffer (PR_GET_NAME(2const)).
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
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
    sys::fstat(fd).map_or(0, |stat| stat.st_ino)
}

/// Writes down that the caller's caller has made a pair of fds.
#[inline(always)]
fn record_pair(call: Call, fds: *const c_int, cloexec: bool) {
    let Some(log) = log() else { return };
    let _errno = KeepErrno::new();
    let Some(entry) = log.begin() else { return };
    // SAFETY: the call has succeeded, so there are two fds behind the pointer.
    let [one, other] = unsafe { *fds.cast::<[c_int; 2]>() };
    entry.cloexec.store(u32::from(cloexec), Ordering::Relaxed);
    let ino = inode(one);
    // The two ends of a pipe are one inode.
    entry.end(call, [ino, if call == Call::Socketpair { inode(other) } else { ino }]);
    if is_traced() && call != Call::Socketpair {
        let [ino, _] = entry.keys();
        let name = entry.call().map_or("pipe", |(_, name)| name);
        say(format_args!("pipe:[{ino}] fds {one} (read), {other} (write) created"), entry, name);
    }
}

/// `pipe(2)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe(fds: *mut c_int) -> c_int {
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { libc::syscall(libc::SYS_pipe2, fds, 0) } as c_int;
    if result == 0 {
        record_pair(Call::Pipe, fds, false);
    }
    result
}

/// `pipe2(2)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn pipe2(fds: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { libc::syscall(libc::SYS_pipe2, fds, flags) } as c_int;
    if result == 0 {
        record_pair(Call::Pipe2, fds, flags & libc::O_CLOEXEC != 0);
    }
    result
}

/// `socketpair(2)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int {
    // SAFETY: the caller's pointer is passed on.
    let result = unsafe { libc::syscall(libc::SYS_socketpair, domain, kind, protocol, fds) } as c_int;
    if result == 0 {
        record_pair(Call::Socketpair, fds, kind & libc::SOCK_CLOEXEC != 0);
    }
    result
}
