//! Where a thread is that has to go on unharmed.
//!
//! To read its registers it is stopped for as long as it takes to read these and to copy its stack: some 0.1 ms. Whatever
//! call it is in is interrupted by that, as by a signal without a handler. A call that has transferred something then
//! returns how much, `epoll_wait` and others fail with EINTR ("Interruption of system calls and library functions by stop
//! signals", signal(7)), and a sleep goes on as `restart_syscall`, for which a seccomp filter may kill. So a thread is stopped
//! only in calls that are listed here: the kernel begins them again, and they have had no effect until then. One that runs
//! is not stopped: it may have begun any call by then. Of the others the kernel tells where their code and their stack are
//! (`/proc/PID/task/TID/syscall`), which is less than all registers and mostly enough.
//!
//! Between the last look at its call and its stop, some microseconds, a thread may go into another call. One that
//! fails is begun again by the return value with which the kernel itself has that done; that of one that has
//! transferred a part cannot be told from a whole one.

use std::time::{Duration, Instant};

use nix::libc;

use super::{Memory, REGISTERS, Registers, STOP, STOP_EACH, Unwinder, arch, stop_of};
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
        let found = match can_be_stopped(pid, thread, is_timed) {
            true => stopped(pid, thread, STOP.saturating_sub(self.stopping).max(STOP_EACH)),
            false => Ok(None),
        };
        let found = found.unwrap_or_else(|_| {
            self.unstopped.push(thread.clone());
            None
        });
        self.stopping += begin.elapsed();
        self.unstopped.retain(|thread| !has_been_let_go(thread, Duration::ZERO));
        let Some((registers, memory)) = found.or_else(|| blocked(pid, thread.tid)) else { return Vec::new() };
        self.unwind(&memory, registers, maps)
    }
}

/// Whether a thread notices nothing of a stop.
fn can_be_stopped(pid: Pid, thread: &Thread, is_timed: impl Fn(i32) -> bool) -> bool {
    // It might not stop.
    if thread.state == "D" {
        return false;
    }
    // What goes on as `restart_syscall`, or is begun again, is shown to the filter a second time.
    if waits::has_seccomp_filter(pid, thread.tid) {
        return false;
    }
    // A thread that a signal has stopped has left its call already.
    if thread.on == On::Stopped {
        return true;
    }
    let Some((number, arguments)) = waits::call_of(pid, thread.tid) else { return false };
    is_begun_again(number, &arguments, |fd| {
        let link = std::fs::read_link(format!("/proc/{pid}/task/{}/fd/{fd}", thread.tid)).unwrap_or_default();
        let target = link.to_string_lossy();
        match &*target {
            "anon_inode:[eventfd]" | "anon_inode:[timerfd]" | "anon_inode:[signalfd]" => Behind::Whole,
            pipe if pipe.starts_with("pipe:[") => Behind::Whole,
            socket if socket.starts_with("socket:[") && !is_timed(fd) => Behind::Untimed,
            _ => Behind::Other,
        }
    })
}

/// What a call waits at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// A read of it waits only while it has transferred nothing (`pipe_read` in fs/pipe.c, fs/eventfd.c).
    Whole,
    /// A socket without a timeout.
    Untimed,
    Other,
}

/// Whether the kernel begins this call again after a stop, as if nothing had been, when it was blocked.
fn is_begun_again(number: libc::c_long, arguments: &[u64; 6], behind: impl Fn(i32) -> Behind) -> bool {
    /// The operation of futex(2) without its flags, and those that only wait: `FUTEX_WAIT`, `FUTEX_LOCK_PI`,
    /// `FUTEX_WAIT_BITSET`, `FUTEX_LOCK_PI2`.
    const OPERATION: i32 = 0x7f;
    const WAITS: [i32; 4] = [0, 6, 9, 13];
    let int = |at: usize| arguments[at] as u32 as i32;
    // A time behind a pointer is changed to what is left of it, or was when the call began.
    let is_null = |at: usize| arguments[at] == 0;
    match number {
        libc::SYS_read | libc::SYS_readv => behind(int(0)) == Behind::Whole,
        libc::SYS_accept | libc::SYS_accept4 => behind(int(0)) == Behind::Untimed,
        libc::SYS_futex => WAITS.contains(&(int(1) & OPERATION)),
        libc::SYS_wait4 | libc::SYS_waitid | libc::SYS_rt_sigsuspend | libc::SYS_restart_syscall => true,
        libc::SYS_nanosleep => is_null(1) || arguments[0] == arguments[1],
        libc::SYS_clock_nanosleep => is_null(3) || arguments[2] == arguments[3],
        libc::SYS_ppoll => is_null(2),
        libc::SYS_pselect6 => is_null(4),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_pause | libc::SYS_poll => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => is_null(4),
        // See `begin_again`.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => int(3) < 0,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_pwait2 => is_null(3),
        _ => false,
    }
}

impl Drop for Unwinder {
    /// Lets the threads go that had not stopped in time: until then they stop at every signal.
    fn drop(&mut self) {
        let begin = Instant::now();
        for thread in &self.unstopped {
            has_been_let_go(thread, STOP.saturating_sub(begin.elapsed()));
        }
    }
}

/// A thread has not stopped in time. Only one that is stopped can be let go.
struct HasNotStopped;

/// Stops a thread, reads its registers and its stack, and lets it go on.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn stopped(
    pid: Pid,
    thread: &Thread,
    patience: Duration,
) -> Result<Option<(Registers, Memory)>, HasNotStopped> {
    use nix::sys::ptrace;
    let tid = nix::unistd::Pid::from_raw(thread.tid);
    if ptrace::seize(tid, ptrace::Options::empty()).is_err() {
        return Ok(None);
    }
    let stop = ptrace::interrupt(tid).ok().and_then(|()| stop_of(thread.tid, patience));
    let Some(stop) = stop else { return Err(HasNotStopped) };
    let found = ptrace::getregs(tid).ok().map(|read| {
        let registers = Registers::of(&read);
        let memory = with_stack(pid, registers.stack_pointer());
        (registers, memory)
    });
    let_go(thread, stop);
    Ok(found)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn stopped(_: Pid, _: &Thread, _: Duration) -> Result<Option<(Registers, Memory)>, HasNotStopped> {
    Ok(None)
}

/// Lets a thread go that was interrupted, if it stops within this time. Returns whether it has, or is gone.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn has_been_let_go(thread: &Thread, patience: Duration) -> bool {
    if let Some(stop) = stop_of(thread.tid, patience) {
        let_go(thread, stop);
        return true;
    }
    super::Stat::read(thread.tid).is_none()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_been_let_go(_: &Thread, _: Duration) -> bool {
    true
}

/// Lets a stopped thread go on, with the signal that it was stopped before.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn let_go(thread: &Thread, stop: super::Stop) {
    #[cfg(target_arch = "x86_64")]
    begin_again(thread);
    sys::ptrace_detach(thread.tid, stop.signal);
}

/// Has the call of a stopped thread begun again with the same arguments, where the kernel would have it fail, or would
/// have it go on as `restart_syscall` though it has no time that would be left.
#[cfg(target_arch = "x86_64")]
fn begin_again(thread: &Thread) {
    /// What a call returns that is begun again unless a handler of a signal runs, and one that goes on with the time that is
    /// left (include/linux/errno.h).
    const ERESTARTNOHAND: i64 = 514;
    const ERESTART_RESTARTBLOCK: i64 = 516;
    /// arch/x86/entry/syscalls/syscall_64.tbl; libc has no name for it.
    const IO_PGETEVENTS: i64 = 333;
    /// The calls that fail with EINTR for nothing but a stop or a signal, before they have had an effect. (Those at sockets
    /// do so if these have a timeout, which begins anew.)
    const FAILING: &[i64] = &[
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_io_getevents,
        IO_PGETEVENTS,
        libc::SYS_io_uring_enter,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
    ];
    let tid = nix::unistd::Pid::from_raw(thread.tid);
    let Ok(mut registers) = nix::sys::ptrace::getregs(tid) else { return };
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
