//! Hooks of the calls that open a file by its name, and terminals.
//!
//! Programs open files all the time, so they have a ring of their own, and the entry of a file that was closed again
//! is given to the next one: a loop of opens takes one entry.
//!
//! `open` and `openat` are variadic in C. They are defined here with a fixed last argument: on every machine with
//! glibc a third or fourth integer is passed the same way in both cases, and it is read only if the flags say that it
//! was given.

use core::ffi::{c_char, c_int, c_long, c_uint, c_void};
use core::mem::{self, MaybeUninit};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::abi::{self, KeepErrno, O_CLOEXEC, O_CREAT, O_TMPFILE};
use super::log::{Call, Entry, Log, log, open_key};
use super::next::{Next, behind};
use super::observer;

static OPEN: Next = Next::new(c"open");
static OPEN64: Next = Next::new(c"open64");
static OPENAT: Next = Next::new(c"openat");
static OPENAT64: Next = Next::new(c"openat64");
/// Since glibc 2.43.
static OPENAT2: Next = Next::new(c"openat2");
static CREAT: Next = Next::new(c"creat");
static CREAT64: Next = Next::new(c"creat64");
/// What `open` becomes under `_FORTIFY_SOURCE` if it is given no mode.
static OPEN_2: Next = Next::new(c"__open_2");
static OPEN64_2: Next = Next::new(c"__open64_2");
static OPENAT_2: Next = Next::new(c"__openat_2");
static OPENAT64_2: Next = Next::new(c"__openat64_2");
static FOPEN: Next = Next::new(c"fopen");
static FOPEN64: Next = Next::new(c"fopen64");
static OPENDIR: Next = Next::new(c"opendir");
static POSIX_OPENPT: Next = Next::new(c"posix_openpt");
/// In libutil before glibc 2.34.
static OPENPTY: Next = Next::of_other_library(c"openpty");
/// In librt before glibc 2.34.
static SHM_OPEN: Next = Next::of_other_library(c"shm_open");

pub(crate) static ALL: [&Next; 15] = [
    &OPEN,
    &OPEN64,
    &OPENAT,
    &OPENAT64,
    &OPENAT2,
    &CREAT,
    &CREAT64,
    &OPEN_2,
    &OPEN64_2,
    &OPENAT_2,
    &OPENAT64_2,
    &FOPEN,
    &FOPEN64,
    &OPENDIR,
    &POSIX_OPENPT,
];

/// The entry of a file that this process has closed: the next one gets it.
static FREE: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// A file was closed, and no other process has it: its entry is free.
// Only the crate knows of closed files.
#[allow(dead_code)]
pub(super) fn release(entry: &'static Entry) {
    entry.forget();
    FREE.store(ptr::from_ref(entry).cast_mut(), Ordering::Relaxed);
}

/// Takes an entry, see [`Log::begin`].
#[inline(always)]
fn begin(log: &'static Log) -> Option<&'static Entry> {
    let free = FREE.load(Ordering::Relaxed);
    if free as usize != 0 {
        let free = FREE.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: null, or an entry of the log, which stays forever.
        let free = unsafe { free.as_ref() };
        // A fork has its parent's entry there, and the ring may have given it to a later call.
        let is_free = |entry: &&Entry| {
            entry.call().is_none() && entry.creator.load(Ordering::Relaxed) == abi::own_pid()
        };
        if let Some(entry) = free.filter(is_free) {
            return log.begin_in(entry);
        }
    }
    log.begin(&log.files)
}

/// Records that the hook's caller opened a file.
#[inline(always)]
fn record(call: Call, fd: c_int, cloexec: bool) {
    let Some(log) = log() else { return };
    let _errno = KeepErrno::new();
    let Some(status) = abi::status(fd) else { return };
    let Some(entry) = begin(log) else { return };
    entry.note_fds([fd, -1], cloexec);
    entry.finish(call, [0, open_key(abi::own_pid(), fd, status.dev, status.ino)]);
    observer::fd_made(entry, fd);
}

/// The mode of a new file, the last argument of `open`; it is passed only if one may be created.
type Mode = MaybeUninit<c_uint>;

fn mode_of(flags: c_int, mode: Mode) -> c_uint {
    match flags & (O_CREAT | (O_TMPFILE & !abi::O_DIRECTORY)) {
        0 => 0,
        // SAFETY: the caller has passed it, as open(2) demands.
        _ => unsafe { mode.assume_init() },
    }
}

/// `openat(2)` without a record, for this directory's own files.
///
/// # Safety
///
/// `path` is NUL-terminated.
pub(crate) unsafe fn openat_unrecorded(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    type Openat = unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int;
    let next = OPENAT.get();
    if next as usize == 0 {
        abi::set_errno(abi::ENOSYS);
        return -1;
    }
    // SAFETY: it is the C library's function of that name, which has this type.
    let next = unsafe { mem::transmute::<*mut c_void, Openat>(next) };
    // SAFETY: the caller's promise; the flags ask for no mode.
    unsafe { next(directory, path, flags) }
}

macro_rules! opens {
    ($name:ident, $next:ident, $call:ident, ($($argument:ident: $type:ty),*)) => {
        /// Wraps the system call of that name and records its caller.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type,)* flags: c_int, mode: Mode) -> c_int {
            let next = $next.get();
            if next as usize == 0 {
                abi::set_errno(abi::ENOSYS);
                return -1;
            }
            type Function = unsafe extern "C" fn($($type,)* c_int, ...) -> c_int;
            // SAFETY: it is the C library's function of that name, which has this type.
            let next = unsafe { mem::transmute::<*mut c_void, Function>(next) };
            // SAFETY: the caller's arguments are passed on.
            let fd = unsafe { next($($argument,)* flags, mode_of(flags, mode)) };
            if fd >= 0 {
                record(Call::$call, fd, flags & O_CLOEXEC != 0);
            }
            fd
        }
    };
}

opens!(open, OPEN, Open, (path: *const c_char));
opens!(open64, OPEN64, Open, (path: *const c_char));
opens!(openat, OPENAT, Openat, (directory: c_int, path: *const c_char));
opens!(openat64, OPENAT64, Openat, (directory: c_int, path: *const c_char));

macro_rules! opens_plainly {
    ($name:ident, $next:ident, $call:ident, ($($argument:ident: $type:ty),*), cloexec: $cloexec:expr) => {
        /// Wraps the function of that name and records its caller.
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

opens_plainly!(__open_2, OPEN_2, Open, (path: *const c_char, flags: c_int), cloexec: flags & O_CLOEXEC != 0);
opens_plainly!(__open64_2, OPEN64_2, Open, (path: *const c_char, flags: c_int), cloexec: flags & O_CLOEXEC != 0);
opens_plainly!(
    __openat_2, OPENAT_2, Openat, (directory: c_int, path: *const c_char, flags: c_int),
    cloexec: flags & O_CLOEXEC != 0
);
opens_plainly!(
    __openat64_2, OPENAT64_2, Openat, (directory: c_int, path: *const c_char, flags: c_int),
    cloexec: flags & O_CLOEXEC != 0
);
opens_plainly!(creat, CREAT, Creat, (path: *const c_char, mode: c_uint), cloexec: false);
opens_plainly!(creat64, CREAT64, Creat, (path: *const c_char, mode: c_uint), cloexec: false);
opens_plainly!(posix_openpt, POSIX_OPENPT, PosixOpenpt, (flags: c_int), cloexec: flags & O_CLOEXEC != 0);
// It sets FD_CLOEXEC (shm_open(3)).
opens_plainly!(shm_open, SHM_OPEN, ShmOpen, (name: *const c_char, flags: c_int, mode: c_uint), cloexec: true);

/// Wraps `openat2(2)` and records its caller. A C library without it may have programs that look for it, so the system
/// call is made for them.
#[unsafe(no_mangle)]
unsafe extern "C" fn openat2(directory: c_int, path: *const c_char, how: *const u64, size: usize) -> c_int {
    type Openat2 = unsafe extern "C" fn(c_int, *const c_char, *const u64, usize) -> c_int;
    /// The same number on every machine.
    const SYS_OPENAT2: c_long = 437;
    let next = OPENAT2.get();
    let fd = if next as usize == 0 {
        // SAFETY: the caller's arguments are passed on.
        unsafe { abi::call(SYS_OPENAT2, directory, path, how, size) }
    } else {
        // SAFETY: it is the C library's function of that name, which has this type.
        let next = unsafe { mem::transmute::<*mut c_void, Openat2>(next) };
        // SAFETY: as above.
        unsafe { next(directory, path, how, size) }
    };
    if fd >= 0 {
        // SAFETY: the call has read it: a `struct open_how` begins with the flags.
        let flags = unsafe { how.read_unaligned() };
        record(Call::Openat2, fd, flags & O_CLOEXEC as u64 != 0);
    }
    fd
}

macro_rules! opens_stream {
    ($name:ident, $next:ident) => {
        /// Wraps `fopen(3)` and records its caller.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, mode: *const c_char) -> *mut c_void {
            let next = behind!($next: fn(*const c_char, *const c_char) -> *mut c_void, or ptr::null_mut());
            // SAFETY: the caller's arguments are passed on.
            let stream = unsafe { next(path, mode) };
            if stream as usize != 0 {
                // SAFETY: the call has returned it.
                let fd = unsafe { abi::fileno(stream) };
                // SAFETY: NUL-terminated, as fopen(3) demands.
                let mode = unsafe { core::ffi::CStr::from_ptr(mode) };
                record(Call::Fopen, fd, mode.to_bytes().contains(&b'e'));
            }
            stream
        }
    };
}

opens_stream!(fopen, FOPEN);
opens_stream!(fopen64, FOPEN64);

/// Wraps `opendir(3)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn opendir(path: *const c_char) -> *mut c_void {
    let next = behind!(OPENDIR: fn(*const c_char) -> *mut c_void, or ptr::null_mut());
    // SAFETY: the caller's argument is passed on.
    let directory = unsafe { next(path) };
    if directory as usize != 0 {
        // SAFETY: the call has returned it.
        let fd = unsafe { abi::dirfd(directory) };
        // It sets FD_CLOEXEC (opendir(3)).
        record(Call::Opendir, fd, true);
    }
    directory
}

/// Wraps `openpty(3)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn openpty(
    master: *mut c_int,
    slave: *mut c_int,
    name: *mut c_char,
    settings: *const c_void,
    size: *const c_void,
) -> c_int {
    let next = behind!(OPENPTY: fn(*mut c_int, *mut c_int, *mut c_char, *const c_void, *const c_void) -> c_int, or -1);
    // SAFETY: the caller's arguments are passed on.
    let result = unsafe { next(master, slave, name, settings, size) };
    if result == 0 {
        // SAFETY: the call has written it.
        record(Call::Openpty, unsafe { *master }, false);
        // SAFETY: as above.
        record(Call::Openpty, unsafe { *slave }, false);
    }
    result
}
