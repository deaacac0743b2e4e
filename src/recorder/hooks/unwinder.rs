//! The unwinder of the C++ ABI (libgcc_s, libunwind). Rust's panics use it, so every Rust program has one.

use core::ffi::{c_int, c_void};

type Trace = extern "C" fn(*mut c_void, *mut c_void) -> c_int;

unsafe extern "C" {
    #[link_name = "_Unwind_Backtrace"]
    pub(crate) fn backtrace(trace: Trace, argument: *mut c_void) -> c_int;
    #[link_name = "_Unwind_GetIPInfo"]
    pub(crate) fn instruction(context: *mut c_void, interrupted: *mut c_int) -> usize;
    #[link_name = "_Unwind_GetCFA"]
    pub(crate) fn frame_address(context: *mut c_void) -> usize;
}
