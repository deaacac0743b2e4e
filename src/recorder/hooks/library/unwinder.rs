//! Calls the unwinder of the C++ ABI: the program's own, or one that is loaded for this, since C programs
//! have none.
//!
//! It is not linked: the library would then fail to load where libgcc_s is not installed.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

type Trace = extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Backtrace = unsafe extern "C" fn(Trace, *mut c_void) -> c_int;
type Instruction = unsafe extern "C" fn(*mut c_void, *mut c_int) -> usize;
type FrameAddress = unsafe extern "C" fn(*mut c_void) -> usize;

static BACKTRACE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static INSTRUCTION: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static FRAME_ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
}

/// Finds the unwinder. Runs before `main`, because it takes the loader's lock. The first walk fills caches
/// that all later ones use.
pub(crate) fn prepare() {
    const RTLD_LAZY: c_int = 1;
    if !find(ptr::null_mut()) {
        // SAFETY: the library has no constructors that need anything of this program.
        let library = unsafe { dlopen(c"libgcc_s.so.1".as_ptr(), RTLD_LAZY) };
        if library.is_null() || !find(library) {
            return;
        }
    }
    super::stack::walk(0, |_| true);
}

/// Looks up the functions in a library; a null handle searches all libraries of the program.
fn find(library: *mut c_void) -> bool {
    let look = |name: &CStr| {
        // SAFETY: the name is NUL-terminated, the handle is one of dlopen's or RTLD_DEFAULT, which is null.
        unsafe { dlsym(library, name.as_ptr()) }
    };
    let found = [c"_Unwind_GetIPInfo", c"_Unwind_GetCFA", c"_Unwind_Backtrace"].map(look);
    if found.iter().any(|function| function.is_null()) {
        return false;
    }
    // The last one is stored last: it shows that all are there.
    for (place, function) in [&INSTRUCTION, &FRAME_ADDRESS, &BACKTRACE].into_iter().zip(found) {
        place.store(function, Ordering::Release);
    }
    true
}

/// # Safety
///
/// As for the unwinder's function: `trace` uses `argument`.
pub(crate) unsafe fn backtrace(trace: Trace, argument: *mut c_void) -> c_int {
    let function = BACKTRACE.load(Ordering::Acquire);
    if function.is_null() {
        return 0;
    }
    // SAFETY: it is the function of that name, which has this type.
    let function: Backtrace = unsafe { mem::transmute(function) };
    // SAFETY: the caller's promise.
    unsafe { function(trace, argument) }
}

/// # Safety
///
/// Only the unwinder's callback may call it, with its context.
pub(crate) unsafe fn instruction(context: *mut c_void, interrupted: *mut c_int) -> usize {
    // SAFETY: it is the function of that name, which has this type, and was found before `backtrace`.
    let function: Instruction = unsafe { mem::transmute(INSTRUCTION.load(Ordering::Relaxed)) };
    // SAFETY: the caller's promise.
    unsafe { function(context, interrupted) }
}

/// # Safety
///
/// Only the unwinder's callback may call it, with its context.
pub(crate) unsafe fn frame_address(context: *mut c_void) -> usize {
    // SAFETY: it is the function of that name, which has this type, and was found before `backtrace`.
    let function: FrameAddress = unsafe { mem::transmute(FRAME_ADDRESS.load(Ordering::Relaxed)) };
    // SAFETY: the caller's promise.
    unsafe { function(context) }
}
