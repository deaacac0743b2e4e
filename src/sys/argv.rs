//! Reads and changes the process's own environment and title.

#![allow(unsafe_code)]

use std::ffi::OsStr;

/// `setenv` — only in a process with one thread.
pub(crate) fn set_env(name: &str, value: &OsStr) {
    // SAFETY: called in supervisors, and in harnesses before they start a thread: there is one.
    unsafe { std::env::set_var(name, value) };
}

/// `unsetenv` — only in a process with one thread.
pub(crate) fn remove_env(name: &str) {
    // SAFETY: called in an exec'ed fork server before any user code, and in harnesses that have checked for threads:
    // there is one.
    unsafe { std::env::remove_var(name) };
}

/// The memory from which the kernel reads this process's argv (`/proc/PID/cmdline`).
pub(crate) struct Argv {
    start: usize,
    original: Vec<u8>,
}

impl Argv {
    /// Finds the region. `bounds` are the fields `arg_start` and `arg_end` of `/proc/self/stat`.
    pub(crate) fn at(bounds: (usize, usize)) -> Argv {
        let (start, end) = bounds;
        let length = end.saturating_sub(start);
        // SAFETY: the kernel put argv there when it started the program; the region lies on the
        // initial stack, is readable and writable, and is never unmapped.
        let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, length) };
        Argv { start, original: bytes.to_vec() }
    }

    /// Shows a title, given in parts, instead of argv; truncated to the size of argv.
    pub(crate) fn show(&self, title: &[&str]) {
        // SAFETY: the region is ours and as long (see `at`), and this process has one thread, so no other thread
        // else reads or writes argv meanwhile.
        let region = unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.original.len()) };
        let Some((end, mut room)) = region.split_last_mut() else { return };
        for part in title {
            let (shown, rest) = room.split_at_mut(part.len().min(room.len()));
            shown.copy_from_slice(&part.as_bytes()[..shown.len()]);
            room = rest;
        }
        room.fill(0);
        *end = 0;
    }

    /// The address of the region.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// The original arguments, each with its NUL.
    pub(crate) fn original(&self) -> &[u8] {
        &self.original
    }
}
