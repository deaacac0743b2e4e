//! Reads the processes below a supervisor: the evidence, before anything is killed.
//!
//! A tree changes while it is read. A snapshot is read once; [`Snapshot::look_again`] finds out which threads
//! have run since. What both reads agree on held all the time in between.
//!
//! Longer than 600 lines: one snapshot of one tree; its parts share what was read.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::guard::contended::{Contended, Wanted};
use crate::guard::facts::{Class, EvidenceLimit, Outside, Outsider, PipeState, Process, UnseenFds};
use crate::guard::isolation;
#[cfg(feature = "__engine")]
use crate::guard::orphans::Root;
#[cfg(feature = "sites")]
use crate::guard::stacks;
use crate::guard::stop::Stopped;
use crate::proc::fds::{self, Fd};
#[cfg(feature = "sites")]
use crate::proc::mapped::MappedFile;
use crate::proc::process::{self, Stat, UnseenWaker, since_boot, uptime};
use crate::proc::runners;
use crate::proc::signals::{Ended, Signals};
use crate::proc::sockets::{Asker, Peer, Socket};
use crate::proc::tree::{Tree, Update};
use crate::proc::waits;
use crate::sys::{self, BaselineFds, Pid};

/// A snapshot of the descendants of a supervisor.
#[derive(Default)]
pub(crate) struct Snapshot {
    tree: Tree,
    processes: Vec<Process>,
    supervisor: Pid,
    /// The inodes of pipes and sockets that were open before the test.
    preexisting: Vec<u64>,
    /// The time limit; `None` for no limit.
    until: Option<Instant>,
    /// What could not be read within it.
    cut: Cut,
}

/// What a snapshot lacks because its time was over.
#[derive(Clone, Copy, Default)]
struct Cut {
    /// Processes of the tree of which only the line in `/proc` was read.
    processes: u32,
    /// Whether new processes kept appearing.
    tree: bool,
    outside: bool,
    pipes_or_sockets: bool,
    stacks: bool,
}

/// What is known of a test before the first snapshot.
pub(crate) struct SubjectStart<'a> {
    pub(crate) supervisor: Pid,
    /// The test process, running or a zombie.
    pub(crate) test: Pid,
    /// When the test began, which its process may have waited for.
    pub(crate) begin: Instant,
    /// The fd baseline: fds from before the test.
    pub(crate) before: BaselineFds,
    /// The test binary's arguments.
    pub(crate) command_line: &'a [String],
}

impl SubjectStart<'_> {
    /// The inodes of pipes and sockets that were open before the test.
    pub(crate) fn preexisting(&self) -> Vec<u64> {
        self.before.iter().map(|known| known.identity().ino).collect()
    }
}

/// How much a snapshot reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The line in `/proc/PID/stat` only.
    Line,
    /// Every process, and its parent.
    Tree,
    /// Also what every thread waits for.
    Waits,
}

/// The most sockets that the kernel is asked about.
const SOCKETS: usize = 256;
/// The most fds that are read; a process beyond that has none in the snapshot. A fork has all of its
/// parent's, and the harness does not wait forever.
const FDS: usize = 100_000;
impl Snapshot {
    /// Takes a snapshot of the tree below the supervisor. Processes that cannot be read before `of_tree` are left out, and
    /// of those that cannot be read before `until` everything but their line.
    pub(crate) fn of_tree(start: &SubjectStart<'_>, of_tree: Instant, until: Instant) -> Snapshot {
        let mut tree = Tree::default();
        let update = tree.update(start.supervisor, &[], |_| false, of_tree, |_| (), |_, ()| {});
        let mut now = Snapshot::take(start, Depth::Tree, tree, &Stopped::default(), until);
        now.cut.tree = update == Update::Cut;
        now
    }

    /// Takes a full snapshot of the processes of `tree` that are below the supervisor; those in `stopped`
    /// were stopped before. What cannot be read before `until` is left out.
    pub(crate) fn of_waits(
        start: &SubjectStart<'_>,
        tree: Tree,
        stopped: &Stopped,
        until: Instant,
    ) -> Snapshot {
        let mut now = Snapshot::take(start, Depth::Waits, tree, stopped, until);
        now.cut.tree = stopped.is_cut;
        now
    }

    fn take(
        start: &SubjectStart<'_>,
        depth: Depth,
        tree: Tree,
        stopped: &Stopped,
        until: Instant,
    ) -> Snapshot {
        let uptime = uptime();
        let mut left = FDS;
        let mut cut = Cut::default();
        let mut processes: Vec<Process> = tree
            .below(start.supervisor, &[])
            .into_iter()
            // A zombie below another descendant is that parent's to reap, and it may still do so.
            .filter(|stat| !stat.is_zombie() || stat.ppid == start.test || stat.pid == start.test)
            .map(|stat| {
                let is_late = Instant::now() >= until || stopped.may_block_readers(stat);
                cut.processes += u32::from(is_late && !stat.is_zombie());
                let depth = if is_late { Depth::Line } else { depth };
                look(stat, &tree, start, uptime, depth, stopped, &mut left)
            })
            .collect();
        note_tracers(&mut processes);
        note_inheritance(&mut processes);
        note_own_program(&mut processes, &tree, start.test);
        let mut dead: Vec<&Stat> = tree.processes().filter(|stat| stat.is_zombie()).collect();
        dead.sort_unstable_by_key(|stat| stat.pid);
        for process in &mut processes {
            let own = dead.iter().filter(|stat| stat.ppid == process.pid);
            process.dead_children = own.clone().map(|stat| stat.pid).collect();
            process.ended.extend(own.map(|stat| Ended::read(stat.pid, &stat.comm)));
        }
        let (supervisor, preexisting) = (start.supervisor, start.preexisting());
        Snapshot { tree, processes, supervisor, preexisting, until: Some(until), cut }
    }

    /// Extends the time limit.
    pub(crate) fn set_until(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Whether the time limit has passed.
    pub(crate) fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Notes what could not be read, if anything, and marks the snapshot so that nothing is proved from it.
    pub(crate) fn close(&mut self, limits: &mut Vec<EvidenceLimit>) {
        let Cut { processes, tree, outside, pipes_or_sockets, stacks } = self.cut;
        if processes == 0 && !(tree || outside || pipes_or_sockets || stacks) {
            return;
        }
        limits.push(EvidenceLimit::OutOfTime { processes, tree, outside, pipes_or_sockets, stacks });
        for process in &mut self.processes {
            process.unseen_wakers.push(UnseenWaker::NotRead);
        }
    }

    /// The processes other than the test process itself.
    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Takes over from an earlier snapshot what has been lost since: the parents.
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
                // That its parent exited with the test, when the guard continued it, is not worth a report. Another one was
                // killed, and had not died yet.
                let parent = before.lineage.first().filter(|_| before.lineage.len() > 1);
                process.adopted = before.adopted || parent.is_some_and(|pid| self.tree.get(*pid).is_none());
            }
        }
    }

    /// Whether a second snapshot could prove anything: some thread waits without a timeout.
    pub(crate) fn waits_forever(&self) -> bool {
        self.processes.iter().flat_map(|process| &process.tasks).any(waits::Thread::waits_forever)
    }

    /// Reads the threads again, and marks those that have not run since the first time. A process with a new
    /// thread proves nothing.
    ///
    /// Returns whether there is a process that was not in the first snapshot. A process that forks and exits
    /// again and again may escape both, but it stays behind as a zombie of the supervisor.
    pub(crate) fn look_again(&mut self) -> bool {
        for process in &mut self.processes {
            let same = waits::count(process.pid) == process.tasks.len();
            for thread in &mut process.tasks {
                thread.unchanged = same && waits::has_not_run(process.pid, thread);
            }
        }
        let newcomers = self.tree.newcomers();
        let appeared: HashSet<Pid> = newcomers.iter().map(|stat| stat.pid).collect();
        let known = self.tree.below(self.supervisor, &[]).into_iter().cloned();
        let now = Tree::of(known.chain(newcomers));
        now.below(self.supervisor, &[]).into_iter().any(|stat| appeared.contains(&stat.pid))
    }

    /// Whether a process has received an fd since its table was read, over a socket or by pidfd_getfd(2): a
    /// process that has run since, as [`Snapshot::look_again`] has noted, or one with an fd in flight to it.
    pub(crate) fn has_fd_moved(&self) -> bool {
        let all = self.processes.iter().flat_map(|process| process.known_fds());
        let known: HashSet<u64> =
            all.filter_map(Fd::pipe_or_socket).filter(|ino| !self.preexisting.contains(ino)).collect();
        self.processes.iter().any(|process| {
            let Some(before) = &process.fds else { return false };
            let receives = process.more_sockets || before.iter().any(|fd| fd.socket().is_some());
            if !receives && process.tasks.iter().all(|thread| thread.unchanged) {
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

    /// Finds the test that started each process, where its environment names it.
    pub(crate) fn name_tests(&mut self) {
        for process in &mut self.processes {
            process.test_in_environment = runners::environment(process.pid).as_ref().and_then(runners::test);
        }
    }

    /// Reads the stacks of the processes. Returns the files with frames of programs other than the test's
    /// own.
    #[cfg(feature = "sites")]
    pub(crate) fn read_stacks(&mut self) -> Vec<MappedFile> {
        let (files, is_cut) = stacks::read(&mut self.processes, self.until);
        self.cut.stacks |= is_cut;
        files
    }

    /// Reads the stacks of processes that go on. `sockets` is what is known of theirs. Gives the files that frames lie in.
    #[cfg(feature = "__engine")]
    pub(crate) fn read_stacks_unharmed(&mut self, sockets: &[Socket]) -> Vec<MappedFile> {
        let (files, is_cut) = stacks::read_unharmed(&mut self.processes, sockets, self.until);
        self.cut.stacks |= is_cut;
        files
    }

    /// Notes of processes that no guard has started what was known of their parents before, and which of them are forks of
    /// the program that started them.
    #[cfg(feature = "__engine")]
    pub(crate) fn take_for_inspected<'a>(&mut self, root: impl Fn(Pid) -> Option<&'a Root>) {
        for process in &mut self.processes {
            process.forked_without_exec =
                self.tree.get(process.pid).is_some_and(|stat| stat.forked_without_exec);
            process.adopted = false;
            if let Some(root) = root(process.pid) {
                (process.adopted, process.parent) = (root.is_adopted, root.stat.ppid);
            }
        }
    }

    /// What threads wait at besides pipes and sockets, and which processes have it.
    pub(crate) fn contended(&mut self) -> Contended {
        let Some(wanted) = Wanted::of(&self.processes) else { return Contended::default() };
        wanted.read(&self.processes, &self.tree, self.supervisor, self.until)
    }

    /// The machine's processes.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The machine's processes, and those of the test.
    pub(crate) fn into_parts(self) -> (Tree, Vec<Process>) {
        (self.tree, self.processes)
    }

    /// The pipes of the test that a process of the tree holds, and how full they are.
    pub(crate) fn pipes(&mut self) -> Vec<PipeState> {
        self.pipes_if(true)
    }

    /// The same of processes that go on, without how full they are: to ask takes an end of a pipe, and while this process has
    /// it another one may read no EOF, or write without a reader.
    #[cfg(feature = "__engine")]
    pub(crate) fn pipes_unharmed(&mut self) -> Vec<PipeState> {
        self.pipes_if(false)
    }

    fn pipes_if(&mut self, asks: bool) -> Vec<PipeState> {
        let mut known: Vec<PipeState> = Vec::new();
        // For each pipe its index in the list, and which of its ends were asked.
        let mut places: HashMap<u64, (usize, [bool; 2])> = HashMap::new();
        for process in &self.processes {
            if self.is_late() {
                self.cut.pipes_or_sockets = true;
                break;
            }
            let Ok(pidfd) = sys::pidfd_open(process.pid) else { continue };
            for fd in process.known_fds().iter() {
                let Some(ino) = fd.pipe() else { continue };
                let (at, asked) = places.entry(ino).or_insert_with(|| {
                    let (queued, capacity) = (None, None);
                    known.push(PipeState { ino, queued, capacity, no_writer: false, no_reader: false });
                    (known.len() - 1, [false; 2])
                });
                // All fds of one end give the same answer.
                if (!fd.reads() || asked[0]) && (!fd.writes() || asked[1]) {
                    continue;
                }
                if let Some(pipe) = known.get_mut(*at).filter(|_| asks)
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
        self.sockets_if(false)
    }

    /// Asks the kernel about the sockets of the tree, whatever its threads wait for.
    #[cfg(feature = "__engine")]
    pub(crate) fn all_sockets(&mut self) -> Vec<Socket> {
        self.sockets_if(true)
    }

    fn sockets_if(&mut self, all: bool) -> Vec<Socket> {
        let mut asked: Vec<Socket> = Vec::new();
        let waited_on: Vec<HashSet<i32>> =
            self.processes.iter().map(|process| waited_on(&process.tasks)).collect();
        let on_one = |(process, waited_on): (&Process, &HashSet<i32>)| {
            process.known_fds().iter().any(|fd| fd.socket().is_some() && waited_on.contains(&fd.fd))
        };
        let mut known: HashSet<u64> = HashSet::new();
        let mut inherited = self.processes.iter().filter(|process| !process.runs_own_program());
        let has_one = inherited.any(|process| {
            process.known_fds().iter().any(|fd| fd.fd > 2 && !fd.cloexec && fd.socket().is_some())
        });
        if all || has_one || self.waits_forever() || self.processes.iter().zip(&waited_on).any(on_one) {
            let asker = Asker::new();
            let mut waiting: Vec<(u64, u64)> = Vec::new();
            // Sockets that a thread waits on come first: the limit may not suffice for all.
            for first in [true, false] {
                for (process, waited_on) in self.processes.iter().zip(&waited_on) {
                    if self.is_late() {
                        self.cut.pipes_or_sockets = true;
                        break;
                    }
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
                if let Some(socket) = socket.filter(|socket| socket.peer == Peer::None) {
                    socket.peer = Peer::Queue { ino: listener };
                }
            }
        }
        note_listeners(&mut asked);
        for process in &mut self.processes {
            let Some(fds) = &mut process.fds else { continue };
            let before = fds.len();
            fds.retain(|fd| fd.socket().is_none_or(|ino| known.contains(&ino)));
            process.more_sockets |= fds.len() < before;
        }
        asked
    }

    /// Searches all processes outside of the tree for these pipes and sockets.
    pub(crate) fn outside(&mut self, targets: &[String]) -> Outside {
        let mut outside = Outside { is_unseen: isolation::is_inside(), ..Outside::default() };
        let mut targets: HashSet<&str> = targets.iter().map(String::as_str).collect();
        let events: HashSet<u64> = self.processes.iter().flat_map(awaited_events).collect();
        if !events.is_empty() {
            targets.insert("anon_inode:[eventfd]");
            outside.cgroups_notify = process::cgroups_notify();
        }
        // Most leaks and all stragglers involve no pipe, so there is nothing to search for.
        if targets.is_empty() {
            return outside;
        }
        let inside: HashSet<Pid> = self.processes.iter().map(|process| process.pid).collect();
        for stat in self.tree.processes() {
            let inside = inside.contains(&stat.pid);
            // Kernel threads and zombies have no fds.
            if inside || stat.is_zombie() || stat.is_kernel_thread || stat.pid == self.supervisor {
                continue;
            }
            if self.is_late() {
                self.cut.outside = true;
                outside.unreadable += 1;
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

/// Finds the listening sockets that accepted unix sockets: both have the same name.
fn note_listeners(sockets: &mut [Socket]) {
    let listens = |socket: &&Socket| socket.listens && socket.is_unix();
    let listeners: HashMap<String, u64> = sockets
        .iter()
        .filter(listens)
        .filter_map(|socket| Some((socket.name.clone()?, socket.ino)))
        .collect();
    for socket in sockets.iter_mut().filter(|socket| socket.is_unix() && !socket.listens) {
        socket.listener = socket.name.as_ref().and_then(|name| listeners.get(name)).copied();
    }
}

/// Finds the ancestor from which each process inherited its blocked and ignored signals.
fn note_inheritance(processes: &mut [Process]) {
    let known: HashMap<Pid, Signals> =
        processes.iter().map(|process| (process.pid, process.signals.clone())).collect();
    for process in processes.iter_mut().filter(|process| !process.signals.takes_all()) {
        let ancestors = process.lineage.iter().map_while(|pid| Some((pid, known.get(pid)?)));
        let same = ancestors.take_while(|(_, signals)| signals.is_like(&process.signals));
        process.signals.inherited_from = same.last().map(|(pid, _)| *pid);
    }
}

/// Marks processes that run the program of the test again, by whatever path it was started.
fn note_own_program(processes: &mut [Process], tree: &Tree, test: Pid) {
    let program = |pid: Pid| {
        let file = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((file.dev(), file.ino()))
    };
    // Of a test that has exited, the kernel no longer shows the program: a test is a fork of this process.
    let may_be_fork = || tree.get(test).is_none_or(|stat| stat.forked_without_exec);
    let own = program(test).or_else(|| program(std::process::id() as Pid).filter(|_| may_be_fork()));
    let Some(own) = own else { return };
    let has_execed = |process: &&mut Process| {
        !process.tasks.is_empty() && tree.get(process.pid).is_some_and(|stat| !stat.forked_without_exec)
    };
    for process in processes.iter_mut().filter(has_execed) {
        process.execed_own_program = !process.is_test && program(process.pid) == Some(own);
    }
}

/// Marks tracers: a tracer can wake the processes that it traces, and waits for more than its children.
fn note_tracers(processes: &mut [Process]) {
    let tracers: HashSet<Pid> =
        processes.iter().flat_map(|process| &process.tasks).map(|thread| thread.tracer).collect();
    for process in processes {
        if process.tasks.iter().any(|thread| thread.tracer != 0) {
            process.unseen_wakers.push(UnseenWaker::Traced);
        }
        if process.tasks.iter().any(|thread| tracers.contains(&thread.tid)) {
            process.unseen_wakers.push(UnseenWaker::Traces);
        }
    }
}

/// The fds that any thread waits on.
fn waited_on(tasks: &[waits::Thread]) -> HashSet<i32> {
    tasks.iter().flat_map(waits::Thread::fds).collect()
}

/// The eventfds that any thread of a process waits on.
fn awaited_events(process: &Process) -> Vec<u64> {
    let mut events = process.known_fds().iter().filter(|fd| fd.event != 0).peekable();
    if events.peek().is_none() {
        return Vec::new();
    }
    let waited_on = waited_on(&process.tasks);
    events.filter(|fd| waited_on.contains(&fd.fd)).map(|fd| fd.event).collect()
}

/// Asks the kernel about a pipe through a duplicate of one of its ends, which is closed at once. Returns
/// `false` if that was refused, in which case nothing is known.
fn ask(pidfd: &std::os::fd::OwnedFd, fd: &Fd, pipe: &mut PipeState) -> bool {
    let Ok(end) = sys::pidfd_getfd(pidfd, fd.fd) else { return false };
    pipe.queued = pipe.queued.or_else(|| sys::queued(&end));
    pipe.capacity = pipe
        .capacity
        .or_else(|| fcntl(&end, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| u32::try_from(size).ok()));
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&end), PollFlags::empty())];
    if poll(&mut fds, PollTimeout::ZERO).is_ok() {
        let events = fds[0].revents().unwrap_or(PollFlags::empty());
        // An fd that is open for both is its own other end.
        pipe.no_writer |= fd.reads() && !fd.writes() && events.contains(PollFlags::POLLHUP);
        pipe.no_reader |= fd.writes() && !fd.reads() && events.contains(PollFlags::POLLERR);
    }
    true
}

fn look(
    stat: &Stat,
    tree: &Tree,
    start: &SubjectStart<'_>,
    uptime: Option<Duration>,
    depth: Depth,
    stopped: &Stopped,
    left: &mut usize,
) -> Process {
    let SubjectStart { supervisor, test, begin, .. } = *start;
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
    let is_line = zombie || depth == Depth::Line;
    let command_line = if is_line { Vec::new() } else { process::settled_command_line(id) };
    let closely = depth == Depth::Waits && !zombie;
    let before = stopped.threads_before(stat);
    let tasks = if closely { threads(stat.pid, before) } else { Vec::new() };
    let table = match *left {
        _ if zombie => Some(Vec::new()),
        _ if is_line => None,
        0 => None,
        _ => fds::read(id).ok(),
    };
    *left = left.saturating_sub(table.as_ref().map_or(0, Vec::len));
    let unseen_wakers = if closely { process::unseen_wakers(stat.pid) } else { Vec::new() };
    let unseen_fds = if closely { unseen_fds(id, &tasks, table.as_deref()) } else { Vec::new() };
    let notifiers =
        if closely { fds::notifiers(id, table.as_deref().unwrap_or_default()) } else { Vec::new() };
    let more_sockets = table.is_none();
    let waited_on = waited_on(&tasks);
    let fds = table.map(|mut fds| {
        fds.retain(|fd| {
            fd.pipe().is_some_and(|ino| !start.before.iter().any(|known| known.identity().ino == ino))
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
        ended: if zombie { vec![Ended::read(stat.pid, &stat.comm)] } else { Vec::new() },
        signals: if closely {
            Signals::read(stat.pid, stat.state == 'T' && before.is_none())
        } else {
            Signals::default()
        },
        comm: stat.comm.clone(),
        state: if before.is_some() { 'R' } else { stat.state }.to_string(),
        pgid: stat.pgid,
        sid: stat.sid,
        threads: stat.threads,
        // The flag is set for forks of other programs too.
        forked_without_exec: stat.forked_without_exec && command_line == start.command_line,
        execed_own_program: false,
        command_line,
        age: match uptime {
            _ if is_test => Some(begin.elapsed()),
            uptime => uptime.and_then(|now| now.checked_sub(since_boot(stat.start_ticks))),
        },
        tasks,
        fds,
        unseen_wakers,
        unseen_fds,
        notifiers,
        more_sockets,
        test_in_environment: None,
        killed: false,
        exit_status: if zombie { process::exit_status(stat.pid) } else { None },
    }
}

/// The threads of a process; as read `before` it was stopped, if it was.
fn threads(pid: Pid, before: Option<&[waits::Thread]>) -> Vec<waits::Thread> {
    match before {
        None => waits::read(pid),
        Some([]) => {
            let mut threads = waits::read(pid);
            threads.iter_mut().for_each(waits::Thread::set_running);
            threads
        }
        Some(threads) => threads.to_vec(),
    }
}

/// Files that a process may hold or receive outside of its fd table.
fn unseen_fds(id: Pid, tasks: &[waits::Thread], fds: Option<&[Fd]>) -> Vec<UnseenFds> {
    /// The name of an io_uring instance.
    const URING: &str = "anon_inode:[io_uring]";
    let mut unseen_fds = Vec::new();
    let fds = fds.unwrap_or_default();
    let maps = std::fs::read(format!("/proc/{id}/maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    // It may have registered files (io_uring_register(2)), and it reads and writes without a thread, even if
    // the fd of the ring is closed.
    if fds.iter().any(|fd| fd.target == URING) || maps.contains(URING) {
        unseen_fds.push(UnseenFds::IoUring);
    }
    // io_submit(2), the older interface, does so too.
    if maps.contains("/[aio]") {
        unseen_fds.push(UnseenFds::Aio);
    }
    let has_ended = |thread: &&waits::Thread| matches!(thread.state.as_str(), "Z" | "X" | "x");
    let mut others = tasks.iter().filter(|thread| thread.tid != id && !has_ended(thread));
    if !others.all(|thread| have_same_files(id, thread.tid)) {
        unseen_fds.push(UnseenFds::ThreadTable);
    }
    if fds.iter().any(|fd| fd.carries) {
        unseen_fds.push(UnseenFds::InFlight);
    }
    unseen_fds
}

/// Whether two threads share one fd table (unshare(2) separates them).
fn have_same_files(one: Pid, other: Pid) -> bool {
    let table = |tid: Pid| -> Option<HashSet<_>> {
        let entries = std::fs::read_dir(format!("/proc/{tid}/fd")).ok()?.flatten();
        Some(entries.map(|entry| (entry.file_name(), std::fs::read_link(entry.path()).ok())).collect())
    };
    // If the kernel does not say, compare the tables.
    sys::have_same_files(one, other).unwrap_or_else(|| table(one) == table(other))
}
