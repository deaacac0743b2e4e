//! A socket between two of the harness's own processes that carries messages and fds.
//!
//! `SOCK_SEQPACKET` keeps messages apart and tells end-of-file when the other side dies. A long
//! message goes in several packets, so that no report is lost to the socket's buffer size.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::sys::{self, FDS};

/// The bytes of a message in one packet: all of those of a test that leaves nothing, and no more.
/// A buffer costs each page that it lies on, once in every process that was forked meanwhile.
const PACKET: usize = 1024;
/// How many seconds a send waits for a reader.
const PATIENCE: i64 = 30;
const LAST: u8 = 0;
const MORE: u8 = 1;

/// One end of a socket pair. Always close-on-exec.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// A message and the fds that came with it.
pub(crate) type Message = (Vec<u8>, Vec<OwnedFd>);

impl Channel {
    /// Makes a pair.
    pub(crate) fn pair() -> io::Result<(Channel, Channel)> {
        let [one, other] = sys::socket_pair()?;
        for end in [&one, &other] {
            sys::limit_sends(end, PATIENCE)?;
        }
        Ok((Channel(one), Channel(other)))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends a message. Fails after 30 s if nobody reads the other end.
    pub(crate) fn send(&self, message: &[u8], mut fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut chunks = message.chunks(PACKET).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let is_last = chunks.peek().is_none();
            sys::send(&self.0, [&[if is_last { LAST } else { MORE }], chunk], fds)?;
            if is_last {
                return Ok(());
            }
            // They went with the first packet.
            fds = &[];
        }
    }

    /// Receives a message, waiting for it as long as the other end is open; `None` at its end.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        let mut message = Vec::new();
        let mut fds = Vec::new();
        let mut packet = [0; PACKET];
        loop {
            let mut tag = [MORE];
            let (length, came) = match sys::receive(&self.0, [&mut tag, &mut packet]) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                result => result?,
            };
            // No packet of ours is empty.
            let Some(length) = length.checked_sub(tag.len()) else { return Ok(None) };
            message.extend_from_slice(&packet[..length]);
            fds.extend(came.into_iter().flatten());
            if tag == [LAST] {
                return Ok(Some((message, fds)));
            }
        }
    }

    /// Waits for a message of `N` bytes and the fds that come with it, without taking memory: in a fresh
    /// fork each page that is written to is copied. `None` if another came, or none.
    pub(crate) fn receive_small<const N: usize>(&self) -> Option<([u8; N], [Option<OwnedFd>; FDS])> {
        let (mut tag, mut message) = ([MORE], [0; N]);
        let (length, fds) = sys::receive(&self.0, [&mut tag, &mut message]).ok()?;
        (tag == [LAST] && length == N + 1).then_some((message, fds))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
