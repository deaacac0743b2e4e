//! What a thread is blocked in: `/proc/PID/task/TID/syscall` and `wchan`.
//!
//! The syscall's number and arguments are the evidence. The name in `wchan` is the kernel's
//! innermost function, moves between kernels, and is only shown beside it.

use std::fs;

use nix::libc;

use crate::sys::Pid;
use crate::wire::wire_struct;

wire_struct! {
    /// What one thread was doing when it was looked at.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Wait {
        pub(crate) tid: i32,
        /// The syscall by name, `running`, or `syscall 423` for one that is not in the table.
        pub(crate) syscall: String,
        /// The fd that the call waits on, if it waits on just one.
        pub(crate) fd: Option<i32>,
        /// The pid that the call waits for, if it waits for just one.
        pub(crate) child: Option<i32>,
        /// The kernel function it sleeps in.
        pub(crate) wchan: Option<String>,
    }
}

/// What the first argument of a call means for who could end the wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Fd,
    Child,
    Other,
}

/// The calls that a process is found waiting in. A name is the same on every architecture, the
/// number is not: libc knows.
const CALLS: &[(libc::c_long, &str, First)] = &[
    (libc::SYS_read, "read", First::Fd),
    (libc::SYS_write, "write", First::Fd),
    (libc::SYS_readv, "readv", First::Fd),
    (libc::SYS_writev, "writev", First::Fd),
    (libc::SYS_pread64, "pread64", First::Fd),
    (libc::SYS_pwrite64, "pwrite64", First::Fd),
    (libc::SYS_recvfrom, "recvfrom", First::Fd),
    (libc::SYS_recvmsg, "recvmsg", First::Fd),
    (libc::SYS_recvmmsg, "recvmmsg", First::Fd),
    (libc::SYS_sendto, "sendto", First::Fd),
    (libc::SYS_sendmsg, "sendmsg", First::Fd),
    (libc::SYS_accept, "accept", First::Fd),
    (libc::SYS_accept4, "accept4", First::Fd),
    (libc::SYS_connect, "connect", First::Fd),
    (libc::SYS_flock, "flock", First::Fd),
    (libc::SYS_fcntl, "fcntl", First::Fd),
    (libc::SYS_fsync, "fsync", First::Fd),
    (libc::SYS_ioctl, "ioctl", First::Fd),
    (libc::SYS_splice, "splice", First::Fd),
    (libc::SYS_sendfile, "sendfile", First::Other),
    (libc::SYS_epoll_pwait, "epoll_pwait", First::Fd),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "epoll_wait", First::Fd),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll", First::Other),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, "select", First::Other),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_pause, "pause", First::Other),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open", First::Other),
    (libc::SYS_ppoll, "ppoll", First::Other),
    (libc::SYS_pselect6, "pselect6", First::Other),
    (libc::SYS_openat, "openat", First::Other),
    (libc::SYS_futex, "futex", First::Other),
    (libc::SYS_wait4, "wait4", First::Child),
    (libc::SYS_waitid, "waitid", First::Other),
    (libc::SYS_nanosleep, "nanosleep", First::Other),
    (libc::SYS_clock_nanosleep, "clock_nanosleep", First::Other),
    (libc::SYS_rt_sigsuspend, "rt_sigsuspend", First::Other),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", First::Other),
    (libc::SYS_io_uring_enter, "io_uring_enter", First::Fd),
    (libc::SYS_io_getevents, "io_getevents", First::Other),
    (libc::SYS_msgrcv, "msgrcv", First::Other),
    (libc::SYS_semtimedop, "semtimedop", First::Other),
    (libc::SYS_restart_syscall, "restart_syscall", First::Other),
    (libc::SYS_exit_group, "exit_group", First::Other),
];

/// Looks at the first thread of a process; `None` if it may not be read or is gone.
pub(crate) fn read(pid: Pid) -> Option<Wait> {
    let line = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).ok();
    let mut wait = parse(pid, &line)?;
    wait.wchan = wchan.filter(|name| !name.is_empty() && name != "0");
    Some(wait)
}

/// Parses a line of `/proc/PID/syscall` (proc_pid_syscall(5)).
fn parse(tid: Pid, line: &str) -> Option<Wait> {
    let mut words = line.split_ascii_whitespace();
    let empty = Wait { tid, syscall: String::new(), fd: None, child: None, wchan: None };
    let number: libc::c_long = match words.next()? {
        "running" => {
            return Some(Wait { syscall: "running".to_owned(), ..empty });
        }
        // Blocked, but in no call: a page fault, or stopped.
        "-1" => {
            return Some(Wait { syscall: "no syscall".to_owned(), ..empty });
        }
        number => number.parse().ok()?,
    };
    let first = words.next().and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    // An fd or a pid is an int: the upper half of the register says nothing.
    let first = first.map(|value| value as u32 as i32);
    let Some((_, name, kind)) = CALLS.iter().find(|(known, ..)| *known == number) else {
        return Some(Wait { syscall: format!("syscall {number}"), ..empty });
    };
    Some(Wait {
        syscall: (*name).to_owned(),
        fd: first.filter(|_| *kind == First::Fd),
        child: first.filter(|pid| *kind == First::Child && *pid > 0),
        ..empty
    })
}
