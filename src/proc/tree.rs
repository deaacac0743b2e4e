//! The process tree: every process with its parent, from `/proc/*/stat`.
//!
//! `/proc/PID/task/TID/children` would be faster, but kernels without `CONFIG_PROC_CHILDREN` lack it, and it
//! may skip children that start and exit while it is read.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::DirEntryExt;
use std::process;
use std::time::Instant;

use super::process::Stat;
use crate::sys::Pid;

/// A (nearly atomic) snapshot of the processes of the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    processes: HashMap<Pid, Stat>,
    /// The inodes of the directories `/proc/PID`. One that is there again with its pid is the same process, which need
    /// not be read. The kernel numbers a directory anew after it has dropped it from its cache, so another inode says
    /// nothing.
    inodes: HashMap<Pid, u64>,
}

/// The result of [`Tree::update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// There is no new process.
    Same,
    /// At least one new process is alive.
    Grown,
    /// The deadline passed before all were read.
    Cut,
}

impl Tree {
    /// Reads every process that may be read. Processes that exit meanwhile are left out.
    pub(crate) fn read() -> Tree {
        let mut tree = Tree::default();
        // Each is read as soon as it is listed: a process that is started meanwhile has a higher number, and
        // is listed later.
        for (pid, inode) in listed() {
            tree.inodes.insert(pid, inode);
            tree.processes.extend(Stat::read(pid).map(|stat| (pid, stat)));
        }
        tree
    }

    pub(crate) fn of(processes: impl IntoIterator<Item = Stat>) -> Tree {
        let processes = processes.into_iter().map(|stat| (stat.pid, stat)).collect();
        Tree { processes, inodes: HashMap::new() }
    }

    /// The same processes with other parents. Those that come later are still told from those that were there.
    #[cfg(feature = "__engine")]
    pub(crate) fn with_parents(&self, parent: impl Fn(&Stat) -> Pid) -> Tree {
        let mut tree = self.clone();
        tree.processes.values_mut().for_each(|stat| stat.ppid = parent(stat));
        tree
    }

    /// Reads the processes that were started since the snapshot.
    pub(crate) fn newcomers(&self) -> Vec<Stat> {
        let listed = listed().filter(|(pid, inode)| self.inodes.get(pid) != Some(inode));
        listed.filter_map(|(pid, _)| Stat::read(pid)).filter(|stat| self.is_new(stat)).collect()
    }

    /// Whether a process was not there yet. (Its number is not given to another one within a clock tick.)
    fn is_new(&self, stat: &Stat) -> bool {
        let known = self.get(stat.pid).filter(|_| self.inodes.contains_key(&stat.pid));
        known.is_none_or(|known| known.start_ticks != stat.start_ticks)
    }

    /// Reads the processes that were started since the snapshot, and calls `see` with each one below `root`
    /// that is not at or below `except`, as soon as it is read. Of the processes that are known to be there,
    /// those in `again` are read and passed to `see` once more. Returns whether there is a new process, or
    /// whether `until` was reached first.
    ///
    /// Processes elsewhere are never read again: a descendant of a subreaper stays one, and no other process
    /// becomes one.
    ///
    /// `see` also gets the result of `pin`, which is called before the line is read. So a pidfd refers to the
    /// process that was read, or to one that is gone: then it was reaped and takes no signal.
    pub(crate) fn update<P>(
        &mut self,
        root: Pid,
        except: &[Pid],
        again: impl Fn(Pid) -> bool,
        until: Instant,
        pin: impl Fn(Pid) -> P,
        mut see: impl FnMut(&Stat, P),
    ) -> Update {
        let mut below: HashSet<Pid> = self.below(root, except).into_iter().map(|stat| stat.pid).collect();
        let mut inodes = HashMap::with_capacity(self.inodes.len());
        let (mut update, mut elsewhere) = (Update::Same, Vec::new());
        for (pid, inode) in listed() {
            let is_asked_again = below.contains(&pid) && again(pid);
            let is_known = self.inodes.get(&pid) == Some(&inode);
            if is_known && !is_asked_again {
                inodes.insert(pid, inode);
                continue;
            }
            if Instant::now() >= until {
                update = Update::Cut;
                break;
            }
            let pinned = pin(pid);
            let Some(stat) = Stat::read(pid) else { continue };
            let is_new = !is_known && self.is_new(&stat);
            if is_new {
                let has_parent_below =
                    stat.ppid == root || below.contains(&stat.ppid) && self.is_there(stat.ppid);
                let is_below = has_parent_below && !except.contains(&pid);
                if is_below {
                    below.insert(pid);
                } else {
                    // Its number may be that of a descendant that has exited.
                    below.remove(&pid);
                    elsewhere.push((pid, stat.ppid));
                }
                if is_below && !stat.is_zombie() {
                    update = Update::Grown;
                }
            }
            inodes.insert(pid, inode);
            if below.contains(&pid) && (is_new || is_asked_again) {
                see(&stat, pinned);
            }
            self.processes.insert(pid, stat);
        }
        if update == Update::Cut {
            for (pid, inode) in &self.inodes {
                inodes.entry(*pid).or_insert(*inode);
            }
        } else {
            self.processes.retain(|pid, _| inodes.contains_key(pid));
        }
        // Pids wrap around: a parent may be listed behind its child, or not be listed yet.
        let mut undecided: HashSet<Pid> = HashSet::new();
        let found: HashSet<Pid> = self.below(root, except).into_iter().map(|stat| stat.pid).collect();
        for (pid, ppid) in elsewhere {
            if found.contains(&pid) || ppid != 0 && !self.processes.contains_key(&ppid) {
                undecided.insert(pid);
            }
        }
        if !undecided.is_empty() {
            // Forget them, so that the next update reads and reports them.
            inodes.retain(|pid, _| !undecided.contains(pid));
            update = if update == Update::Cut { Update::Cut } else { Update::Grown };
        }
        self.inodes = inodes;
        update
    }

    /// Whether a process of the snapshot still exists. Another one may have its number by now.
    fn is_there(&self, pid: Pid) -> bool {
        self.get(pid).and_then(Stat::again).is_some()
    }

    /// Every process of the snapshot, in no order.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Stat> {
        self.processes.values()
    }

    pub(crate) fn get(&self, pid: Pid) -> Option<&Stat> {
        self.processes.get(&pid)
    }

    /// Every process below `root` except those at or below `except`, each followed by its descendants.
    ///
    /// No process is older than its parent, or than the ancestor that adopted it. If the snapshot says otherwise, the
    /// parent had exited before its number was given to the one in the snapshot: the processes of a fork bomb get the
    /// number of an unrelated process's parent within a second where `pid_max` is 32768. `root` itself is usually this
    /// process, whose number is not given to another.
    pub(crate) fn below(&self, root: Pid, except: &[Pid]) -> Vec<&Stat> {
        let mut children: HashMap<Pid, Vec<&Stat>> = HashMap::new();
        for stat in self.processes.values() {
            let is_younger = |parent: &Stat| parent.start_ticks <= stat.start_ticks;
            if stat.ppid == root || self.get(stat.ppid).is_none_or(is_younger) {
                children.entry(stat.ppid).or_default().push(stat);
            }
        }
        let mut found: Vec<&Stat> = Vec::new();
        let mut pending: Vec<&Stat> = Vec::new();
        let mut parent = root;
        loop {
            // Remove them, so that a cycle of parents terminates.
            let mut next = children.remove(&parent).unwrap_or_default();
            next.retain(|stat| !except.contains(&stat.pid));
            next.sort_by_key(|stat| (stat.start_ticks, stat.pid));
            // The first one is popped next.
            pending.extend(next.into_iter().rev());
            let Some(stat) = pending.pop() else { return found };
            found.push(stat);
            parent = stat.pid;
        }
    }
}

/// Some children of a process with one thread, in far less time than the whole list takes. None on a kernel without
/// `CONFIG_PROC_CHILDREN`.
pub(crate) fn first_children(pid: Pid, most: usize) -> Vec<Pid> {
    // The kernel writes at most a page for each read, and a pid has up to seven digits.
    let mut buffer = [0; 256];
    let file = fs::File::open(format!("/proc/{pid}/task/{pid}/children"));
    let length = file.and_then(|mut file| file.read(&mut buffer)).unwrap_or(0);
    // A number that is cut has no space behind it.
    let whole = buffer[..length].iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    let text = std::str::from_utf8(&buffer[..whole]).unwrap_or_default();
    text.split(' ').filter_map(|pid| pid.parse().ok()).take(most).collect()
}

/// The processes that `/proc` lists, with the inode of each directory.
///
/// None if it is the `/proc` of another PID namespace, which a test may have mounted there: its numbers would be
/// those of unrelated processes.
pub(crate) fn listed() -> impl Iterator<Item = (Pid, u64)> {
    let is_own = fs::read_link("/proc/self").is_ok_and(|own| *own == *process::id().to_string());
    let entries = is_own.then(|| fs::read_dir("/proc")).into_iter().flatten().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.ino())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::{Stat, Tree};

    #[test]
    fn each_is_followed_by_all_that_is_below_it() {
        let stat = |pid: i32, ppid: i32| {
            let line = format!("{pid} (x) S {ppid} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0");
            Stat::parse(line.as_bytes()).unwrap()
        };
        // Two children of 1 with two children each, and a cycle of two parents.
        let tree = Tree::of(
            [(2, 1), (3, 1), (4, 2), (5, 3), (6, 2), (7, 5), (8, 9), (9, 8)]
                .map(|(pid, ppid)| stat(pid, ppid)),
        );
        let below = |root, except: &[i32]| -> Vec<i32> {
            tree.below(root, except).iter().map(|stat| stat.pid).collect()
        };
        assert_eq!(below(1, &[]), [2, 4, 6, 3, 5, 7]);
        assert_eq!(below(1, &[2]), [3, 5, 7]);
        assert_eq!(below(8, &[]), [9, 8]);
    }

    /// A process's parent exits, and its number is given to a descendant of the root.
    #[test]
    fn a_process_that_is_older_than_its_parent_is_another_ones_child() {
        let stat = |pid: i32, ppid: i32, start: u64| {
            let line = format!("{pid} (x) S {ppid} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0");
            Stat::parse(line.as_bytes()).unwrap()
        };
        let tree =
            Tree::of([stat(10, 1, 5), stat(20, 10, 9), stat(30, 20, 8), stat(31, 20, 9), stat(40, 30, 9)]);
        let below: Vec<i32> = tree.below(10, &[]).iter().map(|stat| stat.pid).collect();
        assert_eq!(below, [20, 31]);
    }

    /// The same with a descendant that exits, and whose number is given to a stranger that starts a process.
    #[test]
    fn a_child_of_a_process_with_the_number_of_a_descendant_is_none() {
        let script = "sleep 1000 & read line; kill $!; wait";
        let mut parent = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let (own, number) = (std::process::id() as i32, parent.id() as i32);
        let child = loop {
            if let Some(child) = super::first_children(number, 1).first() {
                break *child;
            }
            std::thread::yield_now();
        };
        let mut tree = Tree::read();
        // As if it were another process.
        tree.processes.retain(|pid, _| *pid != child);
        tree.inodes.retain(|pid, _| *pid != child);
        tree.processes.get_mut(&number).unwrap().start_ticks -= 1;
        let mut seen = Vec::new();
        let until = Instant::now() + Duration::from_secs(60);
        tree.update(own, &[], |_| false, until, |_| (), |stat, ()| seen.push(stat.pid));
        drop(parent.stdin.take());
        parent.wait().unwrap();
        assert!(!seen.contains(&child), "{seen:?}");
    }

    #[test]
    fn a_newcomer_is_told_from_who_was_there() {
        let spawn = || Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut old = spawn();
        let tree = Tree::read();
        let mut new = spawn();
        let appeared: Vec<i32> = tree.newcomers().into_iter().map(|stat| stat.pid).collect();
        for child in [&mut old, &mut new] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        let is_new = |pid: u32| appeared.contains(&(pid as i32));
        assert_eq!((is_new(std::process::id()), is_new(old.id()), is_new(new.id())), (false, false, true));
    }

    #[test]
    fn a_directory_that_is_numbered_anew_is_no_newcomer() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (own, pid) = (std::process::id() as i32, child.id() as i32);
        let mut tree = Tree::read();
        tree.inodes.values_mut().for_each(|inode| *inode += 1);
        let appeared = tree.newcomers();
        let mut seen = Vec::new();
        let until = Instant::now() + Duration::from_secs(60);
        tree.update(own, &[], |_| false, until, |_| (), |stat, ()| seen.push(stat.pid));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(appeared.iter().all(|stat| stat.pid != pid), "{appeared:?}");
        assert!(!seen.contains(&pid), "{seen:?}");
    }
}
