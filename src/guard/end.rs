//! Ends trees that are not below this process: what earlier runs have left.
//!
//! The race is that of [`kill`](super::kill), and it is met in the same way: each process is opened before its line is read
//! again, and signalled through that alone. This process is no subreaper of theirs, so a child whose parent ends leaves the
//! tree unseen. Hence all are stopped first, the topmost before the others, until a list of the processes names no new one.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::facts::Survivor;
use super::kill::{self, LIMIT, pin};
use super::stop;
use crate::proc::process::Stat;
use crate::proc::tree::Tree;
use crate::sys;

/// How long the processes of a tree may take to be stopped.
const STOP: Duration = Duration::from_secs(2);
/// How many deaths are waited for at once. A tree may be larger than the fd limit.
const WATCHED: usize = 64;

/// What became of a tree.
pub(crate) struct Ended {
    /// The processes that were killed, the topmost first.
    pub(crate) killed: Vec<Stat>,
    pub(crate) survivors: Vec<Survivor>,
    /// The topmost process had ended before, and its number may be another's by now.
    pub(crate) was_gone: bool,
}

/// Kills a process and everything below it, if it still is the one that was seen.
pub(crate) fn end_tree(root: &Stat) -> Ended {
    // They share groups and sessions with processes that are none of theirs.
    kill::spare_groups();
    let mut ended = Ended { killed: Vec::new(), survivors: Vec::new(), was_gone: false };
    let Some(topmost) = pin(root) else {
        ended.was_gone = true;
        return ended;
    };
    let deadline = Instant::now() + LIMIT;
    // What may not be signalled is named below.
    let _ = sys::pidfd_send_signal(&topmost, libc::SIGSTOP);
    let (tree, _) = stop::stop_all(root.pid, &[], Tree::default(), Instant::now() + STOP);
    // It may have ended meanwhile, and another process may have its number and children by now.
    let is_same = tree.get(root.pid).is_none_or(|now| now.start_ticks == root.start_ticks);
    let below = tree.below(root.pid, &[]).into_iter().filter(|stat| is_same && !stat.is_zombie());
    let mut all = vec![(root.clone(), Some(topmost))];
    all.extend(below.map(|stat| (stat.clone(), None)));
    for part in all.chunks_mut(WATCHED) {
        let mut watched: Vec<(Stat, OwnedFd)> = Vec::new();
        for (stat, opened) in part {
            let Some(pidfd) = opened.take().or_else(|| pin(stat)) else { continue };
            match sys::pidfd_send_signal(&pidfd, libc::SIGKILL) {
                Ok(()) => watched.push((stat.clone(), pidfd)),
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => ended.survivors.push(kill::survivor(stat, Some(&error))),
            }
        }
        for (stat, pidfd) in watched {
            match has_died(&pidfd, deadline) {
                true => ended.killed.push(stat),
                false => ended.survivors.push(kill::survivor(&stat, None)),
            }
        }
    }
    ended
}

/// Waits for the end of a process.
fn has_died(pidfd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(count) => return count > 0,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::process::{Command, Stdio};

    use super::{Stat, end_tree};

    #[test]
    fn another_process_with_the_number_of_one_that_has_ended_is_left_alone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stat = Stat::read(child.id() as i32).unwrap();
        let before = Stat { start_ticks: stat.start_ticks - 1, ..stat.clone() };
        let ended = end_tree(&before);
        let is_alive = child.try_wait().unwrap().is_none();
        assert!(ended.was_gone && ended.killed.is_empty() && ended.survivors.is_empty() && is_alive);
        // The one that was seen is killed.
        let ended = end_tree(&stat);
        child.wait().unwrap();
        assert!(!ended.was_gone && ended.killed.len() == 1 && ended.survivors.is_empty());
    }

    #[test]
    fn what_is_below_a_process_ends_with_it() {
        let script = "sh -c 'sleep 3137 & setsid sleep 3137 & wait' & echo started; wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        // The shell below and its two.
        let below = || super::Tree::read().below(child.id() as i32, &[]).len();
        while below() < 3 {
            std::thread::yield_now();
        }
        let ended = end_tree(&Stat::read(child.id() as i32).unwrap());
        child.wait().unwrap();
        assert!(ended.survivors.is_empty());
        assert!(ended.killed.len() >= 4, "{:?}", ended.killed);
        assert!(
            ended.killed.iter().skip(1).all(|stat| Stat::read(stat.pid).is_none_or(|now| now.is_zombie()))
        );
    }
}
