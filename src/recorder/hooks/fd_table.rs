//! The fds of this process that are known by their numbers alone: eventfds, timers and the like, whose files have
//! no inode of their own. When such a number is closed or replaced, its entry in the log loses its key, so a later
//! fd of that number never gets its line.

use std::ffi::{c_int, c_uint};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::abi;
use super::log::Entry;

/// The largest number, plus one, that is followed. Fds above it have no line.
const NUMBERS: usize = 1024;

static ENTRIES: [AtomicPtr<Entry>; NUMBERS] = [const { AtomicPtr::new(ptr::null_mut()) }; NUMBERS];
/// Whether there was any: the table lies on pages that most tests never touch.
static IS_USED: AtomicBool = AtomicBool::new(false);

/// Notes the entry of a new fd.
pub(super) fn note(entry: &'static Entry, fd: c_int) {
    match usize::try_from(fd).ok().and_then(|fd| ENTRIES.get(fd)) {
        Some(slot) => {
            slot.store(ptr::from_ref(entry).cast_mut(), Ordering::Relaxed);
            IS_USED.store(true, Ordering::Relaxed);
        }
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
        forget_key(entry);
        slot.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

fn forget_key(entry: &Entry) {
    entry.keys[1].store(0, Ordering::Relaxed);
}
