//! Reads what threads wait for besides pipes and sockets: file locks, FIFOs, terminals and shared memory, and
//! which processes hold them. Runs only if a thread waits for one of them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::guard::facts::Process;
use crate::guard::isolation;
use crate::proc::fds::{self, Fd};
use crate::proc::maps::Maps;
use crate::proc::process::{self, Stat};
use crate::proc::tree::Tree;
use crate::proc::waits::On;
use crate::sys::wire::wire_struct;
use crate::sys::{self, Pid};

wire_struct! {
    /// One fd of a process.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct FdHolder {
        pub(crate) pid: i32,
        pub(crate) fd: i32,
        /// `O_ACCMODE` and `O_PATH`.
        pub(crate) access: i32,
        pub(crate) cloexec: bool,
        /// The name of the process, if it does not belong to the test.
        pub(crate) outside: Option<String>,
        /// The keys under which the recorder may have its opening: first this process's own.
        pub(crate) keys: Vec<u64>,
    }
}

wire_struct! {
    /// A waiting thread.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Waiter {
        pub(crate) pid: i32,
        pub(crate) tid: i32,
        /// The fd that it waits on; `None` for `open` and futex calls.
        pub(crate) fd: Option<i32>,
        /// For an `open`, the requested access mode (`O_ACCMODE`); otherwise the access mode of the fd.
        pub(crate) access: i32,
        /// As in [`FdHolder`].
        pub(crate) keys: Vec<u64>,
    }
}

wire_struct! {
    /// A file lock that a thread waits for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct FileLock {
        /// As `/proc/locks` prints it, without its number: one of `Thread::behind`.
        pub(crate) line: String,
        pub(crate) path: String,
        /// `FLOCK`, `POSIX` (fcntl(2), lockf(3)) or `OFDLCK` (`F_OFD_SETLK`).
        pub(crate) kind: String,
        /// The process that took it, which may have exited; `None` if it belongs to an open file description.
        pub(crate) taken_by: Option<i32>,
        pub(crate) waiters: Vec<Waiter>,
        /// The fds through which it is held. A `FLOCK` or `OFDLCK` lock belongs to an open file description
        /// that all of these share: it is released when the last one is closed.
        pub(crate) holders: Vec<FdHolder>,
    }
}

wire_struct! {
    /// A FIFO that a thread opens, reads or writes.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Fifo {
        pub(crate) path: String,
        pub(crate) waiters: Vec<Waiter>,
        /// The fds that refer to it.
        pub(crate) holders: Vec<FdHolder>,
    }
}

wire_struct! {
    /// A pseudo-terminal (pty(7)) that a thread waits on.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Terminal {
        /// The number in `/dev/pts/0`.
        pub(crate) index: i32,
        /// The waiting threads, including those stopped by SIGTTIN or SIGTTOU, which have no fd here.
        pub(crate) waiters: Vec<Waiter>,
        /// The fds of its master side, `/dev/ptmx`.
        pub(crate) masters: Vec<FdHolder>,
        /// The fds of its slave side, which may also be open as `/dev/tty`.
        pub(crate) slaves: Vec<FdHolder>,
        /// The foreground process group; `None` if it is not a controlling terminal.
        pub(crate) foreground: Option<i32>,
        /// Bytes that can be read from the master, and from the slave: whole lines only, in canonical mode.
        pub(crate) to_master: Option<u32>,
        pub(crate) to_slave: Option<u32>,
        /// Whether a write to the slave would block until the master is read.
        pub(crate) is_full: bool,
    }
}

wire_struct! {
    /// Shared memory, of a file or anonymous, that contains the word of a futex.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct SharedMemory {
        pub(crate) path: String,
        pub(crate) waiters: Vec<Waiter>,
        /// The processes that map it, each with its name if it does not belong to the test.
        pub(crate) mapped_by: Vec<Mapper>,
    }
}

wire_struct! {
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Mapper {
        pub(crate) pid: i32,
        pub(crate) outside: Option<String>,
    }
}

wire_struct! {
    /// What threads wait for besides pipes and sockets.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Contended {
        pub(crate) locks: Vec<FileLock>,
        pub(crate) fifos: Vec<Fifo>,
        pub(crate) terminals: Vec<Terminal>,
        pub(crate) memory: Vec<SharedMemory>,
        /// Processes that may not be inspected: what they hold is unknown.
        pub(crate) unreadable: u32,
    }
}

impl Contended {
    /// The keys of all fds.
    pub(crate) fn fds(&self) -> impl Iterator<Item = &[u64]> {
        let Contended { locks, fifos, terminals, .. } = self;
        let waiters = locks.iter().flat_map(|lock| &lock.waiters);
        let waiters = waiters.chain(fifos.iter().flat_map(|fifo| &fifo.waiters));
        let waiters = waiters.chain(terminals.iter().flat_map(|terminal| &terminal.waiters));
        let holders = locks.iter().flat_map(|lock| &lock.holders);
        let holders = holders.chain(fifos.iter().flat_map(|fifo| &fifo.holders));
        let ends = terminals.iter().flat_map(|terminal| terminal.masters.iter().chain(&terminal.slaves));
        let holders = holders.chain(ends);
        waiters.map(|waiter| &waiter.keys[..]).chain(holders.map(|holder| &holder.keys[..]))
    }
}

/// Time limit for reading all processes.
const LOOK: Duration = Duration::from_millis(100);
/// The most holders of one file that are kept.
const HOLDERS: usize = 64;

/// What to look for.
#[derive(Default)]
pub(crate) struct Wanted {
    found: Contended,
    /// Targets of `/proc/PID/fd/N`.
    targets: BTreeSet<String>,
    /// Threads that wait on a terminal, whichever it is.
    at_terminals: Vec<Waiter>,
    /// The inodes of the shared memory, in the same order.
    inodes: Vec<u64>,
}

impl Wanted {
    /// Collects what threads wait for. `None` if no thread waits for any of these.
    pub(crate) fn of(processes: &[Process]) -> Option<Wanted> {
        let mut wanted = Wanted::default();
        for process in processes {
            // A stop for terminal access only shows in its signal.
            if matches!(process.signals.stopped_by, Some(libc::SIGTTIN | libc::SIGTTOU)) {
                let pid = process.pid;
                wanted.at_terminals.push(Waiter { pid, tid: pid, fd: None, access: 0, keys: Vec::new() });
            }
            for thread in &process.tasks {
                let keys = |fd: Option<i32>| fd.map_or_else(Vec::new, |fd| keys(processes, process.pid, fd));
                let waiter = |fd: Option<i32>, access| Waiter {
                    pid: process.pid,
                    tid: thread.tid,
                    fd,
                    access,
                    keys: keys(fd),
                };
                match &thread.on {
                    On::Lock { fd } => wanted.add_locks(process, *fd, &thread.behind, &waiter(Some(*fd), 0)),
                    On::Open { path, access } => {
                        if let Some(path) = fifo_at(process.pid, path) {
                            wanted.add_fifo(path, waiter(None, *access));
                        }
                    }
                    On::Futex { shared: true, place: Some(place), .. } => {
                        wanted.add_memory(process.pid, &place.module, waiter(None, 0));
                    }
                    _ => {
                        for fd in thread.fds().into_iter().filter_map(|fd| process.fd(fd)) {
                            if is_terminal(&fd.target) {
                                wanted.at_terminals.push(waiter(Some(fd.fd), fd.access));
                            }
                            if is_fifo(process.pid, fd) {
                                wanted.add_fifo(fd.target.clone(), waiter(Some(fd.fd), fd.access));
                            }
                        }
                    }
                }
            }
        }
        (!wanted.at_terminals.is_empty() || !wanted.targets.is_empty() || !wanted.inodes.is_empty())
            .then_some(wanted)
    }

    fn add_locks(&mut self, process: &Process, fd: i32, behind: &[String], waiter: &Waiter) {
        let Some(file) = process.fd(fd) else { return };
        for line in behind {
            let waiter = waiter.clone();
            if let Some(known) = self.found.locks.iter_mut().find(|known| known.line == *line) {
                known.waiters.push(waiter);
                continue;
            }
            let mut words = line.split(' ');
            let kind = words.next().unwrap_or_default().to_owned();
            // `FLOCK ADVISORY WRITE 359 00:13:11691 0 EOF`
            let taken_by = words.nth(2).and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0);
            self.targets.insert(file.target.clone());
            self.found.locks.push(FileLock {
                line: line.clone(),
                path: file.target.clone(),
                kind,
                taken_by,
                waiters: vec![waiter],
                holders: Vec::new(),
            });
        }
    }

    fn add_fifo(&mut self, path: String, waiter: Waiter) {
        match self.found.fifos.iter_mut().find(|fifo| fifo.path == path) {
            Some(fifo) => fifo.waiters.push(waiter),
            None => {
                self.targets.insert(path.clone());
                self.found.fifos.push(Fifo { path, waiters: vec![waiter], holders: Vec::new() });
            }
        }
    }

    fn add_memory(&mut self, pid: Pid, path: &str, waiter: Waiter) {
        let Some(inode) = Maps::read(pid).ok().and_then(|maps| maps.inode(path)) else { return };
        match self.inodes.iter().position(|known| *known == inode) {
            Some(at) => self.found.memory[at].waiters.push(waiter),
            None => {
                let path = path.to_owned();
                self.inodes.push(inode);
                self.found.memory.push(SharedMemory { path, waiters: vec![waiter], mapped_by: Vec::new() });
            }
        }
    }

    /// Reads all processes.
    pub(crate) fn read(
        mut self,
        processes: &[Process],
        tree: &Tree,
        supervisor: Pid,
        until: Option<Instant>,
    ) -> Contended {
        let own = Instant::now() + LOOK;
        let until = until.map_or(own, |until| until.min(own));
        // The processes of the test come first, in their order: time may not suffice for all.
        let inside: HashMap<Pid, usize> =
            processes.iter().enumerate().map(|(at, process)| (process.pid, at)).collect();
        let mut all: Vec<&Stat> = tree.processes().collect();
        all.sort_unstable_by_key(|stat| (inside.get(&stat.pid).copied().unwrap_or(usize::MAX), stat.pid));
        for stat in all {
            if stat.is_zombie() || stat.is_kernel_thread || stat.pid == supervisor {
                continue;
            }
            if Instant::now() >= until {
                self.found.unreadable += 1;
                continue;
            }
            let outside = (!inside.contains_key(&stat.pid)).then(|| stat.comm.clone());
            let id = stat.readable_id();
            self.found.unreadable += u32::from(!self.look(stat.pid, id, outside.as_ref()));
        }
        // Of those outside nothing can be read.
        self.found.unreadable += u32::from(isolation::is_inside());
        self.add_keys(processes);
        for terminal in &mut self.found.terminals {
            let has = |waiter: &Waiter| {
                let mut ends = terminal.masters.iter().chain(&terminal.slaves);
                ends.any(|end| end.pid == waiter.pid && waiter.fd.is_none_or(|fd| fd == end.fd))
            };
            terminal.waiters = self.at_terminals.iter().filter(|waiter| has(waiter)).cloned().collect();
        }
        self.found.terminals.retain(|terminal| !terminal.waiters.is_empty());
        self.found
    }

    /// Adds what the openings of the holders' fds are recorded under.
    fn add_keys(&mut self, processes: &[Process]) {
        let locks = self.found.locks.iter_mut().flat_map(|lock| &mut lock.holders);
        let fifos = self.found.fifos.iter_mut().flat_map(|fifo| &mut fifo.holders);
        let terminals = self.found.terminals.iter_mut();
        let ends = terminals.flat_map(|terminal| terminal.masters.iter_mut().chain(&mut terminal.slaves));
        let all = locks.chain(fifos).chain(ends);
        for holder in all.filter(|holder| holder.outside.is_none()) {
            holder.keys = keys(processes, holder.pid, holder.fd);
        }
    }

    /// Reads one process. Returns whether it may be read.
    fn look(&mut self, pid: Pid, id: Pid, outside: Option<&String>) -> bool {
        if !self.inodes.is_empty()
            && let Ok(maps) = Maps::read(id)
        {
            for (memory, inode) in self.found.memory.iter_mut().zip(&self.inodes) {
                if maps.inode(&memory.path) == Some(*inode) {
                    memory.mapped_by.push(Mapper { pid, outside: outside.cloned() });
                }
            }
        }
        if self.targets.is_empty() && self.at_terminals.is_empty() {
            return true;
        }
        let terminals = !self.at_terminals.is_empty();
        let is_wanted = |target: &str| self.targets.contains(target) || terminals && is_terminal(target);
        let fds = match fds::read_those(id, &is_wanted) {
            Ok(fds) => fds,
            // The process may have exited since.
            Err(error) => return error.kind() != io::ErrorKind::PermissionDenied,
        };
        let mut pidfd = None;
        for fd in &fds {
            let Fd { fd: number, access, cloexec, .. } = *fd;
            let holder =
                FdHolder { pid, fd: number, access, cloexec, outside: outside.cloned(), keys: Vec::new() };
            for lock in self.found.locks.iter_mut().filter(|lock| fd.held.contains(&lock.line)) {
                push(&mut lock.holders, holder.clone());
            }
            for fifo in self.found.fifos.iter_mut().filter(|fifo| fifo.path == fd.target) {
                push(&mut fifo.holders, holder.clone());
            }
            if terminals && is_terminal(&fd.target) {
                let pidfd = pidfd.get_or_insert_with(|| sys::pidfd_open(pid).ok());
                self.add_terminal(id, fd, holder, pidfd.as_ref());
            }
        }
        true
    }

    fn add_terminal(&mut self, id: Pid, fd: &Fd, holder: FdHolder, pidfd: Option<&OwnedFd>) {
        let is_master = is_master(&fd.target);
        let controlling = controlling(id);
        let index = match fd.target.as_str() {
            "/dev/tty" => controlling.map(|(index, _)| index),
            _ if is_master => index_of_master(id, fd.fd),
            target => target.strip_prefix("/dev/pts/").and_then(|index| index.parse().ok()),
        };
        let Some(index) = index else { return };
        let terminals = &mut self.found.terminals;
        let at = terminals.iter().position(|terminal| terminal.index == index).unwrap_or_else(|| {
            terminals.push(Terminal {
                index,
                waiters: Vec::new(),
                masters: Vec::new(),
                slaves: Vec::new(),
                foreground: None,
                to_master: None,
                to_slave: None,
                is_full: false,
            });
            terminals.len() - 1
        });
        let terminal = &mut terminals[at];
        if let Some((_, group)) =
            controlling.filter(|(controlling, group)| *controlling == index && *group > 0)
        {
            terminal.foreground = Some(group);
        }
        let is_asked = if is_master { terminal.to_master } else { terminal.to_slave }.is_some();
        let second = pidfd.filter(|_| !is_asked).and_then(|pidfd| sys::pidfd_getfd(pidfd, fd.fd).ok());
        let queued = second.as_ref().and_then(sys::queued);
        if is_master {
            terminal.to_master = terminal.to_master.or(queued);
            push(&mut terminal.masters, holder);
        } else {
            terminal.to_slave = terminal.to_slave.or(queued);
            terminal.is_full |= second.is_some_and(|second| has_no_room(&second));
            push(&mut terminal.slaves, holder);
        }
    }
}

/// What the opening of an fd may be recorded under: by its process, or by an ancestor from which it has the fd.
fn keys(processes: &[Process], pid: Pid, fd: i32) -> Vec<u64> {
    let Some(process) = processes.iter().find(|process| process.pid == pid) else { return Vec::new() };
    let cloexec = process.fd(fd).is_some_and(|fd| fd.cloexec);
    let may_have_inherited = process.forked_without_exec || !cloexec;
    let test = processes.iter().filter(|process| process.is_test).map(|process| process.pid);
    let ancestors = process.lineage.iter().copied().chain(test).filter(|_| may_have_inherited);
    fds::open_keys(pid, fd, &ancestors.filter(|ancestor| *ancestor != pid).collect::<Vec<Pid>>())
}

fn push(holders: &mut Vec<FdHolder>, holder: FdHolder) {
    if holders.len() < HOLDERS {
        holders.push(holder);
    }
}

/// Whether an fd refers to a terminal or to the master of one.
fn is_terminal(target: &str) -> bool {
    is_master(target) || target == "/dev/tty" || target.starts_with("/dev/pts/")
}

fn is_master(target: &str) -> bool {
    matches!(target, "/dev/ptmx" | "/dev/pts/ptmx")
}

/// The terminal that an fd is the master of (proc_pid_fdinfo(5), since Linux 4.15).
fn index_of_master(pid: Pid, fd: i32) -> Option<i32> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("tty-index:"))?.trim().parse().ok()
}

/// The controlling terminal of a process and its foreground process group, if it is a pseudo-terminal.
fn controlling(pid: Pid) -> Option<(i32, i32)> {
    let number: u32 = process::field(pid, 7)?.parse().ok()?;
    Some((index_of(number)?, process::field(pid, 8)?.parse().ok()?))
}

/// The index of the pseudo-terminal with this device number (proc_pid_stat(5)).
fn index_of(number: u32) -> Option<i32> {
    /// UNIX98_PTY_SLAVE_MAJOR, the first of eight (include/uapi/linux/major.h).
    const FIRST: u32 = 136;
    let major = number >> 8 & 0xfff;
    let minor = number & 0xff | number >> 12 & 0xf_ff00;
    (FIRST..FIRST + 8).contains(&major).then(|| ((major - FIRST) * 256 + minor) as i32)
}

fn has_no_room(terminal: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(terminal), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| !events.intersects(PollFlags::POLLOUT | PollFlags::POLLHUP))
}

/// Whether an fd refers to a named FIFO.
fn is_fifo(pid: Pid, fd: &Fd) -> bool {
    fd.target.starts_with('/')
        && fs::metadata(format!("/proc/{pid}/fd/{}", fd.fd)).is_ok_and(|file| file.file_type().is_fifo())
}

/// The path of the FIFO that a process opens as `path`, as fds show it. `None` if it is not a FIFO.
fn fifo_at(pid: Pid, path: &str) -> Option<String> {
    let from = if path.starts_with('/') { "root" } else { "cwd" };
    let path = Path::new("/proc").join(pid.to_string()).join(from).join(path.trim_start_matches('/'));
    // `stat` does not open the FIFO, so it cannot block.
    fs::metadata(&path).ok().filter(|file| file.file_type().is_fifo())?;
    Some(fs::canonicalize(path).ok()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{index_of, is_master, is_terminal};

    #[test]
    fn a_terminal_is_known_by_its_number_and_its_name() {
        assert_eq!((index_of(0x8803), index_of(0x8901)), (Some(3), Some(257)));
        // The console, and no terminal.
        assert_eq!((index_of(0x0501), index_of(0)), (None, None));
        assert!(is_terminal("/dev/pts/4") && is_terminal("/dev/ptmx") && !is_terminal("/dev/null"));
        assert!(is_master("/dev/pts/ptmx") && !is_master("/dev/pts/4"));
    }
}
