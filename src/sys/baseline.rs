//! Records which fds a test process inherits, and checks whether it leaves others open.
//!
//! [`update_baseline`] and [`fds_are_as`] run on the fast path of a test process, see [`super::entrance`]:
//! they only make system calls.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_long, c_ulong};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use nix::libc;

use super::fd::{FdIdentity, each_open_fd, fd_identity};

/// An fd that is open when a test process starts.
pub(crate) struct BaselineFd {
    pub(crate) fd: RawFd,
    identity: UnsafeCell<FdIdentity>,
}

// SAFETY: the identity is written by `update_baseline` alone, in processes with one thread: a supervisor, and
// a test process before its body.
unsafe impl Sync for BaselineFd {}

impl BaselineFd {
    pub(crate) fn identity(&self) -> FdIdentity {
        // SAFETY: nothing writes to it meanwhile, see above.
        unsafe { *self.identity.get() }
    }
}

/// The fds that are open when a test process starts, ascending: stdin, stdout and stderr, and those from
/// before the harness was started. Never freed: a supervisor has one list, and its test processes are forks
/// of it.
pub(crate) type BaselineFds = &'static [BaselineFd];

/// Records every open fd except `private`.
pub(crate) fn baseline_fds(private: &[RawFd]) -> BaselineFds {
    let mut found = Vec::new();
    each_open_fd(|fd| {
        if !private.contains(&fd) {
            found.extend(
                fd_identity(fd).map(|identity| BaselineFd { fd, identity: UnsafeCell::new(identity) }),
            );
        }
    });
    found.leak()
}

/// `pselect6`, `ppoll` — whether no fd other than 0, 1 and 2 is open. `false` also if that cannot be
/// determined.
pub(crate) fn only_standard_streams_are_open() -> bool {
    let any = FdIdentity { dev: 0, ino: 0, kind: 0, access: 0 };
    let standard = [0, 1, 2].map(|fd| BaselineFd { fd, identity: UnsafeCell::new(any) });
    let end = no_fd_from(2);
    end != 0 && nothing_open_below(end, &standard)
}

/// Records the test's stdout and stderr in the fd baseline. Writes nothing if they are unchanged: in a fork,
/// each page that is written to is copied.
#[unsafe(link_section = "childproof_text")]
#[inline(never)]
pub(crate) fn update_baseline(baseline: BaselineFds, output: [RawFd; 2]) {
    let mut now = FdIdentity { dev: 0, ino: 0, kind: 0, access: 0 };
    let mut looked_at = -1;
    let mut at = 0;
    while at < baseline.len() {
        let BaselineFd { fd, identity } = &baseline[at];
        at += 1;
        if *fd != 1 && *fd != 2 {
            continue;
        }
        let given = output[*fd as usize - 1];
        if given != looked_at {
            if !look_at(given, &mut now, true) {
                continue;
            }
            looked_at = given;
        }
        let known = &raw const *identity as *mut FdIdentity;
        // SAFETY: this process has one thread, and no reference into the cell is given away.
        if !is_same(&now, unsafe { &*known }) {
            // SAFETY: as above.
            unsafe { *known = now };
        }
    }
}

/// `fcntl` as a system call; 32-bit machines have two of them.
#[cfg(target_pointer_width = "64")]
pub(super) const SYS_FCNTL: c_long = libc::SYS_fcntl;
#[cfg(not(target_pointer_width = "64"))]
pub(super) const SYS_FCNTL: c_long = libc::SYS_fcntl64;

/// `fstat` as a system call: libc's function passes an empty path, so the kernel has to read a page of libc's
/// constants.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn plain_fstat(fd: RawFd, stat: *mut libc::stat) -> bool {
    // SAFETY: `stat` is writable, and the kernel's struct on this architecture.
    unsafe { libc::syscall(libc::SYS_fstat, fd as c_long, stat) == 0 }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn plain_fstat(fd: RawFd, stat: *mut libc::stat) -> bool {
    // SAFETY: `stat` is writable.
    unsafe { libc::fstat(fd, stat) == 0 }
}

/// [`fd_identity`] for the fast path of a test process. Returns whether the fd is open.
#[inline(always)]
fn look_at(fd: RawFd, found: &mut FdIdentity, with_access: bool) -> bool {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let at = &raw mut stat as *mut libc::stat;
    if !plain_fstat(fd, at) {
        return false;
    }
    // SAFETY: fstat succeeded, so it filled the buffer.
    let stat = unsafe { &*at };
    found.dev = stat.st_dev;
    found.ino = stat.st_ino;
    found.kind = stat.st_mode & libc::S_IFMT;
    if with_access {
        // SAFETY: reads no memory of ours.
        let flags = unsafe { libc::syscall(SYS_FCNTL, fd as c_long, libc::F_GETFL as c_long, 0_usize) };
        found.access = flags as c_int & (libc::O_ACCMODE | libc::O_PATH);
    }
    true
}

#[inline(always)]
fn is_same(one: &FdIdentity, other: &FdIdentity) -> bool {
    one.dev == other.dev && one.ino == other.ino && one.kind == other.kind && one.access == other.access
}

/// `fstat`, `fcntl(F_GETFL)`, `pselect6`, `poll` — whether no fd is open except those of `baseline`, and
/// those that are open still refer to the same files. The access mode is compared only for FIFOs, or for all
/// files if `of_all`.
///
/// `false` also if that cannot be determined. Reading `/proc/self/fd` would always work, but in a young
/// process the kernel first has to create the directories.
#[unsafe(link_section = "childproof_text")]
#[inline(never)]
pub(crate) fn fds_are_as(baseline: BaselineFds, of_all: bool) -> bool {
    let mut highest = 0;
    let mut at = 0;
    while at < baseline.len() {
        let BaselineFd { fd, identity } = &baseline[at];
        at += 1;
        highest = *fd;
        // SAFETY: this process has one thread that writes to it, and no reference into it is given away.
        let old = unsafe { &*(&raw const *identity as *const FdIdentity) };
        let mut new = FdIdentity { dev: 0, ino: 0, kind: 0, access: 0 };
        // Both ends of a pipe have the same inode; the access mode tells them apart.
        let by_access = of_all || old.kind == libc::S_IFIFO;
        if !look_at(*fd, &mut new, by_access) {
            continue;
        }
        if !by_access {
            new.access = old.access;
        }
        if !is_same(&new, old) {
            return false;
        }
    }
    let end = no_fd_from(highest as usize);
    end != 0 && nothing_open_below(end, baseline)
}

/// The end of the fd table that contains `highest`, 0 if it cannot be determined.
///
/// select reads the bit sets as far as the table goes, a multiple of 64, and does not touch what is behind
/// ("ignores any file descriptor in these sets that is greater than the maximum", select(2), BUGS). Within
/// the table, a bit of an fd that is not open is an error, and other bits are returned as zeroes. So a word
/// that is accepted and unchanged is behind the table.
#[inline(always)]
fn no_fd_from(highest: usize) -> usize {
    const LONG: usize = c_ulong::BITS as usize;
    const MOST: usize = 1 << 14;
    /// Most test processes have fewer fds, and clearing a larger set would touch another page of the stack.
    const FEW: usize = 512;
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut end = (highest / 64 + 1) * 64;
    let mut few = MaybeUninit::<[c_ulong; FEW / LONG + 1]>::uninit();
    let set = &raw mut few as *mut [c_ulong; FEW / LONG + 1];
    // SAFETY: it is writable, and any bytes are integers. Zeroed in a loop: `[0; N]` would be a call of `memset`.
    let few = unsafe { &mut *set };
    let mut at = 0;
    while at < few.len() {
        few[at] = 0;
        at += 1;
    }
    while end <= FEW {
        few[end / LONG] = c_ulong::MAX;
        // SAFETY: the set has at least as many bits as are passed, and no other set is given.
        let result = unsafe {
            libc::syscall(libc::SYS_pselect6, end + LONG, 0_usize, 0_usize, set, &raw const now, 0_usize)
        };
        if result == 0 && few[end / LONG] == c_ulong::MAX {
            return end;
        }
        few[end / LONG] = 0;
        // Above 64 the kernel rounds up to a power of two (`alloc_fdtable`, fs/file.c).
        let mut next = 64;
        while next <= end {
            next *= 2;
        }
        end = next;
    }
    no_fd_from_of_many(end, MOST)
}

/// The same for a table that may be long.
#[cold]
#[inline(never)]
fn no_fd_from_of_many(begin: usize, most: usize) -> usize {
    const LONG: usize = c_ulong::BITS as usize;
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut end = begin;
    while end <= most {
        let mut many = vec![0 as c_ulong; end / LONG + 1];
        many[end / LONG] = c_ulong::MAX;
        let set = many.as_mut_ptr();
        // SAFETY: the set has at least as many bits as are passed, and no other set is given.
        let result = unsafe {
            libc::syscall(libc::SYS_pselect6, end + LONG, 0_usize, 0_usize, set, &raw const now, 0_usize)
        };
        if result == 0 && many[end / LONG] == c_ulong::MAX {
            return end;
        }
        end = (end + 1).next_power_of_two();
    }
    0
}

/// Whether no fd below `end` is open except those of `baseline`.
#[inline(always)]
fn nothing_open_below(end: usize, baseline: &[BaselineFd]) -> bool {
    let (mut begin, mut passed) = (0, 0);
    while begin < end {
        let mut fds = [libc::pollfd { fd: -1, events: 0, revents: 0 }; 64];
        let mut at = 0;
        while at < fds.len() {
            let fd = (begin + at) as RawFd;
            if passed < baseline.len() && baseline[passed].fd == fd {
                // Known fds are left out: poll ignores an fd of -1.
                passed += 1;
            } else {
                fds[at].fd = fd;
            }
            at += 1;
        }
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `fds` is writable and has as many entries as are passed.
        let result = unsafe {
            libc::syscall(libc::SYS_ppoll, &raw mut fds, 64_usize, &raw const now, 0_usize, 0_usize)
        };
        if result == -1 {
            return false;
        }
        at = 0;
        while at < fds.len() {
            if fds[at].fd != -1 && fds[at].revents != libc::POLLNVAL {
                return false;
            }
            at += 1;
        }
        begin += fds.len();
    }
    true
}
