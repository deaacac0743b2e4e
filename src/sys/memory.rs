//! Shared memory, mapped files, and the memory of other processes.

#![allow(unsafe_code)]

#[cfg(feature = "sites")]
use std::ffi::{CStr, c_void};
use std::io::{self, IoSliceMut};
use std::mem;
#[cfg(feature = "sites")]
use std::mem::MaybeUninit;
#[cfg(feature = "sites")]
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use nix::libc;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use super::Pid;

/// A value in memory that is shared with every process forked from this one.
///
/// `T` consists of atomics ([`crate::guard::report_page::Page`]), since two processes may access it at once.
pub(crate) struct Shared<T: 'static> {
    at: &'static T,
}

impl<T: Sync> Shared<T> {
    /// `mmap(MAP_SHARED|MAP_ANONYMOUS)` — zeroed memory; it stays mapped until the process ends.
    ///
    /// # Safety of the type
    ///
    /// All-zero bytes must be a valid `T`; `Page` is the only one, and documents it.
    pub(crate) fn zeroed() -> io::Result<Shared<T>> {
        Ok(Shared { at: &shared_slice(1)?[0] })
    }
}

/// `mmap(MAP_SHARED|MAP_ANONYMOUS)` — `count` zeroed values, shared with every process forked from this one; they stay
/// mapped until the process ends. For `T` the same holds as in [`Shared::zeroed`].
pub(crate) fn shared_slice<T: Sync>(count: usize) -> io::Result<&'static [T]> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // The kernel refuses a mapping without a byte.
    let size = mem::size_of::<T>().checked_mul(count.max(1)).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, kind, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is page-aligned, has room for `count` values, is zeroed (valid values, see above), and is
    // never unmapped.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), count) })
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        *self
    }
}

/// A second handle on the same memory.
impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// The value, which stays mapped until the process ends.
    pub(crate) fn get(self) -> &'static T {
        self.at
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.at
    }
}

/// A mark that a process sets for itself and that its forks do not have, however they are made.
///
/// A pid does not distinguish a process from its descendants: one in a PID namespace of its own may have any
/// number. So the mark is a word that is zero after each fork.
pub(crate) struct Mark {
    /// Null until it is prepared.
    word: AtomicPtr<AtomicU32>,
    /// Used where the kernel has no `MADV_WIPEONFORK` (an emulator).
    without_wiping: AtomicU32,
}

impl Mark {
    pub(crate) const fn new() -> Mark {
        Mark { word: AtomicPtr::new(ptr::null_mut()), without_wiping: AtomicU32::new(0) }
    }

    /// `mmap`, `madvise(MADV_WIPEONFORK)` — creates the page for the mark, once for this process and its forks.
    pub(crate) fn prepare(&self) {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let size = mem::size_of::<AtomicU32>();
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
        let at = unsafe { libc::mmap(ptr::null_mut(), size, access, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return;
        }
        // SAFETY: the mapping is ours, and nothing has a reference to it yet.
        if unsafe { libc::madvise(at, size, libc::MADV_WIPEONFORK) } == 0 {
            self.word.store(at.cast(), Ordering::Release);
        }
    }

    #[inline(always)]
    fn word(&self) -> &AtomicU32 {
        let prepared = self.word.load(Ordering::Acquire);
        // SAFETY: null, or a zeroed mapping that is never unmapped and is aligned for the type.
        unsafe { prepared.as_ref() }.unwrap_or(&self.without_wiping)
    }

    /// Marks this process. Async-signal-safe.
    #[inline(always)]
    pub(crate) fn set(&self) {
        self.word().store(super::own_pid() as u32, Ordering::Relaxed);
    }

    /// The pid that this process had when it was marked; `None` if it is not marked. A child that shares its
    /// memory (vfork) has another pid. Async-signal-safe.
    #[inline(always)]
    pub(crate) fn get(&self) -> Option<u32> {
        let marked = self.word().load(Ordering::Relaxed);
        if marked != 0 && super::own_pid() as u32 == marked { Some(marked) } else { None }
    }
}

/// The mark of a test process.
static TEST: Mark = Mark::new();

/// Creates the page for [`mark_process`], once for this process and its forks.
pub(crate) fn prepare_mark() {
    TEST.prepare();
}

/// Marks this process as the one that runs a test. Its forks are not marked. Async-signal-safe.
#[inline(always)]
pub(crate) fn mark_process() {
    TEST.set();
}

/// The pid that this test process had when it was marked; `None` if it is not marked. Async-signal-safe.
#[inline(always)]
pub(crate) fn marked_process() -> Option<u32> {
    TEST.get()
}

/// `process_vm_readv(pid, ..)` — reads the memory of another process; `None` if it may not be read, or is not
/// all mapped.
pub(crate) fn read_memory(pid: Pid, address: u64, length: usize) -> Option<Vec<u8>> {
    let base = usize::try_from(address).ok()?;
    let mut bytes = vec![0; length];
    let remote = [RemoteIoVec { base, len: length }];
    let pid = nix::unistd::Pid::from_raw(pid);
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote).ok()?;
    (read == length).then_some(bytes)
}

/// `dladdr(address, &info)` — the nearest exported function at or before an address of this process.
#[cfg(feature = "sites")]
pub(crate) fn exported_name(address: u64) -> Option<String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is writable; any address may be asked for.
    if unsafe { libc::dladdr(address as *const c_void, info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: null pointers are valid values, and dladdr has filled them.
    let info = unsafe { info.assume_init() };
    if info.dli_sname.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated name in a library that is never unloaded: the ones asked for are
    // libc and the loader.
    let name = unsafe { CStr::from_ptr(info.dli_sname) };
    Some(name.to_string_lossy().into_owned())
}

/// `mmap(PROT_READ, MAP_PRIVATE)` — the contents of a file, never unmapped.
///
/// The file must not change: it is a program or library that is already mapped for execution, of which the
/// same is required.
#[cfg(feature = "sites")]
pub(crate) fn map_file(file: &std::fs::File) -> io::Result<&'static [u8]> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let fd = file.as_raw_fd();
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing.
    let at = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `length` bytes are mapped there, never unmapped, and nothing writes to them.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), length) })
}
