//! Captures a test's output until it is known whether it is shown.
//!
//! Into a file, not a pipe: a process that holds a file blocks no other, the order of stdout and stderr is
//! kept, and the test's fd table has no additional pipe. A file can fail because the file system is full or
//! because of a size limit. So some room is reserved at the beginning; where the file system has none, the
//! file is in memory. If the run has a limit on the size of files (`RLIMIT_FSIZE`, which applies to the
//! writing process, also in memory), the output goes to a pipe that this process drains.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;

use crate::config::bazel;
use crate::sys;
use crate::sys::lock::lock;

/// The most bytes of output that are shown. An unoptimised libtest-mimic takes 0.2 s to print each of these
/// MiB.
const MOST: usize = 8 << 20;
/// The bytes that are reserved on a file system that a test may fill.
const RESERVED: i64 = 64 << 10;
/// A limit on the size of files below this may be too small for a test's output.
const SMALL: u64 = 64 << 20;

/// Empty capture files, ready for the next test.
pub(crate) type Pool = Mutex<Vec<File>>;

/// Captures the output of one test.
pub(crate) enum Capture {
    /// An unlinked file that all processes of the test append to, so that the order is kept.
    File(File),
    Pipe(Drained),
}

impl Capture {
    /// Takes a file from the pool, or makes the best kind that is possible.
    pub(crate) fn new(pool: &Pool) -> io::Result<Capture> {
        if limit() < SMALL {
            return Drained::new().map(Capture::Pipe);
        }
        if let Some(kept) = lock(pool).pop() {
            return Ok(Capture::File(kept));
        }
        let directory = bazel::temp_dir();
        let on_disk = file_in(&directory).and_then(|file| reserve(&file).map(|()| file));
        on_disk
            .or_else(|error| {
                in_memory()
                    .map_err(|_| io::Error::new(error.kind(), format!("`{}`: {error}", directory.display())))
            })
            .map(Capture::File)
    }

    /// The captured output. The file goes back to the pool if it is `reusable`: no process may still write to
    /// it.
    pub(crate) fn finish(self, pool: &Pool, reusable: bool) -> io::Result<String> {
        let capture = match self {
            Capture::File(capture) => capture,
            Capture::Pipe(drained) => return Ok(drained.finish()),
        };
        let as_before = only_appends(&capture).is_ok();
        let output = read(&capture)?;
        let is_ready = |capture: &File| capture.set_len(0).is_ok() && reserve(capture).is_ok();
        if reusable && as_before && (output.is_empty() || is_ready(&capture)) {
            lock(pool).push(capture);
        }
        Ok(output)
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Capture::File(file) => file.as_fd(),
            Capture::Pipe(drained) => drained.pipe.as_fd(),
        }
    }
}

/// The `RLIMIT_FSIZE` of the run, read once.
pub(crate) fn limit() -> u64 {
    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(sys::file_size_limit)
}

fn file_in(directory: &Path) -> io::Result<File> {
    let capture = tempfile::tempfile_in(directory)?;
    only_appends(&capture)?;
    Ok(capture)
}

/// A file in memory, which needs no file system.
fn in_memory() -> io::Result<File> {
    let capture = File::from(memfd_create(c"childproof-output", MFdFlags::MFD_CLOEXEC)?);
    only_appends(&capture)?;
    Ok(capture)
}

/// Reserves room for some output, in case the file system becomes full.
fn reserve(capture: &File) -> io::Result<()> {
    match fallocate(capture, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, RESERVED) {
        Err(error @ (Errno::ENOSPC | Errno::EDQUOT)) => Err(error.into()),
        // Not every file system can do that; then nothing is reserved.
        _ => Ok(()),
    }
}

/// Sets the file's flags to `O_APPEND` alone: all processes that have it share the flags, and a test may have
/// changed them.
fn only_appends(capture: &File) -> io::Result<()> {
    fcntl(capture, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(())
}

fn read(capture: &File) -> io::Result<String> {
    let length = capture.metadata()?.len();
    if length == 0 {
        return Ok(String::new());
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(MOST).min(MOST)];
    // If it is too long, the end is kept: it is the more useful part.
    let from = length - bytes.len() as u64;
    capture.read_exact_at(&mut bytes, from)?;
    Ok(end_of(&bytes, from))
}

/// Converts these bytes to text, and notes that `from` more bytes came before them.
fn end_of(bytes: &[u8], from: u64) -> String {
    let text = String::from_utf8_lossy(bytes);
    if from > 0 { format!("[the first {from} bytes are left out]\n{text}") } else { text.into_owned() }
}

/// A pipe, and the thread that drains it while the test runs.
pub(crate) struct Drained {
    /// The write end, for the test.
    pipe: OwnedFd,
    /// A byte written here ends the thread. Closing it would not: an unguarded test may have forked and have
    /// a copy.
    stop: File,
    /// The other end of that. The thread may have read EOF and be gone, and where the harness has SIGPIPE's default a
    /// byte without a reader would end it.
    stopped: Arc<OwnedFd>,
    thread: JoinHandle<String>,
}

impl Drained {
    fn new() -> io::Result<Drained> {
        let (read, pipe) = pipe2(OFlag::O_CLOEXEC)?;
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC)?;
        let stopped = Arc::new(stopped);
        let of_thread = Arc::clone(&stopped);
        let drain = move || drain(File::from(read), &of_thread);
        let thread = thread::Builder::new().name("childproof-output".to_owned()).spawn(drain)?;
        Ok(Drained { pipe, stop: stop.into(), stopped, thread })
    }

    fn finish(mut self) -> String {
        drop(self.pipe);
        let _ = self.stop.write_all(b".");
        let text = self.thread.join().unwrap_or_default();
        drop(self.stopped);
        text
    }
}

/// Reads a pipe until EOF, or until it is empty and `stopped` is readable.
fn drain(mut pipe: File, stopped: &OwnedFd) -> String {
    let (mut bytes, mut left_out) = (Vec::new(), 0);
    let mut chunk = vec![0; 64 << 10];
    loop {
        let mut fds =
            [PollFd::new(pipe.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        // No timeout: the test has one.
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        let [is_readable, is_stopped] = fds.map(|fd| fd.any().unwrap_or(true));
        if !is_readable && is_stopped {
            break;
        }
        match pipe.read(&mut chunk) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
        if bytes.len() > 2 * MOST {
            let more = bytes.len() - MOST;
            left_out += more as u64;
            bytes.drain(..more);
        }
    }
    let more = bytes.len().saturating_sub(MOST);
    end_of(&bytes[more..], left_out + more as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caught(capture: Capture, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<String> {
        let mut end = File::from(capture.as_fd().try_clone_to_owned()?);
        write(&mut end)?;
        // `end` stays open, as in a process that could not be killed.
        capture.finish(&Pool::default(), false)
    }

    #[test]
    fn a_thread_that_has_read_the_end_leaves_no_broken_pipe() -> io::Result<()> {
        let Drained { pipe, mut stop, stopped: _stopped, thread } = Drained::new()?;
        drop(pipe);
        assert_eq!(thread.join().ok().as_deref(), Some(""));
        stop.write_all(b".")
    }

    #[test]
    fn all_kinds_catch_all_that_is_written() -> io::Result<()> {
        let kinds = || -> io::Result<Vec<Capture>> {
            let disk = file_in(&std::env::temp_dir())?;
            reserve(&disk)?;
            Ok(vec![Capture::File(disk), Capture::File(in_memory()?), Capture::Pipe(Drained::new()?)])
        };
        for capture in kinds()? {
            assert_eq!(caught(capture, |_| Ok(()))?, "");
        }
        for capture in kinds()? {
            assert_eq!(caught(capture, |end| end.write_all(b"one\ntwo"))?, "one\ntwo");
        }
        for capture in kinds()? {
            let text = caught(capture, |end| {
                end.write_all(b"begin")?;
                (0..40).try_for_each(|_| end.write_all(&vec![b'x'; 1 << 20]))?;
                end.write_all(b"end")
            })?;
            let left_out = (40 << 20) + 8 - MOST;
            assert!(
                text.starts_with(&format!("[the first {left_out} bytes are left out]\nxx")),
                "{}",
                &text[..60]
            );
            assert!(text.ends_with("xend"));
        }
        Ok(())
    }
}
