//! Stops a process tree before it is inspected and before it is killed.
//!
//! A tree forks while it is read, and running processes take the CPU time that reading needs. So each process
//! is stopped as soon as it is read, and the list of processes is read until it contains no new one. A
//! process with a pending SIGSTOP cannot fork (`copy_process` in kernel/fork.c gives up for a pending
//! signal), so at the last reading the tree has no running process.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use nix::libc;

use super::kill::{self, pin};
use crate::proc::process::{self, Stat};
use crate::proc::tree::{Tree, Update, first_children, listed};
use crate::proc::waits::{self, Thread};
use crate::sys::{self, Pid};

/// Time limit for stopping a running tree before it is inspected.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);

/// Time limit for stopping a whole tree without reading it, if the first limit did not suffice.
const HALT: Duration = Duration::from_secs(2);

/// The machine is crowded if so many threads want to run on each CPU: one of them waits a second for its next 15 ms.
const CROWD: usize = 64;

/// How often it is checked whether a crowd has stopped.
const SETTLING: Duration = Duration::from_millis(5);

/// How many processes a new thread stops. It takes 2 ms for that in an unoptimised build.
const PART: usize = 128;

/// At most so many numbers are tried, which takes less time than to list a thousand processes.
const GIVEN: Pid = 8192;

/// How many processes of a crowd are read, to find a group of many.
const SAMPLE: usize = 8;

/// Whether an ordinary process gets hardly any CPU time.
pub(crate) fn is_crowded() -> bool {
    let cpus = available_parallelism().map_or(1, usize::from);
    process::running_threads().is_some_and(|running| running > CROWD * cpus)
}

/// Waits until signals have stopped a crowd: a process stops when it runs next, and until then may have its memory or
/// a file locked, for which a reader would wait.
pub(crate) fn settle(until: Instant) {
    // The kernel reports the stop of a process to its parent alone.
    while Instant::now() < until && is_crowded() {
        thread::sleep(SETTLING);
    }
}

/// The processes that were stopped here.
#[derive(Default)]
pub(crate) struct Stopped {
    /// By pid and start time: the threads as they were before. Empty for a process with one thread, since
    /// that was running.
    processes: HashMap<(Pid, u64), Vec<Thread>>,
    /// New processes kept appearing until the time was over.
    pub(crate) is_cut: bool,
}

impl Stopped {
    /// Whether reading the memory of a process might wait for it: it may have locked that for a fork, and wait itself for
    /// the forks of others. One that has stopped has not.
    pub(crate) fn may_block_readers(&self, stat: &Stat) -> bool {
        let is_crowd = self.is_cut || !self.processes.is_empty();
        is_crowd && Stat::read(stat.pid).is_some_and(|now| matches!(now.state, 'R' | 'D'))
    }

    /// The threads of a process before it was stopped here; `None` if it was not.
    pub(crate) fn threads_before(&self, stat: &Stat) -> Option<&[Thread]> {
        self.processes.get(&(stat.pid, stat.start_ticks)).map(Vec::as_slice)
    }
}

/// Stops the running processes below `root`, if there are more of them than CPUs or if new ones keep
/// appearing: both slow the reading down in proportion. Sleeping processes are left alone, since a stop would
/// interrupt their system calls.
///
/// Also returns the tree as it was read.
///
/// `tree` is an earlier snapshot: what it has elsewhere is not read again.
pub(crate) fn stop_what_runs(root: Pid, mut tree: Tree, until: Instant) -> (Tree, Stopped) {
    let few = available_parallelism().map_or(1, usize::from);
    let mut stopped = Stopped::default();
    let mut groups = Groups::new(root, few);
    let mut is_first = true;
    loop {
        let (mut running, mut appeared) = (Vec::new(), false);
        let done: HashSet<Pid> = stopped.processes.keys().map(|(pid, _)| *pid).collect();
        let mut stop = |stat: &Stat, pidfd| appeared |= stop_running(stat, pidfd, &mut stopped, &mut groups);
        let see = |stat: &Stat, pidfd: Option<OwnedFd>| {
            if !is_running(stat) {
                return;
            }
            if is_first && running.len() < few {
                running.push((stat.clone(), pidfd));
                return;
            }
            running.drain(..).for_each(|(stat, pidfd)| stop(&stat, pidfd));
            stop(stat, pidfd);
        };
        let update = tree.update(root, &[], |pid| !done.contains(&pid), until, open, see);
        // Few are running, and none is new, so nothing slows the snapshot down.
        if is_first && update != Update::Cut && stopped.processes.is_empty() {
            return (tree, stopped);
        }
        is_first = false;
        if update == Update::Cut || Instant::now() >= until {
            stopped.is_cut = true;
            // Interrupts the processes' system calls, which could not all be read in time anyway.
            let until = Instant::now() + HALT;
            halt(root, &[], until);
            tree.update(root, &[], |_| false, until, |_| (), |_, ()| {});
            return (tree, stopped);
        }
        if !appeared && update == Update::Same {
            return (tree, stopped);
        }
    }
}

/// Stops all processes below `root` that are not at or below `except`, and reads only their parents, which
/// takes a few microseconds for each.
fn halt(root: Pid, except: &[Pid], until: Instant) {
    let mut below = Below::of(root);
    while below.stop(except) && Instant::now() < until {}
}

/// The processes below one, as far as they are known.
struct Below {
    root: Pid,
    /// What identifies the root; `None` for this process, which does not end meanwhile, and if it may not be opened.
    identity: Option<u64>,
    /// By number, with what identifies the process.
    found: HashMap<Pid, u64>,
}

impl Below {
    fn of(root: Pid) -> Below {
        let other = (root != sys::own_pid()).then(|| open(root)).flatten();
        Below { root, identity: other.map(|other| sys::pidfd_identity(&other)), found: HashMap::new() }
    }

    /// Stops the processes that are not known yet; returns whether there was one.
    ///
    /// A process is opened before its parent is read, so the pidfd refers to the same process or to one that is
    /// gone.
    fn stop(&mut self, except: &[Pid]) -> bool {
        let mut appeared = false;
        for (pid, _) in listed() {
            if pid == self.root || self.found.contains_key(&pid) || except.contains(&pid) {
                continue;
            }
            let Some(pidfd) = open(pid) else { continue };
            let parent = parent_of(pid, &pidfd);
            if !parent.is_some_and(|parent| self.has(parent)) {
                continue;
            }
            self.found.insert(pid, sys::pidfd_identity(&pidfd));
            // Signals to a zombie have no effect, and it does not fork.
            appeared |= sys::pidfd_send_signal(&pidfd, libc::SIGSTOP).is_ok();
        }
        appeared
    }

    /// Whether this number is that of a process that was found and still exists, and not of a later one.
    fn has(&self, pid: Pid) -> bool {
        let was = if pid == self.root { self.identity } else { self.found.get(&pid).copied() };
        match was {
            Some(was) => open(pid).is_some_and(|now| sys::pidfd_identity(&now) == was),
            None => pid == self.root,
        }
    }
}

/// Takes the CPUs from the processes below `root`, without reading all of them: lowers the priority of groups with more
/// than a few running members, or else stops everything. Returns whether nothing is stopped.
///
/// An ordinary process cannot raise its own priority. It runs for some 2 ms at once after a sleep, and then has to wait
/// until each other thread had as much: a second or two among a thousand. A new thread has not had its share yet. So
/// everything is stopped by several new threads, each of which has done its part before its share is used up. For the same
/// reason `/proc` is not listed if that can be avoided: it takes a share of its own for a thousand processes.
pub(crate) fn calm(root: Pid) -> bool {
    if has_lowered_group(root) {
        return true;
    }
    let candidates = candidates(root);
    thread::scope(|scope| {
        // A limit on processes may leave no room for a thread.
        let _ = thread::Builder::new().spawn_scoped(scope, || stop_among(root, &candidates));
    });
    false
}

/// Looks for a group with more than a few running members among the first children of `root`, and lowers its
/// priority. Its members go on as before.
fn has_lowered_group(root: Pid) -> bool {
    let mut lineage = Lineage::of(root);
    let mut groups = Groups::new(root, available_parallelism().map_or(1, usize::from));
    let mut stopped: Vec<(Pid, OwnedFd)> = Vec::new();
    let mut is_lowered = false;
    for pid in first_children(root, SAMPLE) {
        let Some(pidfd) = lineage.open_below(pid) else { continue };
        let runs = Stat::read(pid).is_some_and(|stat| is_running(&stat));
        if !runs || sys::pidfd_send_signal(&pidfd, libc::SIGSTOP).is_err() {
            continue;
        }
        // Read now, since it can no longer change it.
        let Some(group) = sys::group_of(pid) else { continue };
        stopped.push((group, pidfd));
        is_lowered |= groups.count(group);
    }
    // All of them: what a group shares is not the time of one process.
    stopped.iter().for_each(|(_, pidfd)| drop(sys::pidfd_send_signal(pidfd, libc::SIGCONT)));
    is_lowered
}

/// The pids that the processes below `root` may have: those that were given since `root` was started, or all that are in
/// use, if those are too many or the numbers have begun anew. (If they have since passed `root` again, some are missing.
/// What is not stopped here is found later.)
fn candidates(root: Pid) -> Vec<Pid> {
    match process::last_pid() {
        Some(last) if last > root && last - root <= GIVEN => (root + 1..=last).collect(),
        _ => listed().map(|(pid, _)| pid).collect(),
    }
}

/// Stops those of these processes that are below `root`, the last ones first, in a new thread for each part.
fn stop_among(root: Pid, pids: &[Pid]) {
    if pids.len() <= PART {
        return stop_part(root, pids);
    }
    let (first, last) = pids.split_at(pids.len() / 2);
    thread::scope(|scope| {
        let spawned = thread::Builder::new().spawn_scoped(scope, || stop_among(root, first));
        stop_among(root, last);
        if spawned.is_err() {
            stop_among(root, first);
        }
    });
}

/// Stops those of these processes that are below `root`.
fn stop_part(root: Pid, part: &[Pid]) {
    let mut lineage = Lineage::of(root);
    for pid in part {
        if let Some(pidfd) = lineage.open_below(*pid) {
            let _ = sys::pidfd_send_signal(&pidfd, libc::SIGSTOP);
        }
    }
}

/// Which processes are below one.
struct Lineage {
    below: Below,
    /// The processes that are elsewhere. If their numbers are given to others, those are not stopped by this.
    elsewhere: HashSet<Pid>,
}

impl Lineage {
    fn of(root: Pid) -> Lineage {
        // The first process has no parent.
        Lineage { below: Below::of(root), elsewhere: HashSet::from([0, 1]) }
    }

    /// Opens a process if it is below the root.
    ///
    /// It is opened before its parent is read, so the fd refers to the same process or to one that is gone.
    fn open_below(&mut self, pid: Pid) -> Option<OwnedFd> {
        if pid == self.below.root {
            return None;
        }
        let pidfd = open(pid)?;
        let mut parent = parent_of(pid, &pidfd)?;
        let mut line = vec![(pid, sys::pidfd_identity(&pidfd))];
        let is_below = loop {
            if self.below.has(parent) {
                break true;
            }
            if self.elsewhere.contains(&parent) {
                break false;
            }
            let (number, Some(opened)) = (parent, open(parent)) else { break false };
            line.push((number, sys::pidfd_identity(&opened)));
            parent = parent_of(number, &opened).unwrap_or(0);
        };
        match is_below {
            true => self.below.found.extend(line),
            false => self.elsewhere.extend(line.into_iter().map(|(pid, _)| pid)),
        }
        is_below.then_some(pidfd)
    }
}

/// The parent of an open process.
fn parent_of(pid: Pid, pidfd: &OwnedFd) -> Option<Pid> {
    sys::pidfd_parent(pidfd).or_else(|| Some(Stat::read(pid)?.ppid))
}

/// Opens the process with this pid; `None` also where that is not allowed (a seccomp filter).
fn open(pid: Pid) -> Option<OwnedFd> {
    sys::pidfd_open(pid).ok()
}

/// Stops a running process, which was opened before its state was read. Returns whether it was not stopped
/// before.
fn stop_running(stat: &Stat, pidfd: Option<OwnedFd>, stopped: &mut Stopped, groups: &mut Groups) -> bool {
    let key = (stat.pid, stat.start_ticks);
    if stopped.processes.contains_key(&key) {
        return false;
    }
    // Its other threads may be waiting; read them before the stop interrupts their calls.
    let before = if stat.threads > 1 { waits::read(stat.pid) } else { Vec::new() };
    let sent = pidfd.is_some_and(|pidfd| sys::pidfd_send_signal(&pidfd, libc::SIGSTOP).is_ok());
    if sent {
        groups.count(stat.pgid);
        stopped.processes.insert(key, before);
    }
    sent
}

/// Stops all processes below `root` that are not at or below `except`, and returns the tree of the machine's
/// processes, and whether all was read before `until`.
pub(crate) fn stop_all(root: Pid, except: &[Pid], mut tree: Tree, until: Instant) -> (Tree, bool) {
    halt(root, except, until);
    let mut signalled: HashMap<Pid, u64> = HashMap::new();
    let mut groups = Groups::new(root, available_parallelism().map_or(1, usize::from));
    let mut stop = |stat: &Stat, pidfd: Option<OwnedFd>| {
        if stat.is_zombie() || signalled.insert(stat.pid, stat.start_ticks) == Some(stat.start_ticks) {
            return;
        }
        if pidfd.is_some_and(|pidfd| sys::pidfd_send_signal(&pidfd, libc::SIGSTOP).is_ok()) {
            groups.count(stat.pgid);
        }
    };
    let seen = tree.below(root, except).into_iter().filter(|stat| stat.state != 'T');
    seen.for_each(|stat| stop(stat, pin(stat)));
    loop {
        let update = tree.update(root, except, |_| false, until, open, &mut stop);
        if update != Update::Grown || Instant::now() >= until {
            return (tree, update == Update::Same);
        }
    }
}

/// The process groups of stopped processes.
///
/// The kernel divides CPU time between sessions, and within one between its running processes. One system
/// call makes the share of a whole group 68 times smaller. An ordinary user cannot undo that, so it is
/// applied only to processes that are killed next.
struct Groups {
    root: Pid,
    few: usize,
    /// How many processes of each group were stopped.
    sizes: HashMap<Pid, usize>,
}

impl Groups {
    fn new(root: Pid, few: usize) -> Groups {
        Groups { root, few, sizes: HashMap::new() }
    }

    /// Counts a member of a group that was just stopped, which prevents the group's id from being reused, and lowers
    /// the priority of a group with more than a few. Returns whether it has done that now.
    ///
    /// A group belongs to one session, and each guard leads its own: so a descendant's group has no foreign
    /// member, except that of `root` itself. A command shares its session and maybe its group, so for a
    /// command no group is lowered.
    fn count(&mut self, group: Pid) -> bool {
        let size = self.sizes.entry(group).or_default();
        *size += 1;
        let lowers = *size == self.few + 1 && group > 1 && group != self.root && !kill::shares_groups();
        if lowers {
            sys::lower_group(group);
        }
        lowers
    }
}

/// Whether any thread of a process is running. The process's own line shows the state of its first thread
/// alone.
fn is_running(stat: &Stat) -> bool {
    if stat.state == 'R' {
        return true;
    }
    if stat.threads <= 1 {
        return false;
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", stat.pid)).into_iter().flatten().flatten();
    let tids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).take(waits::THREADS);
    tids.filter(|tid| *tid != stat.pid).any(|tid| Stat::read(tid).is_some_and(|stat| stat.state == 'R'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::{Below, Lineage, first_children, sys};
    use crate::proc::process::Stat;

    /// A descendant exits, and its number is given to a stranger that has a child.
    #[test]
    fn a_child_of_a_process_with_the_number_of_a_descendant_is_not_stopped() {
        let script = "sleep 1000 & read line; kill $!; wait";
        let mut parent = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let number = parent.id() as i32;
        let child = loop {
            if let Some(child) = first_children(number, 1).first() {
                break *child;
            }
            std::thread::yield_now();
        };
        let identity = sys::pidfd_identity(&sys::pidfd_open(number).unwrap());
        // No process has this number.
        let below = |identity| Below { root: i32::MAX, identity: None, found: [(number, identity)].into() };
        below(identity + 1).stop(&[]);
        // The same of the topmost one.
        Below { root: number, identity: Some(identity + 1), found: [].into() }.stop(&[]);
        let state = Stat::read(child).unwrap().state;
        let has_root = [identity + 1, identity]
            .map(|identity| Below { identity: Some(identity), ..Below::of(number) }.has(number));
        let lineage = |identity| Lineage { below: below(identity), ..Lineage::of(i32::MAX) };
        let opened = [identity + 1, identity].map(|identity| lineage(identity).open_below(child).is_some());
        // One that was stopped would not end by the shell's signal.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
        drop(parent.stdin.take());
        parent.wait().unwrap();
        assert_ne!(state, 'T');
        assert_eq!((opened, has_root), ([false, true], [false, true]));
    }

    #[test]
    fn among_the_candidates_what_is_below_is_stopped() {
        let script = "sleep 1000 & echo; read line; kill -9 $!; wait";
        let stdout = Stdio::piped();
        let mut parent =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(stdout).spawn().unwrap();
        // It has forked once this arrives.
        std::io::Read::read_exact(&mut parent.stdout.take().unwrap(), &mut [0]).unwrap();
        let root = parent.id() as i32;
        // Several parts, as if more had been started.
        let mut pids = super::candidates(root);
        pids.extend(i32::MAX - 1000..i32::MAX);
        super::stop_among(root, &pids);
        let state = |pid: i32| Stat::read(pid).unwrap().state;
        let child = super::Tree::read().below(root, &[])[0].pid;
        // A process stops when it runs next.
        let until = Instant::now() + Duration::from_secs(60);
        while state(child) != 'T' && Instant::now() < until {
            std::thread::yield_now();
        }
        let states = (state(child), state(root) == 'T');
        drop(parent.stdin.take());
        parent.wait().unwrap();
        assert_eq!(states, ('T', false));
    }
}
