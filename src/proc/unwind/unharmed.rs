//! Where a thread is that has to go on unharmed.
//!
//! To read its registers it is stopped for as long as it takes to read these and to copy its stack: some 0.1 ms. Whatever
//! call it is in is interrupted by that. Most calls the kernel begins again by itself; `epoll_wait`, `sigtimedwait`,
//! `semop`, `io_getevents` and those at a socket with a timeout fail with EINTR ("Interruption of system calls and library
//! functions by stop signals", signal(7)). So a thread in one of these is not stopped: the kernel tells where its code and its
//! stack are (`/proc/PID/task/TID/syscall`), which is less than all registers and mostly enough. Of a wait without
//! a timeout it can be had both ways: the call is begun again by the return value with which the kernel
//! itself has that done. That value is also what saves a thread that has gone into such a call just before it was stopped.
//! A sleep and the like go on as `restart_syscall`, with the time that is left.

use std::time::{Duration, Instant};

use nix::libc;

use super::{Memory, REGISTERS, Registers, STOP, STOP_EACH, Unwinder, arch, has_stopped};
use crate::proc::maps::{Address, Maps};
use crate::proc::waits::{self, On, Thread};
use crate::sys::{self, Pid};

/// The most of a stack that is copied, in bytes.
const STACK: usize = 256 << 10;
/// What a function may use below its stack pointer (System V's ABI, "red zone").
const RED_ZONE: u64 = 128;

impl Unwinder {
    /// The addresses of a thread's frames, the innermost first, as far as they may be read. It goes on as if it had not been
    /// looked at. `is_timed` says of an fd whether calls at it may have a timeout, as those at a socket may.
    pub(crate) fn frames_unharmed(
        &mut self,
        pid: Pid,
        thread: &Thread,
        maps: &Maps,
        is_timed: impl Fn(i32) -> bool,
    ) -> Vec<Address> {
        let begin = Instant::now();
        let found = match is_begun_again(thread, is_timed) {
            true => stopped(pid, thread, STOP.saturating_sub(self.stopping).max(STOP_EACH)),
            false => None,
        };
        self.stopping += begin.elapsed();
        let Some((registers, memory)) = found.or_else(|| blocked(pid, thread.tid)) else { return Vec::new() };
        self.unwind(&memory, registers, maps)
    }
}

/// Whether a thread notices nothing of a stop: it runs, or it is in a call that the kernel begins again.
fn is_begun_again(thread: &Thread, is_timed: impl Fn(i32) -> bool) -> bool {
    // It might not stop.
    if thread.state == "D" {
        return false;
    }
    match &thread.on {
        On::Read { fd } | On::Write { fd } => !is_timed(*fd),
        On::Fd { fd } => matches!(thread.syscall.as_str(), "accept" | "accept4") && !is_timed(*fd),
        On::Epoll { forever, .. } => *forever && cfg!(target_arch = "x86_64"),
        On::Signal => thread.syscall != "rt_sigtimedwait",
        On::Poll { .. }
        | On::Child { .. }
        | On::Futex { .. }
        | On::Thread { .. }
        | On::Lock { .. }
        | On::Sleep
        | On::Open { .. }
        | On::Stopped => true,
        On::Other => matches!(thread.syscall.as_str(), "running" | "restart_syscall"),
    }
}

/// Stops a thread, reads its registers and its stack, and lets it go on.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn stopped(pid: Pid, thread: &Thread, patience: Duration) -> Option<(Registers, Memory)> {
    use nix::sys::ptrace;
    let tid = nix::unistd::Pid::from_raw(thread.tid);
    ptrace::seize(tid, ptrace::Options::empty()).ok()?;
    if ptrace::interrupt(tid).is_err() || !has_stopped(thread.tid, patience) {
        // If it is not stopped it cannot be let go: that comes with the end of this process.
        sys::ptrace_detach(thread.tid, 0);
        return None;
    }
    let read = ptrace::getregs(tid).ok();
    let found = read.map(|read| {
        #[cfg(target_arch = "x86_64")]
        begin_again(tid, thread, read);
        let registers = Registers::of(&read);
        let memory = with_stack(pid, registers.stack_pointer());
        (registers, memory)
    });
    sys::ptrace_detach(thread.tid, 0);
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn stopped(_: Pid, _: &Thread, _: Duration) -> Option<(Registers, Memory)> {
    None
}

/// Has the call of a stopped thread begun again with the same arguments, where the kernel would have it fail, or would
/// have it go on as `restart_syscall` though it has no time that would be left.
#[cfg(target_arch = "x86_64")]
fn begin_again(tid: nix::unistd::Pid, thread: &Thread, mut registers: libc::user_regs_struct) {
    /// What a call returns that is begun again unless a handler of a signal runs, and one that goes on with the time that is
    /// left (include/linux/errno.h).
    const ERESTARTNOHAND: i64 = 514;
    const ERESTART_RESTARTBLOCK: i64 = 516;
    /// The calls that fail with EINTR for nothing but a stop or a signal.
    const FAILING: [i64; 7] = [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_io_getevents,
    ];
    let (call, returned) = (registers.orig_rax.cast_signed(), registers.rax.cast_signed());
    let fails = returned == -i64::from(libc::EINTR) && FAILING.contains(&call);
    let forever = matches!(thread.on, On::Poll { forever: true, .. });
    if fails || forever && call == libc::SYS_poll && returned == -ERESTART_RESTARTBLOCK {
        registers.rax = (-ERESTARTNOHAND).cast_unsigned();
        let _ = nix::sys::ptrace::setregs(tid, registers);
    }
}

/// What the kernel tells of a thread that is blocked in a call, without stopping it.
fn blocked(pid: Pid, tid: Pid) -> Option<(Registers, Memory)> {
    let (stack_pointer, pc) = waits::code_and_stack(pid, tid)?;
    let mut values = [None; REGISTERS];
    *values.get_mut(usize::from(arch::STACK_POINTER))? = Some(stack_pointer);
    Some((Registers { pc, is_interrupted: false, values }, with_stack(pid, stack_pointer)))
}

/// The memory of a process, with a copy of the stack from here on.
fn with_stack(pid: Pid, stack_pointer: u64) -> Memory {
    let copied_from = stack_pointer.saturating_sub(RED_ZONE);
    let mut length = STACK;
    while length > 0 {
        if let Some(copy) = sys::read_memory(pid, copied_from, length) {
            return Memory { pid, copied_from, copy };
        }
        // It ends before that.
        length /= 2;
    }
    Memory::of(pid)
}
