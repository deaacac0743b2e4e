//! The tree: every process with its parent, from `/proc/*/stat`.
//!
//! `/proc/PID/task/TID/children` would be quicker, but kernels without `CONFIG_PROC_CHILDREN`
//! lack it, and it may skip children that come and go while it is read.

use std::collections::HashMap;
use std::fs;

use super::process::Stat;
use crate::sys::Pid;

/// The processes of the machine at (nearly) one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    processes: HashMap<Pid, Stat>,
}

impl Tree {
    /// Reads every process that may be read. What vanishes meanwhile is left out.
    pub(crate) fn read() -> Tree {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Tree::default();
        };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Tree::of(pids.filter_map(Stat::read))
    }

    pub(crate) fn of(processes: impl IntoIterator<Item = Stat>) -> Tree {
        Tree { processes: processes.into_iter().map(|stat| (stat.pid, stat)).collect() }
    }

    /// Every process that was read, in no order.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Stat> {
        self.processes.values()
    }

    pub(crate) fn get(&self, pid: Pid) -> Option<&Stat> {
        self.processes.get(&pid)
    }

    /// Every process below `root` but those at or below `except`, parents before children.
    pub(crate) fn below(&self, root: Pid, except: &[Pid]) -> Vec<&Stat> {
        let mut children: HashMap<Pid, Vec<&Stat>> = HashMap::new();
        for stat in self.processes.values() {
            children.entry(stat.ppid).or_default().push(stat);
        }
        let mut found: Vec<&Stat> = Vec::new();
        let mut pending = vec![root];
        while let Some(parent) = pending.pop() {
            // Taken out, so that a ring of parents ends.
            let mut next = children.remove(&parent).unwrap_or_default();
            next.retain(|stat| !except.contains(&stat.pid));
            next.sort_by_key(|stat| (stat.start_ticks, stat.pid));
            pending.extend(next.iter().rev().map(|stat| stat.pid));
            found.extend(next);
        }
        found
    }
}
