//! Reads what the threads of a process are blocked in: `/proc/PID/task/TID/syscall`, `wchan`, `status`.
//!
//! An fd table shows what a process holds; only the arguments of a blocked syscall show what it waits for.
//! The name in `wchan` is the kernel's innermost function; it differs between kernels, so it is shown and
//! never evaluated.
//!
//! Threads are read one after the other, so a thread that looked blocked may run while the next one is read.
//! The kernel counts how often each thread was scheduled away (`voluntary_ctxt_switches`,
//! proc_pid_status(5)). A thread with the same call and the same counts in two snapshots has not run in
//! between, and holds the same resources.
//!
//! Longer than 600 lines: one kernel call after the other, with the fields of each.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use nix::libc;

use super::maps::{Address, Maps};
use crate::sys::wire::{wire_enum, wire_struct};
use crate::sys::{self, Pid};

wire_enum! {
    /// What a blocked thread waits for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum On {
        /// The thread runs, or it is in a call that is not decoded here.
        Other,
        /// Data or EOF on an fd.
        Read { fd: i32 },
        /// Room to write to an fd, or the close of its last reader.
        Write { fd: i32 },
        /// Another event on an fd: a connection, an ioctl.
        Fd { fd: i32 },
        /// The first of several fds to become ready. `fds` is a flat list of fd, `POLLIN`-style events, fd,
        /// events, ..
        Poll { fds: Vec<i32>, forever: bool },
        /// The same through an epoll instance. The inodes show whether an fd number of its interest list
        /// still refers to the registered file; 0 if the kernel does not show them. `exact`: the kernel
        /// confirms it for each fd.
        Epoll { epoll: i32, fds: Vec<i32>, inodes: Vec<u64>, exact: bool, forever: bool },
        /// The exit of a child: its pid, or -1 for any child.
        Child { pid: i32 },
        /// A futex: a word of memory.
        Futex { address: u64, place: Option<Address>, shared: bool, forever: bool },
        /// The end of a thread of the same process (pthread_join(3)).
        Thread { tid: i32 },
        /// A lock on the file behind an fd (flock(2), fcntl_locking(2)).
        Lock { fd: i32 },
        /// A timeout.
        Sleep,
        /// A signal (pause(2), sigsuspend(2), sigwaitinfo(2)).
        Signal,
        /// The other end of a FIFO, or whatever else `open` of this path waits for; `access` is `O_ACCMODE`
        /// of the flags.
        Open { path: String, access: i32 },
        /// SIGCONT after a stop signal, or a debugger.
        Stopped,
    }
}

wire_struct! {
    /// A snapshot of one thread.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Thread {
        pub(crate) tid: i32,
        pub(crate) name: String,
        pub(crate) state: String,
        /// The name of the syscall, `running`, `stopped`, or `syscall 423` for one that has no name here.
        pub(crate) syscall: String,
        pub(crate) on: On,
        /// The locks that block it, as `/proc/locks` prints them, without their numbers.
        pub(crate) behind: Vec<String>,
        /// Its tracer; 0 if there is none.
        pub(crate) tracer: i32,
        /// The kernel function it sleeps in.
        pub(crate) wchan: Option<String>,
        /// The line of `/proc/PID/task/TID/syscall` and the switch counts: changes whenever the thread runs.
        pub(crate) fingerprint: String,
        /// Two snapshots had the same fingerprint.
        pub(crate) unchanged: bool,
        /// Its stack, innermost frame first: of threads of the test and its forks, and of others as far as
        /// time allowed.
        pub(crate) frames: Vec<Address>,
    }
}

impl On {
    /// Whether it waits for any of several fds.
    pub(crate) fn is_set(&self) -> bool {
        matches!(self, On::Poll { .. } | On::Epoll { .. })
    }
}

impl Thread {
    /// Whether it is blocked without a timeout.
    pub(crate) fn waits_forever(&self) -> bool {
        match &self.on {
            On::Read { .. } | On::Write { .. } | On::Child { .. } | On::Thread { .. } | On::Lock { .. } => {
                true
            }
            On::Poll { forever, .. } | On::Epoll { forever, .. } | On::Futex { forever, .. } => *forever,
            On::Other | On::Fd { .. } | On::Sleep | On::Signal | On::Open { .. } | On::Stopped => false,
        }
    }

    /// Whether it ran when it was read.
    #[cfg(feature = "__engine")]
    pub(crate) fn is_running(&self) -> bool {
        self.syscall == "running"
    }

    /// Marks it as running: it was stopped only by this process and would go on.
    pub(crate) fn set_running(&mut self) {
        if self.on != On::Stopped {
            return;
        }
        "R".clone_into(&mut self.state);
        "running".clone_into(&mut self.syscall);
        (self.on, self.wchan) = (On::Other, None);
        self.fingerprint.clear();
    }

    /// The fds that it waits on.
    pub(crate) fn fds(&self) -> Vec<i32> {
        match &self.on {
            On::Read { fd } | On::Write { fd } | On::Fd { fd } | On::Lock { fd } => vec![*fd],
            On::Poll { fds, .. } => fds.iter().step_by(2).copied().collect(),
            On::Epoll { epoll, fds, .. } => {
                std::iter::once(*epoll).chain(fds.iter().step_by(2).copied()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// How the arguments of a call are decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Fd,
    /// `poll`: the timeout is a number of milliseconds.
    Poll,
    /// `ppoll`: the timeout is behind a pointer.
    Ppoll,
    Select,
    /// `epoll_wait`, `epoll_pwait`.
    Epoll,
    /// `epoll_pwait2`.
    Epoll2,
    Wait4,
    Waitid,
    Futex,
    Lock,
    Fcntl,
    Sleep,
    Signal,
    #[cfg(target_arch = "x86_64")]
    Open,
    Openat,
    Other,
}

/// The calls that processes are found waiting in. Call numbers differ between architectures, so they come
/// from libc.
const CALLS: &[(libc::c_long, &str, Kind)] = &[
    (libc::SYS_read, "read", Kind::Read),
    (libc::SYS_readv, "readv", Kind::Read),
    (libc::SYS_preadv2, "preadv2", Kind::Read),
    (libc::SYS_pread64, "pread64", Kind::Read),
    (libc::SYS_write, "write", Kind::Write),
    (libc::SYS_writev, "writev", Kind::Write),
    (libc::SYS_pwritev2, "pwritev2", Kind::Write),
    (libc::SYS_pwrite64, "pwrite64", Kind::Write),
    (libc::SYS_recvfrom, "recvfrom", Kind::Read),
    (libc::SYS_recvmsg, "recvmsg", Kind::Read),
    // Its timeout is only checked after a message has arrived (recvmmsg(2), BUGS).
    (libc::SYS_recvmmsg, "recvmmsg", Kind::Read),
    (libc::SYS_sendto, "sendto", Kind::Write),
    (libc::SYS_sendmsg, "sendmsg", Kind::Write),
    (libc::SYS_sendmmsg, "sendmmsg", Kind::Write),
    (libc::SYS_accept, "accept", Kind::Fd),
    (libc::SYS_accept4, "accept4", Kind::Fd),
    (libc::SYS_connect, "connect", Kind::Fd),
    (libc::SYS_flock, "flock", Kind::Lock),
    (libc::SYS_fcntl, "fcntl", Kind::Fcntl),
    (libc::SYS_fsync, "fsync", Kind::Fd),
    (libc::SYS_fdatasync, "fdatasync", Kind::Fd),
    (libc::SYS_syncfs, "syncfs", Kind::Fd),
    (libc::SYS_fallocate, "fallocate", Kind::Fd),
    (libc::SYS_ftruncate, "ftruncate", Kind::Fd),
    (libc::SYS_getdents64, "getdents64", Kind::Fd),
    (libc::SYS_lseek, "lseek", Kind::Fd),
    (libc::SYS_preadv, "preadv", Kind::Read),
    (libc::SYS_pwritev, "pwritev", Kind::Write),
    (libc::SYS_tee, "tee", Kind::Fd),
    (libc::SYS_vmsplice, "vmsplice", Kind::Fd),
    (libc::SYS_copy_file_range, "copy_file_range", Kind::Fd),
    (libc::SYS_ioctl, "ioctl", Kind::Fd),
    (libc::SYS_splice, "splice", Kind::Fd),
    (libc::SYS_sendfile, "sendfile", Kind::Other),
    (libc::SYS_epoll_pwait, "epoll_pwait", Kind::Epoll),
    (libc::SYS_epoll_pwait2, "epoll_pwait2", Kind::Epoll2),
    #[cfg(target_pointer_width = "64")]
    (libc::SYS_mmap, "mmap", Kind::Other),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "epoll_wait", Kind::Epoll),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll", Kind::Poll),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, "select", Kind::Select),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_pause, "pause", Kind::Signal),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open", Kind::Open),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork", Kind::Other),
    (libc::SYS_clone, "clone", Kind::Other),
    (libc::SYS_clone3, "clone3", Kind::Other),
    (libc::SYS_ppoll, "ppoll", Kind::Ppoll),
    (libc::SYS_pselect6, "pselect6", Kind::Select),
    (libc::SYS_openat, "openat", Kind::Openat),
    (libc::SYS_futex, "futex", Kind::Futex),
    (libc::SYS_wait4, "wait4", Kind::Wait4),
    (libc::SYS_waitid, "waitid", Kind::Waitid),
    (libc::SYS_nanosleep, "nanosleep", Kind::Sleep),
    (libc::SYS_clock_nanosleep, "clock_nanosleep", Kind::Sleep),
    (libc::SYS_rt_sigsuspend, "rt_sigsuspend", Kind::Signal),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", Kind::Signal),
    (libc::SYS_io_uring_enter, "io_uring_enter", Kind::Fd),
    (libc::SYS_io_getevents, "io_getevents", Kind::Other),
    (libc::SYS_msgrcv, "msgrcv", Kind::Other),
    (libc::SYS_semtimedop, "semtimedop", Kind::Other),
    (libc::SYS_restart_syscall, "restart_syscall", Kind::Other),
    (libc::SYS_exit_group, "exit_group", Kind::Other),
];

/// Pairs each call with its name, without `SYS_`.
macro_rules! named {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

/// Other calls that a thread may be in, of which only the name is known.
#[rustfmt::skip]
const NAMED: &[(libc::c_long, &str)] = named!(
    SYS_brk SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mlock SYS_mlockall
    SYS_mincore SYS_membarrier SYS_process_vm_readv SYS_process_vm_writev
    SYS_sync SYS_mount SYS_umount2 SYS_swapon SYS_swapoff
    SYS_execve SYS_execveat SYS_exit SYS_unshare SYS_setns SYS_ptrace SYS_prctl SYS_seccomp
    SYS_kill SYS_tkill SYS_tgkill SYS_pidfd_send_signal SYS_rt_sigreturn SYS_rt_sigaction SYS_rt_sigprocmask
    SYS_sched_yield SYS_sched_setaffinity SYS_setuid SYS_setgid SYS_setresuid SYS_setresgid
    SYS_getpid SYS_gettid SYS_getppid SYS_getrandom SYS_clock_gettime SYS_reboot
    SYS_mq_timedreceive SYS_mq_timedsend SYS_msgsnd SYS_semop
    SYS_io_submit SYS_io_destroy SYS_io_uring_setup
    SYS_futex_waitv SYS_add_key SYS_request_key SYS_keyctl SYS_bpf SYS_perf_event_open SYS_finit_module
    SYS_unlinkat SYS_renameat2 SYS_mkdirat SYS_linkat SYS_symlinkat SYS_readlinkat SYS_faccessat SYS_fchownat
    SYS_statx SYS_statfs SYS_truncate SYS_chdir SYS_socket SYS_openat2
    SYS_pipe2 SYS_dup SYS_dup3 SYS_close SYS_close_range
);

/// The most threads of one process that are read.
pub(crate) const THREADS: usize = 256;
/// The most fds of one poll set that are kept. A larger set counts as unknown.
const SET: usize = 1024;
/// The most entries of a poll set that are read: most entries of a large set may be ignored ones (poll(2)).
const ENTRIES: usize = 64 * 1024;

/// Reads every thread of a process, the first thread first. Empty if the process is gone.
pub(crate) fn read(pid: Pid) -> Vec<Thread> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<Pid> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable_by_key(|tid| (*tid != pid, *tid));
    tids.truncate(THREADS);
    // A 32-bit program on a 64-bit kernel has other call numbers.
    let native = is_native(pid);
    let mut once = Once { maps: None, locks: None };
    tids.iter().filter_map(|tid| read_thread(pid, *tid, &tids, native, &mut once)).collect()
}

/// What is read at most once for all threads of a process.
struct Once {
    maps: Option<Maps>,
    /// `/proc/locks`.
    locks: Option<String>,
}

fn read_thread(pid: Pid, tid: Pid, tids: &[Pid], native: bool, once: &mut Once) -> Option<Thread> {
    let task = format!("/proc/{pid}/task/{tid}");
    let status = fs::read(format!("{task}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap_or_default()
    };
    let mut thread = Thread {
        tid,
        name: unescape(field("Name")),
        state: field("State").chars().next().unwrap_or('?').to_string(),
        syscall: String::new(),
        on: On::Other,
        behind: Vec::new(),
        tracer: field("TracerPid").parse().unwrap_or(0),
        wchan: None,
        fingerprint: String::new(),
        unchanged: false,
        frames: Vec::new(),
    };
    // Reading is not permitted (Yama, another user's process); the empty call name stands for that.
    let Ok(line) = fs::read_to_string(format!("{task}/syscall")) else { return Some(thread) };
    thread.fingerprint = fingerprint(&line, &status);
    let wchan = fs::read_to_string(format!("{task}/wchan")).ok();
    thread.wchan = wchan.filter(|name| !name.is_empty() && name != "0");
    if matches!(thread.state.as_str(), "T" | "t") {
        // A stopped thread still shows the call that it was in, or the end of it.
        "stopped".clone_into(&mut thread.syscall);
        thread.on = On::Stopped;
        return Some(thread);
    }
    match Call::parse(&line) {
        Some(Call::Running) => "running".clone_into(&mut thread.syscall),
        Some(Call::Blocked) => "no syscall".clone_into(&mut thread.syscall),
        Some(Call::Syscall { number, arguments }) => {
            let number = match number {
                libc::SYS_restart_syscall if native => restarted(thread.wchan.as_deref()).unwrap_or(number),
                number => number,
            };
            match CALLS.iter().find(|(known, ..)| native && *known == number) {
                None => thread.syscall = name(number, native),
                Some((_, name, kind)) => {
                    (*name).clone_into(&mut thread.syscall);
                    // A process in its own PID namespace uses other numbers for children and threads.
                    let nested = field("NSpid").split_ascii_whitespace().nth(1).is_some();
                    let by_pid = *kind == Kind::Wait4 || arguments[0] == u64::from(libc::P_PID);
                    thread.on = match on(*kind, &arguments, pid, tids, &mut once.maps) {
                        On::Child { pid } if pid > 0 && nested && by_pid => On::Other,
                        on => on,
                    };
                    // Another process handles the call (seccomp_unotify(2)).
                    if thread.wchan.as_ref().is_some_and(|wchan| wchan.contains("seccomp")) {
                        thread.on = On::Other;
                    }
                    if let On::Lock { fd } = thread.on {
                        let read = || fs::read_to_string("/proc/locks").unwrap_or_default();
                        thread.behind = in_the_way(once.locks.get_or_insert_with(read), pid);
                        let file = fs::metadata(format!("/proc/{pid}/fd/{fd}")).map(|file| file.ino());
                        // The device number in `/proc/locks` can differ from the one in `stat`, so only the
                        // inode is compared.
                        thread.behind.retain(|lock| file.as_ref().is_ok_and(|ino| is_on(lock, *ino)));
                    }
                }
            }
        }
        None => {}
    }
    Some(thread)
}

/// The call that goes on as `restart_syscall`, after a stop, with the arguments that it had (restart_syscall(2)): only where
/// in the kernel the thread sleeps tells which that is, and of nanosleep(2) not even that.
fn restarted(wchan: Option<&str>) -> Option<libc::c_long> {
    match wchan? {
        name if name.contains("futex") => Some(libc::SYS_futex),
        #[cfg(target_arch = "x86_64")]
        name if name.contains("poll") && !name.contains("ep_poll") => Some(libc::SYS_poll),
        _ => None,
    }
}

/// The name of a call that is not decoded.
fn name(number: libc::c_long, native: bool) -> String {
    let known = NAMED.iter().find(|(known, _)| native && *known == number);
    match known.and_then(|(_, name)| name.strip_prefix("SYS_")) {
        Some(name) => name.to_owned(),
        None => format!("syscall {number}"),
    }
}

/// Reads the thread again, and returns whether it has not run since `before` was read.
pub(crate) fn has_not_run(pid: Pid, before: &Thread) -> bool {
    let task = format!("/proc/{pid}/task/{}", before.tid);
    let line = fs::read_to_string(format!("{task}/syscall")).unwrap_or_default();
    let status = fs::read(format!("{task}/status")).unwrap_or_default();
    !before.fingerprint.is_empty()
        && fingerprint(&line, &String::from_utf8_lossy(&status)) == before.fingerprint
}

/// The number of threads of a process.
pub(crate) fn count(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// The fingerprint of a thread: unchanged as long as it is blocked in the same call. Empty if it is not
/// blocked.
pub(super) fn fingerprint(line: &str, status: &str) -> String {
    if line.starts_with("running") {
        return String::new();
    }
    let switches = status.lines().filter(|line| line.contains("ctxt_switches:"));
    std::iter::once(line.trim_end()).chain(switches).collect::<Vec<_>>().join(" ")
}

/// Undoes the escaping of `\n` and `\\` in names of `status` (proc_pid_status(5)).
fn unescape(name: &str) -> String {
    name.replace("\\n", "\n").replace("\\\\", "\\")
}

/// Whether a process runs a program of this program's word size.
fn is_native(pid: Pid) -> bool {
    let mut header = [0; 5];
    let read = fs::File::open(format!("/proc/{pid}/exe")).and_then(|mut exe| exe.read_exact(&mut header));
    let class = if cfg!(target_pointer_width = "64") { 2 } else { 1 };
    // If the file is not readable, `syscall` is not either.
    read.is_err() || header[4] == class
}

/// A line of `/proc/PID/task/TID/syscall` (proc_pid_syscall(5)).
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Running,
    /// Blocked outside of a call: a page fault, or stopped.
    Blocked,
    Syscall {
        number: libc::c_long,
        arguments: [u64; 6],
    },
}

impl Call {
    fn parse(line: &str) -> Option<Call> {
        let mut words = line.split_ascii_whitespace();
        let number = match words.next()? {
            "running" => return Some(Call::Running),
            "-1" => return Some(Call::Blocked),
            number => number.parse().ok()?,
        };
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Call::Syscall { number, arguments })
    }
}

/// Where the stack and the code of a blocked thread are; `None` of one that runs, and if it may not be read.
#[cfg(feature = "__engine")]
pub(super) fn code_and_stack(pid: Pid, tid: Pid) -> Option<(u64, u64)> {
    let line = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut words = line.split_ascii_whitespace().rev().map(|word| word.strip_prefix("0x"));
    let mut number = || u64::from_str_radix(words.next()??, 16).ok();
    let code = number()?;
    Some((number()?, code))
}

/// Number and arguments of the call that a thread is blocked in at this moment; `None` if it is in none, or if numbers do not
/// mean the same to its program.
#[cfg(feature = "__engine")]
pub(super) fn call_of(pid: Pid, tid: Pid) -> Option<(libc::c_long, [u64; 6])> {
    if !is_native(pid) {
        return None;
    }
    match Call::parse(&fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?)? {
        Call::Syscall { number, arguments } => Some((number, arguments)),
        Call::Running | Call::Blocked => None,
    }
}

/// Whether a filter decides about the calls of a thread (`Seccomp`, proc_pid_status(5)), or that may not be read.
#[cfg(feature = "__engine")]
pub(super) fn has_seccomp_filter(pid: Pid, tid: Pid) -> bool {
    let status = fs::read(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    status.is_empty() || mode.is_some_and(|mode| mode.trim() != "0")
}

/// Number and arguments of a line, for a test.
#[cfg(test)]
pub(super) fn parsed(line: &str) -> Option<(libc::c_long, [u64; 6])> {
    match Call::parse(line)? {
        Call::Syscall { number, arguments } => Some((number, arguments)),
        Call::Running | Call::Blocked => None,
    }
}

/// An `int` argument: the upper half of the register is undefined.
fn int(argument: u64) -> i32 {
    argument as u32 as i32
}

fn on(kind: Kind, arguments: &[u64; 6], pid: Pid, tids: &[Pid], maps: &mut Option<Maps>) -> On {
    let [a, b, c, d, e, _] = *arguments;
    match kind {
        Kind::Read => On::Read { fd: int(a) },
        Kind::Write => On::Write { fd: int(a) },
        Kind::Fd => On::Fd { fd: int(a) },
        Kind::Lock => On::Lock { fd: int(a) },
        Kind::Fcntl => match int(b) {
            libc::F_SETLKW | libc::F_OFD_SETLKW => On::Lock { fd: int(a) },
            _ => On::Fd { fd: int(a) },
        },
        Kind::Poll => poll(poll_set(pid, a, b), int(c) < 0),
        Kind::Ppoll => poll(poll_set(pid, a, b), c == 0),
        Kind::Select => poll(select_set(pid, int(a), [b, c, d]), e == 0),
        Kind::Epoll => epoll(pid, int(a), int(d) < 0),
        Kind::Epoll2 => epoll(pid, int(a), d == 0),
        // 0 and values below -1 stand for process groups; treated as any child.
        Kind::Wait4 => On::Child { pid: if int(a) > 0 { int(a) } else { -1 } },
        Kind::Waitid => match (a as libc::idtype_t, int(b)) {
            (libc::P_PID, child) => On::Child { pid: child },
            (libc::P_PIDFD, fd) => pidfd(pid, fd).map_or(On::Fd { fd }, |child| On::Child { pid: child }),
            _ => On::Child { pid: -1 },
        },
        Kind::Futex => futex(a, int(b), c, d, pid, tids, maps),
        Kind::Sleep => On::Sleep,
        Kind::Signal => On::Signal,
        #[cfg(target_arch = "x86_64")]
        Kind::Open => On::Open { path: text(pid, a), access: int(b) & libc::O_ACCMODE },
        Kind::Openat => On::Open { path: text(pid, b), access: int(c) & libc::O_ACCMODE },
        Kind::Other => On::Other,
    }
}

fn futex(
    address: u64,
    operation: i32,
    value: u64,
    timeout: u64,
    pid: Pid,
    tids: &[Pid],
    maps: &mut Option<Maps>,
) -> On {
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    let waits = [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET, libc::FUTEX_LOCK_PI];
    if !waits.contains(&command) {
        return On::Other;
    }
    let shared = operation & libc::FUTEX_PRIVATE_FLAG == 0;
    let maps = maps.get_or_insert_with(|| Maps::read(pid).unwrap_or_default());
    // The kernel identifies a shared futex by its file and offset, if its memory belongs to a file.
    let private = maps.is_private(address);
    // glibc's pthread_join waits for the word in which the kernel clears a thread's id when the thread exits.
    // It is the only shared futex that contains a thread id.
    let tid = int(value);
    let joins = shared && private && timeout == 0 && command != libc::FUTEX_LOCK_PI;
    if joins && tid != pid && tids.contains(&tid) {
        let word = sys::read_memory(pid, address, 4).and_then(|word| word.try_into().ok());
        if word.map(i32::from_ne_bytes) == Some(tid) {
            return On::Thread { tid };
        }
    }
    On::Futex { address, place: maps.locate(address), shared: shared && !private, forever: timeout == 0 }
}

/// Builds the wait for a poll set. A set that is unknown or incomplete may be woken by anything.
fn poll(set: Option<Vec<i32>>, forever: bool) -> On {
    let known = set.as_ref().is_some_and(|fds| fds.len() <= 2 * SET);
    let mut fds = set.unwrap_or_default();
    fds.truncate(2 * SET);
    On::Poll { fds, forever: forever && known }
}

/// Reads the `struct pollfd` array of poll(2): fd, events.
fn poll_set(pid: Pid, address: u64, count: u64) -> Option<Vec<i32>> {
    let count = usize::try_from(count).ok().filter(|count| *count <= ENTRIES)?;
    let memory = sys::read_memory(pid, address, count * 8)?;
    let mut fds = Vec::new();
    for entry in memory.chunks_exact(8) {
        let [a, b, c, d, e, f, ..] = *entry else { continue };
        let fd = i32::from_ne_bytes([a, b, c, d]);
        // poll(2) ignores negative fds.
        if fd >= 0 {
            fds.extend([fd, i32::from(i16::from_ne_bytes([e, f]))]);
        }
    }
    Some(fds)
}

/// Reads the three bitmaps of select(2). The kernel overwrites them only on return.
fn select_set(pid: Pid, count: i32, addresses: [u64; 3]) -> Option<Vec<i32>> {
    let count = usize::try_from(count).ok().filter(|count| *count <= ENTRIES)?;
    let mut fds = Vec::new();
    let events = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
    for (address, events) in addresses.into_iter().zip(events) {
        if address == 0 {
            continue;
        }
        let memory = sys::read_memory(pid, address, count.div_ceil(8))?;
        let set = (0..count).filter(|fd| memory.get(fd / 8).is_some_and(|byte| byte >> (fd % 8) & 1 == 1));
        fds.extend(set.flat_map(|fd| [fd as i32, i32::from(events)]));
    }
    Some(fds)
}

/// Reads the interest list of an epoll instance from its fdinfo.
fn epoll(pid: Pid, epoll: i32, forever: bool) -> On {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{epoll}")).unwrap_or_default();
    let (fds, inodes) = parse_interests(&info);
    let entries = info.lines().filter(|line| line.trim_start().starts_with("tfd:")).count();
    let mut forever = forever && entries == inodes.len();
    let mut exact = true;
    let mut before: Option<(i32, u32)> = None;
    // Entries with the same fd number are adjacent.
    for entry in fds.chunks_exact(2) {
        let nth = before.filter(|(fd, _)| *fd == entry[0]).map_or(0, |(_, nth)| nth + 1);
        before = Some((entry[0], nth));
        match sys::is_in_epoll(pid, epoll, entry[0], nth) {
            Some(true) => {}
            // The number refers to another file by now.
            Some(false) => forever = false,
            None => exact = false,
        }
    }
    On::Epoll { epoll, fds, inodes, exact, forever }
}

/// The locks that a process waits for, as `/proc/locks` prints them (proc_locks(5)): the waiters follow under
/// the number of each lock, behind an arrow. For a lock that belongs to an open file description the kernel
/// does not show which process waits, so each such waiter may be this one.
pub(super) fn in_the_way(locks: &str, pid: Pid) -> Vec<String> {
    let mut behind = Vec::new();
    let mut held = String::new();
    for line in locks.lines() {
        let mut words = line.split_ascii_whitespace().skip(1);
        let Some(first) = words.next() else { continue };
        if first != "->" {
            held = std::iter::once(first).chain(words).collect::<Vec<_>>().join(" ");
            continue;
        }
        let waiter = words.nth(3).and_then(|waiter| waiter.parse::<Pid>().ok());
        if (waiter == Some(pid) || waiter == Some(-1)) && !behind.contains(&held) {
            behind.push(held.clone());
        }
    }
    behind
}

/// Whether a lock is on the file with this inode: `FLOCK ADVISORY WRITE 13 00:2a:7 0 EOF`.
fn is_on(lock: &str, ino: u64) -> bool {
    let file = lock.split(' ').nth(4).and_then(|file| file.rsplit(':').next());
    file.is_some_and(|number| number.parse() == Ok(ino))
}

/// Parses `tfd: 5 events: 19 data: 5 pos:0 ino:61af sdev:7` (proc_pid_fdinfo(5)).
pub(super) fn parse_interests(info: &str) -> (Vec<i32>, Vec<u64>) {
    let mut entries: Vec<(i32, i32, u64)> = Vec::new();
    for line in info.lines() {
        let Some(rest) = line.trim_start().strip_prefix("tfd:") else { continue };
        let mut words = rest.split_ascii_whitespace();
        let fd = words.next().and_then(|fd| fd.parse::<i32>().ok());
        let events = words.nth(1).and_then(|events| u32::from_str_radix(events, 16).ok());
        let ino = words.find_map(|word| u64::from_str_radix(word.strip_prefix("ino:")?, 16).ok());
        if let (Some(fd), Some(events)) = (fd, events) {
            // The upper half holds flags such as EPOLLET.
            entries.push((fd, (events & 0xffff) as i32, ino.unwrap_or(0)));
        }
    }
    // The kernel lists them in the order of kernel addresses, which differs from run to run.
    entries.sort_unstable();
    let fds = entries.iter().flat_map(|(fd, events, _)| [*fd, *events]).collect();
    (fds, entries.iter().map(|(.., ino)| *ino).collect())
}

/// The process that a pidfd refers to.
fn pidfd(pid: Pid, fd: i32) -> Option<Pid> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Reads a path from a process's memory.
fn text(pid: Pid, address: u64) -> String {
    /// The most bytes of a path that are read.
    const LONGEST: usize = 256;
    let mut bytes: Vec<u8> = Vec::new();
    // One page at a time: the next one may not be mapped.
    while bytes.len() < LONGEST {
        let at = address + bytes.len() as u64;
        let length = (4096 - (at as usize % 4096)).min(LONGEST - bytes.len());
        let Some(more) = sys::read_memory(pid, at, length).filter(|more| !more.is_empty()) else { break };
        let end = more.iter().position(|byte| *byte == 0);
        bytes.extend(&more[..end.unwrap_or(more.len())]);
        if end.is_some() {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::{CALLS, Call, NAMED, fingerprint, in_the_way, name, parse_interests};

    #[test]
    fn the_waiters_of_a_lock_are_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 12 00:2a:7 0 0\n\
                     2: FLOCK  ADVISORY  WRITE 13 00:2a:7 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 14 00:2a:7 0 EOF\n\
                     2:  -> FLOCK  ADVISORY  WRITE 15 00:2a:7 0 EOF\n";
        for waiter in [14, 15] {
            assert_eq!(in_the_way(locks, waiter), ["FLOCK ADVISORY WRITE 13 00:2a:7 0 EOF"]);
        }
        assert!(in_the_way(locks, 12).is_empty() && in_the_way("2: -> x\n\n:", 12).is_empty());
    }

    #[test]
    fn a_call_has_one_name() {
        assert_eq!(name(libc::SYS_kill, true), "kill");
        // A 32-bit program has other call numbers.
        assert_eq!(name(libc::SYS_kill, false), format!("syscall {}", libc::SYS_kill));
        assert_eq!(name(9999, true), "syscall 9999");
        let numbers = CALLS.iter().map(|(number, ..)| number).chain(NAMED.iter().map(|(number, _)| number));
        let mut numbers: Vec<_> = numbers.collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }

    #[test]
    fn a_line_is_a_number_and_six_arguments() {
        let line = "0 0x3 0x7ffd 0x1 0x0 0x0 0x0 0x7ffc8 0x7f10\n";
        let arguments = [3, 0x7ffd, 1, 0, 0, 0];
        assert_eq!(Call::parse(line), Some(Call::Syscall { number: 0, arguments }));
        assert_eq!(Call::parse("running\n"), Some(Call::Running));
        assert_eq!(Call::parse("-1 0x7ffc8 0x7f10\n"), Some(Call::Blocked));
        assert_eq!(Call::parse("0 0x3\n"), None);
        assert_eq!(Call::parse(""), None);
    }

    #[test]
    fn a_thread_that_has_run_has_another_fingerprint() {
        let status =
            |count| format!("Name:\tx\nvoluntary_ctxt_switches:\t{count}\nnonvoluntary_ctxt_switches:\t1\n");
        assert_eq!(fingerprint("0 0x3", &status(7)), fingerprint("0 0x3", &status(7)));
        assert_ne!(fingerprint("0 0x3", &status(7)), fingerprint("0 0x3", &status(8)));
        assert_ne!(fingerprint("0 0x3", &status(7)), fingerprint("0 0x4", &status(7)));
        assert_eq!(fingerprint("running", &status(7)), "");
    }

    #[test]
    fn an_epoll_tells_its_interest_list() {
        let info = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1058\n\
                    tfd:        5 events:       19 data:  5  pos:0 ino:61af sdev:7\n\
                    tfd:        7 events: 8000001d data: 7  pos:0 ino:62af sdev:7\n";
        assert_eq!(parse_interests(info), (vec![5, 0x19, 7, 0x1d], vec![0x61af, 0x62af]));
    }
}
