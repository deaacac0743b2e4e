//! System calls that help an unprivileged process on a busy machine: they change its scheduling, or are
//! cheap.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

use super::Pid;

/// `struct sched_attr` of Linux 5.3, 56 bytes (sched_setattr(2)).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// The shortest slice that the kernel accepts.
const SLICE_NANOS: u64 = 100_000;

/// `sched_setattr(.., sched_runtime)` — requests a short slice: this thread runs as soon as it wakes, even on
/// a busy machine (Linux 6.12). Its share of CPU time stays the same. A fork gets the default slice.
///
/// Older kernels ignore the slice. Nothing is changed unless the priority is the default or a lower one,
/// since a fork would lose another one (`SCHED_FLAG_RESET_ON_FORK`).
pub(crate) fn run_when_woken() {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the kernel writes at most `size` bytes.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } == 0;
    if !known || attributes.policy != libc::SCHED_OTHER as u32 || attributes.nice < 0 {
        return;
    }
    attributes.size = size as u32;
    attributes.flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    attributes.runtime = SLICE_NANOS;
    // SAFETY: the kernel reads `size` bytes.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// `setpriority(PRIO_PGRP, group, 19)` — gives the lowest priority to a process group. The caller makes sure
/// that its id is not reused.
pub(crate) fn lower_group(group: Pid) {
    const LEAST: c_int = 19;
    // SAFETY: reads no memory of ours.
    unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PGRP, group, LEAST) };
}

/// `getpgid(pid)` — the process group of a process that is there.
pub(crate) fn group_of(pid: Pid) -> Option<Pid> {
    // SAFETY: reads no memory of ours.
    let group = unsafe { libc::getpgid(pid) };
    (group > 0).then_some(group)
}

/// `ioctl(pidfd, PIDFD_GET_INFO)` — the parent of a process (Linux 6.13); much cheaper than reading `/proc`.
/// `None` where it is not known.
pub(crate) fn pidfd_parent(pidfd: &OwnedFd) -> Option<Pid> {
    // include/uapi/linux/pidfd.h: _IOWR(0xff, 11, the first 64 bytes of struct pidfd_info).
    const PIDFD_GET_INFO: u32 = 0xc040_ff0b;
    const PIDFD_INFO_PID: u32 = 1;
    let mut info = [0_u32; 16];
    info[0] = PIDFD_INFO_PID;
    // SAFETY: the kernel reads and writes the 64 bytes that the number of the call names.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    // Words: mask 0 and 1, cgroupid 2 and 3, pid 4, tgid 5, ppid 6.
    (result == 0).then_some(info[6] as Pid)
}

/// `fstat(pidfd)` — a number that no other process ever has (Linux 6.9). Before that it is the same for all.
pub(crate) fn pidfd_identity(pidfd: &OwnedFd) -> u64 {
    super::fd_identity(pidfd.as_raw_fd()).map_or(0, |identity| identity.ino)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
    use super::pidfd_parent;

    #[test]
    fn a_parent_is_the_one_that_getppid_says() {
        let own = crate::sys::pidfd_open(nix::unistd::getpid().as_raw()).unwrap();
        // `None` before Linux 6.13.
        let parent = nix::unistd::getppid().as_raw();
        assert!(pidfd_parent(&own).is_none_or(|found| found == parent));
    }
}
