//! Reports a stack overflow in a process in which Rust's start-up code has not run.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use nix::libc;

use super::signal::set_disposition;

static STACK_END: AtomicUsize = AtomicUsize::new(0);

static OLD_STACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Installs a handler that reports a stack overflow of the main thread, as Rust's start-up does.
///
/// A process that is taken over before `main` has not run that start-up: without this, an endless recursion
/// would end with SIGSEGV and no explanation.
pub(crate) fn watch_stack() {
    const SIZE: usize = 64 * 1024;
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the call has no preconditions.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: `attributes` is writable; this thread exists.
    if unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) } != 0 {
        return;
    }
    let (mut low, mut size) = (ptr::null_mut(), 0);
    // SAFETY: pthread_getattr_np has filled the attributes.
    unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &mut low, &mut size) };
    // SAFETY: the attributes were made above and are not used again.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    STACK_END.store(low as usize, Ordering::Relaxed);

    let memory = Box::leak(vec![0u8; SIZE].into_boxed_slice()).as_mut_ptr();
    OLD_STACK.store(memory.cast(), Ordering::Relaxed);
    let stack = libc::stack_t { ss_sp: memory.cast(), ss_flags: 0, ss_size: SIZE };
    // SAFETY: the memory is leaked, so the alternate stack stays good.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: `on_fault` makes only async-signal-safe calls.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    const MESSAGE: &[u8] =
        b"\nthread 'main' has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";
    // SAFETY: the kernel passes a siginfo of a fault, because of SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: faults fill the field.
    let address = unsafe { info.si_addr() } as usize;
    let end = STACK_END.load(Ordering::Relaxed);
    // The main stack may end some pages above its limit (stack gap); a stack probe hits just below.
    if (end.saturating_sub(64 * 1024)..end + 64 * 1024).contains(&address) {
        // SAFETY: write(2) and abort(3) are async-signal-safe.
        unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
        // SAFETY: as above.
        unsafe { libc::abort() };
    }
    // Not a stack overflow: the fault is raised again with its default effect.
    set_disposition(signal, libc::SIG_DFL);
}
