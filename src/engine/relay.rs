//! Passes the output of a command on, where what is left of it may be kept: what is kept must not keep the reader of the
//! tool's own output waiting.
//!
//! Only where that is a pipe or a socket; nothing waits for the end of a file or a terminal.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;

/// The most that is passed on after the end of the command: more than is in a pipe.
const REST: usize = 2 << 20;
const PART: usize = 64 << 10;

/// One output of a command, and where it goes.
pub(super) struct Pipe {
    from: PipeReader,
    to: File,
}

/// A thread that passes it on.
pub(super) struct Relay {
    thread: JoinHandle<Option<PipeReader>>,
    /// Closed when it is to end.
    end: io::PipeWriter,
}

/// Puts pipes between a command and this process's stdout and stderr, one if both are the same.
pub(super) fn between(command: &mut Command) -> io::Result<Vec<Pipe>> {
    let mut pipes: Vec<(Pipe, io::PipeWriter, (u64, u64))> = Vec::new();
    for (fd, is_stdout) in [(1, true), (2, false)] {
        let Ok(to) = sys::borrow(fd).try_clone_to_owned().map(File::from) else { continue };
        let metadata = to.metadata()?;
        let kind = metadata.file_type();
        if !kind.is_fifo() && !kind.is_socket() {
            continue;
        }
        let identity = (metadata.dev(), metadata.ino());
        let write = match pipes.iter().find(|(_, _, known)| *known == identity) {
            Some((_, write, _)) => write.try_clone()?,
            None => {
                let (from, write) = io::pipe()?;
                pipes.push((Pipe { from, to }, write.try_clone()?, identity));
                write
            }
        };
        if is_stdout {
            command.stdout(Stdio::from(write))
        } else {
            command.stderr(Stdio::from(write))
        };
    }
    Ok(pipes.into_iter().map(|(pipe, _, _)| pipe).collect())
}

impl Pipe {
    /// Its fds, which only this process may have.
    pub(super) fn fds(&self) -> [RawFd; 2] {
        [self.from.as_raw_fd(), self.to.as_raw_fd()]
    }
}

impl Relay {
    /// Starts the thread. The guard must have been forked before.
    pub(super) fn start(pipe: Pipe) -> io::Result<Relay> {
        let (is_over, end) = io::pipe()?;
        let thread = thread::Builder::new().spawn(move || pass_on(pipe, &is_over))?;
        Ok(Relay { thread, end })
    }

    /// Passes on what is in the pipe, and ends. Returns the pipe; `None` if nothing reads the output any more.
    pub(super) fn end(self) -> Option<OwnedFd> {
        drop(self.end);
        // It does not panic.
        self.thread.join().ok().flatten().map(OwnedFd::from)
    }
}

/// Passes on until the end of the output, or until `is_over` is closed and the pipe is empty. A command whose output is not
/// read any more gets SIGPIPE, as without a relay.
fn pass_on(Pipe { mut from, mut to }: Pipe, is_over: &PipeReader) -> Option<PipeReader> {
    let mut part = vec![0; PART];
    let mut rest = REST;
    while rest > 0 {
        let mut fds =
            [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(is_over.as_fd(), PollFlags::POLLIN)];
        // As long as the command runs. All signals are blocked here, so it is not interrupted.
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [from_ready, over] = fds.map(|fd| fd.any().unwrap_or(false));
        if !from_ready && over {
            break;
        }
        let length = match from.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        to.write_all(&part[..length]).ok()?;
        if over {
            rest = rest.saturating_sub(length);
        }
    }
    Some(from)
}
