//! What stands in for the recorder of creation sites (`sites`) where there is none: without the
//! feature, with another libc than glibc, or with a static one.

use std::io;

use crate::facts::{Makes, Site};
use crate::sys::Pid;

/// Why no line is known, for the report.
pub(crate) const UNKNOWN: Option<&str> = Some(if cfg!(feature = "sites") {
    "which lines of code made these is not known: the program is linked statically, or with another libc than glibc"
} else {
    "which lines of code made these is not known: childproof was built without its feature `sites`"
});

/// Records nothing.
pub(crate) struct Log;

pub(crate) type Recorder = Log;

impl Log {
    pub(crate) fn install(_: Pid) -> io::Result<Recorder> {
        Ok(Log)
    }

    pub(crate) fn reset(&self) {}

    pub(crate) fn is_complete(&self) -> bool {
        true
    }

    pub(crate) fn programs(&self, _: &[(Makes, u64)], _: usize) -> Vec<Site> {
        Vec::new()
    }

    pub(crate) fn sites(&self, _: &[(Makes, u64)], _: bool) -> Vec<Site> {
        Vec::new()
    }
}

/// Has nothing to find.
pub(crate) fn prepare() {}

/// Has no stacks to cut.
pub(crate) fn begin_body(_: &impl Sized) {}

/// Has no end to name.
pub(crate) fn end_body() {}

/// Has nothing to trace with, and says so.
pub(crate) fn trace() {
    eprintln!("childproof: nothing is traced: {}", UNKNOWN.unwrap_or_default());
}
