//! System calls on files below an open directory.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_uint};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::libc;
use nix::sys::stat::Mode;

use super::mounts::dont_sync;
use super::process::check;

/// The kernel's status of a file, and of the mount through which it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStatus {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// `None` before Linux 5.8. Since Linux 6.8 it is an id that no other mount gets; before, it may be used again.
    pub(crate) mount: Option<u64>,
    pub(crate) mode: u32,
    pub(crate) owner: [u32; 2],
    /// The time of the last change of the contents, in seconds and nanoseconds.
    pub(crate) modified: [i64; 2],
    /// The time of the last status change.
    pub(crate) changed: [i64; 2],
}

/// `statx(path, AT_SYMLINK_NOFOLLOW)` — the status of a path, without following a symlink in its last
/// component.
pub(crate) fn status_of_path(path: &Path) -> io::Result<FileStatus> {
    status_by_path(path, AtFlags::empty())
}

/// `statx(path, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC)` — the same as far as the kernel knows it, without a request to
/// the server of a file system, which may never answer. It knows all of a file system of this machine.
pub(crate) fn known_status_of_path(path: &Path) -> io::Result<FileStatus> {
    status_by_path(path, dont_sync())
}

fn status_by_path(path: &Path, flags: AtFlags) -> io::Result<FileStatus> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    let flags = flags | AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
    statx(libc::AT_FDCWD, &name, flags).or_else(|error| match error.raw_os_error() {
        // The kernel lacks the call, or a seccomp filter denies it.
        Some(libc::ENOSYS | libc::EPERM) => Ok(FileStatus::of(&fs::symlink_metadata(path)?)),
        _ => Err(error),
    })
}

/// `statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC)` — the status of an open file, as far as the kernel knows it: what
/// identifies it never changes. The mount id comes from `/proc` where `statx` has none.
pub(crate) fn status(fd: &OwnedFd) -> io::Result<FileStatus> {
    let found =
        statx(fd.as_raw_fd(), c"", AtFlags::AT_EMPTY_PATH | dont_sync()).or_else(|error| {
            match error.raw_os_error() {
                Some(libc::ENOSYS | libc::EPERM) => Ok(FileStatus::of(&fs::metadata(link_of(fd))?)),
                _ => Err(error),
            }
        })?;
    Ok(FileStatus { mount: found.mount.or_else(|| mount_in_fdinfo(fd)), ..found })
}

/// The id of the mount through which a file was opened. Does not access the file system, which may hang.
pub(crate) fn mount_of(fd: &OwnedFd) -> io::Result<u64> {
    mount_in_fdinfo(fd).ok_or(io::ErrorKind::Unsupported.into())
}

impl FileStatus {
    fn of(found: &fs::Metadata) -> FileStatus {
        FileStatus {
            device: found.dev(),
            inode: found.ino(),
            mount: None,
            mode: found.mode(),
            owner: [found.uid(), found.gid()],
            modified: [found.mtime(), found.mtime_nsec()],
            changed: [found.ctime(), found.ctime_nsec()],
        }
    }
}

/// `STATX_MNT_ID_UNIQUE` (linux/stat.h). A kernel that does not know it returns the id of `STATX_MNT_ID`.
const STATX_MNT_ID_UNIQUE: c_uint = 0x4000;

pub(super) fn statx(directory: c_int, name: &CStr, flags: AtFlags) -> io::Result<FileStatus> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let mask: c_uint = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE;
    let (name, at) = (name.as_ptr(), found.as_mut_ptr());
    // SAFETY: the name is NUL-terminated, and `found` is a `struct statx` that the kernel may write.
    let result = unsafe { libc::syscall(libc::SYS_statx, directory, name, flags.bits(), mask, at) };
    check(result as c_int)?;
    // SAFETY: all-zero bytes are a valid `struct statx`, and the kernel only overwrites them.
    let found = unsafe { found.assume_init() };
    let time = |time: &libc::statx_timestamp| [time.tv_sec, i64::from(time.tv_nsec)];
    Ok(FileStatus {
        device: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mount: (found.stx_mask & (libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE) != 0).then_some(found.stx_mnt_id),
        mode: u32::from(found.stx_mode),
        owner: [found.stx_uid, found.stx_gid],
        modified: time(&found.stx_mtime),
        changed: time(&found.stx_ctime),
    })
}

fn mount_in_fdinfo(fd: &OwnedFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// A path that leads to an open file even if it has been renamed or replaced.
fn link_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// `openat2(directory, name, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)` — opens a
/// directory entry that is not a symlink and is on the same mount (else EXDEV). `name` contains no `/`.
///
/// Before Linux 5.6 the entry is opened first, and its mount compared afterwards.
pub(crate) fn open_beneath(directory: &OwnedFd, name: &CStr, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    match openat2(directory, name, OpenHow::new().flags(flags).resolve(resolve)) {
        Err(Errno::ENOSYS | Errno::EPERM) => {}
        result => return Ok(result?),
    }
    let fd = openat(directory, name, flags, Mode::empty())?;
    if mount_of(&fd)? != mount_of(directory)? {
        return Err(Errno::EXDEV.into());
    }
    Ok(fd)
}

/// `openat(directory, name, O_PATH | O_NOFOLLOW)` — a handle on an entry, or on the mount that covers it.
pub(crate) fn open_mounted(directory: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    open_handle(directory.as_raw_fd(), name, OFlag::O_NOFOLLOW)
}

/// Opens a handle by a raw system call: a recorded one asks for the status of the file, whose server may never answer.
fn open_handle(directory: c_int, name: &CStr, flags: OFlag) -> io::Result<OwnedFd> {
    let (name, flags) = (name.as_ptr(), (flags | OFlag::O_PATH | OFlag::O_CLOEXEC).bits());
    // SAFETY: the name is NUL-terminated, and these flags need no mode.
    let opened = unsafe { libc::syscall(libc::SYS_openat, directory, name, flags) };
    let number = check(opened as c_int)?;
    // SAFETY: the kernel has just returned this fd, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// One entry of a directory.
pub(crate) struct DirectoryEntry {
    pub(crate) name: CString,
    /// As far as the file system reports the type together with the name.
    pub(crate) is_directory: bool,
}

/// `getdents64(directory)` — the next entries of a directory, without `.` and `..`; none at its end.
pub(crate) fn next_entries(directory: BorrowedFd<'_>) -> io::Result<Vec<DirectoryEntry>> {
    // Aligned for `linux_dirent64`.
    let mut buffer = [0u64; 1024];
    let mut entries = Vec::new();
    // A read may return nothing but `.` and `..`.
    while entries.is_empty() {
        let (fd, at, size) = (directory.as_raw_fd(), buffer.as_mut_ptr(), size_of_val(&buffer));
        // SAFETY: the kernel writes at most `size` bytes into the buffer.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, fd, at, size) };
        let filled = check(filled as c_int)? as usize;
        if filled == 0 {
            break;
        }
        // SAFETY: the first `filled` bytes were just written, and u8 has no alignment.
        let mut rest = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), filled) };
        // Fields of `struct linux_dirent64`: d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name.
        while let Some(&[low, high, kind]) = rest.get(16..19) {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let Some(name) = rest.get(19..length).and_then(|name| CStr::from_bytes_until_nul(name).ok())
            else {
                break;
            };
            if name != c"." && name != c".." {
                entries.push(DirectoryEntry { name: name.to_owned(), is_directory: kind == libc::DT_DIR });
            }
            rest = &rest[length..];
        }
    }
    Ok(entries)
}

/// `lseek(directory, 0)` — reads a directory from its beginning again.
pub(crate) fn rewind(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: reads no memory of ours.
    let at = unsafe { libc::lseek(directory.as_raw_fd(), 0, libc::SEEK_SET) };
    if at == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A handle on a directory, by its path. Follows links on the way and at the end.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    open_handle(libc::AT_FDCWD, &name, OFlag::O_DIRECTORY)
}

/// A readable handle on the same directory.
pub(crate) fn reopen_directory(directory: &OwnedFd) -> io::Result<OwnedFd> {
    open_beneath(directory, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// `flock(fd, LOCK_SH | LOCK_NB)` — locks an open file, together with others that lock it so. Forks share the lock; it is
/// released when the last of them has closed the fd.
pub(crate) fn lock_shared(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: reads no memory of ours.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) }).map(drop)
}

/// `flock(fd, LOCK_EX | LOCK_NB)` — locks an open file that no other process has locked; else `EWOULDBLOCK`.
pub(crate) fn lock_alone(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: reads no memory of ours.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// `fstatfs(fd)` — whether the file system is of this machine alone, so that each lock on it is seen here. `false` for
/// unknown ones.
pub(crate) fn is_local(fd: &OwnedFd) -> io::Result<bool> {
    /// tmpfs, ramfs, ext, XFS, Btrfs, F2FS, ZFS, bcachefs, overlayfs (linux/magic.h, and OpenZFS).
    const LOCAL: [u32; 9] = [
        0x0102_1994,
        0x8584_58f6,
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0xf2f5_2010,
        0x2fc1_2fc1,
        0xca45_1a4e,
        0x794c_7630,
    ];
    // The type has another width on each platform, and the numbers have 32 bits.
    Ok(LOCAL.contains(&(nix::sys::statfs::fstatfs(fd)?.filesystem_type().0 as u32)))
}

/// `utimensat(fd)` — sets the modification time of an open file.
pub(crate) fn set_modified(fd: &OwnedFd, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    let keep = nix::sys::time::TimeSpec::UTIME_OMIT;
    Ok(nix::sys::stat::futimens(fd.as_fd(), &keep, &time)?)
}
