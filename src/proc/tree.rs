//! The tree: every process with its parent, from `/proc/*/stat`.
//!
//! `/proc/PID/task/TID/children` would be quicker, but kernels without `CONFIG_PROC_CHILDREN`
//! lack it, and it may skip children that come and go while it is read.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::DirEntryExt;

use super::process::Stat;
use crate::sys::Pid;

/// The processes of the machine at (nearly) one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    processes: HashMap<Pid, Stat>,
    /// The inodes that `/proc` has for the processes: with the pid an identity, and it is in the list.
    inodes: Vec<(Pid, u64)>,
}

impl Tree {
    /// Reads every process that may be read. What vanishes meanwhile is left out.
    pub(crate) fn read() -> Tree {
        let mut tree = Tree::default();
        // Each as soon as it is listed: what comes meanwhile has a higher number, and is met later.
        for (pid, inode) in listed() {
            tree.inodes.push((pid, inode));
            tree.processes.extend(Stat::read(pid).map(|stat| (pid, stat)));
        }
        tree
    }

    pub(crate) fn of(processes: impl IntoIterator<Item = Stat>) -> Tree {
        let processes = processes.into_iter().map(|stat| (stat.pid, stat)).collect();
        Tree { processes, inodes: Vec::new() }
    }

    /// Reads the processes that have come since this was read.
    pub(crate) fn newcomers(&self) -> Vec<Stat> {
        let known: HashSet<(Pid, u64)> = self.inodes.iter().copied().collect();
        let new = listed().filter(|listed| !known.contains(listed));
        new.filter_map(|(pid, _)| Stat::read(pid)).collect()
    }

    /// Every process that was read, in no order.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Stat> {
        self.processes.values()
    }

    pub(crate) fn get(&self, pid: Pid) -> Option<&Stat> {
        self.processes.get(&pid)
    }

    /// Every process below `root` but those at or below `except`: each followed by all that is below it.
    pub(crate) fn below(&self, root: Pid, except: &[Pid]) -> Vec<&Stat> {
        let mut children: HashMap<Pid, Vec<&Stat>> = HashMap::new();
        for stat in self.processes.values() {
            children.entry(stat.ppid).or_default().push(stat);
        }
        let mut found: Vec<&Stat> = Vec::new();
        let mut pending: Vec<&Stat> = Vec::new();
        let mut parent = root;
        loop {
            // Taken out, so that a ring of parents ends.
            let mut next = children.remove(&parent).unwrap_or_default();
            next.retain(|stat| !except.contains(&stat.pid));
            next.sort_by_key(|stat| (stat.start_ticks, stat.pid));
            // The first is the next to be taken.
            pending.extend(next.into_iter().rev());
            let Some(stat) = pending.pop() else { return found };
            found.push(stat);
            parent = stat.pid;
        }
    }
}

/// The processes that `/proc` lists, with the inode of each.
fn listed() -> impl Iterator<Item = (Pid, u64)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.ino())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::process::{Command, Stdio};

    use super::{Stat, Tree};

    #[test]
    fn each_is_followed_by_all_that_is_below_it() {
        let stat = |pid: i32, ppid: i32| {
            let line = format!("{pid} (x) S {ppid} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0");
            Stat::parse(line.as_bytes()).unwrap()
        };
        // Two children of 1 with two each, and one that is its own parent's parent.
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

    #[test]
    fn a_newcomer_is_told_from_who_was_there() {
        let spawn = || Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut old = spawn();
        let tree = Tree::read();
        let mut new = spawn();
        let came: Vec<i32> = tree.newcomers().into_iter().map(|stat| stat.pid).collect();
        for child in [&mut old, &mut new] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        let is_new = |pid: u32| came.contains(&(pid as i32));
        assert_eq!((is_new(std::process::id()), is_new(old.id()), is_new(new.id())), (false, false, true));
    }
}
