//! A socket between two processes of the harness that carries messages and fds.
//!
//! `SOCK_SEQPACKET` keeps messages apart, and the peer sees EOF when a process dies. A long message is split
//! into several packets, so the size limit of the socket's buffer does not matter.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::libc;

use super as sys;

/// The bytes of a message in one packet: just enough for a test that leaves nothing. Each page of a buffer
/// costs a page fault in every process that was forked meanwhile.
const PACKET: usize = 1024;
/// How many seconds a send waits for the receiver.
const PATIENCE: i64 = 30;
const LAST: u8 = 0;
const MORE: u8 = 1;

/// One end of a socket pair. Always close-on-exec.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// A message and the fds that came with it.
pub(crate) type Message = (Vec<u8>, Vec<OwnedFd>);

impl Channel {
    /// Creates a pair.
    pub(crate) fn pair() -> io::Result<(Channel, Channel)> {
        let [one, other] = Channel::pair_of_fds()?;
        Ok((Channel(one), Channel(other)))
    }

    /// Creates a socket pair for messages of at most one packet.
    pub(crate) fn pair_of_fds() -> io::Result<[OwnedFd; 2]> {
        let ends = sys::socket_pair()?;
        for end in &ends {
            sys::limit_sends(end, PATIENCE)?;
        }
        Ok(ends)
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    /// Sends a message. Fails after 30 s if the other end does not read it.
    pub(crate) fn send(&self, message: &[u8], mut fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut chunks = message.chunks(PACKET).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let is_last = chunks.peek().is_none();
            sys::send(&self.0, [&[if is_last { LAST } else { MORE }], chunk], fds)?;
            if is_last {
                return Ok(());
            }
            // The fds are sent with the first packet.
            fds = &[];
        }
    }

    /// Shuts down the sending side: the peer sees EOF after it has received everything.
    pub(crate) fn end_sends(&self) {
        sys::shutdown(&self.0, libc::SHUT_WR);
    }

    /// Shuts down both directions, even if a forked child has a copy of this end.
    pub(crate) fn hang_up(&self) {
        sys::shutdown(&self.0, libc::SHUT_RDWR);
    }

    /// Receives a message, and waits for it while the other end is open; `None` at EOF.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        let mut message = Vec::new();
        let mut fds = Vec::new();
        let mut packet = [0; PACKET];
        let mut was_reset = false;
        loop {
            let mut tag = [MORE];
            let (length, received) = match sys::receive(&self.0, [&mut tag, &mut packet]) {
                // The other end was closed with something unread in it. What it had sent before comes with the next call:
                // the error is returned once, and first (`unix_release_sock`, net/unix/af_unix.c).
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !was_reset => {
                    was_reset = true;
                    continue;
                }
                result => result?,
            };
            // Channels send no empty packets.
            let Some(length) = length.checked_sub(tag.len()) else { return Ok(None) };
            message.extend_from_slice(&packet[..length]);
            fds.extend(received.into_iter().flatten());
            if tag == [LAST] {
                return Ok(Some((message, fds)));
            }
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::Channel;

    #[test]
    fn what_was_sent_before_a_close_is_received_also_if_something_was_not_read() {
        let (one, other) = Channel::pair().unwrap();
        one.send(b"question", &[]).unwrap();
        other.send(b"answer", &[]).unwrap();
        drop(other);
        let (answer, _) = one.receive().unwrap().unwrap();
        assert_eq!(answer, b"answer");
        assert!(one.receive().unwrap().is_none());
        let (one, other) = Channel::pair().unwrap();
        one.send(b"question", &[]).unwrap();
        drop(other);
        assert!(one.receive().unwrap().is_none());
    }
}
