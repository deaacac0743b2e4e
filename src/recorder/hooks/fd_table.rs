//! The fds of this process that are known by their numbers: eventfds, timers and the like, whose files have no inode of
//! their own, and files that were opened by a path. When such a number is closed or replaced, its entry in the log
//! loses its key, so a later fd of that number never gets its line. The entry of a file is free for the next one, unless
//! a child may have inherited the file.

use std::ffi::{c_int, c_uint};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::log::{self, Call, Entry};
use super::{abi, opens};

/// The largest number, plus one, that is followed. Fds above it have no line.
const NUMBERS: usize = 1024;

static ENTRIES: [AtomicPtr<Entry>; NUMBERS] = [const { AtomicPtr::new(ptr::null_mut()) }; NUMBERS];
/// Whether there was any: the table lies on pages that most tests never touch.
static IS_USED: AtomicBool = AtomicBool::new(false);
/// Whether this process has forked: a fork has all its files.
static HAS_FORKED: AtomicBool = AtomicBool::new(false);

/// The calling process is about to fork, or is the new one.
pub(super) fn forks(is_new: bool) {
    HAS_FORKED.store(!is_new, Ordering::Relaxed);
}

/// Notes the entry of a new fd. One that had the number was closed, maybe by a raw system call.
pub(super) fn note(entry: &'static Entry, fd: c_int) {
    forget(fd);
    match usize::try_from(fd).ok().and_then(|fd| ENTRIES.get(fd)) {
        Some(slot) => {
            slot.store(ptr::from_ref(entry).cast_mut(), Ordering::Relaxed);
            IS_USED.store(true, Ordering::Relaxed);
        }
        // The key of a file has more than its number.
        None if is_of_path(entry) => {}
        None => forget_key(entry),
    }
}

/// An fd was closed, or refers to another file now.
#[inline(always)]
pub(super) fn forget(fd: c_int) {
    if IS_USED.load(Ordering::Relaxed) {
        forget_known(fd);
    }
}

/// The same for all from `first` to `last`.
pub(super) fn forget_range(first: c_uint, last: c_uint) {
    if IS_USED.load(Ordering::Relaxed) {
        (first..=last.min(NUMBERS as c_uint)).for_each(|fd| forget_known(fd as c_int));
    }
}

#[inline(never)]
fn forget_known(fd: c_int) {
    let Some(slot) = usize::try_from(fd).ok().and_then(|fd| ENTRIES.get(fd)) else { return };
    // SAFETY: null, or an entry of the log, which stays forever.
    let Some(entry) = (unsafe { slot.load(Ordering::Relaxed).as_ref() }) else { return };
    // A fork has the table too, and closes fds that stay open here; and the ring may have given the entry to a later call.
    let is_own = entry.creator.load(Ordering::Relaxed) == abi::own_pid();
    if is_own && entry.fds[0].load(Ordering::Relaxed) == fd as u32 {
        slot.store(ptr::null_mut(), Ordering::Relaxed);
        let is_inherited =
            || entry.cloexec.load(Ordering::Relaxed) == 0 || HAS_FORKED.load(Ordering::Relaxed);
        match is_of_path(entry) {
            false => forget_key(entry),
            true if is_inherited() => {
                let key = entry.keys[1].load(Ordering::Relaxed);
                entry.keys[1].store(log::closed_key(key), Ordering::Relaxed);
            }
            true => opens::release(entry),
        }
    }
}

fn is_of_path(entry: &Entry) -> bool {
    use Call::{Creat, Fopen, Open, Openat, Openat2, Opendir, Openpty, PosixOpenpt, ShmOpen};
    matches!(
        entry.call(),
        Some(Open | Openat | Openat2 | Creat | Fopen | Opendir | PosixOpenpt | Openpty | ShmOpen)
    )
}

fn forget_key(entry: &Entry) {
    entry.keys[1].store(0, Ordering::Relaxed);
}
