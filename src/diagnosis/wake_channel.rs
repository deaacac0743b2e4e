//! The channels by which a program wakes its own event loop: an eventfd, a pipe or a socket pair, with both
//! ends in the process. They are never the cause of a hang: the loop waits for the other fds in its set.

use crate::guard::facts::{Facts, Process};
use crate::proc::fds::Fd;
use crate::proc::waits::Thread;
use crate::recorder::call_site::Names;

/// Whether an fd in the poll set of a thread is such a channel.
///
/// Does not depend on names of libraries. The process holds both ends, and waits for other fds in the same
/// set; or it runs another program and waits for nothing else, which is how an event loop idles.
pub(super) fn is_one(facts: &Facts, names: &Names, process: &Process, thread: &Thread, fd: i32) -> bool {
    if !thread.on.is_set() {
        return false;
    }
    let set = entries(thread);
    if set.len() < 2 && process.runs_own_program() {
        return false;
    }
    process.fd(fd).is_some_and(|fd| has_both_ends(facts, names, process, &set, fd))
}

/// Whether everything that a thread waits for is such a channel.
pub(super) fn idles(facts: &Facts, names: &Names, process: &Process, thread: &Thread) -> bool {
    let set = entries(thread);
    !set.is_empty() && set.iter().all(|fd| is_one(facts, names, process, thread, *fd))
}

/// The fds of a poll set, without the epoll instance itself.
pub(super) fn entries(thread: &Thread) -> Vec<i32> {
    use crate::proc::waits::On;
    match &thread.on {
        On::Poll { fds, .. } | On::Epoll { fds, .. } => fds.iter().step_by(2).copied().collect(),
        _ => Vec::new(),
    }
}

fn has_both_ends(facts: &Facts, names: &Names, process: &Process, set: &[i32], fd: &Fd) -> bool {
    if fd.event != 0 {
        let others = facts.processes.iter().filter(|other| other.pid != process.pid);
        return !others.flat_map(Process::known_fds).any(|other| other.event == fd.event);
    }
    // A standard stream was passed to the program.
    if fd.fd <= 2 {
        return false;
    }
    let is_set = |other: &Fd| set.contains(&other.fd);
    if let Some(pipe) = fd.pipe() {
        // An fd that another process created was inherited: it is not the program's own.
        let is_inherited = || {
            let creator = names.of_inode(pipe).map(|site| site.creator);
            !process.runs_own_program() && creator.is_some_and(|creator| creator != process.pid)
        };
        let mut ends = process.known_fds().iter().filter(|end| end.pipe() == Some(pipe) && end.writes());
        return fd.reads() && ends.any(|end| !is_set(end)) && !is_inherited();
    }
    let peer = fd.socket().and_then(|ino| facts.socket(ino)).and_then(|socket| socket.other_end());
    let mut ends = process.known_fds().iter().filter(|end| peer.is_some() && end.socket() == peer);
    let first = ends.next();
    first.is_some_and(|first| !is_set(first)) && ends.all(|end| !is_set(end))
}
