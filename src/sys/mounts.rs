//! System calls on mounts.
//!
//! None of them waits for the file system that is mounted: the process that serves it may be stuck. None of them
//! follows a path through a `/proc` that is covered.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::{process, ptr};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::libc;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::directory::{open_directory, open_mounted, status, statx};
use super::process::check;

const PROC: &str = "/proc";

/// `statx("/proc")` — the id of what is mounted there.
pub(crate) fn mount_at_proc() -> io::Result<Option<u64>> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
    Ok(statx(libc::AT_FDCWD, c"/proc", flags | dont_sync())?.mount)
}

/// `AT_STATX_DONT_SYNC` — makes `statx` return what the kernel knows, without a request to the file system's server.
pub(super) fn dont_sync() -> AtFlags {
    AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC)
}

/// The root of what is mounted at `/proc`, if that shows the processes of this PID namespace.
pub(super) fn own_proc() -> io::Result<OwnedFd> {
    let root = open_directory(Path::new(PROC))?;
    if is_own_proc(&root) { Ok(root) } else { Err(Errno::ESTALE.into()) }
}

/// Whether `/proc` shows the processes of this PID namespace, whatever else it shows or leaves out.
pub(crate) fn shows_own_processes() -> bool {
    own_proc().is_ok()
}

fn is_own_proc(root: &OwnedFd) -> bool {
    // A procfs holds this entry in the cache as long as it is mounted. So a lookup by its server, which may never
    // answer, is refused.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED));
    let own = match openat2(root, c"self", how) {
        // Before Linux 5.12, 5.6, or with a seccomp filter.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => open_mounted(root, c"self"),
        result => result.map_err(io::Error::from),
    };
    let Ok(own) = own else { return false };
    fstatfs(&own).is_ok_and(|found| found.filesystem_type() == PROC_SUPER_MAGIC)
        && readlinkat(&own, c"").is_ok_and(|pid| *pid == *process::id().to_string())
}

/// What [`uncover_proc`] has found.
pub(crate) struct Uncovered {
    /// How many mounts it has detached.
    pub(crate) detached: usize,
    /// The id of what is mounted at `/proc` now, if that shows the processes of this PID namespace.
    pub(crate) mount: Option<u64>,
}

/// Detaches what is mounted over `/proc`, down to the mount with this id or to one that shows the processes of this PID
/// namespace.
pub(crate) fn uncover_proc(known: u64) -> Uncovered {
    /// More are not expected. A process may mount them as fast as they are detached.
    const MOST: usize = 1000;
    let mut detached = 0;
    for _ in 0..MOST {
        let Ok(root) = open_directory(Path::new(PROC)) else { break };
        let mount = mount_id(&root);
        if mount == Some(known) || is_own_proc(&root) {
            return Uncovered { detached, mount };
        }
        // By its root: another supervisor may have detached it, and the one below it must not be taken for it.
        match detach_mount(&root) {
            Ok(()) => detached += 1,
            Err(_) if open_directory(Path::new(PROC)).is_ok_and(|now| mount_id(&now) == mount) => break,
            Err(_) => {}
        }
    }
    Uncovered { detached, mount: None }
}

/// The id of the mount with its root open here. The file system of another user may refuse to tell it.
fn mount_id(root: &OwnedFd) -> Option<u64> {
    status(root).ok().and_then(|found| found.mount)
}

/// `mount(fd, MS_PRIVATE | MS_REC)`, `umount2(fd, MNT_DETACH)` — detaches the mount with its root open here,
/// and all mounts in it.
///
/// It is made private first: unmounting below a recursive bind mount of a shared one would also unmount in
/// its source (mount_namespaces(7)). The path is that of the open file, so neither a symlink, nor another
/// mount, nor a race can redirect it; `UMOUNT_NOFOLLOW` would not follow it.
pub(crate) fn detach_mount(root: &OwnedFd) -> io::Result<()> {
    let link = format!("self/fd/{}", root.as_raw_fd());
    if own_proc().is_ok() {
        return detach(&CString::new(format!("{PROC}/{link}"))?);
    }
    // No system call detaches a mount by its fd alone.
    let (proc, before) = (private_proc()?, open_directory(Path::new("."))?);
    nix::unistd::fchdir(&proc)?;
    let detached = detach(&CString::new(link)?);
    nix::unistd::fchdir(&before)?;
    detached
}

fn detach(path: &CStr) -> io::Result<()> {
    let (none, flags) = (ptr::null(), libc::MS_PRIVATE | libc::MS_REC);
    // SAFETY: the path is NUL-terminated, and what is null is not read for these flags.
    check(unsafe { libc::mount(none, path.as_ptr(), none, flags, ptr::null()) })?;
    // SAFETY: the path is NUL-terminated.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// `fsopen("proc")`, `fsconfig(FSCONFIG_CMD_CREATE)`, `fsmount` — the root of a `/proc` of this PID namespace that is
/// mounted nowhere. Since Linux 5.2; needs the right to mount.
fn private_proc() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_int = 1;
    const FSCONFIG_CMD_CREATE: c_int = 6;
    const FSMOUNT_CLOEXEC: c_int = 1;
    // SAFETY: the name is NUL-terminated.
    let opened = unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC) };
    let number = check(opened as c_int)?;
    // SAFETY: the kernel has just returned this fd, and nothing else owns it.
    let context = unsafe { OwnedFd::from_raw_fd(number) };
    let (fd, none) = (context.as_raw_fd(), ptr::null::<u8>());
    // SAFETY: this command takes neither a key nor a value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
    check(made as c_int)?;
    // SAFETY: reads no memory of ours.
    let mounted = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) };
    let number = check(mounted as c_int)?;
    // SAFETY: the kernel has just returned this fd, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `fchmodat2(fd, "", AT_EMPTY_PATH)` — changes the mode of an open file, even of a handle (`O_PATH`).
///
/// Before Linux 6.6 by the link to it in `/proc`.
pub(crate) fn change_mode(fd: &OwnedFd, mode: u32) -> io::Result<()> {
    /// The same on all architectures but Alpha.
    const SYS_FCHMODAT2: libc::c_long = 452;
    let (number, name) = (fd.as_raw_fd(), c"".as_ptr());
    // SAFETY: the name is NUL-terminated.
    let changed = unsafe { libc::syscall(SYS_FCHMODAT2, number, name, mode, libc::AT_EMPTY_PATH) };
    match check(changed as c_int) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
        result => return result.map(drop),
    }
    let proc = own_proc()?;
    let link = CString::new(format!("self/fd/{number}"))?;
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::fchmodat(proc.as_fd().as_raw_fd(), link.as_ptr(), mode, 0) }).map(drop)
}
