//! The events besides calls that the hooks report to the crate: each created pipe, for
//! `CHILDPROOF_TRACE=fds`.

use core::cell::Cell;
use core::ffi::c_int;
use core::sync::atomic::Ordering;

use super::fd_table;
use super::log::{Call, Entry};
use super::trace::{is_traced, say};
use crate::sys;

/// Whether this is the test process itself. A descendant in a PID namespace of its own may have the same pid.
#[inline(always)]
pub(super) fn is_original() -> bool {
    sys::marked_process().is_some()
}

/// This process is about to end, or to replace itself by an exec.
#[inline(always)]
pub(super) fn ends(_: Call) {}

/// The exec failed: the program goes on.
#[inline(always)]
pub(super) fn goes_on() {}

thread_local! {
    /// The number of the test that this thread of a suite runs; 0 if none.
    static TEST: Cell<u32> = const { Cell::new(0) };
}

/// Sets the number of the test that this thread runs.
pub(crate) fn set_test(number: u32) {
    TEST.set(number);
}

/// A stack was recorded. The supervisor has the same mappings as the test, so only the test of a suite is noted.
#[inline(always)]
pub(super) fn stack_noted(entry: &Entry) {
    // Async-signal-safe: a number in the program's own static TLS block, without a destructor.
    entry.program.store(TEST.get(), Ordering::Relaxed);
}

/// This process is about to fork, or is the new one.
#[inline(always)]
pub(super) fn forks(is_new: bool) {
    fd_table::forks(is_new);
}

/// An fd was created that is known by its number.
#[inline(always)]
pub(super) fn fd_made(entry: &'static Entry, fd: c_int) {
    fd_table::note(entry, fd);
}

/// A pipe was created, with these two ends.
#[inline(always)]
pub(super) fn pipe_made(entry: &Entry, [read, write]: [c_int; 2]) {
    if is_traced() {
        let [ino, _] = entry.keys();
        let name = entry.call().map_or("pipe", Call::name);
        say(format_args!("pipe:[{ino}] fds {read} (read), {write} (write) created"), entry, name);
    }
}
