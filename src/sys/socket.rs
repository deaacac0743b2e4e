//! Sockets: pairs that pass fds, options, sock_diag(7).

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use nix::libc;

use super::Words;
use super::fd::own;
use super::process::{Pid, check};

/// `getsockopt(SOL_SOCKET, name)` — the value of an int option.
pub(crate) fn socket_option(socket: &OwnedFd, name: c_int) -> Option<i32> {
    let mut value: c_int = 0;
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `size` bytes, which `value` has.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut size) }).ok()?;
    Some(value)
}

/// `getsockopt(SO_RCVTIMEO)`, `getsockopt(SO_SNDTIMEO)` — whether a timeout is set.
pub(crate) fn has_timeout(socket: &OwnedFd, name: c_int) -> Option<bool> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `size` bytes, which `value` has, and any bytes are a timeval.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut size) }).ok()?;
    Some((value.tv_sec, value.tv_usec) != (0, 0))
}

/// `getsockopt(SO_PEERCRED)` — the process at the other end of a unix socket when it connected.
pub(crate) fn peer_pid(socket: &OwnedFd) -> Option<Pid> {
    let mut value = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the kernel writes at most `size` bytes, which `value` has.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, at, &raw mut size) }).ok()?;
    Some(value.pid)
}

/// `socketpair(AF_UNIX, SOCK_SEQPACKET)` — two ends that preserve message boundaries, both close-on-exec.
pub(crate) fn socket_pair() -> io::Result<[OwnedFd; 2]> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two fds.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    Ok(ends.map(own))
}

/// `socket(AF_NETLINK, .., NETLINK_SOCK_DIAG)` — opens a socket for questions about sockets (sock_diag(7)).
/// Reads do not block.
pub(crate) fn sock_diag() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: reads no memory of ours.
    check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) }).map(own)
}

/// The most fds in one message.
pub(crate) const FDS: usize = 3;

/// A control message with fds (cmsg(3)): its header, directly followed by room for them.
#[repr(C)]
struct Rights {
    head: libc::cmsghdr,
    fds: [RawFd; FDS],
}

impl Rights {
    const HEAD: usize = size_of::<libc::cmsghdr>();

    /// The length of a control message with that many fds, without padding.
    const fn length(fds: usize) -> usize {
        Rights::HEAD + fds * size_of::<RawFd>()
    }

    fn empty() -> Rights {
        // SAFETY: all-zero bytes are a valid control message.
        unsafe { mem::zeroed() }
    }

    /// The header of a message in two parts, with these fds.
    fn header(&mut self, parts: &mut [libc::iovec; 2], length: usize) -> libc::msghdr {
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        message.msg_control = ptr::from_mut(self).cast();
        message.msg_controllen = length as _;
        message
    }
}

/// `sendmsg(2)` — sends a message from two buffers, with at most [`FDS`] fds. Does not allocate.
pub(crate) fn send(socket: &OwnedFd, parts: [&[u8]; 2], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let part = |part: &[u8]| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    let mut parts = parts.map(part);
    let mut rights = Rights::empty();
    rights.head.cmsg_level = libc::SOL_SOCKET;
    rights.head.cmsg_type = libc::SCM_RIGHTS;
    rights.head.cmsg_len = Rights::length(fds.len().min(FDS)) as _;
    for (place, fd) in rights.fds.iter_mut().zip(fds) {
        *place = fd.as_raw_fd();
    }
    let length = if fds.is_empty() { 0 } else { size_of::<Rights>() };
    let message = rights.header(&mut parts, length);
    // SAFETY: `message` refers to memory of the caller's and of this frame, with its true lengths; the
    // kernel only reads it.
    while unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) } == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// `sendmsg(2)` — sends words in native byte order, with fds.
pub(crate) fn send_words(socket: &OwnedFd, words: &Words, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    // SAFETY: any memory of integers may be read as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), size_of::<Words>()) };
    send(socket, [bytes, &[]], fds)
}

/// `recvmsg(2)` — receives a message into two buffers; returns its length and its fds, close-on-exec. Does
/// not allocate: it is called in fresh forks.
pub(crate) fn receive(
    socket: &OwnedFd,
    parts: [&mut [u8]; 2],
) -> io::Result<(usize, [Option<OwnedFd>; FDS])> {
    let part = |part: &mut [u8]| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
    let mut parts = parts.map(part);
    let mut rights = Rights::empty();
    let mut message = rights.header(&mut parts, size_of::<Rights>());
    let length = loop {
        // SAFETY: `message` refers to memory of the caller's and of this frame, with its true lengths.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(length) = usize::try_from(length) {
            break length;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let is_rights = rights.head.cmsg_level == libc::SOL_SOCKET && rights.head.cmsg_type == libc::SCM_RIGHTS;
    let bytes = if is_rights { rights.head.cmsg_len } else { 0 };
    let fd = |at: usize| (bytes >= Rights::length(at + 1) as _).then(|| own(rights.fds[at]));
    Ok((length, [fd(0), fd(1), fd(2)]))
}

/// `setsockopt(SO_SNDTIMEO)` — lets a send fail after `seconds` if the other end does not read.
pub(crate) fn limit_sends(socket: &OwnedFd, seconds: i64) -> io::Result<()> {
    let time = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let size = mem::size_of_val(&time) as libc::socklen_t;
    let value = (&raw const time).cast::<c_void>();
    // SAFETY: `value` points to a timeval of `size` bytes for the length of the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, value, size) })
        .map(drop)
}

/// `shutdown(how)` — ends a connection in one or both directions, even if other processes have copies of this
/// end.
pub(crate) fn shutdown(socket: &OwnedFd, how: c_int) {
    // SAFETY: reads no memory of ours.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}
