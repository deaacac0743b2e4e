//! The fd table of a process: `/proc/PID/fd` and `/proc/PID/fdinfo`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

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
        /// What two fds of one eventfd have in common; 0 for everything else.
        pub(crate) event: u64,
        /// The inode, of what has no other name: all of one kind may have the same.
        pub(crate) ino: u64,
        /// Whether a lock on the file is held through this fd.
        pub(crate) locks: bool,
        /// These locks, as `/proc/locks` has them, without their number.
        pub(crate) held: Vec<String>,
        /// Whether fds are on their way in it (`SCM_RIGHTS`, unix(7)), of a socket.
        pub(crate) carries: bool,
    }
}

impl Fd {
    /// The inode number in `pipe:[..]`.
    pub(crate) fn pipe(&self) -> Option<u64> {
        pipe_of(&self.target)
    }

    /// The inode number in `socket:[..]`.
    pub(crate) fn socket(&self) -> Option<u64> {
        self.target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }

    /// The inode number of whichever of the two it is.
    pub(crate) fn pipe_or_socket(&self) -> Option<u64> {
        self.pipe().or_else(|| self.socket())
    }

    /// Whether it is an epoll instance.
    pub(crate) fn is_epoll(&self) -> bool {
        self.target == "anon_inode:[eventpoll]"
    }

    /// Whether it can be read from.
    pub(crate) fn reads(&self) -> bool {
        self.access != libc::O_WRONLY
    }

    /// Whether it can be written to.
    pub(crate) fn writes(&self) -> bool {
        self.access != libc::O_RDONLY
    }
}

/// The inode number in `pipe:[..]`.
pub(crate) fn pipe_of(target: &str) -> Option<u64> {
    target.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// The fds of `pid` that are these pipes, sockets and the like. `None` if its table may not be read; empty if
/// it is gone.
pub(crate) fn ends_of(pid: Pid, targets: &HashSet<&str>) -> Option<Vec<Fd>> {
    match read_those(pid, &|target| targets.contains(target)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        fds => Some(fds.unwrap_or_default()),
    }
}

/// Reads the fd table of `pid`. Fds that close meanwhile are left out.
///
/// # Errors
///
/// `NotFound` if the process is gone, `PermissionDenied` if it may not be read (another user's,
/// or undumpable).
pub(crate) fn read(pid: Pid) -> io::Result<Vec<Fd>> {
    read_those(pid, &|_| true)
}

/// Reads the fds whose target is wanted; of the others no more than that.
fn read_those(pid: Pid, wanted: &dyn Fn(&str) -> bool) -> io::Result<Vec<Fd>> {
    let mut fds = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        if wanted(&target) {
            fds.extend(look(pid, fd, target.into_owned()));
        }
    }
    fds.sort_by_key(|fd| fd.fd);
    Ok(fds)
}

fn look(pid: Pid, fd: i32, target: String) -> Option<Fd> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let mut fd = parse(fd, target, &info);
    // Before Linux 5.14 fdinfo has no inode.
    if fd.ino == 0 && (fd.locks || fd.event != 0 || fd.is_epoll()) {
        fd.ino = fs::metadata(format!("/proc/{pid}/fd/{}", fd.fd)).map_or(0, |file| file.ino());
    }
    Some(fd)
}

pub(super) fn parse(fd: i32, target: String, info: &str) -> Fd {
    let flags = flags(info).unwrap_or(0);
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    let locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    let held: Vec<String> =
        locks.map(|lock| lock.split_ascii_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect();
    Fd {
        fd,
        target,
        access: flags & libc::O_ACCMODE,
        cloexec: flags & libc::O_CLOEXEC != 0,
        // Since Linux 5.2; before, eventfds cannot be told apart.
        event: value("eventfd-id:").and_then(|id| id.trim().parse::<u64>().ok()).map_or(0, |id| id + 1),
        ino: value("ino:").and_then(|ino| ino.trim().parse().ok()).unwrap_or(0),
        locks: !held.is_empty(),
        held,
        // Since Linux 5.6; of a socket that listens, those in connections that nobody has accepted.
        carries: value("scm_fds:").is_some_and(|count| count.trim() != "0"),
    }
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

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_fdinfo_tells_mode_close_on_exec_and_locks() {
        let info = "pos:\t0\nflags:\t02000001\nmnt_id:\t29\nino:\t3\n\
                    lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n";
        let fd = parse(7, "/tmp/x".to_owned(), info);
        assert!(fd.cloexec && fd.locks && fd.writes() && !fd.reads());
        assert_eq!(
            (fd.ino, &fd.held[..]),
            (3, &["FLOCK ADVISORY WRITE 359 00:13:11691 0 EOF".to_owned()][..])
        );
        let fd = parse(8, "anon_inode:[eventfd]".to_owned(), "flags:\t02\neventfd-id: 0\n");
        assert_eq!((fd.event, fd.locks, fd.cloexec), (1, false, false));
        assert!(fd.reads() && fd.writes());
        let fd = parse(8, "socket:[12]".to_owned(), "flags:\t02\nscm_fds: 1\n");
        assert!(fd.carries && fd.socket() == Some(12) && fd.pipe().is_none());
        let fd = parse(8, "pipe:[12]".to_owned(), "");
        assert_eq!((fd.pipe(), fd.access), (Some(12), 0));
    }
}
