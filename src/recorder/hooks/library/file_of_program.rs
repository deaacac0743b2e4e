//! Opens the log of a program, and writes everything but its calls: the program, its mappings, its end.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::abi;
use super::file::{File, State, Table, Text};
use super::log::{self, Call};

static FILE: AtomicPtr<File> = AtomicPtr::new(ptr::null_mut());

/// Index of this program plus one.
static PROGRAM: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        size: usize,
        protection: c_int,
        kind: c_int,
        fd: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn lseek(fd: c_int, to: c_long, from: c_int) -> c_long;
    fn readlinkat(directory: c_int, path: *const c_char, buffer: *mut c_char, size: usize) -> isize;
}

const AT_FDCWD: c_int = -100;

/// Maps the log. `None` if it does not exist or has another version.
pub(crate) fn open_log(path: &CStr) -> Option<&'static File> {
    const O_RDWR: c_int = 2;
    const SEEK_END: c_int = 2;
    const PROT_READ_WRITE: c_int = 3;
    const MAP_SHARED: c_int = 1;
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { open(path.as_ptr(), O_RDWR | abi::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    let size = size_of::<File>();
    // SAFETY: reads no memory of ours.
    let length = unsafe { lseek(fd, 0, SEEK_END) };
    let at = match usize::try_from(length) {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing.
        Ok(length) if length == size => unsafe {
            mmap(ptr::null_mut(), size, PROT_READ_WRITE, MAP_SHARED, fd, 0)
        },
        _ => ptr::without_provenance_mut(usize::MAX),
    };
    // SAFETY: nothing else has the number.
    unsafe { close(fd) };
    // `MAP_FAILED`.
    if at.addr() == usize::MAX {
        return None;
    }
    // SAFETY: as many bytes are mapped there forever, and every value of them is valid.
    let file = unsafe { &*at.cast::<File>() };
    file.header.is_known().then_some(file)
}

/// Records this program, and starts recording its calls.
pub(crate) fn begin(file: &'static File) {
    let Some((at, row)) = file.programs.take() else { return };
    row.pid.store(abi::own_pid(), Ordering::Relaxed);
    row.parent.store(abi::parent_pid(), Ordering::Relaxed);
    note_link(file, &row.path, AT_FDCWD, c"/proc/self/exe");
    row.state.store(State::Started as u32, Ordering::Release);
    PROGRAM.store(at + 1, Ordering::Relaxed);
    FILE.store(ptr::from_ref(file).cast_mut(), Ordering::Release);
    log::record_into(&file.log, at + 1);
}

/// The log of this process, and the index of its program plus one.
pub(crate) fn own() -> Option<(&'static File, u32)> {
    // SAFETY: null, or a file that stays mapped forever.
    let file = unsafe { FILE.load(Ordering::Acquire).as_ref() }?;
    Some((file, PROGRAM.load(Ordering::Relaxed)))
}

/// Records that this program ends, and which fds are still open. Async-signal-safe.
pub(crate) fn end(call: Option<Call>) {
    let Some((file, program)) = own() else { return };
    let Some(row) = file.programs.rows.get(program as usize - 1) else { return };
    // Only the first call counts: `exit` runs handlers, which may call `_exit`.
    if let Some(call) = call {
        let _ = row.end.compare_exchange(0, call as u32, Ordering::Relaxed, Ordering::Relaxed);
    }
    match call {
        // The handlers of `exit` close their own fds; the library's destructor runs after them and records
        // the rest.
        Some(Call::Exit) => return,
        Some(Call::Exec | Call::DaemonEnd) => {
            row.state.store(State::WentOn as u32, Ordering::Release);
            return;
        }
        _ => {}
    }
    let started = State::Started as u32;
    let ended = State::Ended as u32;
    if row.state.compare_exchange(started, ended, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    row.threads.store(abi::thread_count(), Ordering::Relaxed);
    row.open.store(note_open(file, program), Ordering::Release);
}

/// Undoes [`end`]: the exec failed.
pub(crate) fn goes_on() {
    let Some((file, program)) = own() else { return };
    let Some(row) = file.programs.rows.get(program as usize - 1) else { return };
    row.end.store(0, Ordering::Relaxed);
    row.state.store(State::Started as u32, Ordering::Release);
}

/// Records each open fd and returns their number, `u32::MAX` if they cannot be listed.
fn note_open(file: &File, program: u32) -> u32 {
    const F_GETFD: c_int = 1;
    const F_GETFL: c_int = 3;
    let Ok(directory) = abi::File::open_directory(c"/proc/self/fd") else { return u32::MAX };
    let mut count = 0;
    let read = directory.numbers(|fd| {
        let own = fd == directory.fd();
        let Some(status) = abi::status(fd).filter(|_| !own) else { return };
        count += 1;
        let Some((_, row)) = file.open.take() else { return };
        row.fd.store(fd as u32, Ordering::Relaxed);
        row.mode.store(status.mode, Ordering::Relaxed);
        // SAFETY: reads no memory of ours.
        let flags = unsafe { fcntl(fd, F_GETFD) };
        row.cloexec.store((flags & 1) as u32, Ordering::Relaxed);
        // SAFETY: as above.
        let flags = unsafe { fcntl(fd, F_GETFL) };
        row.flags.store(flags as u32, Ordering::Relaxed);
        row.dev.store(status.dev, Ordering::Relaxed);
        row.ino.store(status.ino, Ordering::Relaxed);
        let mut name = [0; 16];
        if let Some(name) = abi::path_below(&mut name, b"", fd, b"") {
            note_link(file, &row.target, directory.fd(), name);
        }
        row.program.store(program, Ordering::Release);
    });
    if read { count } else { u32::MAX }
}

fn note_link(file: &File, text: &Text, directory: c_int, link: &CStr) {
    let mut bytes = [0_u8; 1024];
    let (at, size) = (bytes.as_mut_ptr().cast(), bytes.len());
    // SAFETY: the path is NUL-terminated, and the kernel writes at most `size` bytes.
    let length = unsafe { readlinkat(directory, link.as_ptr(), at, size) };
    let length = usize::try_from(length).unwrap_or(0);
    note_text(file, text, bytes.get(..length).unwrap_or_default());
}

/// Copies a string into the store, if there is room.
pub(crate) fn note_text(file: &File, text: &Text, bytes: &[u8]) {
    let at = file.texts.taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    let room = usize::try_from(at).ok().and_then(|at| file.texts.bytes.get(at..)?.get(..bytes.len()));
    let Some(room) = room else { return };
    for (to, from) in room.iter().zip(bytes) {
        to.store(*from, Ordering::Relaxed);
    }
    text.at.store(at as u32, Ordering::Relaxed);
    text.length.store(bytes.len() as u32, Ordering::Relaxed);
}

impl<T, const SIZE: usize> Table<T, SIZE> {
    /// Takes a free row, and returns it with its index.
    pub(crate) fn take(&self) -> Option<(u32, &T)> {
        let taken: &AtomicU64 = &self.taken;
        let at = u32::try_from(taken.fetch_add(1, Ordering::Relaxed)).ok()?;
        Some((at, self.rows.get(at as usize)?))
    }
}
