//! The events besides calls that the hooks report to the library.

use core::ffi::c_int;

use super::abi::KeepErrno;
use super::ends;
use super::file_of_program as file;
use super::log::{Call, Entry};

/// Whether this is the process that the program was started in. A fork in a PID namespace of its own may have
/// the same pid: its end is then recorded as the program's. The guard does not rely on it for its verdict.
pub(crate) fn is_original() -> bool {
    true
}

/// This process is about to end, or to replace itself by an exec. Async-signal-safe.
pub(crate) fn ends(call: Call) {
    if ends::is_recorded() {
        let _errno = KeepErrno::new();
        file::end(Some(call));
    }
}

/// The exec failed: the program goes on.
pub(crate) fn goes_on() {
    if ends::is_recorded() {
        file::goes_on();
    }
}

/// A pipe was created, with these two ends.
pub(crate) fn pipe_made(_: &Entry, _: [c_int; 2]) {}

/// A stack was recorded. It may contain an address in a file that was mapped since.
pub(crate) fn stack_noted(entry: &Entry) {
    super::mappings::look_at(entry);
}

/// This process is about to fork, or is the new one.
#[inline(always)]
pub(crate) fn forks(_: bool) {}

/// An fd was created that is known by its number. Nothing to do: a program's other fds are not reported.
#[inline(always)]
pub(crate) fn fd_made(_: &Entry, _: c_int) {}
