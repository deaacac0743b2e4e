//! The calls by which a test's process comes to its end before its body came back.

use std::ffi::c_int;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::processes::Next;
use super::{Call, Entry, KeepErrno, log};
use crate::sys;

/// The process whose body runs, 0 if none does. What a raw `clone(2)` makes has this value too, and is another.
static BODY_OF: AtomicU32 = AtomicU32::new(0);

/// Notes that a body runs in this process.
pub(super) fn begin() {
    BODY_OF.store(std::process::id(), Ordering::Relaxed);
}

/// Notes that the body has come back, or that this is a fork: the end of its process is no news any more.
pub(crate) fn end_body() {
    BODY_OF.store(0, Ordering::Relaxed);
}

static EXIT: Next = Next::new(c"exit");
static UNDERSCORE_EXIT: Next = Next::new(c"_exit");
static C_EXIT: Next = Next::new(c"_Exit");
static QUICK_EXIT: Next = Next::new(c"quick_exit");
static ABORT: Next = Next::new(c"abort");

pub(super) const ALL: [&Next; 5] = [&EXIT, &UNDERSCORE_EXIT, &C_EXIT, &QUICK_EXIT, &ABORT];

/// Writes down who ends this process, and with which code, if a body runs in it. Async-signal-safe, see
/// [`Log::begin`].
#[inline(always)]
pub(super) fn record(call: Call, code: Option<c_int>) -> Option<&'static Entry> {
    // A fork makes no call of the kernel's that it has not made by itself: it may have forbidden them (seccomp(2)).
    let body_of = BODY_OF.load(Ordering::Relaxed);
    // SAFETY: `getpid` has no preconditions.
    if body_of == 0 || unsafe { libc::getpid() } as u32 != body_of {
        return None;
    }
    // std's handler of a stack overflow aborts, and there is hardly room for the unwinder where it runs.
    if is_on_signal_stack() {
        return None;
    }
    let _errno = KeepErrno::new();
    let entry = log()?.begin()?;
    entry.note_threads();
    // The kernel keeps one byte of it.
    let code = code.map_or(u64::MAX, |code| u64::from(code as u8));
    entry.end(call, [u64::from(body_of), code]);
    Some(entry)
}

/// Whether this thread runs on the stack that is kept for a signal handler (sigaltstack(2)).
/// Async-signal-safe.
fn is_on_signal_stack() -> bool {
    let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: the kernel writes the struct behind the second pointer, and reads nothing.
    if unsafe { libc::sigaltstack(ptr::null(), stack.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: all zeroes is a valid value too.
    let stack = unsafe { stack.assume_init() };
    stack.ss_flags & libc::SS_ONSTACK != 0
}

macro_rules! ends {
    ($name:ident, $next:ident, $call:ident) => {
        /// libc's function of that name, and who called it.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(code: c_int) -> ! {
            record(Call::$call, Some(code));
            let next = $next.get();
            if next.is_null() {
                sys::exit_now(code);
            }
            // SAFETY: it is libc's function of that name, which has this type.
            let next: extern "C" fn(c_int) -> ! = unsafe { mem::transmute(next) };
            next(code)
        }
    };
}

ends!(exit, EXIT, Exit);
ends!(_exit, UNDERSCORE_EXIT, UnderscoreExit);
ends!(_Exit, C_EXIT, UnderscoreExit);
ends!(quick_exit, QUICK_EXIT, QuickExit);

/// `abort(3)`, and who called it.
#[unsafe(no_mangle)]
unsafe extern "C" fn abort() -> ! {
    record(Call::Abort, None);
    let next = ABORT.get();
    if next.is_null() {
        // 128 and SIGABRT: what a shell would say.
        sys::exit_now(134);
    }
    // SAFETY: it is libc's `abort`, which has this type.
    let next: extern "C" fn() -> ! = unsafe { mem::transmute(next) };
    next()
}
