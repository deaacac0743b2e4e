//! System calls on processes: fork, exit, wait, signal by pid or pidfd.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use nix::libc;

/// A process id as the kernel counts it.
pub(crate) type Pid = i32;

/// Converts the result of a system call.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The forking process; the child's pid.
    Parent(Pid),
}

/// `fork()` — starts a process that is a copy of this one.
///
/// Callers have one thread: `Harness::run` counts its threads first, a process that is taken over asks the
/// kernel, and net, fork server and supervisor never start one. So allocation, locks and all of `std` can be
/// used in the child (fork(2), "async-signal-safe functions").
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the process has one thread (see above), so no lock is held by a thread that the
    // child would lack.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// `exit_group(code)` — ends the process without running exit handlers. Bypasses the recorder.
pub(crate) fn exit_now(code: i32) -> ! {
    loop {
        // SAFETY: the call takes any value and does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

/// `kill(pid, signal)` — for a pid that cannot be recycled: an unreaped child or this process.
pub(crate) fn kill(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: `kill` reads no memory of ours. The caller pins the pid.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// `getpgid(pid)` — the process group of an unreaped child.
pub(crate) fn getpgid(pid: Pid) -> io::Result<Pid> {
    // SAFETY: `getpgid` reads no memory of ours.
    check(unsafe { libc::getpgid(pid) })
}

/// `pidfd_open(pid, 0)` — a handle on the process that has this pid now (Linux 5.3).
///
/// The pid may have been recycled before the call: the caller checks the identity of the process again
/// *after* it, and only then trusts the handle.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call reads no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd as c_int)?;
    // SAFETY: the kernel has just made this fd for us (close-on-exec), no other code owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `pidfd_send_signal(pidfd, signal, NULL, 0)` — signals exactly that process (Linux 5.1).
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: c_int) -> io::Result<()> {
    let info = ptr::null::<libc::siginfo_t>();
    // SAFETY: the fd is open for the length of the borrow, and a null siginfo is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    check(result as c_int).map(drop)
}

/// The result of `waitid` for one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) pid: Pid,
    pub(crate) state: ChildState,
}

/// The state of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// It called `exit` with this code.
    Exited(i32),
    /// This signal killed it. A plain number: real-time signals have no name in nix.
    Signalled(i32),
    /// This signal stopped it.
    Stopped(i32),
    /// It was continued after a stop.
    Continued,
    /// It has made this process its tracer (`PTRACE_TRACEME`), and waits to be resumed after this signal.
    Trapped(i32),
}

/// The result of asking for children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Children {
    /// `ECHILD`: there is no child, dead or alive.
    None,
    /// There are children, and none has changed its state.
    Quiet,
    /// This child has.
    Ready(Waited),
}

/// `waitid(..)` — asks for the state of one child (`pid`) or any (`None`), without ever blocking.
///
/// `flags` are the requested states and `WNOWAIT`; `WNOHANG` and `__WALL` are always set. Without `__WALL`,
/// children with an exit signal other than SIGCHLD (raw `clone`) would be ignored.
pub(crate) fn waitid(pid: Option<Pid>, flags: c_int) -> io::Result<Children> {
    let (kind, id) = match pid {
        Some(pid) => (libc::P_PID, pid as libc::id_t),
        None => (libc::P_ALL, 0),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = flags | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` is a siginfo_t that the kernel may write.
    let result = unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) };
    if let Err(error) = check(result) {
        return match error.raw_os_error() {
            Some(libc::ECHILD) => Ok(Children::None),
            Some(libc::EINTR) => Ok(Children::Quiet),
            _ => Err(error),
        };
    }
    // SAFETY: all-zero bytes are a valid siginfo_t, and the kernel only overwrites them.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves them zero when nothing is ready.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(Children::Quiet);
    }
    // SAFETY: as above; nonzero si_pid says that the fields were filled.
    let status = unsafe { info.si_status() };
    let state = match info.si_code {
        libc::CLD_EXITED => ChildState::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => ChildState::Signalled(status),
        libc::CLD_TRAPPED => ChildState::Trapped(status),
        libc::CLD_CONTINUED => ChildState::Continued,
        _ => ChildState::Stopped(status),
    };
    Ok(Children::Ready(Waited { pid, state }))
}

/// `waitid(pid, WEXITED | WSTOPPED)` — reaps a child that has exited, and returns its state. Continues one that was
/// stopped.
pub(crate) fn wait_or_continue(child: Pid) -> Option<ChildState> {
    match waitid(Some(child), libc::WEXITED | libc::WSTOPPED) {
        Ok(Children::Ready(Waited { state: ChildState::Stopped(_), .. })) => {
            // Not reaped, so its pid has not been reused.
            let _ = kill(child, libc::SIGCONT);
            None
        }
        Ok(Children::Ready(Waited { state, .. })) => Some(state),
        _ => None,
    }
}

/// `waitid(pid, WEXITED | WSTOPPED)` — waits for the exit of a child, and reaps it. Continues it whenever it is stopped.
pub(crate) fn outlive(child: Pid) {
    loop {
        let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
        // SAFETY: a null siginfo is allowed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PID as c_long,
                child as c_long,
                0_usize,
                flags as c_long,
                0_usize,
            )
        };
        match check(result as c_int) {
            Ok(_) if wait_or_continue(child).is_none() => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            _ => return,
        }
    }
}

/// How long a child may need for what it was asked for before it is checked whether it was stopped.
const SILENCE: Duration = Duration::from_secs(1);

/// Waits until `fd` is readable or at EOF, at most for `limit`, and continues `child` if it was stopped meanwhile.
pub(crate) fn readable_beside(fd: &impl AsFd, child: Pid, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if super::readable(fd, Some(left.min(SILENCE))) {
            return true;
        }
        if left <= SILENCE {
            return false;
        }
        continue_if_stopped(child);
    }
}

/// `waitid(pid, WSTOPPED)` — continues a child if it was stopped.
pub(crate) fn continue_if_stopped(child: Pid) {
    if matches!(waitid(Some(child), libc::WSTOPPED), Ok(Children::Ready(_))) {
        // Not reaped, so its pid has not been reused.
        let _ = kill(child, libc::SIGCONT);
    }
}

/// Whether this process has a child, dead or alive.
pub(crate) fn has_children() -> bool {
    !matches!(waitid(None, libc::WEXITED | libc::WNOWAIT), Ok(Children::None))
}

/// Whether this process has no child, for the fast path of a test process, see [`super::entrance`]. `false`
/// also if the kernel does not answer.
#[inline(always)]
pub(crate) fn has_no_child() -> bool {
    let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
    // 0 means that there is a child. Any error but ECHILD (seccomp(2)) is left to the supervisor, which asks
    // again.
    // SAFETY: a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(libc::SYS_waitid, libc::P_ALL as c_long, 0_usize, 0_usize, flags as c_long, 0_usize)
    };
    result == -1
}

/// `getpid()`. libc's function is next to `fork`, so it costs no page fault.
#[inline(always)]
pub(crate) fn own_pid() -> Pid {
    // SAFETY: `getpid` has no preconditions.
    unsafe { libc::getpid() }
}

/// `clock_gettime(CLOCK_MONOTONIC)` in nanoseconds: the same in every process. Async-signal-safe.
///
/// As a system call: in a new process, mapping the vDSO's two pages takes ten times as long, in every test.
#[inline(always)]
pub(crate) fn monotonic_nanos() -> u64 {
    // The kernel's `timespec` is two words of this size, and four on x32.
    let mut now: [c_long; 4] = [0; 4];
    // SAFETY: the kernel writes a `timespec`, which is no longer.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC as c_long, &raw mut now) };
    now[0] as u64 * 1_000_000_000 + now[1] as u64
}

/// `ptrace(PTRACE_DETACH, pid, NULL, signal)` — resumes a child that has made this process its tracer, with
/// the signal that it was stopped for. No effect on other children.
pub(crate) fn ptrace_detach(pid: Pid, signal: c_int) {
    let (none, signal) = (ptr::null_mut::<c_void>(), signal as usize as *mut c_void);
    // SAFETY: reads and writes no memory of ours.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, none, signal) };
}

/// `unshare(CLONE_THREAD)` — whether this process has more than one thread: the call has no effect in a
/// process with one thread, and fails in others (unshare(2)). Async-signal-safe.
pub(crate) fn is_threaded() -> bool {
    // SAFETY: changes nothing, and reads no memory of ours.
    let result = unsafe { libc::unshare(libc::CLONE_THREAD) };
    check(result).is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Whether this process has one thread, for the fast path of a test process, see [`super::entrance`].
#[inline(always)]
pub(crate) fn has_one_thread() -> bool {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_THREAD as c_long) == 0 }
}

/// The limit on processes and threads of this user; `u64::MAX` stands for no limit.
pub(crate) fn process_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &mut limit) } == 0;
    if known { limit.rlim_cur } else { u64::MAX }
}

/// The limit on the size of a file that this process writes; `u64::MAX` stands for no limit.
pub(crate) fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } == 0;
    if known { limit.rlim_cur } else { u64::MAX }
}

/// `atexit(handler)` — has `handler` run when the process calls `exit`.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: `handler` is a function of this program and stays.
    unsafe { libc::atexit(handler) };
}

/// Restores this thread's scheduling policy and priority on drop.
pub(crate) struct Raised {
    policy: c_int,
    priority: c_int,
    nice: c_int,
}

/// `sched_setscheduler(0, SCHED_RR)`, or `setpriority(-20)` where that is refused — raises this thread's
/// priority until the result is dropped. `None` where neither is allowed. A fork has the default priority
/// (`SCHED_RESET_ON_FORK`).
pub(crate) fn raise_priority() -> Option<Raised> {
    // SAFETY: reads and writes no memory of ours. libc's own wrappers fail on musl.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) } as c_int;
    let mut parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel writes one int, which is all of the struct that it knows.
    unsafe { libc::syscall(libc::SYS_sched_getparam, 0, &raw mut parameters) };
    // SAFETY: reads no memory of ours. The kernel's own call gives 20 - nice, and never -1 for one that is there.
    let nice = 20 - unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) } as c_int;
    let before = Raised { policy, priority: parameters.sched_priority, nice };
    let raised = set_scheduler(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1) || set_nice(-20);
    raised.then_some(before)
}

impl Drop for Raised {
    fn drop(&mut self) {
        set_scheduler(self.policy, self.priority);
        set_nice(self.nice);
        // The change of the policy has reset the slice.
        super::run_when_woken();
    }
}

fn set_scheduler(policy: c_int, priority: c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one int, the first of the struct.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) == 0 }
}

fn set_nice(nice: c_int) -> bool {
    // SAFETY: reads and writes no memory of ours.
    unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) == 0 }
}

/// Waits for a child that is about to exit, and reaps it.
pub(crate) fn wait_for(pid: Pid) -> io::Result<()> {
    let pidfd = pidfd_open(pid)?;
    // It was killed or its socket was shut down, so nothing keeps it.
    super::readable(&pidfd, Some(Duration::from_secs(30)));
    waitid(Some(pid), libc::WEXITED).map(drop)
}

/// `execvp(..)` in a fresh fork, which dies with `parent`: restores the signal mask, and the disposition of
/// SIGPIPE. Returns only if that failed.
pub(crate) fn exec_below(
    parent: Pid,
    mut command: std::process::Command,
    mask: super::Mask,
    ignores_sigpipe: bool,
) -> io::Error {
    use std::os::unix::process::CommandExt;
    let prepare = move || {
        // SAFETY: reads no memory of ours.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: `getppid` has no preconditions.
        if unsafe { libc::getppid() } != parent {
            exit_now(1);
        }
        if ignores_sigpipe {
            super::ignore_signal(libc::SIGPIPE);
        }
        mask.give_back();
        Ok(())
    };
    // SAFETY: the fork has one thread, and the closure makes system calls alone.
    unsafe { command.pre_exec(prepare) };
    command.exec()
}
