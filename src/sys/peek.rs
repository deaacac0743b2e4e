//! Inspects fds that are in flight in a unix socket (`SCM_RIGHTS`, unix(7)) without receiving them.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use super::fd::own;
use super::process::check;

/// The most messages of one socket that are inspected.
const MESSAGES: usize = 4096;
/// The most consecutive empty messages: a socket that is shut down returns them without end.
const EMPTY: usize = 64;
/// How many bytes of one message are read at a time.
const DATA: usize = 64 * 1024;
/// Room for control messages: 253 fds (`SCM_MAX_FD`), credentials, a security label.
const CONTROL: usize = 4096;

/// `recvmsg(fd, .., MSG_PEEK)` — calls `see` with a duplicate of each fd that is in flight to a unix socket
/// of this process. Returns whether those were all.
///
/// The messages stay in the socket. Nothing blocks. An fd may be seen more than once.
pub(crate) fn peek_fds(socket: RawFd, see: &mut dyn FnMut(OwnedFd)) -> bool {
    let Ok(before) = peek_offset(socket) else { return false };
    // From here on the kernel advances the offset with each peek.
    if set_peek_offset(socket, 0).is_err() {
        return false;
    }
    let all = peek_all(socket, see);
    let _ = set_peek_offset(socket, before);
    all
}

fn peek_all(socket: RawFd, see: &mut dyn FnMut(OwnedFd)) -> bool {
    let mut data = vec![0_u8; DATA];
    // Aligned for `cmsghdr`.
    let mut control = vec![0_u64; CONTROL / mem::size_of::<u64>()];
    let (mut all, mut empty) = (true, 0);
    for _ in 0..MESSAGES {
        let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: DATA };
        // SAFETY: all zeroes is a valid value of this struct.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        message.msg_controllen = CONTROL as _;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the message points to `data` and `control`, with their true sizes.
        let count = unsafe { libc::recvmsg(socket, &raw mut message, flags) };
        if count == -1 {
            match Errno::last() {
                Errno::EINTR => continue,
                Errno::EAGAIN => return all,
                _ => return false,
            }
        }
        // The table of fds was full, or the buffer too small.
        all &= message.msg_flags & libc::MSG_CTRUNC == 0;
        let mut has_some = false;
        // SAFETY: the kernel has filled in the message, whose control messages it points to.
        unsafe { each_fd(&message) }.into_iter().for_each(|fd| {
            has_some = true;
            see(fd);
        });
        empty = if count == 0 && !has_some { empty + 1 } else { 0 };
        if empty == EMPTY {
            return all;
        }
    }
    false
}

/// The fds that came with a message.
///
/// # Safety
///
/// `recvmsg` has just filled in `message`.
unsafe fn each_fd(message: &libc::msghdr) -> Vec<OwnedFd> {
    /// A pidfd of the sender, for which a socket may have asked (Linux 6.5).
    const SCM_PIDFD: c_int = 4;
    let mut fds = Vec::new();
    // SAFETY: the caller's word.
    let mut head = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !head.is_null() {
        // SAFETY: the kernel wrote a whole head there.
        let at = unsafe { *head };
        if at.cmsg_level == libc::SOL_SOCKET && matches!(at.cmsg_type, libc::SCM_RIGHTS | SCM_PIDFD) {
            // SAFETY: behind the head are the bytes that its length counts.
            let first = unsafe { libc::CMSG_DATA(head) }.cast::<RawFd>();
            // SAFETY: computes a length, and reads nothing.
            let length = at.cmsg_len as usize - unsafe { libc::CMSG_LEN(0) } as usize;
            for place in 0..length / mem::size_of::<RawFd>() {
                // SAFETY: there are as many fds as the length says.
                let at = unsafe { first.add(place) };
                // SAFETY: the kernel wrote an fd there. It need not be aligned.
                let fd = unsafe { at.read_unaligned() };
                // The kernel may have stored an error in place of a pidfd.
                fds.extend((fd >= 0).then(|| own(fd)));
            }
        }
        // SAFETY: `head` is one of this message's.
        head = unsafe { libc::CMSG_NXTHDR(message, head) };
    }
    fds
}

/// `getsockopt(SO_PEEK_OFF)`
fn peek_offset(socket: RawFd) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast::<c_void>();
    // SAFETY: the kernel writes at most `size` bytes, which `value` has.
    check(unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at, &raw mut size) })?;
    Ok(value)
}

/// `setsockopt(SO_PEEK_OFF)`
fn set_peek_offset(socket: RawFd, value: c_int) -> io::Result<()> {
    let size = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw const value).cast::<c_void>();
    // SAFETY: the kernel reads `size` bytes, which `value` has.
    check(unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at, size) }).map(drop)
}
