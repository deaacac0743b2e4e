//! System calls on signals: masks and dispositions.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
#[cfg(feature = "sites")]
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag};
use nix::libc;

use super::lock::lock;
use super::process::check;

/// The signal mask that the harness inherited.
#[derive(Clone, Copy)]
pub(crate) struct Mask(pub(super) libc::sigset_t);

impl Mask {
    /// Reads the mask of this thread.
    pub(crate) fn current() -> io::Result<Mask> {
        let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: a null set changes nothing; the old mask is written to `mask`.
        let result = unsafe { libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
        check(result)?;
        // SAFETY: a zeroed sigset_t is valid, and the call has filled it.
        Ok(Mask(unsafe { mask.assume_init() }))
    }

    /// Restores this mask in the calling thread. Async-signal-safe.
    pub(crate) fn give_back(&self) {
        // SAFETY: the set is initialized, and the old mask is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }

    /// The mask as one bit per signal, signal 1 the lowest: passed to an exec'ed fork server.
    pub(crate) fn bits(&self) -> u64 {
        (1..=64)
            // SAFETY: `mask` is an initialized set, and the signal number is in range.
            .filter(|signal| unsafe { libc::sigismember(&self.0, *signal) } == 1)
            .fold(0, |bits, signal| bits | 1 << (signal - 1))
    }

    /// The mask with these [`Mask::bits`], in another process.
    pub(crate) fn from_bits(bits: u64) -> Mask {
        // SAFETY: a zeroed sigset_t is valid.
        let mut mask = unsafe { mem::zeroed() };
        // SAFETY: `mask` is writable memory of the right type.
        unsafe { libc::sigemptyset(&mut mask) };
        for signal in (1..=64).filter(|signal| bits & (1 << (signal - 1)) != 0) {
            // SAFETY: `mask` was made by sigemptyset; signals libc reserves for itself are refused.
            unsafe { libc::sigaddset(&mut mask, signal) };
        }
        Mask(mask)
    }
}

/// `sigaction(signal, SIG_IGN)` — ignores a signal.
pub(crate) fn ignore_signal(signal: c_int) {
    set_disposition(signal, libc::SIG_IGN);
}

/// `sigaction(signal, NULL, &present)` — whether a signal is ignored.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut present: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null action changes nothing; the present one is written to `present`.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &mut present) };
    result == 0 && present.sa_sigaction == libc::SIG_IGN
}

/// `sigaction(signal, SIG_DFL)` — restores the default effect of a signal.
pub(crate) fn default_signal(signal: c_int) {
    set_disposition(signal, libc::SIG_DFL);
}

pub(super) fn set_disposition(signal: c_int, disposition: libc::sighandler_t) {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = disposition;
    // SAFETY: SIG_IGN and SIG_DFL run no code of ours.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
}

/// `sigtimedwait({signal}, NULL, limit)` — takes a pending signal that this process has blocked, or
/// waits for it.
#[cfg(feature = "sites")]
pub(crate) fn wait_for_signal(signal: c_int, limit: Duration) {
    let mut set = nix::sys::signal::SigSet::empty();
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        set.add(signal);
    }
    let limit = nix::sys::time::TimeSpec::from_duration(limit);
    // SAFETY: set and time are valid for the length of the call, and no siginfo is asked for.
    unsafe { libc::sigtimedwait(set.as_ref(), ptr::null_mut(), limit.as_ref()) };
}

/// The fd that the handler of [`watch_signals`] writes to; negative before it is installed.
static WATCHED_BY: AtomicI32 = AtomicI32::new(-1);
/// The pid of the process that installed the handler; its forks have another.
static WATCHER: AtomicI32 = AtomicI32::new(0);
/// When the first signal to end the process arrived, in milliseconds of the monotonic clock; 0 before.
static FIRST_SIGNAL: AtomicU64 = AtomicU64::new(0);
/// Another signal within this time counts as the same request: timeout(1) signals a process and then its
/// group.
const SAME_SIGNAL_MS: u64 = 250;

/// `sigaction(signal, handler)` — writes the number of each of these signals as one byte to a pipe, and
/// returns the read end. A signal that is ignored or has a handler is left unchanged.
///
/// A second signal has its default effect, except SIGQUIT: it ends the process at once. In a fork of this
/// process, and after an exec, each of them has its default effect. Must be called once per process.
pub(crate) fn watch_signals(signals: &[c_int]) -> io::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // A handler must not block. The pipe has room for more signals than arrive between two reads.
    nix::fcntl::fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    WATCHER.store(nix::unistd::getpid().as_raw(), Ordering::Relaxed);
    // Never closed: the handler could run at any time.
    WATCHED_BY.store(write.into_raw_fd(), Ordering::Release);
    for signal in signals {
        // SAFETY: an all-zero sigaction is a valid value.
        let mut present: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: a null action changes nothing; the present one is written to `present`.
        let result = unsafe { libc::sigaction(*signal, ptr::null(), &mut present) };
        if result != 0 || present.sa_sigaction != libc::SIG_DFL {
            continue;
        }
        // SAFETY: an all-zero sigaction is a valid value.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = note_signal as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler calls async-signal-safe functions only, and keeps errno.
        unsafe { libc::sigaction(*signal, &action, ptr::null_mut()) };
    }
    Ok(read)
}

/// Restores the default effect of a signal that [`watch_signals`] handles.
pub(crate) fn unwatch_signal(signal: c_int) {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut present: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null action changes nothing; the present one is written to `present`.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &mut present) };
    if result == 0 && present.sa_sigaction == note_signal as extern "C" fn(c_int) as libc::sighandler_t {
        default_signal(signal);
    }
}

/// Reports a signal through the pipe, or takes its default effect. Async-signal-safe.
extern "C" fn note_signal(signal: c_int) {
    let errno = nix::errno::Errno::last_raw();
    if nix::unistd::getpid().as_raw() != WATCHER.load(Ordering::Relaxed) || is_second(signal) {
        default_signal(signal);
        // SAFETY: takes no memory. The signal is blocked until the handler returns, and ends the process then.
        unsafe { libc::raise(signal) };
    } else {
        let byte = [signal as u8];
        // SAFETY: one byte is read from an array of one byte; the fd is never closed.
        unsafe { libc::write(WATCHED_BY.load(Ordering::Acquire), byte.as_ptr().cast(), 1) };
    }
    nix::errno::Errno::set_raw(errno);
}

/// Whether a signal is a second request to end the process. Async-signal-safe.
fn is_second(signal: c_int) -> bool {
    if signal == libc::SIGQUIT {
        return false;
    }
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable memory of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let now = (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000).max(1);
    let first = FIRST_SIGNAL.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    first.is_err_and(|first| now.saturating_sub(first) >= SAME_SIGNAL_MS)
}

/// Ends this process by a signal, so that its parent sees it in the wait status.
pub(crate) fn end_by_signal(signal: c_int) -> ! {
    default_signal(signal);
    let mut set = nix::sys::signal::SigSet::empty();
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        set.add(signal);
    }
    let _ = set.thread_unblock();
    let _ = super::kill(nix::unistd::getpid().as_raw(), signal);
    // In the first process of a PID namespace, such a signal has no effect.
    super::exit_now(128 + signal)
}

/// The threads that [`interrupt_waits`] interrupts.
static INTERRUPTIBLE: Mutex<Vec<libc::pthread_t>> = Mutex::new(Vec::new());

/// Calls `wait`, which [`interrupt_waits`] can make return `EINTR`.
pub(crate) fn interruptible<T>(wait: impl FnOnce() -> T) -> T {
    // SAFETY: asks for the number of this thread, and cannot fail.
    let own = unsafe { libc::pthread_self() };
    lock(&INTERRUPTIBLE).push(own);
    let result = wait();
    lock(&INTERRUPTIBLE).retain(|thread| *thread != own);
    result
}

/// `pthread_kill(thread, SIGURG)` — makes the system calls of threads in [`interruptible`] return, once. A
/// thread that is just about to make its call is missed, so call it repeatedly. Replaces the process's SIGURG
/// handler.
pub(crate) fn interrupt_waits() {
    extern "C" fn nothing(_: c_int) {}
    let threads = lock(&INTERRUPTIBLE);
    if threads.is_empty() {
        return;
    }
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // Without SA_RESTART.
    action.sa_sigaction = nothing as extern "C" fn(c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing.
    unsafe { libc::sigaction(libc::SIGURG, &action, ptr::null_mut()) };
    for thread in threads.iter() {
        // SAFETY: a thread in the list has not ended: it takes itself out first, and the list is locked.
        unsafe { libc::pthread_kill(*thread, libc::SIGURG) };
    }
}
