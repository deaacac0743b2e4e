//! Stops a test process at a fault before that ends it, so that its guard can read where it is.
//!
//! Rust's start-up handles SIGSEGV and SIGBUS in every program, to report a stack overflow ([`watch_stack`] does where it
//! has not run). A second handler is put in front of that one before the test process is forked; a body that installs its
//! own takes its place, as it would take the place of Rust's.
//!
//! [`watch_stack`]: super::watch_stack

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use nix::libc;

use super::{marked_process, own_pid};

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What was there before, in the order of [`SIGNALS`].
static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Where the id of the thread is written that got the signal; null in a process that is no test.
static REPORT: AtomicPtr<AtomicI32> = AtomicPtr::new(ptr::null_mut());

/// `sigaction(SIGSEGV, handler)`, also for SIGBUS, in front of the handlers that are there. Where there is none, nothing is
/// done: Rust's start-up installs its own only in place of the default effect.
pub(crate) fn watch_faults() {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    let mut before = [MaybeUninit::<libc::sigaction>::zeroed(); 2];
    for (signal, before) in SIGNALS.into_iter().zip(&mut before) {
        // SAFETY: a null action changes nothing; the present one is written to `before`.
        unsafe { libc::sigaction(signal, ptr::null(), before.as_mut_ptr()) };
    }
    // SAFETY: zeroed memory is a valid sigaction, and the calls have filled it.
    let before = before.map(|before| unsafe { before.assume_init() });
    let is_handled = |action: &libc::sigaction| {
        action.sa_flags & libc::SA_SIGINFO != 0
            && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction)
    };
    if !before.iter().all(is_handled) || BEFORE.set(before).is_err() {
        return;
    }
    for (signal, before) in SIGNALS.into_iter().zip(before) {
        // Flags and mask stay as they are.
        let action = libc::sigaction { sa_sigaction: handler as usize, ..before };
        // SAFETY: `on_fault` makes only async-signal-safe calls.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}

/// Writes the id of the thread that gets the signal to `to` from now on, and stops this process until it is continued.
#[inline(always)]
pub(crate) fn report_fault_to(to: &'static AtomicI32) {
    REPORT.store(ptr::from_ref(to).cast_mut(), Ordering::Relaxed);
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let report = REPORT.swap(ptr::null_mut(), Ordering::Relaxed);
    // A fork of the body, and a child that shares its memory, are not the test.
    // SAFETY: it is null, or points into memory that stays mapped until the process ends.
    if let Some(report) = unsafe { report.as_ref() }.filter(|_| marked_process().is_some()) {
        // SAFETY: the call has no preconditions.
        let tid = unsafe { libc::gettid() };
        report.store(tid, Ordering::Release);
        // To this thread: of one to the process another thread might be told first, and this one would go on meanwhile.
        // SAFETY: tgkill(2) is async-signal-safe.
        unsafe { libc::syscall(libc::SYS_tgkill, own_pid(), tid, libc::SIGSTOP) };
        report.store(0, Ordering::Release);
    }
    let at = SIGNALS.iter().position(|known| *known == signal);
    let Some(before) = at.and_then(|at| BEFORE.get()?.get(at)) else { return };
    // SAFETY: it is the action that was there before.
    unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
    // SAFETY: an action with SA_SIGINFO that is neither the default nor to ignore is a function of this type.
    let before: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
        unsafe { mem::transmute(before.sa_sigaction) };
    before(signal, info, context);
}
