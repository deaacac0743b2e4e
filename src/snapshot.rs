//! Looks at the processes below a supervisor: the evidence, before anything is killed.
//!
//! The race: a tree changes while it is read. A snapshot is read once; [`Snapshot::look_again`]
//! tells of each thread whether it has run since. What both looks agree on was so all the time in
//! between.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::facts::{Class, Outside, Outsider, PipeState, Process};
use crate::proc::fds::{self, Fd};
use crate::proc::process::{self, Stat};
use crate::proc::sockets::{Asker, Peer, Socket};
use crate::proc::tree::Tree;
use crate::proc::waits;
#[cfg(feature = "sites")]
use crate::proc::{maps::Maps, unwind::Unwinder};
use crate::sys::{self, Pid};

/// The descendants of a supervisor at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    tree: Tree,
    processes: Vec<Process>,
    supervisor: Pid,
    /// As in the [`Scene`].
    foreign: Vec<u64>,
}

/// What is known of a test before anybody looks.
pub(crate) struct Scene<'a> {
    pub(crate) supervisor: Pid,
    /// The test process, dead or alive.
    pub(crate) test: Pid,
    /// When the test began. Its process may have waited for it.
    pub(crate) begin: Instant,
    /// The inodes of pipes that were there before the test, and are none of its doing.
    pub(crate) foreign: Vec<u64>,
    /// The test binary's arguments.
    pub(crate) command_line: &'a [String],
}

/// How closely a snapshot looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Who is there and who is whose parent.
    Tree,
    /// And what every thread waits for.
    Waits,
}

/// The most sockets that the kernel is asked about.
const SOCKETS: usize = 256;
/// The most fds that are read: of a process beyond that none are known. A fork has all of its parent's, and
/// the harness does not wait for ever.
const FDS: usize = 100_000;
/// The most threads whose stacks are read.
#[cfg(feature = "sites")]
const STACKS: usize = 64;

impl Snapshot {
    /// Looks at everything below the supervisor.
    pub(crate) fn take(scene: &Scene<'_>, depth: Depth) -> Snapshot {
        let tree = Tree::read();
        let uptime = uptime();
        let mut left = FDS;
        let mut processes: Vec<Process> = tree
            .below(scene.supervisor, &[])
            .into_iter()
            // A zombie below another descendant is that parent's business, and it may still wait.
            .filter(|stat| !stat.is_zombie() || stat.ppid == scene.test || stat.pid == scene.test)
            .map(|stat| look(stat, &tree, scene, uptime, depth, &mut left))
            .collect();
        note_tracers(&mut processes);
        let dead: Vec<&Stat> = tree.processes().filter(|stat| stat.is_zombie()).collect();
        for process in &mut processes {
            let own = dead.iter().filter(|stat| stat.ppid == process.pid);
            process.dead_children = own.map(|stat| stat.pid).collect();
        }
        Snapshot { tree, processes, supervisor: scene.supervisor, foreign: scene.foreign.clone() }
    }

    /// The processes besides the test process itself, as they were.
    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Keeps of a later look what only the earlier one could know: who the parents were.
    pub(crate) fn remember(&mut self, earlier: &Snapshot) {
        let known: HashMap<Pid, &Process> =
            earlier.processes.iter().map(|process| (process.pid, process)).collect();
        for process in &mut self.processes {
            let Some(before) = known.get(&process.pid) else {
                continue;
            };
            let same = earlier.tree.get(process.pid).map(|stat| stat.start_ticks)
                == self.tree.get(process.pid).map(|stat| stat.start_ticks);
            if same && before.lineage.len() > process.lineage.len() {
                process.lineage.clone_from(&before.lineage);
                // That its parent ended with the test, on our word, is no news.
                process.adopted = before.adopted;
            }
        }
    }

    /// Whether a second look could prove anything: some thread waits without an end in sight.
    pub(crate) fn waits_forever(&self) -> bool {
        self.processes.iter().flat_map(|process| &process.tasks).any(waits::Thread::waits_forever)
    }

    /// Looks once more, and notes which threads have not run since the first look. A process with
    /// a thread that was not there then proves nothing.
    ///
    /// Tells whether there is a process that the first look has not seen. One that forks and ends, again
    /// and again, may escape both, but what it was stays behind as a zombie of the supervisor's.
    pub(crate) fn look_again(&mut self) -> bool {
        for process in &mut self.processes {
            let same = waits::count(process.pid) == process.tasks.len();
            for thread in &mut process.tasks {
                thread.settled = same && waits::has_not_run(process.pid, thread);
            }
        }
        let newcomers = self.tree.newcomers();
        let came: HashSet<Pid> = newcomers.iter().map(|stat| stat.pid).collect();
        let known = self.tree.below(self.supervisor, &[]).into_iter().cloned();
        let now = Tree::of(known.chain(newcomers));
        now.below(self.supervisor, &[]).into_iter().any(|stat| came.contains(&stat.pid))
    }

    /// Whether an fd has come to a process since its table was read, over a socket or by pidfd_getfd(2): to one
    /// that has run since, which [`Snapshot::look_again`] has noted, or that has only to receive it.
    pub(crate) fn has_fd_moved(&self) -> bool {
        let all = self.processes.iter().flat_map(|process| process.known_fds());
        let known: HashSet<u64> =
            all.filter_map(Fd::pipe_or_socket).filter(|ino| !self.foreign.contains(ino)).collect();
        self.processes.iter().any(|process| {
            let Some(before) = &process.fds else { return false };
            let receives = process.more_sockets || before.iter().any(|fd| fd.socket().is_some());
            if !receives && process.tasks.iter().all(|thread| thread.settled) {
                return false;
            }
            let had: HashSet<(Option<u64>, i32, bool)> =
                before.iter().map(|fd| (fd.pipe_or_socket(), fd.access, fd.carries)).collect();
            let id = Stat::read(process.pid).map_or(process.pid, |stat| stat.readable_id());
            let Ok(now) = fds::read(id) else { return false };
            now.iter().any(|fd| {
                let target = fd.pipe_or_socket();
                target.is_some_and(|ino| known.contains(&ino))
                    && !had.contains(&(target, fd.access, fd.carries))
            })
        })
    }

    /// Reads the stacks of the test process and its forks.
    #[cfg(feature = "sites")]
    pub(crate) fn read_stacks(&mut self) {
        let mut unwinder = Unwinder::default();
        let mut left = STACKS;
        for process in &mut self.processes {
            if !process.runs_own_program() {
                continue;
            }
            let Ok(maps) = Maps::read(process.pid) else { continue };
            for thread in process.tasks.iter_mut().take(left) {
                thread.frames = unwinder.frames(process.pid, thread.tid, &maps);
            }
            left = left.saturating_sub(process.tasks.len());
        }
    }

    /// The machine's processes, and those of the test.
    pub(crate) fn into_parts(self) -> (Tree, Vec<Process>) {
        (self.tree, self.processes)
    }

    /// The pipes of the test that somebody in the tree holds, and how full they are.
    pub(crate) fn pipes(&self) -> Vec<PipeState> {
        let mut known: Vec<PipeState> = Vec::new();
        // Where each is in the list, and which of its ends were asked.
        let mut places: HashMap<u64, (usize, [bool; 2])> = HashMap::new();
        for process in &self.processes {
            let Ok(pidfd) = sys::pidfd_open(process.pid) else { continue };
            for fd in process.known_fds().iter() {
                let Some(ino) = fd.pipe() else { continue };
                let (at, asked) = places.entry(ino).or_insert_with(|| {
                    let (queued, capacity) = (None, None);
                    known.push(PipeState { ino, queued, capacity, no_writer: false, no_reader: false });
                    (known.len() - 1, [false; 2])
                });
                // Any fd of one end tells the same.
                if (!fd.reads() || asked[0]) && (!fd.writes() || asked[1]) {
                    continue;
                }
                if let Some(pipe) = known.get_mut(*at)
                    && ask(&pidfd, fd, pipe)
                {
                    *asked = [asked[0] || fd.reads(), asked[1] || fd.writes()];
                }
            }
        }
        known
    }

    /// Asks the kernel about the sockets of the tree, if a thread waits for something that a socket
    /// could bring. Those that are not asked about are forgotten.
    pub(crate) fn sockets(&mut self) -> Vec<Socket> {
        let mut asked: Vec<Socket> = Vec::new();
        let waited_on: Vec<HashSet<i32>> =
            self.processes.iter().map(|process| waited_on(&process.tasks)).collect();
        let on_one = |(process, waited_on): (&Process, &HashSet<i32>)| {
            process.known_fds().iter().any(|fd| fd.socket().is_some() && waited_on.contains(&fd.fd))
        };
        let mut known: HashSet<u64> = HashSet::new();
        if self.waits_forever() || self.processes.iter().zip(&waited_on).any(on_one) {
            let asker = Asker::new();
            let mut waiting: Vec<(u64, u64)> = Vec::new();
            // First those that a thread waits on: there may be more than are asked about.
            for first in [true, false] {
                for (process, waited_on) in self.processes.iter().zip(&waited_on) {
                    let mut pidfd = None;
                    for fd in process.known_fds().iter() {
                        let Some(ino) = fd.socket() else { continue };
                        if asked.len() >= SOCKETS || first != waited_on.contains(&fd.fd) || !known.insert(ino)
                        {
                            continue;
                        }
                        let pidfd = pidfd.get_or_insert_with(|| sys::pidfd_open(process.pid).ok());
                        let (socket, clients) = asker.ask(process.pid, pidfd.as_ref(), fd.fd, ino);
                        waiting.extend(clients.into_iter().map(|client| (client, ino)));
                        asked.push(socket);
                    }
                }
            }
            for (client, listener) in waiting {
                let socket = asked.iter_mut().find(|socket| socket.ino == client);
                if let Some(socket) = socket.filter(|socket| socket.peer == Peer::Nobody) {
                    socket.peer = Peer::Queue { ino: listener };
                }
            }
        }
        for process in &mut self.processes {
            let Some(fds) = &mut process.fds else { continue };
            let before = fds.len();
            fds.retain(|fd| fd.socket().is_none_or(|ino| known.contains(&ino)));
            process.more_sockets |= fds.len() < before;
        }
        asked
    }

    /// Looks over every process outside of the tree for these pipes and sockets.
    pub(crate) fn outside(&self, targets: &[String]) -> Outside {
        let mut outside = Outside::default();
        let mut targets: HashSet<&str> = targets.iter().map(String::as_str).collect();
        let events: HashSet<u64> = self.processes.iter().flat_map(awaited_events).collect();
        if !events.is_empty() {
            targets.insert("anon_inode:[eventfd]");
        }
        // What passes with a straggler, and most leaks, are about no pipe: nothing to look for.
        if targets.is_empty() {
            return outside;
        }
        let inside: HashSet<Pid> = self.processes.iter().map(|process| process.pid).collect();
        for stat in self.tree.processes() {
            let inside = inside.contains(&stat.pid);
            // A kernel thread has no fds, and a zombie none any more.
            if inside || stat.is_zombie() || stat.is_kernel_thread || stat.pid == self.supervisor {
                continue;
            }
            match fds::ends_of(stat.readable_id(), &targets) {
                None => outside.unreadable += 1,
                Some(mut fds) => {
                    outside.read += 1;
                    fds.retain(|fd| fd.event == 0 || events.contains(&fd.event));
                    if !fds.is_empty() {
                        outside.holders.push(Outsider { pid: stat.pid, comm: stat.comm.clone(), fds });
                    }
                }
            }
        }
        outside
    }
}

/// Notes what a debugger may do: it wakes whom it traces, and waits for more than its children.
fn note_tracers(processes: &mut [Process]) {
    let tracers: HashSet<Pid> =
        processes.iter().flat_map(|process| &process.tasks).map(|thread| thread.tracer).collect();
    for process in processes {
        if process.tasks.iter().any(|thread| thread.tracer != 0) {
            process.holes.push("it is traced".to_owned());
        }
        if process.tasks.iter().any(|thread| tracers.contains(&thread.tid)) {
            process.holes.push("it traces another process".to_owned());
        }
    }
}

/// The fds that some thread waits on.
fn waited_on(tasks: &[waits::Thread]) -> HashSet<i32> {
    tasks.iter().flat_map(waits::Thread::fds).collect()
}

/// The eventfds that some thread of a process waits on.
fn awaited_events(process: &Process) -> Vec<u64> {
    let mut events = process.known_fds().iter().filter(|fd| fd.event != 0).peekable();
    if events.peek().is_none() {
        return Vec::new();
    }
    let waited_on = waited_on(&process.tasks);
    events.filter(|fd| waited_on.contains(&fd.fd)).map(|fd| fd.event).collect()
}

/// Asks the kernel about a pipe through a second number for one of its ends, which is closed at
/// once. Where that is refused, nothing is known; tells whether it was not.
fn ask(pidfd: &std::os::fd::OwnedFd, fd: &Fd, pipe: &mut PipeState) -> bool {
    let Ok(end) = sys::pidfd_getfd(pidfd, fd.fd) else { return false };
    pipe.queued = pipe.queued.or_else(|| sys::queued(&end));
    pipe.capacity = pipe
        .capacity
        .or_else(|| fcntl(&end, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| u32::try_from(size).ok()));
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&end), PollFlags::empty())];
    if poll(&mut fds, PollTimeout::ZERO).is_ok() {
        let events = fds[0].revents().unwrap_or(PollFlags::empty());
        // A fd open for both is its own other end.
        pipe.no_writer |= fd.reads() && !fd.writes() && events.contains(PollFlags::POLLHUP);
        pipe.no_reader |= fd.writes() && !fd.reads() && events.contains(PollFlags::POLLERR);
    }
    true
}

fn look(
    stat: &Stat,
    tree: &Tree,
    scene: &Scene<'_>,
    uptime: Option<Duration>,
    depth: Depth,
    left: &mut usize,
) -> Process {
    let Scene { supervisor, test, begin, .. } = *scene;
    let is_test = stat.pid == test;
    let zombie = stat.is_zombie();
    let mut lineage = Vec::new();
    let mut parent = stat.ppid;
    while parent != supervisor && lineage.len() < 64 {
        lineage.push(parent);
        match tree.get(parent) {
            Some(stat) => parent = stat.ppid,
            None => break,
        }
    }
    let id = stat.readable_id();
    let command_line = if zombie { Vec::new() } else { process::command_line(id) };
    let closely = depth == Depth::Waits && !zombie;
    let tasks = if closely { waits::read(stat.pid) } else { Vec::new() };
    let table = match *left {
        _ if zombie => Some(Vec::new()),
        0 => None,
        _ => fds::read(id).ok(),
    };
    *left = left.saturating_sub(table.as_ref().map_or(0, Vec::len));
    let holes = if closely { process::holes(stat.pid) } else { Vec::new() };
    let hidden = if closely { hidden(id, &tasks, table.as_deref()) } else { Vec::new() };
    let more_sockets = table.is_none();
    let waited_on = waited_on(&tasks);
    let fds = table.map(|mut fds| {
        fds.retain(|fd| {
            fd.pipe().is_some_and(|ino| !scene.foreign.contains(&ino))
                || fd.event != 0
                || fd.locks
                || closely && (fd.socket().is_some() || fd.is_epoll())
                || waited_on.contains(&fd.fd)
        });
        fds
    });
    Process {
        pid: stat.pid,
        class: if zombie { Class::Unwaited } else { Class::Leaked },
        adopted: stat.ppid == supervisor && !is_test,
        is_test,
        lineage,
        parent: stat.ppid,
        dead_children: Vec::new(),
        comm: stat.comm.clone(),
        state: stat.state.to_string(),
        pgid: stat.pgid,
        sid: stat.sid,
        threads: stat.threads,
        // The flag is set for forks of other programs too.
        forked_without_exec: stat.forked_without_exec && command_line == scene.command_line,
        command_line,
        age: match uptime {
            _ if is_test => Some(begin.elapsed()),
            uptime => uptime.and_then(|now| now.checked_sub(since_boot(stat.start_ticks))),
        },
        tasks,
        fds,
        holes,
        hidden,
        more_sockets,
        killed: false,
    }
}

/// What a process may hold, or get, that is not in its table of fds.
fn hidden(id: Pid, tasks: &[waits::Thread], fds: Option<&[Fd]>) -> Vec<String> {
    /// How a ring of io_uring is called.
    const URING: &str = "anon_inode:[io_uring]";
    let mut hidden = Vec::new();
    let fds = fds.unwrap_or_default();
    let maps = std::fs::read(format!("/proc/{id}/maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    // It may have registered files (io_uring_register(2)), and reads and writes without a thread, even
    // if the fd of the ring is closed.
    if fds.iter().any(|fd| fd.target == URING) || maps.contains(URING) {
        hidden.push("it uses io_uring".to_owned());
    }
    // io_submit(2): so does the older interface.
    if maps.contains("/[aio]") {
        hidden.push("it uses AIO".to_owned());
    }
    let has_ended = |thread: &&waits::Thread| matches!(thread.state.as_str(), "Z" | "X" | "x");
    let mut others = tasks.iter().filter(|thread| thread.tid != id && !has_ended(thread));
    if !others.all(|thread| have_same_files(id, thread.tid)) {
        hidden.push("a thread of it has a table of fds of its own".to_owned());
    }
    if fds.iter().any(|fd| fd.carries) {
        hidden.push("fds are on their way to it over a socket".to_owned());
    }
    hidden
}

/// Whether two threads have the same fds (unshare(2) ends that).
fn have_same_files(one: Pid, other: Pid) -> bool {
    let table = |tid: Pid| -> Option<HashSet<_>> {
        let entries = std::fs::read_dir(format!("/proc/{tid}/fd")).ok()?.flatten();
        Some(entries.map(|entry| (entry.file_name(), std::fs::read_link(entry.path()).ok())).collect())
    };
    // Where the kernel does not tell, the tables may.
    sys::have_same_files(one, other).unwrap_or_else(|| table(one) == table(other))
}

fn since_boot(ticks: u64) -> Duration {
    // USER_HZ has been 100 on every Linux architecture but alpha and ia64, which are gone.
    Duration::from_millis(ticks.saturating_mul(10))
}

fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}
