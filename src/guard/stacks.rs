//! Reads stacks of threads: first those of the test process and its forks, then those of processes that run
//! other programs.

use std::time::{Duration, Instant};

use crate::guard::facts::Process;
use crate::proc::mapped::MappedFile;
use crate::proc::maps::{Address, Maps};
#[cfg(feature = "__engine")]
use crate::proc::sockets::Socket;
use crate::proc::threads::ThreadStack;
use crate::proc::unwind::Unwinder;
use crate::sys::{self, Pid};

/// The most threads whose stacks are read.
const STACKS: usize = 64;
/// Time limit for the stacks of processes that run other programs.
const OTHERS: Duration = Duration::from_millis(50);

/// Reads the stacks, those of the test and its forks first. Returns the files with frames of the others, and
/// whether time was over before all of the former were read.
pub(super) fn read(processes: &mut [Process], until: Option<Instant>) -> (Vec<MappedFile>, bool) {
    let mut unwinder = Unwinder::default();
    let mut left = STACKS;
    let mut files = Vec::new();
    let is_over = |until: Option<Instant>| until.is_some_and(|until| Instant::now() >= until);
    for process in processes.iter_mut().filter(|process| process.runs_own_program()) {
        if is_over(until) {
            return (files, true);
        }
        let Ok(maps) = Maps::read(process.pid) else { continue };
        for thread in process.tasks.iter_mut().take(left) {
            thread.frames = unwinder.frames(process.pid, thread.tid, &maps);
        }
        left = left.saturating_sub(process.tasks.len());
    }
    let own = Instant::now() + OTHERS;
    let until = Some(until.map_or(own, |until| until.min(own)));
    for process in processes.iter_mut().filter(|process| !process.runs_own_program()) {
        if left == 0 || is_over(until) {
            break;
        }
        let Ok(maps) = Maps::read(process.pid) else { continue };
        for thread in process.tasks.iter_mut().take(left) {
            thread.frames = unwinder.frames(process.pid, thread.tid, &maps);
            keep_known(&mut thread.frames, |module| note_file(&mut files, process.pid, module, &maps));
        }
        left = left.saturating_sub(process.tasks.len());
    }
    (files, false)
}

/// Reads the stacks of some threads of a process that is stopped and goes on.
pub(super) fn of_threads(pid: Pid, tids: &[Pid]) -> Vec<ThreadStack> {
    if tids.is_empty() {
        return Vec::new();
    }
    let Ok(maps) = Maps::read(pid) else { return Vec::new() };
    let mut unwinder = Unwinder::default();
    let stack = |tid: &Pid| {
        let (frames, stop) = unwinder.frames_and_stop(pid, *tid, &maps);
        sys::ptrace_detach(*tid, stop.signal);
        ThreadStack { tid: *tid, frames }
    };
    tids.iter().map(stack).collect()
}

/// Reads the stacks of processes that go on, as long as there is time. Gives the files that their frames lie in, and whether
/// the time was over before all were read.
#[cfg(feature = "__engine")]
pub(super) fn read_unharmed(
    processes: &mut [Process],
    sockets: &[Socket],
    until: Option<Instant>,
) -> (Vec<MappedFile>, bool) {
    /// The most threads whose stacks are read.
    const STACKS: usize = 512;
    let mut unwinder = Unwinder::default();
    let (mut left, mut files) = (STACKS, Vec::new());
    for process in processes {
        if left == 0 || until.is_some_and(|until| Instant::now() >= until) {
            return (files, true);
        }
        let Ok(maps) = Maps::read(process.pid) else { continue };
        let fds = process.fds.take();
        // What is not known of may have a timeout.
        let is_timed = |fd: i32| {
            let fd = fds.as_ref().and_then(|fds| fds.iter().find(|known| known.fd == fd));
            let socket = fd.map(|fd| fd.socket().map(|ino| sockets.iter().find(|socket| socket.ino == ino)));
            match socket {
                None => true,
                Some(None) => false,
                Some(Some(socket)) => {
                    socket.is_none_or(|socket| !(socket.reads_forever && socket.writes_forever))
                }
            }
        };
        for thread in process.tasks.iter_mut().take(left) {
            thread.frames = unwinder.frames_unharmed(process.pid, thread, &maps, is_timed);
            keep_known(&mut thread.frames, |module| note_file(&mut files, process.pid, module, &maps));
        }
        left = left.saturating_sub(process.tasks.len());
        process.fds = fds;
    }
    (files, false)
}

/// Cuts a stack where it comes to a file that is not known.
fn keep_known(frames: &mut Vec<Address>, mut is_known: impl FnMut(&str) -> bool) {
    let known = frames.iter().take_while(|address| is_known(&address.module)).count();
    frames.truncate(known);
}

/// Records the file of a module. Returns whether the path is unambiguous: a process with another root
/// directory may have another file under it.
fn note_file(files: &mut Vec<MappedFile>, pid: Pid, module: &str, maps: &Maps) -> bool {
    let known = files.iter().find(|file| file.path == module);
    if let Some(inode) = known.map(|file| file.inode).filter(|inode| *inode != 0) {
        return Some(inode) == maps.inode(module);
    }
    let Some(file) = MappedFile::of(pid, module, maps) else { return false };
    match known {
        Some(known) => known.build_id == file.build_id && !file.build_id.is_empty(),
        None => {
            files.push(file);
            true
        }
    }
}
