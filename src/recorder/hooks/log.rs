//! The log of recorded calls, with process and stack: its layout, and how the hooks write it.
//!
//! It lies in shared memory, so it stays readable when the process that wrote it is gone. The reader is
//! elsewhere.

use core::array;
use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::abi;
use super::observer;
use super::stack;

/// How many calls of one kind are kept: the first half of them, and the most recent ones. So both the set-up
/// of a program and its last calls are kept.
const PROCESSES: usize = 2048;
const PIPES: usize = 4096;
const OTHERS: usize = 2048;
const FILES: usize = 2048;
/// How many frames of each call are kept.
const FRAMES: usize = 32;
/// The kernel's size limit for the name of a thread.
const THREAD: usize = 16;
/// How many bytes of a started program's command line are kept.
const COMMAND: usize = 128;

macro_rules! calls {
    ($($(#[$attribute:meta])* $call:ident = $code:literal, $name:literal, $kind:ident;)*) => {
        /// The function that was called.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum Call {
            $($(#[$attribute])* $call = $code,)*
        }

        impl Call {
            /// Decodes the number of a call in the log.
            pub(crate) fn of(code: u32) -> Option<Call> {
                match code {
                    $($code => Some(Call::$call),)*
                    _ => None,
                }
            }

            /// The name of the function.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Call::$call => $name,)*
                }
            }

            pub(crate) fn kind(self) -> Kind {
                match self {
                    $(Call::$call => Kind::$kind,)*
                }
            }
        }
    };
}

/// What a call creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Fds,
    Process,
    /// Nothing: the call ends its own process.
    End,
}

// Numbers are never reused: a tool of another version may read the log.
calls! {
    Pipe = 1, "pipe", Fds;
    Pipe2 = 2, "pipe2", Fds;
    Socketpair = 3, "socketpair", Fds;
    Spawn = 4, "posix_spawn", Process;
    Spawnp = 5, "posix_spawnp", Process;
    Fork = 6, "fork", Process;
    Exec = 7, "exec", End;
    Exit = 8, "exit", End;
    UnderscoreExit = 9, "_exit", End;
    QuickExit = 10, "quick_exit", End;
    Abort = 11, "abort", End;
    Popen = 12, "popen", Process;
    /// The pipe of `popen`.
    PopenPipe = 13, "popen", Fds;
    System = 14, "system", Process;
    Daemon = 15, "daemon", Process;
    /// The end of the process that called `daemon`.
    DaemonEnd = 16, "daemon", End;
    Forkpty = 17, "forkpty", Process;
    /// An exec in a process that no hook has seen created: its parent used `vfork`, or a raw `clone`.
    Vfork = 18, "vfork", Process;
    Socket = 19, "socket", Fds;
    Accept = 20, "accept", Fds;
    Accept4 = 21, "accept4", Fds;
    Eventfd = 22, "eventfd", Fds;
    EpollCreate = 23, "epoll_create", Fds;
    EpollCreate1 = 24, "epoll_create1", Fds;
    TimerfdCreate = 25, "timerfd_create", Fds;
    MemfdCreate = 26, "memfd_create", Fds;
    InotifyInit = 27, "inotify_init", Fds;
    InotifyInit1 = 28, "inotify_init1", Fds;
    Open = 29, "open", Fds;
    Openat = 30, "openat", Fds;
    Openat2 = 31, "openat2", Fds;
    Creat = 32, "creat", Fds;
    Fopen = 33, "fopen", Fds;
    Opendir = 34, "opendir", Fds;
    PosixOpenpt = 35, "posix_openpt", Fds;
    Openpty = 36, "openpty", Fds;
    ShmOpen = 37, "shm_open", Fds;
}

/// The calls of one test or one program, in shared memory. All zeroes is a valid, empty log. Pages of unused
/// entries are never touched and cost nothing. Every byte value is valid for the reader.
#[repr(C)]
pub(crate) struct Log {
    /// The supervisor's pid: its own calls are not recorded. 0 in the log of a program.
    pub(crate) owner: AtomicU32,
    reserved: AtomicU32,
    /// Each kind has its own ring: a thousand accepted connections do not push out the started processes.
    pub(crate) processes: Ring<PROCESSES>,
    pub(crate) pipes: Ring<PIPES>,
    pub(crate) others: Ring<OTHERS>,
    pub(crate) files: Ring<FILES>,
}

/// Calls in the order in which they were made.
#[repr(C)]
pub(crate) struct Ring<const SIZE: usize> {
    /// How many calls there were.
    pub(crate) calls: AtomicU64,
    pub(crate) entries: [Entry; SIZE],
}

#[repr(C)]
pub(crate) struct Entry {
    /// The number of the call; 0 while the entry is being written.
    pub(crate) call: AtomicU32,
    /// The pid of the calling process.
    pub(crate) creator: AtomicU32,
    /// Inodes of pipes and sockets; the [`event_key`] of an eventfd; the pid of a created process, 0 if
    /// unknown; for an end, the pid and the exit code, which is `u64::MAX` if there is none. Other fds have
    /// their [`fd_key`], the second one: their inodes are not unique, or belong to another file system and may
    /// equal that of a pipe. Files that have a path have their [`open_key`], also as the second one.
    pub(crate) keys: [AtomicU64; 2],
    /// The created fds, `u32::MAX` if there is none.
    pub(crate) fds: [AtomicU32; 2],
    /// Index of the program plus one, see [`super::file::File`]. In the log of a suite the number of the test; in that of
    /// a test 0.
    pub(crate) program: AtomicU32,
    /// Forks and ends: how many threads the process had, 0 if that could not be read.
    pub(crate) threads: AtomicU32,
    /// Forks: the child has called an `exec`, whether or not it succeeded.
    pub(crate) execed: AtomicU32,
    /// Fds: created with close-on-exec.
    pub(crate) cloexec: AtomicU32,
    /// The name of the calling thread, NUL-terminated. In the log of one test only for forks and ends.
    pub(crate) thread: [AtomicU8; THREAD],
    /// The arguments of the started program, each with its NUL, and one more NUL at the end.
    pub(crate) command: [AtomicU8; COMMAND],
    /// Return addresses, innermost first; a 0 ends the list if there is room.
    pub(crate) frames: [AtomicU64; FRAMES],
}

/// The key of an eventfd with this id. It is larger than any inode number.
pub(crate) fn event_key(id: u64) -> u64 {
    (id + 1) | 1 << 63
}

/// The key of an fd whose file has no inode of its own, in the process that created it: the kind of file (1 to 7), the pid
/// and the number. It is larger than any inode number and smaller than any [`event_key`].
pub(crate) fn fd_key(kind: u64, pid: u32, fd: c_int) -> u64 {
    1 << 62 | kind << 58 | u64::from(pid) << 24 | u64::from(fd.unsigned_abs() & 0xff_ffff)
}

/// The key of a file that a process opened by its path under this number. It has the kind 6 of [`fd_key`], and the rest
/// is a hash: a later file under this number is another one, also if its creation was not seen.
pub(crate) fn open_key(pid: u32, fd: c_int, dev: u64, ino: u64) -> u64 {
    let number = u64::from(pid) << 32 | u64::from(fd.unsigned_abs());
    let mix = |hash: u64, part: u64| (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    1 << 62 | 6 << 58 | [number, dev, ino].into_iter().fold(0, mix) >> 6
}

/// The key of such a file once its process has closed it: a child may have inherited it.
// Only the crate knows of closed files.
#[allow(dead_code)]
pub(crate) fn closed_key(key: u64) -> u64 {
    key | 1 << 58
}

static LOG: AtomicPtr<Log> = AtomicPtr::new(ptr::null_mut());

/// The program that this process runs, in the form that entries store.
static PROGRAM: AtomicU32 = AtomicU32::new(0);

/// Whether the name of the calling thread is recorded with each call: it may be that of a test.
static NAMES_THREADS: AtomicBool = AtomicBool::new(false);

/// The first thread of this process.
static FIRST_THREAD: AtomicUsize = AtomicUsize::new(0);

/// The stack address where the body begins, 0 if there is none. Frames above it belong to the harness.
pub(crate) static BODY: AtomicUsize = AtomicUsize::new(0);

/// Starts recording in this process and its children. The log is never unmapped.
pub(crate) fn record_into(log: &'static Log, program: u32) {
    PROGRAM.store(program, Ordering::Relaxed);
    LOG.store(ptr::from_ref(log).cast_mut(), Ordering::Release);
}

/// Records the name of the calling thread with each call from now on, in this process and its forks.
pub(crate) fn record_thread_names() {
    NAMES_THREADS.store(true, Ordering::Relaxed);
}

/// The log, if this process records.
pub(crate) fn log() -> Option<&'static Log> {
    // SAFETY: null, or a log that stays forever.
    unsafe { LOG.load(Ordering::Acquire).as_ref() }
}

/// Stores the calling thread as the first of its process. Called before `main` and after a fork.
#[inline(always)]
pub(crate) fn is_first_thread() {
    FIRST_THREAD.store(abi::own_thread(), Ordering::Relaxed);
}

impl Log {
    /// Takes an entry and records the caller's stack in it. Async-signal-safe except for the unwinder: it looks
    /// up unwind tables without a lock since glibc 2.35 (`_dl_find_object`), and before that with a lock that
    /// `fork` handles.
    // Always inlined, like its callers and what it calls: three frames less save the unwinder 0.4 us a call.
    #[inline(always)]
    pub(crate) fn begin<'a, const SIZE: usize>(&self, ring: &'a Ring<SIZE>) -> Option<&'a Entry> {
        if abi::own_pid() == self.owner.load(Ordering::Relaxed) {
            return None;
        }
        let entry = ring.entries.get(Ring::<SIZE>::place_of(ring.calls.fetch_add(1, Ordering::AcqRel)))?;
        self.begin_in(entry)
    }

    /// The same in an entry that is free.
    #[inline(always)]
    pub(crate) fn begin_in<'a>(&self, entry: &'a Entry) -> Option<&'a Entry> {
        let creator = abi::own_pid();
        let owner = self.owner.load(Ordering::Relaxed);
        entry.call.store(0, Ordering::Release);
        entry.creator.store(creator, Ordering::Relaxed);
        entry.program.store(PROGRAM.load(Ordering::Relaxed), Ordering::Relaxed);
        entry.fds.iter().for_each(|fd| fd.store(u32::MAX, Ordering::Relaxed));
        entry.threads.store(0, Ordering::Relaxed);
        entry.execed.store(0, Ordering::Relaxed);
        entry.cloexec.store(0, Ordering::Relaxed);
        entry.thread[0].store(0, Ordering::Relaxed);
        entry.command[0].store(0, Ordering::Relaxed);
        entry.note_stack();
        observer::stack_noted(entry);
        if owner == 0 || NAMES_THREADS.load(Ordering::Relaxed) {
            entry.note_thread_name();
        }
        Some(entry)
    }
}

impl<const SIZE: usize> Ring<SIZE> {
    const FIRST: usize = SIZE / 2;

    /// The index of a call, given how many were made before it.
    pub(crate) fn place_of(before: u64) -> usize {
        let last = (SIZE - Ring::<SIZE>::FIRST) as u64;
        match before.checked_sub(SIZE as u64) {
            None => before as usize,
            Some(more) => Ring::<SIZE>::FIRST + (more % last) as usize,
        }
    }

    /// The calls that are kept, in the order in which they were made. Never touches an unused entry, since
    /// that would allocate memory.
    pub(crate) fn kept(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        let calls = self.calls.load(Ordering::Acquire);
        let used = calls.min(SIZE as u64) as usize;
        let (first, last) = self.entries[..used].split_at(used.min(Ring::<SIZE>::FIRST));
        // The next call overwrites the oldest.
        let oldest = if used == SIZE { Ring::<SIZE>::place_of(calls) - Ring::<SIZE>::FIRST } else { 0 };
        let (newer, older) = last.split_at(oldest);
        first.iter().chain(older).chain(newer)
    }

    /// Whether no call was dropped.
    pub(crate) fn is_complete(&self) -> bool {
        self.calls.load(Ordering::Acquire) <= SIZE as u64
    }
}

impl Entry {
    pub(crate) fn empty() -> Entry {
        Entry {
            call: AtomicU32::new(0),
            creator: AtomicU32::new(0),
            keys: [const { AtomicU64::new(0) }; 2],
            fds: [const { AtomicU32::new(u32::MAX) }; 2],
            program: AtomicU32::new(0),
            threads: AtomicU32::new(0),
            execed: AtomicU32::new(0),
            cloexec: AtomicU32::new(0),
            thread: [const { AtomicU8::new(0) }; THREAD],
            command: [const { AtomicU8::new(0) }; COMMAND],
            frames: [const { AtomicU64::new(0) }; FRAMES],
        }
    }

    /// Records the caller's return addresses. See [`Log::begin`] for async-signal safety.
    #[inline(always)]
    pub(crate) fn note_stack(&self) {
        let mut used = 0;
        stack::walk(BODY.load(Ordering::Relaxed), |address| {
            let Some(frame) = self.frames.get(used) else { return false };
            frame.store(address as u64, Ordering::Relaxed);
            used += 1;
            true
        });
        if let Some(end) = self.frames.get(used) {
            end.store(0, Ordering::Relaxed);
        }
    }

    /// Records which thread is about to fork or to end the process, and how many there are.
    /// Async-signal-safe.
    pub(crate) fn note_threads(&self) {
        self.threads.store(abi::thread_count(), Ordering::Relaxed);
        self.note_thread_name();
    }

    /// Records the name of the calling thread: `main` for the first thread, which the kernel names after the
    /// program. Async-signal-safe.
    fn note_thread_name(&self) {
        let name = match abi::own_thread() == FIRST_THREAD.load(Ordering::Relaxed) {
            true => array::from_fn(|at| b"main".get(at).copied().unwrap_or(0)),
            false => abi::kernel_name(),
        };
        for (to, from) in self.thread.iter().zip(name) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Records the command line of the started program, as far as there is room. Async-signal-safe.
    ///
    /// # Safety
    ///
    /// `arguments` is null, or an array of NUL-terminated strings that ends with a null pointer.
    pub(crate) unsafe fn note_command(&self, arguments: *const *const c_char) {
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
            // The last two bytes are the NUL of a truncated argument, and the one at the end.
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

    /// Drops the entry: the call failed.
    pub(crate) fn forget(&self) {
        self.call.store(0, Ordering::Release);
    }

    pub(crate) fn note_fds(&self, fds: [c_int; 2], cloexec: bool) {
        for (to, from) in self.fds.iter().zip(fds) {
            to.store(from as u32, Ordering::Relaxed);
        }
        self.cloexec.store(u32::from(cloexec), Ordering::Relaxed);
    }

    pub(crate) fn finish(&self, call: Call, keys: [u64; 2]) {
        for (to, from) in self.keys.iter().zip(keys) {
            to.store(from, Ordering::Relaxed);
        }
        self.call.store(call as u32, Ordering::Release);
    }

    /// The call; `None` while the entry is being written.
    pub(crate) fn call(&self) -> Option<Call> {
        Call::of(self.call.load(Ordering::Acquire))
    }

    pub(crate) fn keys(&self) -> [u64; 2] {
        self.keys.each_ref().map(|key| key.load(Ordering::Relaxed))
    }
}
