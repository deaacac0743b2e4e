//! How many threads this process has, and which. To count them is async-signal-safe: it is asked in
//! front of a fork, in processes that were forked from threaded ones too.

use std::ffi::CStr;
use std::fs;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, stat};

use crate::outcome::Running;
use crate::sys::{self, Pid};

const TASK: &CStr = c"/proc/self/task";

/// Counts the threads that run code of the program. Where /proc is not to be had (the body may have
/// changed its root) 2 stands for any number of them.
///
/// One `stat` where there is one thread.
pub(crate) fn count() -> u32 {
    let Some(all) = all() else {
        return if sys::is_threaded() { 2 } else { 1 };
    };
    if all <= 1 {
        return all;
    }
    // A thread that was joined may still be there for a moment. It runs no code of the program
    // any more, and so holds no lock.
    let mut running = 0;
    match sys::list_numbers(TASK, |tid, task| running += u32::from(!is_exiting(task, tid))) {
        Ok(()) => running.max(1),
        Err(_) => all,
    }
}

/// Milliseconds that a thread has to end once its work is done.
const ENDING: u32 = 100;

/// Counts the threads besides the caller's that run code of the program, and that do not end by themselves in
/// a moment: `std::thread::scope` comes back when its closures have, not when their threads are gone.
/// Not async-signal-safe.
pub(crate) fn count_others() -> u32 {
    // Nothing tells of the end of a thread that somebody else has started.
    for _ in 0..ENDING {
        // The kernel's own number: a list of threads may miss one that has made another and ended.
        match all() {
            None => return count().saturating_sub(1),
            Some(0 | 1) => return 0,
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    count().saturating_sub(1).max(1)
}

/// How many threads there are, those included that have ended and are still there for a moment. `None` if /proc is
/// not to be had.
///
/// A directory's links are itself, its name in its parent and each directory in it (proc_pid_task(5) has one a
/// thread).
fn all() -> Option<u32> {
    let links = stat(TASK).ok()?.st_nlink;
    Some(u32::try_from(links).unwrap_or(u32::MAX).saturating_sub(2))
}

/// Milliseconds that a thread has to name itself.
const NAMING: u32 = 10;

/// The threads that run code of the program, but for `own`. Not async-signal-safe.
pub(crate) fn running(own: Pid) -> Vec<Running> {
    let name = |tid: Pid| {
        let name = fs::read(format!("/proc/self/task/{tid}/comm")).ok()?;
        Some(String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned())
    };
    let inherited = name(own);
    // A thread has the name of the one that made it until it is given another.
    let own_name = |tid: Pid| name(tid).filter(|name| Some(name) != inherited.as_ref()).unwrap_or_default();
    let mut running = Vec::new();
    let _ = sys::list_numbers(TASK, |tid, task| {
        if tid == own || is_exiting(task, tid) {
            return;
        }
        running.push(Running { tid, name: own_name(tid) });
    });
    // std's threads name themselves, and one that was only just started has not come to it.
    for _ in 0..NAMING {
        if running.iter().all(|thread| !thread.name.is_empty()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        for thread in running.iter_mut().filter(|thread| thread.name.is_empty()) {
            thread.name = own_name(thread.tid);
        }
    }
    running
}

/// Whether the thread `tid` below the directory `task` has begun to exit, or is gone.
fn is_exiting(task: BorrowedFd<'_>, tid: Pid) -> bool {
    /// `PF_EXITING` (include/linux/sched.h), set before whoever joins the thread is woken.
    const EXITING: u64 = 0x4;
    // Room for any number, and for the NUL behind.
    let mut path = [0; 32];
    let _ = write!(&mut path[..], "{tid}/stat");
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
    let fd = match openat(task, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(error) => return matches!(error, Errno::ENOENT | Errno::ESRCH),
    };
    let mut bytes = [0; 512];
    // ESRCH if it has gone since.
    let Ok(filled) = nix::unistd::read(&fd, &mut bytes) else { return true };
    let line = bytes.get(..filled).unwrap_or_default();
    // The name is in parentheses, and may have any in it. The flags are the seventh behind it.
    let behind = line.iter().rposition(|byte| *byte == b')').and_then(|at| line.get(at + 2..));
    let flags = behind.unwrap_or_default().split(|byte| *byte == b' ').nth(6);
    let flags = flags.and_then(|flags| std::str::from_utf8(flags).ok()?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}
