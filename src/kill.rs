//! Kills everything below a process, and only that.
//!
//! The race: a pid found in `/proc` may die, be reaped by its parent and be given to a stranger
//! before the signal is sent. So a process is signalled through a pidfd that was opened first and
//! rechecked after (same start time, so the same process, so still ours: a descendant of a
//! subreaper never stops being one). And a tree that forks while it is killed refills: a process
//! group is killed whole, by `killpg`, while one of its members is our unreaped zombie. A pid is
//! not given away as long as a group of that number has a member, dead or alive
//! (`free_pid`, kernel/pid.c).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::facts::Survivor;
use crate::proc::process::{self, Stat};
use crate::proc::tree::Tree;
use crate::sys::{self, Children, Pid};

/// How long a tree may take to be dead, and how long a pass waits before it looks again.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
const PASS: u16 = 10;
/// How many deaths a pass waits for at once. A tree may be larger than the fd limit.
const WATCHED: usize = 64;

/// What a kill came to.
#[derive(Debug, Default)]
pub(crate) struct Killed {
    /// Every process that a SIGKILL was sent to, by pid.
    pub(crate) signalled: Vec<Pid>,
    /// What was still there after [`LIMIT`].
    pub(crate) survivors: Vec<Survivor>,
}

/// Kills and reaps everything below `root`, which is this process, a subreaper with one thread.
///
/// What stands at or below a child in `except` is left alone and not reaped.
pub(crate) fn kill_below(root: Pid, except: &[Pid]) -> Killed {
    kill(root, except, Tree::read())
}

/// The same, beginning with what was seen a moment ago: mostly that is all.
pub(crate) fn kill_seen_below(root: Pid, seen: Tree) -> Killed {
    kill(root, &[], seen)
}

fn kill(root: Pid, except: &[Pid], mut tree: Tree) -> Killed {
    let mut killed = Killed::default();
    let deadline = Instant::now() + LIMIT;
    loop {
        let alive: Vec<&Stat> =
            tree.below(root, except).into_iter().filter(|stat| !stat.is_zombie()).collect();
        let (watched, refused) = signal_all(root, &alive, &mut killed);
        reap_zombies(root, except);
        if !sys::has_children() || alive.is_empty() && !except.is_empty() {
            return killed;
        }
        if Instant::now() >= deadline {
            let why = |pid: Pid| refused.iter().find(|(refused, _)| *refused == pid).map(|(_, error)| error);
            killed.survivors = alive.iter().map(|stat| survivor(stat, why(stat.pid))).collect();
            return killed;
        }
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
        // Woken by the first death, or soon: an error here only makes the next pass come sooner.
        let _ = poll(&mut fds, PollTimeout::from(PASS));
        reap_zombies(root, except);
        if !sys::has_children() {
            return killed;
        }
        drop(watched);
        tree = Tree::read();
    }
}

/// Sends SIGKILL to each of these processes that still is the one that was seen.
///
/// They are stopped first: who sees the other end of its pipe go would else tell of that, in the
/// output of the test and as if it were the cause. Where a pidfd may not be used (a seccomp filter), a child
/// of `root` is signalled by its number, which it keeps until it is reaped, and that is done here alone.
///
/// Gives some of them, to wait for, and what the kernel said where it refused.
fn signal_all(root: Pid, alive: &[&Stat], killed: &mut Killed) -> (Vec<OwnedFd>, Vec<(Pid, io::Error)>) {
    let (mut watched, mut refused) = (Vec::new(), Vec::new());
    for few in alive.chunks(WATCHED) {
        let pinned: Vec<(&Stat, OwnedFd)> = few.iter().filter_map(|stat| Some((*stat, pin(stat)?))).collect();
        for (_, pidfd) in &pinned {
            let _ = sys::pidfd_send_signal(pidfd, libc::SIGSTOP);
        }
        for (stat, pidfd) in &pinned {
            let sent =
                sys::pidfd_send_signal(pidfd, libc::SIGKILL).or_else(|error| match stat.ppid == root {
                    true => sys::kill(stat.pid, libc::SIGKILL),
                    false => Err(error),
                });
            match sent {
                Ok(()) if killed.signalled.contains(&stat.pid) => {}
                Ok(()) => killed.signalled.push(stat.pid),
                Err(error) => refused.push((stat.pid, error)),
            }
        }
        if watched.is_empty() {
            watched = pinned.into_iter().map(|(_, pidfd)| pidfd).collect();
        }
    }
    (watched, refused)
}

/// Opens a process, if it still is the one that was seen.
fn pin(stat: &Stat) -> Option<OwnedFd> {
    let pidfd = sys::pidfd_open(stat.pid).ok()?;
    let still = Stat::read(stat.pid).is_some_and(|now| now.start_ticks == stat.start_ticks);
    still.then_some(pidfd)
}

/// Reaps every dead child of this process but those in `except`, killing their groups first.
fn reap_zombies(root: Pid, except: &[Pid]) {
    while let Ok(Children::Ready(child)) = sys::waitid(None, libc::WEXITED | libc::WNOWAIT) {
        if except.contains(&child.pid) {
            return;
        }
        // Pinned: the zombie is a member of the group until it is reaped in the next line. Our
        // own group is left out, which a descendant of our session may have joined.
        match sys::getpgid(child.pid) {
            Ok(group) if group > 1 && group != root => drop(sys::kill(-group, libc::SIGKILL)),
            _ => {}
        }
        if sys::waitid(Some(child.pid), libc::WEXITED).is_err() {
            return;
        }
    }
}

/// Says why a process could not be killed; `refused` is what the kernel said to a signal.
fn survivor(stat: &Stat, refused: Option<&io::Error>) -> Survivor {
    let now = Stat::read(stat.pid).unwrap_or_else(|| stat.clone());
    let own = nix::unistd::geteuid();
    let why = match (process::effective_uid(stat.pid), refused) {
        (Some(uid), _) if !own.is_root() && uid != own.as_raw() => {
            format!("it runs as user {uid}, whom user {own} may not signal")
        }
        (_, Some(error)) => format!("the kernel does not let it be signalled: {error}"),
        _ if now.state == 'D' => "it is in an uninterruptible wait (state D)".to_owned(),
        _ => format!("it was still there {} s after SIGKILL, in state {}", LIMIT.as_secs(), now.state),
    };
    Survivor { pid: stat.pid, name: now.comm, why }
}
