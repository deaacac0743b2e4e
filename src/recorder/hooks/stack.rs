//! Walks the stack of the caller.

use core::ffi::{c_int, c_void};

use super::unwinder;

struct Walk<F> {
    see: F,
    /// Frames at or above this stack address are skipped.
    end: usize,
}

/// Calls `see` with each return address, innermost first, until it returns `false` or the walk reaches
/// `body`.
///
/// Always inlined; see [`super::log::Log::begin`], also for async-signal safety.
#[inline(always)]
pub(crate) fn walk<F: FnMut(usize) -> bool>(body: usize, see: F) {
    let mut walk = Walk { see, end: usize::MAX };
    // If this frame lies above `body`, the stack is that of another thread, and the limit does not apply.
    if (&raw const walk).addr() < body {
        walk.end = body;
    }
    // SAFETY: `frame` has the type that the unwinder calls, and `walk` outlives the call.
    unsafe { unwinder::backtrace(frame::<F>, (&raw mut walk).cast()) };
}

extern "C" fn frame<F: FnMut(usize) -> bool>(context: *mut c_void, argument: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    const STOP: c_int = 4;
    // SAFETY: `argument` is the `Walk` that `walk` passed, and nothing else has it.
    let walk = unsafe { &mut *argument.cast::<Walk<F>>() };
    let mut interrupted = 0;
    // SAFETY: `context` is valid during this call, as is the place for the flag.
    let address = unsafe { unwinder::instruction(context, &mut interrupted) };
    // A signal handler's frame: the interrupted code can be anywhere, also where its stack cannot be walked.
    // The frames of the handler itself have been recorded by now.
    if interrupted != 0 || address == 0 {
        return STOP;
    }
    // SAFETY: `context` is valid during this call.
    let place = unsafe { unwinder::frame_address(context) };
    match place < walk.end && (walk.see)(address) {
        true => GO_ON,
        false => STOP,
    }
}
