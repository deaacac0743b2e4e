//! Records the calls that end a process: a test process before its body returned, or a program.

use core::ffi::c_int;
use core::mem;
use core::sync::atomic::{AtomicU32, Ordering};

use super::abi::{self, KeepErrno};
use super::log::{Call, Entry, log};
use super::next::Next;
use super::observer;

/// The process whose end is recorded: the one that a body runs in, or that a program was started in; 0 if
/// none. A child of a raw `clone(2)` inherits the value but has another pid.
static RECORDED: AtomicU32 = AtomicU32::new(0);

/// Records the end of this process from now on.
#[inline(always)]
pub(crate) fn begin() {
    RECORDED.store(abi::own_pid(), Ordering::Relaxed);
}

/// Stops recording the end of this process: the body has returned, or this is a fork.
#[inline(always)]
pub(crate) fn end_body() {
    RECORDED.store(0, Ordering::Relaxed);
}

/// Whether the end of this process is recorded. Async-signal-safe.
#[inline(always)]
pub(crate) fn is_recorded() -> bool {
    // Makes no system call in a fork: the fork may have forbidden it (seccomp(2)).
    let recorded = RECORDED.load(Ordering::Relaxed);
    recorded != 0 && abi::own_pid() == recorded && observer::is_original()
}

static EXIT: Next = Next::new(c"exit");
static UNDERSCORE_EXIT: Next = Next::new(c"_exit");
static C_EXIT: Next = Next::new(c"_Exit");
static QUICK_EXIT: Next = Next::new(c"quick_exit");
static ABORT: Next = Next::new(c"abort");

pub(crate) static ALL: [&Next; 5] = [&EXIT, &UNDERSCORE_EXIT, &C_EXIT, &QUICK_EXIT, &ABORT];

/// Records the code that ends this process, and the exit code. Async-signal-safe, see
/// [`super::log::Log::begin`].
#[inline(always)]
pub(crate) fn record(call: Call, code: Option<c_int>) -> Option<&'static Entry> {
    // std's stack overflow handler calls `abort` on the signal stack, which is too small for the unwinder.
    if !is_recorded() || abi::is_on_signal_stack() {
        return None;
    }
    let _errno = KeepErrno::new();
    let log = log()?;
    let entry = log.begin(&log.processes)?;
    entry.note_threads();
    // The kernel keeps one byte of the exit code.
    let code = code.map_or(u64::MAX, |code| u64::from(code as u8));
    entry.finish(call, [u64::from(abi::own_pid()), code]);
    Some(entry)
}

macro_rules! ends {
    ($name:ident, $next:ident, $call:ident) => {
        /// Wraps libc's function of that name and records its caller.
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "childproof_text")]
        unsafe extern "C" fn $name(code: c_int) -> ! {
            record(Call::$call, Some(code));
            observer::ends(Call::$call);
            let next = $next.get();
            if next as usize == 0 {
                abi::die();
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

/// Wraps `abort(3)` and records its caller.
#[unsafe(no_mangle)]
unsafe extern "C" fn abort() -> ! {
    record(Call::Abort, None);
    let next = ABORT.get();
    if next.is_null() {
        abi::die();
    }
    // SAFETY: it is libc's `abort`, which has this type.
    let next: extern "C" fn() -> ! = unsafe { mem::transmute(next) };
    next()
}
