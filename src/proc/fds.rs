//! The fd table of a process: `/proc/PID/fd` and `/proc/PID/fdinfo`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::libc;

use crate::sys::wire::wire_struct;
use crate::sys::{self, Pid};

wire_struct! {
    /// One open fd of a process.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Fd {
        pub(crate) fd: i32,
        /// The target of the link: `pipe:[123]`, `socket:[4]`, `anon_inode:[eventfd]`, a path.
        pub(crate) target: String,
        /// `O_ACCMODE` and `O_PATH`.
        pub(crate) access: i32,
        pub(crate) cloexec: bool,
        /// The kernel's id of an eventfd, plus one, which all its fds share; 0 for every other file.
        pub(crate) event: u64,
        /// Whether it is a timerfd that is set (timerfd_create(2)).
        pub(crate) is_set_timer: bool,
        /// The process that a pidfd refers to; 0 for every other file, and if that process has exited.
        pub(crate) process: i32,
        /// The inode, of files that have no other identity. All files of one kind may have the same one.
        pub(crate) ino: u64,
        /// Whether a lock on the file is held through this fd.
        pub(crate) locks: bool,
        /// These locks, as `/proc/locks` prints them, without their numbers.
        pub(crate) held: Vec<String>,
        /// Whether fds are in flight in this socket (`SCM_RIGHTS`, unix(7)).
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

    /// The inode number in `pipe:[..]` or `socket:[..]`.
    pub(crate) fn pipe_or_socket(&self) -> Option<u64> {
        self.pipe().or_else(|| self.socket())
    }

    /// Whether it is an epoll instance.
    pub(crate) fn is_epoll(&self) -> bool {
        self.target == "anon_inode:[eventpoll]"
    }

    /// Whether it can be read from.
    pub(crate) fn reads(&self) -> bool {
        !self.is_path() && self.access != libc::O_WRONLY
    }

    /// Whether it can be written to.
    pub(crate) fn writes(&self) -> bool {
        !self.is_path() && self.access != libc::O_RDONLY
    }

    /// Whether the fd only names a file (`O_PATH`). It keeps no reader waiting, but its holder may open the
    /// file through it.
    pub(crate) fn is_path(&self) -> bool {
        self.access & libc::O_PATH != 0
    }

    /// The key under which the recorder stores the call that created this fd: an inode, or [`event_key`].
    pub(crate) fn creation_key(&self) -> Option<u64> {
        self.pipe_or_socket().or_else(|| (self.event != 0).then(|| event_key(self.event)))
    }
}

/// The inode number in `pipe:[..]`.
pub(crate) fn pipe_of(target: &str) -> Option<u64> {
    target.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// The fds of `pid` that refer to these pipes, sockets and the like. `None` if the table cannot be read;
/// empty if the process is gone.
pub(crate) fn ends_of(pid: Pid, targets: &HashSet<&str>) -> Option<Vec<Fd>> {
    match read_those(pid, &|target| targets.contains(target)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        fds => Some(fds.unwrap_or_default()),
    }
}

/// Reads the fd table of `pid`. Fds that are closed meanwhile are left out.
///
/// # Errors
///
/// `NotFound` if the process is gone, `PermissionDenied` if it may not be read (another user's,
/// or undumpable).
pub(crate) fn read(pid: Pid) -> io::Result<Vec<Fd>> {
    read_those(pid, &|_| true)
}

/// Reads the fds whose target `wanted` accepts; of the others only the target.
pub(crate) fn read_those(pid: Pid, wanted: &dyn Fn(&str) -> bool) -> io::Result<Vec<Fd>> {
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

/// The name of an io_uring instance in `/proc/PID/fd`.
pub(crate) const URING: &str = "anon_inode:[io_uring]";

/// Stands for the access mode of a pipe end when it is unknown which end it is.
pub(crate) const SOME_END: i32 = libc::O_ACCMODE;

/// The recorder's key for an eventfd with this [`Fd::event`]. It is larger than any inode number.
pub(crate) fn event_key(event: u64) -> u64 {
    event | 1 << 63
}

/// The recorder's key for an fd by its target in `/proc/PID/fd`: the inode of a pipe or socket, or else what the process
/// and the number make of a file without an inode of its own. `None` if its creation is not recorded.
pub(crate) fn creation_key(target: &str, pid: Pid, fd: i32) -> Option<u64> {
    let kind = match target {
        "anon_inode:[eventfd]" => 1,
        "anon_inode:[timerfd]" => 2,
        "anon_inode:[eventpoll]" => 3,
        "anon_inode:inotify" => 4,
        _ if target.starts_with("/memfd:") => 5,
        _ => {
            let socket = || target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
            return pipe_of(target).or_else(socket);
        }
    };
    Some(fd_key(kind, pid, fd))
}

/// The recorder's key for an fd whose file has no inode of its own, by the kind of file. It is larger than any inode number.
pub(crate) fn fd_key(kind: u64, pid: Pid, fd: i32) -> u64 {
    1 << 62 | kind << 58 | u64::from(pid.unsigned_abs()) << 24 | u64::from(fd.unsigned_abs() & 0xff_ffff)
}

/// The recorder's key for a file that a process opened by its path: number and file, as a hash of the kind 6 of [`fd_key`].
pub(crate) fn open_key(pid: Pid, fd: i32, dev: u64, ino: u64) -> u64 {
    let number = u64::from(pid.unsigned_abs()) << 32 | u64::from(fd.unsigned_abs());
    let mix = |hash: u64, part: u64| (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    1 << 62 | 6 << 58 | [number, dev, ino].into_iter().fold(0, mix) >> 6
}

/// The key of a file that its process has closed, and that another one may have inherited.
pub(crate) fn closed_key(key: u64) -> u64 {
    key | 1 << 58
}

/// The keys of an fd of `pid` whose file has a path: its own, and those of `ancestors`, from which it may have the fd under
/// the same number. Empty if the file cannot be read.
pub(crate) fn open_keys(pid: Pid, fd: i32, ancestors: &[Pid]) -> Vec<u64> {
    let Ok(file) = fs::metadata(format!("/proc/{pid}/fd/{fd}")) else { return Vec::new() };
    let key = |pid: Pid| open_key(pid, fd, file.dev(), file.ino());
    let inherited = ancestors.iter().flat_map(|ancestor| {
        let open = key(*ancestor);
        // The ancestor may have closed it and opened the same file again, under the same number.
        match sys::have_same_file(pid, *ancestor, fd) {
            Some(true) => vec![open],
            Some(false) => vec![closed_key(open)],
            None => vec![closed_key(open), open],
        }
    });
    std::iter::once(key(pid)).chain(inherited).collect()
}

/// The files that are registered with an io_uring instance, from its fdinfo, as `/proc/PID/fd/N` would name
/// them. `None` if the kernel does not show them.
pub(crate) fn registered(info: &str) -> Option<Vec<String>> {
    let mut lines = info.lines().skip_while(|line| !line.starts_with("UserFiles:"));
    lines.next()?;
    let mut files = Vec::new();
    // One indented line a file; other lists follow.
    for line in lines.take_while(|line| line.starts_with(' ')) {
        match line.split_once(':').map(|(_, name)| name.trim()) {
            Some("<none>") => {}
            // Before Linux 5.19 only the last component of the path is shown, which is empty for a pipe.
            None | Some("") => return None,
            Some(name) => files.push(name.to_owned()),
        }
    }
    Some(files)
}

pub(crate) fn parse(fd: i32, target: String, info: &str) -> Fd {
    let flags = flags(info).unwrap_or(0);
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    let locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    let held: Vec<String> =
        locks.map(|lock| lock.split_ascii_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect();
    Fd {
        fd,
        target,
        access: flags & (libc::O_ACCMODE | libc::O_PATH),
        cloexec: flags & libc::O_CLOEXEC != 0,
        // Since Linux 5.2. Older kernels cannot tell eventfds apart.
        event: value("eventfd-id:").and_then(|id| id.trim().parse::<u64>().ok()).map_or(0, |id| id + 1),
        // `it_value: (0, 49406829)`, the seconds and nanoseconds that are left.
        is_set_timer: value("it_value:")
            .is_some_and(|left| left.contains(|digit| matches!(digit, '1'..='9'))),
        process: value("Pid:").and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid > 0).unwrap_or(0),
        ino: value("ino:").and_then(|ino| ino.trim().parse().ok()).unwrap_or(0),
        locks: !held.is_empty(),
        held,
        // Since Linux 5.6. For a listening socket it counts the fds in connections that are not accepted yet.
        carries: value("scm_fds:").is_some_and(|count| count.trim() != "0"),
    }
}

/// Names the fds and mappings of a process that belong to a driver which may signal an eventfd (virtual
/// machines, graphics, devices in user space).
pub(crate) fn notifiers(pid: Pid, fds: &[Fd]) -> Vec<String> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    // The path is the sixth column.
    let mapped = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5));
    let mut found: Vec<&str> =
        fds.iter().map(|fd| fd.target.as_str()).chain(mapped).filter(|target| may_notify(target)).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(NOTIFIERS);
    found.into_iter().map(str::to_owned).collect()
}

/// The most names that are listed for one process.
const NOTIFIERS: usize = 3;

/// Whether an fd or mapping of this name may belong to a driver that signals an eventfd: every device and
/// every anonymous file, except those known not to.
fn may_notify(target: &str) -> bool {
    const DEVICES: [&str; 18] = [
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "console",
        "ptmx",
        "pts/",
        "shm/",
        "mqueue/",
        "hugepages/",
        "kmsg",
        "log",
        "fuse",
        "net/tun",
        "loop",
        "input/",
    ];
    const NAMELESS: [&str; 14] = [
        "[eventpoll]",
        "[eventfd]",
        "[timerfd]",
        "[signalfd]",
        "[pidfd]",
        "[fanotify]",
        "[userfaultfd]",
        "[perf_event]",
        // Reported as a doubt of its own.
        "[io_uring]",
        "[landlock-ruleset]",
        "[secretmem]",
        "inotify",
        "bpf",
        "seccomp notify",
    ];
    let is_other = |name: &str, known: &[&str]| !known.iter().any(|begin| name.starts_with(begin));
    match (target.strip_prefix("/dev/"), target.strip_prefix("anon_inode:")) {
        (Some(device), _) => is_other(device, &DEVICES),
        (None, Some(name)) => is_other(name, &NAMELESS),
        (None, None) => false,
    }
}

/// The `flags:` line of an fdinfo, which is octal (proc_pid_fdinfo(5)).
fn flags(info: &str) -> Option<i32> {
    let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(line.trim(), 8).ok()
}

/// The name of the pipe end that an access mode stands for.
pub(crate) fn end(access: i32) -> &'static str {
    match access {
        libc::O_RDONLY => "read",
        libc::O_WRONLY => "write",
        SOME_END => "some",
        path if path & libc::O_PATH != 0 => "path",
        _ => "both",
    }
}

#[cfg(test)]
mod tests {
    use super::{may_notify, parse, registered};

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
        let timer = |left: &str| {
            let info =
                format!("clockid: 1\nticks: 0\nsettime flags: 01\nit_value: {left}\nit_interval: (0, 0)\n");
            parse(8, "anon_inode:[timerfd]".to_owned(), &info).is_set_timer
        };
        assert!(timer("(0, 49406829)") && timer("(10, 0)") && !timer("(0, 0)") && !fd.is_set_timer);
        let fd = parse(8, "socket:[12]".to_owned(), "flags:\t02\nscm_fds: 1\n");
        assert!(fd.carries && fd.socket() == Some(12) && fd.pipe().is_none());
        let fd = parse(8, "pipe:[12]".to_owned(), "flags:\t010000000\n");
        assert!(fd.is_path() && !fd.reads() && !fd.writes());
        let fd = parse(8, "pipe:[12]".to_owned(), "");
        assert_eq!((fd.pipe(), fd.access), (Some(12), 0));
    }

    #[test]
    fn a_driver_may_have_an_eventfd() {
        for target in [
            "/dev/kvm",
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:0",
            "/dev/vhost-net",
            "/dev/vfio/3",
            "/dev/dri/card0",
        ] {
            assert!(may_notify(target), "{target}");
        }
        for target in [
            "/dev/null",
            "/dev/pts/3",
            "anon_inode:[eventfd]",
            "anon_inode:inotify",
            "pipe:[3]",
            "/a/dev/kvm",
        ] {
            assert!(!may_notify(target), "{target}");
        }
    }

    #[test]
    fn an_fdinfo_of_a_ring_tells_what_is_registered() {
        let info = "pos:\t0\nSqThread:\t-1\nUserFiles:\t3\n    0: pipe:[12]\n    1: <none>\n    2: /a b:c\nUserBufs:\t1\n    0: 5/6\n";
        assert_eq!(registered(info), Some(vec!["pipe:[12]".to_owned(), "/a b:c".to_owned()]));
        assert_eq!(registered("UserFiles:\t0\nUserBufs:\t0\n"), Some(Vec::new()));
        // A kernel that could not name pipes yet, and a kernel that prints nothing.
        assert_eq!(registered("UserFiles:\t1\n    0: \n"), None);
        assert_eq!(registered("pos:\t0\n"), None);
    }
}
