//! The declarations of the C library that the hooks use. This directory is compiled into the crate and, on
//! its own, into the library for `LD_PRELOAD`, where no other crates are available.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::mem::{self, MaybeUninit};
use core::ptr;

use super::opens;

pub(crate) const ENOSYS: c_int = 38;
pub(crate) const O_CLOEXEC: c_int = 0o2000000;
pub(crate) const O_CREAT: c_int = 0o100;
/// Includes [`O_DIRECTORY`].
pub(crate) const O_TMPFILE: c_int = 0o20000000 | O_DIRECTORY;

const ENOENT: c_int = 2;
const ESRCH: c_int = 3;
const EINVAL: c_int = 22;
const SIGKILL: c_int = 9;
pub(crate) const O_DIRECTORY: c_int =
    if cfg!(any(target_arch = "aarch64", target_arch = "arm", target_arch = "powerpc64")) {
        0o40000
    } else {
        0o200000
    };
const AT_FDCWD: c_int = -100;
const PR_GET_NAME: c_int = 16;
const SS_ONSTACK: c_int = 1;
const CLONE_THREAD: c_int = 0x10000;
/// Looks up the next definition of a name, behind the caller's own library.
const RTLD_NEXT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// The number of `getdents64`. glibc has a function for it only since 2.30.
const SYS_GETDENTS64: c_long = if cfg!(any(target_arch = "x86_64", target_arch = "arm")) {
    217
} else if cfg!(any(target_arch = "aarch64", target_arch = "riscv64", target_arch = "loongarch64")) {
    61
} else if cfg!(target_arch = "powerpc64") {
    202
} else if cfg!(any(target_arch = "s390x", target_arch = "x86")) {
    220
} else {
    // An invalid number: the call fails with ENOSYS.
    -1
};

/// `stack_t`.
#[repr(C)]
struct SignalStack {
    memory: *mut c_void,
    flags: c_int,
    size: usize,
}

#[link(name = "c")]
#[link(name = "dl")]
#[link(name = "pthread")]
unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    fn getpid() -> c_int;
    fn getppid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    // glibc's `pthread_t` is an unsigned long.
    fn pthread_self() -> usize;
    fn prctl(option: c_int, ...) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn sigaltstack(new: *const SignalStack, old: *mut SignalStack) -> c_int;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn read(fd: c_int, buffer: *mut c_void, size: usize) -> isize;
    fn close(fd: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    pub(crate) fn fileno(stream: *mut c_void) -> c_int;
    pub(crate) fn dirfd(directory: *mut c_void) -> c_int;
}

/// The kernel's status of a file.
// Some fields are used only by the library.
#[allow(dead_code)]
#[derive(Clone, Copy)]
pub(crate) struct Status {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) links: u64,
}

/// Uses `fstat` and `stat`, which programs call anyway: a seccomp filter may forbid other calls (seccomp(2)).
#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "loongarch64",
    target_arch = "powerpc64",
    target_arch = "s390x"
))]
mod status {
    use super::{CStr, MaybeUninit, Status, c_char, c_int};

    /// The beginning of a `struct stat`, with room for the rest.
    #[repr(C)]
    struct Stat {
        dev: u64,
        ino: u64,
        #[cfg(not(any(target_arch = "aarch64", target_arch = "riscv64", target_arch = "loongarch64")))]
        links: u64,
        mode: u32,
        #[cfg(any(target_arch = "aarch64", target_arch = "riscv64", target_arch = "loongarch64"))]
        links: u32,
        rest: [u64; 24],
    }

    unsafe extern "C" {
        fn fstat(fd: c_int, status: *mut Stat) -> c_int;
        fn stat(path: *const c_char, status: *mut Stat) -> c_int;
    }

    fn get(call: impl FnOnce(*mut Stat) -> c_int) -> Option<Status> {
        let mut status = MaybeUninit::<Stat>::zeroed();
        if call(status.as_mut_ptr()) != 0 {
            return None;
        }
        // SAFETY: all zeroes is a valid value, and the call only overwrites it.
        let status = unsafe { status.assume_init() };
        #[allow(clippy::useless_conversion)]
        let links = u64::from(status.links);
        Some(Status { dev: status.dev, ino: status.ino, mode: status.mode, links })
    }

    pub(super) fn of_fd(fd: c_int) -> Option<Status> {
        // SAFETY: the struct is writable, and larger than the kernel's.
        get(|status| unsafe { fstat(fd, status) })
    }

    pub(super) fn of_path(path: &CStr) -> Option<Status> {
        // SAFETY: as above; the path is NUL-terminated.
        get(|status| unsafe { stat(path.as_ptr(), status) })
    }
}

/// `statx` has the same layout on all machines.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "loongarch64",
    target_arch = "powerpc64",
    target_arch = "s390x"
)))]
mod status {
    use super::{AT_FDCWD, CStr, MaybeUninit, Status, c_char, c_int};

    /// The beginning of a `struct statx`, with room for the rest (statx(2)).
    #[repr(C)]
    struct Statx {
        mask: u32,
        block_size: u32,
        attributes: u64,
        links: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        pad: u16,
        ino: u64,
        sizes_and_times: [u64; 12],
        special: [u32; 2],
        dev: [u32; 2],
        rest: [u64; 24],
    }

    unsafe extern "C" {
        fn statx(directory: c_int, path: *const c_char, flags: c_int, mask: u32, status: *mut Statx)
        -> c_int;
    }

    fn get(directory: c_int, path: &CStr) -> Option<Status> {
        const AT_EMPTY_PATH: c_int = 0x1000;
        const STATX_BASIC_STATS: u32 = 0x7ff;
        let mut status = MaybeUninit::<Statx>::zeroed();
        let at = status.as_mut_ptr();
        // SAFETY: the struct is writable, and larger than the kernel's; the path is NUL-terminated.
        if unsafe { statx(directory, path.as_ptr(), AT_EMPTY_PATH, STATX_BASIC_STATS, at) } != 0 {
            return None;
        }
        // SAFETY: all zeroes is a valid value, and the call only overwrites it.
        let status = unsafe { status.assume_init() };
        let [major, minor] = status.dev.map(u64::from);
        // As makedev(3) does.
        let dev = (major & 0xfff) << 8 | (major & !0xfff) << 32 | minor & 0xff | (minor & !0xff) << 12;
        Some(Status { dev, ino: status.ino, mode: status.mode.into(), links: status.links.into() })
    }

    pub(super) fn of_fd(fd: c_int) -> Option<Status> {
        get(fd, c"")
    }

    pub(super) fn of_path(path: &CStr) -> Option<Status> {
        get(AT_FDCWD, path)
    }
}

/// `fstat(fd)`; `None` if it is not open. Async-signal-safe, like everything in this file but [`next`].
pub(crate) fn status(fd: c_int) -> Option<Status> {
    status::of_fd(fd)
}

/// `stat(path)`.
pub(crate) fn status_of(path: &CStr) -> Option<Status> {
    status::of_path(path)
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the C library's own place of this thread.
    let place = unsafe { __errno_location() };
    // SAFETY: it is valid as long as the thread.
    unsafe { place.read() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: the C library's own place of this thread.
    let place = unsafe { __errno_location() };
    // SAFETY: it is valid as long as the thread.
    unsafe { place.write(value) }
}

/// Restores `errno` on drop.
pub(crate) struct KeepErrno(c_int);

impl KeepErrno {
    pub(crate) fn new() -> KeepErrno {
        KeepErrno(errno())
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        set_errno(self.0);
    }
}

#[inline(always)]
pub(crate) fn own_pid() -> u32 {
    // SAFETY: the call has no preconditions.
    unsafe { getpid() as u32 }
}

pub(crate) fn parent_pid() -> u32 {
    // SAFETY: the call has no preconditions.
    unsafe { getppid() as u32 }
}

#[inline(always)]
pub(crate) fn own_thread() -> usize {
    // SAFETY: the call has no preconditions.
    unsafe { pthread_self() }
}

/// `prctl(PR_GET_NAME)` — the calling thread's name in the kernel.
pub(crate) fn kernel_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: the kernel writes at most 16 bytes into the buffer (PR_GET_NAME(2const)).
    unsafe { prctl(PR_GET_NAME, name.as_mut_ptr()) };
    name
}

/// Kills this process when no function is left that could end it.
pub(crate) fn die() -> ! {
    loop {
        // SAFETY: the call has no preconditions.
        let own = unsafe { getpid() };
        // SAFETY: as above.
        unsafe { kill(own, SIGKILL) };
    }
}

/// `unshare(CLONE_THREAD)` — whether this process has more than one thread: the call has no effect in a
/// process with one thread, and fails in others (unshare(2)).
pub(crate) fn is_threaded() -> bool {
    // SAFETY: changes nothing, and reads no memory of ours.
    unsafe { unshare(CLONE_THREAD) != 0 && errno() == EINVAL }
}

/// A system call with four arguments that opens a file.
///
/// # Safety
///
/// As for the call.
pub(crate) unsafe fn call(
    number: c_long,
    directory: c_int,
    path: *const c_char,
    how: *const u64,
    size: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { syscall(number, directory, path, how, size) as c_int }
}

/// Whether this thread runs on its alternate signal stack (sigaltstack(2)).
pub(crate) fn is_on_signal_stack() -> bool {
    let mut stack = SignalStack { memory: ptr::null_mut(), flags: 0, size: 0 };
    // SAFETY: the kernel writes the struct behind the second pointer, and reads nothing.
    let result = unsafe { sigaltstack(ptr::null(), &mut stack) };
    result == 0 && stack.flags & SS_ONSTACK != 0
}

/// `dlsym(RTLD_NEXT, name)` — the next function of that name behind ours; null if there is none. Takes the
/// loader's lock.
pub(crate) fn next(name: &CStr) -> *mut c_void {
    // SAFETY: the name is NUL-terminated.
    unsafe { dlsym(RTLD_NEXT, name.as_ptr()) }
}

/// A file that is open for reading, closed when dropped.
pub(crate) struct File(c_int);

// Some methods are used only by the library.
#[allow(dead_code)]
impl File {
    pub(crate) fn open(path: &CStr) -> Result<File, c_int> {
        File::open_at(AT_FDCWD, path, 0)
    }

    pub(crate) fn open_directory(path: &CStr) -> Result<File, c_int> {
        File::open_at(AT_FDCWD, path, O_DIRECTORY)
    }

    fn open_at(directory: c_int, path: &CStr, flags: c_int) -> Result<File, c_int> {
        // SAFETY: the path is NUL-terminated.
        match unsafe { opens::openat_unrecorded(directory, path.as_ptr(), flags | O_CLOEXEC) } {
            -1 => Err(errno()),
            fd => Ok(File(fd)),
        }
    }

    pub(crate) fn fd(&self) -> c_int {
        self.0
    }

    /// Reads once. Returns the number of bytes, 0 at the end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, c_int> {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let filled = unsafe { read(self.0, buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(filled).map_err(|_| errno())
    }

    /// Calls `see` with each directory entry that is a number. `false` if the directory cannot be read.
    pub(crate) fn numbers(&self, mut see: impl FnMut(c_int)) -> bool {
        // Aligned for `linux_dirent64`; some eighty entries a call.
        let mut buffer = [0_u64; 256];
        loop {
            let size = mem::size_of_val(&buffer);
            // SAFETY: the kernel writes at most `size` bytes into the buffer.
            let filled = unsafe { syscall(SYS_GETDENTS64, self.0, buffer.as_mut_ptr(), size) };
            let Ok(filled @ 1..) = usize::try_from(filled) else { return filled == 0 };
            // SAFETY: the first `filled` bytes were just written, and u8 has no alignment.
            let bytes = unsafe { core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), filled) };
            let mut at = 0;
            // Fields of `struct linux_dirent64`: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name.
            while let Some(&[low, high]) = bytes.get(at + 16..at + 18) {
                let length = usize::from(u16::from_ne_bytes([low, high]));
                let name = bytes.get(at + 19..at + length).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if let Some(number) = core::str::from_utf8(name).ok().and_then(|name| name.parse().ok()) {
                    see(number);
                }
                if length == 0 {
                    break;
                }
                at += length;
            }
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: nothing else has the number.
        unsafe { close(self.0) };
    }
}

/// Counts the threads of this process that run code of the program. Without `/proc` (the program may have
/// changed its root) it returns 2, for any number of them.
///
/// A process with one thread costs one `stat`: the link count of /proc/self/task is 2 plus its
/// subdirectories, one a thread.
pub(crate) fn thread_count() -> u32 {
    const TASK: &CStr = c"/proc/self/task";
    let Some(task) = status_of(TASK) else { return if is_threaded() { 2 } else { 1 } };
    let all = u32::try_from(task.links).unwrap_or(u32::MAX).saturating_sub(2);
    if all <= 1 {
        return all;
    }
    let Ok(task) = File::open_directory(TASK) else { return all };
    // A joined thread may still be listed for a moment. It no longer runs code of the program, so it holds no
    // lock.
    let mut running = 0_u32;
    match task.numbers(|tid| running += u32::from(!is_exiting(&task, tid))) {
        true => running.max(1),
        false => all,
    }
}

/// Whether the thread `tid` in the directory `task` has begun to exit, or is gone.
fn is_exiting(task: &File, tid: c_int) -> bool {
    /// `PF_EXITING` (include/linux/sched.h), set before a thread that joins this one is woken.
    const EXITING: u64 = 0x4;
    let mut path = [0; 32];
    let Some(path) = path_below(&mut path, b"", tid, b"/stat") else { return false };
    let file = match File::open_at(task.0, path, 0) {
        Ok(file) => file,
        Err(error) => return matches!(error, ENOENT | ESRCH),
    };
    let mut bytes = [0; 512];
    // ESRCH if the thread has exited since.
    let Ok(filled) = file.read(&mut bytes) else { return true };
    let line = bytes.get(..filled).unwrap_or_default();
    // The name is in parentheses and may contain some. The flags are the seventh word behind it.
    let behind = line.iter().rposition(|byte| *byte == b')').and_then(|at| line.get(at + 2..));
    let flags = behind.unwrap_or_default().split(|byte| *byte == b' ').nth(6);
    let flags = flags.and_then(|flags| core::str::from_utf8(flags).ok()?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// The id of an eventfd of this process, from its fdinfo (Linux 5.2).
pub(crate) fn eventfd_id(fd: c_int) -> Option<u64> {
    let mut path = [0; 40];
    let file = File::open(path_below(&mut path, b"/proc/self/fdinfo/", fd, b"")?).ok()?;
    let mut bytes = [0; 512];
    let filled = file.read(&mut bytes).ok()?;
    let mut lines = bytes.get(..filled)?.split(|byte| *byte == b'\n');
    let id = lines.find_map(|line| line.strip_prefix(b"eventfd-id:"))?;
    core::str::from_utf8(id.trim_ascii()).ok()?.parse().ok()
}

/// Formats a number between two strings. `None` if there is no room.
pub(crate) fn path_below<'a>(
    room: &'a mut [u8],
    before: &[u8],
    number: c_int,
    behind: &[u8],
) -> Option<&'a CStr> {
    let mut digits = [0; 12];
    let mut first = digits.len();
    let mut left = number.unsigned_abs();
    loop {
        first -= 1;
        *digits.get_mut(first)? = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    let bytes = before.iter().chain(digits.get(first..)?).chain(behind).chain(b"\0");
    for (at, byte) in bytes.enumerate() {
        *room.get_mut(at)? = *byte;
    }
    CStr::from_bytes_until_nul(room).ok()
}
