//! The recorder as a library for `LD_PRELOAD` (ld.so(8)): reports get lines without any change to the
//! program.
//!
//! The tool's build script compiles this file with rustc alone. It shares the hooks with the crate; its own
//! parts are in `library/`. It depends on nothing but the C library, which the program has. On any error it
//! does nothing and prints nothing: the log stays empty, and the tool reports why.

#![no_std]
#![warn(missing_docs, unreachable_pub)]

use core::ffi::{c_char, c_int};

mod abi;
mod ends;
#[path = "library/environment.rs"]
mod environment;
mod fds;
mod file;
#[path = "library/file_of_program.rs"]
mod file_of_program;
mod log;
#[path = "library/mappings.rs"]
mod mappings;
mod next;
#[path = "library/observer.rs"]
mod observer;
mod opens;
mod processes;
mod stack;
#[path = "library/unwinder.rs"]
mod unwinder;

/// Runs before the program's own constructors.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = begin;

/// Runs after `main` has returned or `exit` was called, behind the handlers of atexit(3).
#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;

extern "C" fn begin(_: c_int, _: *const *const c_char, _: *const *const c_char) {
    let _errno = abi::KeepErrno::new();
    // SAFETY: the loader runs constructors in the only thread of the process.
    let variable = |name| unsafe { environment::get(name) };
    let is_for_all = variable(file::RECORD_VARIABLE).is_some_and(|value| value.to_bytes() == b"tree");
    let file = variable(file::LOG_VARIABLE).and_then(file_of_program::open_log);
    if !is_for_all {
        // SAFETY: as above.
        unsafe { environment::clean() };
    }
    next::prepare(processes::ALL.iter().chain(&ends::ALL).chain(&fds::ALL).chain(&opens::ALL).copied());
    let Some(file) = file else { return };
    log::is_first_thread();
    unwinder::prepare();
    file_of_program::begin(file);
    mappings::read();
    ends::begin();
}

extern "C" fn end() {
    if ends::is_recorded() {
        let _errno = abi::KeepErrno::new();
        file_of_program::end(None);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    abi::die()
}
