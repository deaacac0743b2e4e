//! The threads of a process that is about to fork. Everything in here is async-signal-safe.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use crate::sys::{self, Pid};

/// How many threads this process has; 0 if that cannot be known.
///
/// One `stat` where there is one thread: a directory's links are itself, its name in its parent
/// and each directory in it (proc_pid_task(5) has one a thread).
pub(super) fn count() -> u32 {
    let task = c"/proc/self/task";
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path is NUL-terminated, and `stat` is writable and large enough.
    if unsafe { libc::stat(task.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return 0;
    }
    // SAFETY: stat succeeded, so it filled the buffer.
    let links = unsafe { stat.assume_init() }.st_nlink;
    let all = u32::try_from(links).unwrap_or(u32::MAX).saturating_sub(2);
    if all <= 1 {
        return all;
    }
    // A thread that was joined may still be there for a moment. It runs no code of the program
    // any more, and so holds no lock.
    let mut running = 0;
    match sys::list_numbers(task, |tid, task| running += u32::from(!is_exiting(task, tid))) {
        Ok(()) => running.max(1),
        Err(_) => all,
    }
}

/// Whether the thread `tid` below the directory `task` has begun to exit, or is gone.
fn is_exiting(task: RawFd, tid: Pid) -> bool {
    /// `PF_EXITING` (include/linux/sched.h), set before whoever joins the thread is woken.
    const EXITING: u64 = 0x4;
    let mut path = [0u8; 32];
    // Room for any number, and for the NUL behind.
    let _ = io::Write::write_fmt(&mut &mut path[..], format_args!("{tid}/stat"));
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::openat(task, path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let fd = match Errno::result(fd) {
        Ok(fd) => sys::own(fd),
        Err(error) => return matches!(error, Errno::ENOENT | Errno::ESRCH),
    };
    let mut bytes = [0u8; 512];
    // SAFETY: the kernel writes at most `bytes.len()` bytes into the buffer.
    let filled = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    // ESRCH if it has gone since.
    let Some(line) = usize::try_from(filled).ok().and_then(|filled| bytes.get(..filled)) else { return true };
    // The name is in parentheses, and may have any in it. The flags are the seventh behind it.
    let behind = line.iter().rposition(|byte| *byte == b')').and_then(|at| line.get(at + 2..));
    let flags = behind.unwrap_or_default().split(|byte| *byte == b' ').nth(6);
    let flags = flags.and_then(|flags| std::str::from_utf8(flags).ok()?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// The name of the calling thread, filled up with zeroes; `main` for the first thread, whose name
/// to the kernel is that of the program.
pub(super) fn name() -> [u8; 16] {
    let mut name = [0u8; 16];
    // SAFETY: the call has no preconditions.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    // SAFETY: the call has no preconditions.
    if tid == i64::from(unsafe { libc::getpid() }) as libc::c_long {
        name[..4].copy_from_slice(b"main");
        return name;
    }
    // SAFETY: the kernel writes at most 16 bytes into the buffer (PR_GET_NAME(2const)).
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}
