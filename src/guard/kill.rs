//! Kills all descendants of a process, and no other process.
//!
//! A pid found in `/proc` may exit, be reaped by its parent and be reused for a foreign process before the
//! signal is sent. So a process is signalled through a pidfd, and its identity is checked after the pidfd was
//! opened: with the same start time it is the same process, and still a descendant, since a descendant of a
//! subreaper never stops being one. A tree that forks while it is killed refills, so a process group is
//! killed as a whole, by `killpg`, while one of its members is our unreaped zombie. A pid is not reused as
//! long as a group of that number has a member, dead or alive (`free_pid`, kernel/pid.c).

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::guard::facts::Survivor;
use crate::guard::facts::Unkillable;
use crate::guard::failure::SystemError;
use crate::guard::stop;
use crate::proc::mounts;
use crate::proc::process::{self, Stat};
use crate::proc::tree::Tree;
use crate::sys::{self, Children, Pid};

/// Time limit until all processes of a tree are dead, unless they are [`STARVED`].
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// How much longer it may take where all that is left needs nothing but the CPU, which a loaded machine gives late: to the
/// processes that have taken the signal, and to this one, which lists them.
const STARVED: Duration = Duration::from_secs(10);
/// The longest time that a kill takes.
pub(crate) const LONGEST: Duration = LIMIT.saturating_add(STARVED);
/// How long a process may take to end by itself if no list can contain it.
const UNLISTED: Duration = Duration::from_millis(500);
const PASS: u16 = 10;
/// How long a pass may take to stop the tree before it kills the stopped processes.
const STOP: Duration = Duration::from_secs(2);
/// How many exits a pass waits for. A tree may be larger than the fd limit.
const WATCHED: usize = 64;

/// The result of a kill.
#[derive(Debug, Default)]
pub(crate) struct Killed {
    /// The processes that were still alive after [`LIMIT`].
    pub(crate) survivors: Vec<Survivor>,
}

/// Kills and reaps all descendants of `root`, which is this process, a subreaper with one thread.
///
/// Processes at or below a child in `except` are neither killed nor reaped.
pub(crate) fn kill_below(root: Pid, except: &[Pid]) -> Killed {
    kill(root, except, Tree::default())
}

/// The same, starting with a recent snapshot, which usually contains all processes.
pub(crate) fn kill_seen_below(root: Pid, seen: Tree) -> Killed {
    kill(root, &[], seen)
}

fn kill(root: Pid, except: &[Pid], mut tree: Tree) -> Killed {
    let mut killed = Killed::default();
    let begin = Instant::now();
    let last = begin + LONGEST;
    // Hundreds of running processes would leave little CPU time to this one.
    let _raised = sys::raise_priority();
    mounts::uncover_proc();
    loop {
        // Stop all of them first: a survivor would see EOF or EPIPE and print a misleading error, and a
        // forking process would replace those that are killed.
        let is_whole;
        (tree, is_whole) = stop::stop_all(root, except, tree, last.min(Instant::now() + STOP));
        let alive: Vec<&Stat> =
            tree.below(root, except).into_iter().filter(|stat| !stat.is_zombie()).collect();
        let others = groups_of_others(&tree, root, except);
        let (watched, refused) = signal_all(root, &alive);
        reap_zombies(&others, except);
        if !sys::has_children() || alive.is_empty() && !except.is_empty() {
            return killed;
        }
        wait_for_deaths(&others, except, watched, begin + LIMIT);
        if !sys::has_children() {
            return killed;
        }
        let is_over = begin.elapsed() >= LONGEST;
        let is_late = begin.elapsed() >= LIMIT;
        // A child is left that no list will ever contain.
        let is_blind = begin.elapsed() >= UNLISTED && alive.is_empty() && !sys::shows_own_processes();
        if is_over || is_blind || is_late && !alive.iter().all(|stat| is_as_good_as_gone(stat)) {
            let why = |pid: Pid| refused.iter().find(|(refused, _)| *refused == pid).map(|(_, error)| error);
            killed.survivors = alive.iter().map(|stat| survivor(stat, why(stat.pid))).collect();
            if killed.survivors.is_empty() {
                // Processes were started faster than they could be read: report one of them.
                let now = Tree::read();
                let left = now.below(root, except).into_iter().find(|stat| !stat.is_zombie());
                killed.survivors.extend(left.map(|stat| survivor(stat, why(stat.pid))));
            }
            if killed.survivors.is_empty() && sys::has_children() {
                killed.survivors.push(Survivor::unlisted());
            }
            return killed;
        }
        // Re-reads everything now and then, since pids may have been reused. Not where reading takes too
        // long.
        if is_whole {
            tree = Tree::default();
        }
    }
}

/// Whether a process is gone, or will be as soon as it gets the CPU.
fn is_as_good_as_gone(stat: &Stat) -> bool {
    stat.again().is_none_or(|now| now.is_zombie() || needs_only_cpu(&now))
}

/// Whether a process is exiting and waits for nothing. (A tracer may hold one that exits, for as long as it likes.)
fn needs_only_cpu(now: &Stat) -> bool {
    now.state == 'R' && now.is_exiting()
}

/// Reaps zombies until no process has exited for a moment.
fn wait_for_deaths(others: &HashSet<Pid>, except: &[Pid], mut watched: Vec<OwnedFd>, deadline: Instant) {
    loop {
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
        // An error here only starts the next pass earlier.
        let _ = poll(&mut fds, PollTimeout::from(PASS));
        let alive: Vec<bool> =
            fds.iter().map(|fd| fd.revents().is_none_or(|events| events.is_empty())).collect();
        let (mut alive, before) = (alive.into_iter(), watched.len());
        watched.retain(|_| alive.next().unwrap_or(true));
        reap_zombies(others, except);
        if watched.len() == before || watched.is_empty() || Instant::now() >= deadline {
            return;
        }
    }
}

/// Sends SIGKILL to each of these processes, if it still is the same process.
///
/// Where pidfds are not available (a seccomp filter), a child of `root` is signalled by its pid, which is not
/// reused before it is reaped, and only this function's callers reap it.
///
/// Returns some of them, to wait for, and the errors of refused signals.
fn signal_all(root: Pid, alive: &[&Stat]) -> (Vec<OwnedFd>, Vec<(Pid, io::Error)>) {
    let (mut watched, mut refused) = (Vec::new(), Vec::new());
    for stat in alive {
        let Some(pidfd) = pin(stat) else { continue };
        let sent = sys::pidfd_send_signal(&pidfd, libc::SIGKILL).or_else(|error| match stat.ppid == root {
            true => sys::kill(stat.pid, libc::SIGKILL),
            false => Err(error),
        });
        if let Err(error) = sent {
            refused.push((stat.pid, error));
        }
        if watched.len() < WATCHED {
            watched.push(pidfd);
        }
    }
    (watched, refused)
}

/// Opens a process, if it still is the same process.
pub(super) fn pin(stat: &Stat) -> Option<OwnedFd> {
    let pidfd = sys::pidfd_open(stat.pid).ok()?;
    stat.again().map(|_| pidfd)
}

/// The process groups with a member that must not be killed: `root` itself, processes at or below `except`,
/// and all that are not below `root`.
fn groups_of_others(tree: &Tree, root: Pid, except: &[Pid]) -> HashSet<Pid> {
    let below: HashSet<Pid> = tree.below(root, except).into_iter().map(|stat| stat.pid).collect();
    let others = tree.processes().filter(|stat| stat.pid == root || !below.contains(&stat.pid));
    others.map(|stat| stat.pgid).chain([root]).collect()
}

/// Whether this process guards a command, which shares its session with other processes.
static SHARES_GROUPS: AtomicBool = AtomicBool::new(false);

/// Makes this process and its forks never signal a whole process group.
pub(super) fn spare_groups() {
    SHARES_GROUPS.store(true, Ordering::Relaxed);
}

/// Whether process groups may have unguarded members, since a command shares its session with other
/// processes.
pub(super) fn shares_groups() -> bool {
    SHARES_GROUPS.load(Ordering::Relaxed)
}

/// Reaps every zombie child of this process except those in `except`, and kills their process groups first.
///
/// A group is killed only if a descendant founded it. A process cannot join a group of another session
/// (setpgid(2)), and net, fork server and supervisors create their own sessions before they fork: so a
/// descendant is in a group that a descendant founded, or in that of this process. Groups that `others` have
/// joined are spared all the same.
fn reap_zombies(others: &HashSet<Pid>, except: &[Pid]) {
    while let Ok(Children::Ready(child)) = sys::waitid(None, libc::WEXITED | libc::WNOWAIT) {
        if except.contains(&child.pid) {
            return;
        }
        // The group id cannot be reused: the zombie is a member until it is reaped in the next line.
        match sys::getpgid(child.pid) {
            Ok(group) if group > 1 && !shares_groups() && !others.contains(&group) => {
                drop(sys::kill(-group, libc::SIGKILL))
            }
            _ => {}
        }
        if sys::waitid(Some(child.pid), libc::WEXITED).is_err() {
            return;
        }
    }
}

/// Says why a process could not be killed; `refused` is what the kernel said to a signal.
pub(super) fn survivor(stat: &Stat, refused: Option<&io::Error>) -> Survivor {
    let now = Stat::read(stat.pid).unwrap_or_else(|| stat.clone());
    let own = nix::unistd::geteuid();
    let because = match (process::effective_uid(stat.pid), refused) {
        (Some(uid), _) if !own.is_root() && uid != own.as_raw() => {
            Unkillable::OtherUser { uid, own: own.as_raw() }
        }
        (_, Some(error)) => Unkillable::Refused {
            error: SystemError { errno: error.raw_os_error(), text: error.to_string() },
        },
        _ if now.state == 'D' => Unkillable::Uninterruptible {},
        _ => Unkillable::StillThere { after: LIMIT, state: u32::from(now.state) },
    };
    Survivor { pid: stat.pid, name: now.comm, because }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::{Pid, Stat, Tree, groups_of_others, needs_only_cpu};

    #[test]
    fn only_a_runnable_process_that_exits_is_waited_for_longer() {
        // Flags of /proc/PID/stat: PF_EXITING, PF_SIGNALED.
        for (state, flags, is_waited_for) in
            [('R', 0x4, true), ('R', 0x400, true), ('R', 0, false), ('t', 0x400, false), ('D', 0x4, false)]
        {
            // No process has this number, so it has no pending signal.
            let line = format!("0 (x) {state} 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0");
            let stat = Stat::parse(line.as_bytes()).unwrap();
            assert_eq!(needs_only_cpu(&stat), is_waited_for, "{state} {flags:#x}");
        }
    }

    #[test]
    fn a_group_that_anything_else_has_joined_is_of_others() {
        let stat = |pid: Pid, ppid: Pid, group: Pid| {
            let line = format!("{pid} (x) S {ppid} {group} 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0");
            Stat::parse(line.as_bytes()).unwrap()
        };
        // A shell script, its child and the guard (10). Below that: 11 and 12 lead groups, 13 is in the
        // script's group, 14 in the guard's, 15 is in `except` and 16 is in its group.
        let tree = Tree::of(
            [(2, 1, 2), (3, 2, 2), (10, 2, 10), (11, 10, 11), (12, 11, 12), (13, 10, 2), (14, 10, 10)]
                .into_iter()
                .chain([(15, 10, 15), (16, 10, 15)])
                .map(|(pid, parent, group)| stat(pid, parent, group)),
        );
        let mut groups: Vec<Pid> = groups_of_others(&tree, 10, &[15]).into_iter().collect();
        groups.sort_unstable();
        assert_eq!(groups, [2, 10, 15]);
        // Also if the list does not contain the guard itself.
        assert!(groups_of_others(&Tree::of([]), 10, &[]).contains(&10));
    }
}
