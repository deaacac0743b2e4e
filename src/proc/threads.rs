//! Counts and lists the threads of this process. Counting is async-signal-safe: it is done before a fork,
//! also in processes that were forked from threaded ones.

use std::ffi::CStr;
use std::fs;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, stat};

use crate::proc::maps::Address;
use crate::sys::wire::wire_struct;
use crate::sys::{self, Pid};

wire_struct! {
    /// A thread that was still running when the body returned.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Running {
        pub(crate) tid: i32,
        /// Empty if it has none.
        pub(crate) name: String,
    }
}

wire_struct! {
    /// The stack of a thread, innermost frame first.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct ThreadStack {
        pub(crate) tid: i32,
        pub(crate) frames: Vec<Address>,
    }
}

const TASK: &CStr = c"/proc/self/task";

/// Counts the threads that run code of the program. Without `/proc` (the body may have changed its root) it
/// returns 2, for any number of them.
///
/// A process with one thread costs one `stat`.
pub(crate) fn count() -> u32 {
    let Some(all) = all() else {
        return if sys::is_threaded() { 2 } else { 1 };
    };
    if all <= 1 {
        return all;
    }
    // A joined thread may still be listed for a moment. It no longer runs code of the program, so it holds no
    // lock.
    let mut running = 0;
    match sys::list_numbers(TASK, |tid, task| running += u32::from(!is_exiting(task, tid))) {
        Ok(()) => running.max(1),
        Err(_) => all,
    }
}

/// Milliseconds that a thread gets to exit once its work is done.
const ENDING: u32 = 100;

/// Counts the threads besides the caller that run code of the program and do not exit by themselves within a
/// moment: `std::thread::scope` returns when its closures have, before their threads have exited. Not
/// async-signal-safe.
pub(crate) fn count_others() -> u32 {
    // There is no event to wait for: other code started these threads.
    for _ in 0..ENDING {
        // The kernel's own count. A list of threads may miss one that started another and exited.
        match all() {
            None => return count().saturating_sub(1),
            Some(0 | 1) => return 0,
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    count().saturating_sub(1).max(1)
}

/// The number of threads, including those that have exited and are still listed. `None` without `/proc`.
///
/// The link count of a directory is 2 plus its subdirectories, and proc_pid_task(5) has one a thread.
fn all() -> Option<u32> {
    let links = stat(TASK).ok()?.st_nlink;
    Some(u32::try_from(links).unwrap_or(u32::MAX).saturating_sub(2))
}

/// The ids of all threads of this process, including those that have exited and are still listed.
pub(crate) fn list() -> Vec<Pid> {
    let mut tids = Vec::new();
    let _ = sys::list_numbers(TASK, |tid, _| tids.push(tid));
    tids
}

/// Milliseconds that a thread gets to set its name.
const NAMING: u32 = 10;

/// The threads that run code of the program, except `own`. Not async-signal-safe.
pub(crate) fn running(own: Pid) -> Vec<Running> {
    let name = |tid: Pid| {
        let name = fs::read(format!("/proc/self/task/{tid}/comm")).ok()?;
        Some(String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned())
    };
    let inherited = name(own);
    // A new thread has its creator's name until it is given another.
    let own_name = |tid: Pid| name(tid).filter(|name| Some(name) != inherited.as_ref()).unwrap_or_default();
    let mut running = Vec::new();
    let _ = sys::list_numbers(TASK, |tid, task| {
        if tid == own || is_exiting(task, tid) {
            return;
        }
        running.push(Running { tid, name: own_name(tid) });
    });
    // Threads of std name themselves; one that has just started may not have done so yet.
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

/// Whether the thread `tid` in the directory `task` has begun to exit, or is gone.
fn is_exiting(task: BorrowedFd<'_>, tid: Pid) -> bool {
    /// `PF_EXITING` (include/linux/sched.h), set before a thread that joins this one is woken.
    const EXITING: u64 = 0x4;
    // Room for any number and the NUL.
    let mut path = [0; 32];
    let _ = write!(&mut path[..], "{tid}/stat");
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
    let fd = match openat(task, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(error) => return matches!(error, Errno::ENOENT | Errno::ESRCH),
    };
    let mut bytes = [0; 512];
    // ESRCH if the thread has exited since.
    let Ok(filled) = nix::unistd::read(&fd, &mut bytes) else { return true };
    let line = bytes.get(..filled).unwrap_or_default();
    // The name is in parentheses and may contain some. The flags are the seventh word behind it.
    let behind = line.iter().rposition(|byte| *byte == b')').and_then(|at| line.get(at + 2..));
    let flags = behind.unwrap_or_default().split(|byte| *byte == b' ').nth(6);
    let flags = flags.and_then(|flags| std::str::from_utf8(flags).ok()?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}
