//! The fd table of a process: `/proc/PID/fd` and `/proc/PID/fdinfo`.

use std::fs;
use std::io;

use nix::libc;

use crate::sys::Pid;
use crate::wire::wire_struct;

wire_struct! {
    /// One open fd of a process.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Fd {
        pub(crate) fd: i32,
        /// What the link names: `pipe:[123]`, `socket:[4]`, `anon_inode:[eventfd]`, a path.
        pub(crate) target: String,
        /// `O_ACCMODE`.
        pub(crate) access: i32,
        pub(crate) cloexec: bool,
    }
}

impl Fd {
    /// The inode number in `pipe:[..]`.
    pub(crate) fn pipe(&self) -> Option<u64> {
        self.target.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
    }
}

/// Reads the fd table of `pid`. Fds that close meanwhile are left out.
///
/// # Errors
///
/// `NotFound` if the process is gone, `PermissionDenied` if it may not be read (another user's,
/// or undumpable).
pub(crate) fn read(pid: Pid) -> io::Result<Vec<Fd>> {
    let mut fds = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")) else {
            continue;
        };
        let flags = flags(&info).unwrap_or(0);
        fds.push(Fd {
            fd,
            target: target.to_string_lossy().into_owned(),
            access: flags & libc::O_ACCMODE,
            cloexec: flags & libc::O_CLOEXEC != 0,
        });
    }
    fds.sort_by_key(|fd| fd.fd);
    Ok(fds)
}

/// The `flags:` line of an fdinfo, which is octal (proc_pid_fdinfo(5)).
fn flags(info: &str) -> Option<i32> {
    let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(line.trim(), 8).ok()
}

/// Which end of a pipe an access mode is.
pub(crate) fn end(access: i32) -> &'static str {
    match access {
        libc::O_RDONLY => "read",
        libc::O_WRONLY => "write",
        _ => "both",
    }
}
