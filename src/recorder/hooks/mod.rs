//! The recorder: hooks that record which line of code created a pipe, socket or process.
//!
//! The library defines `pipe`, `pipe2`, `socketpair`, `posix_spawn`, `posix_spawnp`, `fork`, `exit` and
//! others in the test binary, where they take precedence over libc's (ld.so(8), symbol lookup order). Each
//! calls libc's function and, in a test process or a fork of it, records the inode or pid and the return
//! addresses. The supervisor shares the memory, so it can read the log whatever happens to the test. The log
//! is read, and addresses are resolved, only if a test fails. It stores inodes where a file has one of its
//! own, so `dup` needs no hook. Those of `close` and its like serve `CHILDPROOF_TRACE=fds`, and the files without
//! one (`fd_table`).
//!
//! A fork is recorded with the number of threads of the process, and whether the child called an `exec`. In
//! the child of a threaded process, a lock that another thread held stays locked forever (fork(2),
//! signal-safety(7)).
//!
//! Not recorded are programs that were started by exec, since they have another binary, and raw syscalls
//! (rustix). Where libc is not glibc, or is linked statically, there is no libc function behind the hooks to
//! call, and `hooks_off` replaces this module.
//!
//! The same hooks are compiled a second time, as a library for `LD_PRELOAD` with `library.rs` as its root. So
//! they use nothing of this crate or of any other. This file, `fd_table`, `trace`, `observer` and `unwinder` belong to
//! the crate alone; the library has its own versions of the last two.

#![allow(unsafe_code)]

mod abi;
mod ends;
mod fd_table;
mod fds;
#[cfg(feature = "__engine")]
pub(crate) mod file;
pub(crate) mod log;
mod next;
mod observer;
mod opens;
mod processes;
mod stack;
mod trace;
mod unwinder;

use std::io;
use std::sync::atomic::Ordering;

pub(crate) use ends::end_body;
pub(crate) use log::Log;
pub(crate) use observer::set_test;
pub(crate) use trace::trace;

use crate::sys::{Pid, Shared};

/// Why no line is known; `None` where lines can be recorded.
pub(crate) const ARE_INSTALLED: bool = true;

/// The memory in which a supervisor finds the calls of its test.
pub(crate) type Recorder = Shared<Log>;

/// Looks up libc's functions. Runs before `main`, in the first thread.
pub(crate) fn prepare() {
    log::is_first_thread();
    next::prepare(
        processes::ALL
            .iter()
            .chain(&ends::ALL)
            .chain(&fds::ALL)
            .chain(&opens::ALL)
            .chain(&trace::ALL)
            .copied(),
    );
}

/// Marks where the body begins: above the caller's frame, in which `place` lies.
#[inline(always)]
pub(crate) fn begin_body(place: &impl Sized) {
    log::BODY.store(&raw const *place as usize, Ordering::Relaxed);
    ends::begin();
}

/// Records the end of this process from now on, and the name of the calling thread with each call: the tests of a suite
/// run on threads.
pub(crate) fn begin_suite() {
    log::record_thread_names();
    ends::begin();
}

impl Log {
    /// Maps a log and starts recording the calls of this process's children into it. `owner` is this process.
    ///
    /// 0 for the owner records the calls of this process too.
    pub(crate) fn install(owner: Pid) -> io::Result<Recorder> {
        let log: Recorder = Shared::zeroed()?;
        log.owner.store(owner as u32, Ordering::Relaxed);
        let at: *const Log = &raw const *log;
        // SAFETY: it stays mapped until the process ends (`Shared`).
        log::record_into(unsafe { &*at }, 0);
        Ok(log)
    }
}
