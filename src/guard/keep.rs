//! Keeps what leaked or hangs, stopped, for a look with a debugger.
//!
//! The supervisor stops everything and reports. Up to then, and until the harness asks for it, the lifeline holds: if the
//! harness is killed, everything is. What is kept needs its supervisor. The subject's own process dies with it, and the
//! kernel ends and continues stopped processes whose group becomes orphaned by an exit (`kill_orphaned_pgrp`). So the
//! supervisor stays, without the fds of the run, and what is above it stays with it and removes the directory at the end.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;

use super::command::close_given_fds;
use super::events::{Sources, Wakeup};
use super::facts::Answer;
use super::guarded_run::reap_others;
use super::messages::SlotRequest;
use super::stop;
use crate::proc::process::{self, KEPT, Stat};
use crate::proc::tree::Tree;
use crate::sys::channel::Channel;
use crate::sys::wire::Wire;
use crate::sys::{self, Pid};

/// How long the processes may take to stop. One in an uninterruptible wait does not.
const STOP: Duration = Duration::from_secs(1);
/// How often that is checked: the kernel reports the stop of a process to its parent alone.
const AGAIN: Duration = Duration::from_millis(2);

/// What becomes of stopped processes.
pub(super) enum Decision {
    /// They stay. The fds are held open with them.
    Keep(Vec<OwnedFd>),
    Kill,
    /// The harness is gone.
    Abandoned,
}

/// Stops all processes below `root`, and no longer traces them. `tree` is an earlier snapshot. Returns their pids.
pub(super) fn hold(root: Pid, tree: Tree) -> Vec<Pid> {
    let until = Instant::now() + STOP;
    let (tree, _) = stop::stop_all(root, &[], tree, until);
    let alive: Vec<Pid> =
        tree.below(root, &[]).into_iter().filter(|stat| !stat.is_zombie()).map(|stat| stat.pid).collect();
    let is_moving = |pid: &&Pid| !has_stopped(root, **pid);
    while alive.iter().filter(is_moving).count() > 0 && Instant::now() < until {
        thread::sleep(AGAIN);
    }
    alive
}

/// Whether all threads of a process have stopped. Detaches those that this process has traced for their stacks: they stop
/// then, and a debugger can trace them.
fn has_stopped(own: Pid, pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let tids = tasks.filter_map(|task| task.file_name().to_str()?.parse::<Pid>().ok());
    let mut all = true;
    for tid in tids {
        match Stat::read(tid).map(|stat| stat.state) {
            Some('t') if process::tracer(tid) == own => {
                sys::ptrace_detach(tid, 0);
                all = false;
            }
            Some('T' | 't' | 'Z' | 'X') | None => {}
            Some(_) => all = false,
        }
    }
    all
}

/// Waits until the harness says what becomes of what was stopped.
pub(super) fn decision(sources: &Sources<'_>) -> Decision {
    loop {
        match sources.wait(None) {
            Wakeup::Abandoned => return Decision::Abandoned,
            Wakeup::Children | Wakeup::Deadline => {}
            Wakeup::Request => {
                let Ok(Some((bytes, fds))) = sources.slot.receive() else { return Decision::Abandoned };
                match SlotRequest::decode(&bytes) {
                    Some(SlotRequest::Keep) => return Decision::Keep(fds),
                    Some(SlotRequest::Kill) => return Decision::Kill,
                    Some(SlotRequest::Respond) => {
                        let _ = sources.slot.send(&Answer::Responds {}.encode(), &[]);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// How long a supervisor may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks a supervisor to keep what it has stopped, with these fds. Returns whether it does.
pub(super) fn request(slot: &Channel, fds: &[BorrowedFd<'_>]) -> bool {
    let is_sent = slot.send(&SlotRequest::Keep.encode(), fds).is_ok();
    let until = Instant::now() + PATIENCE;
    while is_sent && sys::readable(slot, Some(until.saturating_duration_since(Instant::now()))) {
        match slot.receive() {
            Ok(Some((bytes, _))) if matches!(Answer::decode(&bytes), Some(Answer::Kept {})) => return true,
            // An answer to what was asked before.
            Ok(Some(_)) => {}
            _ => return false,
        }
    }
    false
}

/// Stays with the kept processes until all of them have ended. From the answer on, the harness may exit.
pub(super) fn stay(slot: &Channel, children: &SignalFd) {
    become_keeper();
    let _ = slot.send(&Answer::Kept {}.encode(), &[]);
    until_empty(children);
}

/// Takes the name of a guard that stays, and closes what this process has inherited from outside of the run.
pub(super) fn become_keeper() {
    close_given_fds();
    let _ = nix::sys::prctl::set_name(KEPT);
}

/// Whether a process is a guard that stays.
pub(super) fn stays(guard: Pid) -> bool {
    Stat::read(guard).is_some_and(|stat| stat.comm.as_bytes() == KEPT.to_bytes())
}

/// Waits until no child is left, for as long as that takes.
pub(super) fn until_empty(children: &SignalFd) {
    loop {
        reap_others(None);
        if !sys::has_children() {
            return;
        }
        sys::readable(children, None);
        let _ = children.read_signal();
    }
}
