//! A socket between two of the harness's own processes that carries messages and fds.
//!
//! `SOCK_SEQPACKET` keeps messages apart and tells end-of-file when the other side dies. A long
//! message goes in several packets, so that no report is lost to the socket's buffer size.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::sys;

/// The bytes of a message in one packet: all of those of a test that leaves nothing, and no more.
/// A buffer costs each page that it lies on, once in every process that was forked meanwhile.
const PACKET: usize = 1024;
/// How many seconds a send waits for a reader.
const PATIENCE: i64 = 30;
/// The most fds that one message carries.
const FDS: usize = 2;
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
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
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
    pub(crate) fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut chunks = message.chunks(PACKET).peekable();
        let mut first = true;
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let tag = [if chunks.peek().is_some() { MORE } else { LAST }];
            let parts = [IoSlice::new(&tag), IoSlice::new(chunk)];
            let rights = [ControlMessage::ScmRights(&raw)];
            let rights = if first && !raw.is_empty() { &rights[..] } else { &[] };
            loop {
                match sendmsg::<()>(self.0.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None) {
                    Ok(_) => break,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            first = false;
            if tag == [LAST] {
                return Ok(());
            }
        }
    }

    /// Receives a message, waiting for it as long as the other end is open; `None` at its end.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        let mut message = Vec::new();
        let mut fds = Vec::new();
        let mut packet = [0; PACKET + 1];
        loop {
            let filled = match self.receive_packet(&mut packet, &mut fds) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => return Ok(None),
                result => result?,
            };
            let Some((tag, chunk)) = packet[..filled].split_first() else {
                return Ok(None);
            };
            message.extend_from_slice(chunk);
            if *tag == LAST {
                return Ok(Some((message, fds)));
            }
        }
    }

    /// Waits for a message of `N` bytes and the fds that come with it, without taking memory: in a fresh
    /// fork each page that is written to is copied. `None` if another came, or none.
    pub(crate) fn receive_small<const N: usize>(&self) -> Option<([u8; N], [Option<OwnedFd>; FDS])> {
        let (mut tag, mut message) = ([MORE], [0; N]);
        let (length, fds) = sys::receive(&self.0, [&mut tag, &mut message])?;
        (tag == [LAST] && length == N + 1).then_some((message, fds))
    }

    fn receive_packet(&self, packet: &mut [u8], fds: &mut Vec<OwnedFd>) -> nix::Result<usize> {
        let mut space = cmsg_space!([RawFd; FDS]);
        let mut parts = [IoSliceMut::new(packet)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(sys::own));
            }
        }
        Ok(received.bytes)
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
