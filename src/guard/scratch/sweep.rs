//! Removes the directories that earlier runs of this user have left, since their whole guard was killed or the machine
//! lost power.
//!
//! A directory is locked (flock(2)) as long as a process of its guard lives: net, fork server and supervisors are forks
//! that share the lock, and a test closes its fd before its body. The kernel releases the lock of killed processes.
//! tmpfiles.d(5) has the same rule, so systemd does not clean up a directory that is in use either.
//!
//! Each user may create names in the directory for temporary files. So only a directory is opened, never what a symlink
//! leads to or what is mounted there, and it must have the name, the owner and the mode of a directory that was locked.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::{OsStr, OsStrExt, Removal, RunDirectory};
use crate::sys::{self, FileStatus};

/// The sticky bit: set once a directory is locked. To its owner, which alone may write to it, it means nothing else.
pub(super) const LOCKED: u32 = 0o1000;
/// The modes of such directories.
const MODES: [u32; 2] = [LOCKED | 0o711, LOCKED | 0o700];
/// The mode of a directory between its creation and its lock, which takes some microseconds.
const NEW: u32 = 0o700;
/// After that time its run was killed in between.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

const PREFIX: &[u8] = b"childproof-";

/// How long a run sweeps. The next one goes on.
const LONGEST: Duration = Duration::from_secs(1);

/// The name of a run's directory.
pub(super) fn name(random: u64) -> String {
    format!("{}{random:016x}", str::from_utf8(PREFIX).unwrap_or_default())
}

fn is_name(name: &CStr) -> bool {
    let random = name.to_bytes().strip_prefix(PREFIX).unwrap_or_default();
    random.len() == 16 && random.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Uses the directory of another guard, which is not swept meanwhile.
#[cfg(feature = "__engine")]
pub(crate) struct InUse {
    _lock: OwnedFd,
}

#[cfg(feature = "__engine")]
impl InUse {
    /// Locks it, together with its guard.
    pub(crate) fn new(path: &Path) -> io::Result<InUse> {
        let lock = sys::reopen_directory(&sys::open_directory(path)?)?;
        sys::lock_shared(&lock)?;
        Ok(InUse { _lock: lock })
    }
}

impl RunDirectory {
    /// Removes what earlier runs have left beside it. What cannot be removed stays for the next run.
    pub(crate) fn sweep_beside(&self) {
        let path = self.path.parent().unwrap_or(Path::new("/"));
        let _ = self.open_above().and_then(|above| sweep(&sys::reopen_directory(&above)?, path));
    }
}

fn sweep(above: &OwnedFd, path: &Path) -> io::Result<()> {
    if !is_safe(&sys::status(above)?) || !sys::is_local(above)? {
        return Ok(());
    }
    let until = Instant::now() + LONGEST;
    loop {
        let entries = sys::next_entries(above.as_fd())?;
        if entries.is_empty() || Instant::now() >= until {
            return Ok(());
        }
        for entry in entries.iter().filter(|entry| is_name(&entry.name)) {
            let _ = sweep_one(above, &entry.name, path, until);
        }
    }
}

/// Whether no other user can move what is in a directory.
fn is_safe(above: &FileStatus) -> bool {
    let is_trusted = [0, geteuid().as_raw()].contains(&above.owner[0]);
    let is_shared = above.mode & 0o022 != 0;
    is_trusted && (!is_shared || above.mode & 0o1000 != 0)
}

fn sweep_one(above: &OwnedFd, name: &CStr, path: &Path, until: Instant) -> io::Result<()> {
    let fd = sys::open_beneath(above, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK)?;
    let found = sys::status(&fd)?;
    if found.owner[0] != geteuid().as_raw() {
        return Ok(());
    }
    match found.mode & 0o7777 {
        mode if MODES.contains(&mode) => {}
        // It is empty, or stays.
        NEW if is_old(&found) => return Ok(unlinkat(above, name, UnlinkatFlags::RemoveDir)?),
        _ => return Ok(()),
    }
    sys::lock_alone(&fd)?;
    let own = Some([found.device, found.inode]);
    let mut removal = Removal { own, spares_mounts: true, until: Some(until), ..Removal::default() };
    removal.remove(above, name, &path.join(OsStr::from_bytes(name.to_bytes())));
    Ok(())
}

fn is_old(found: &FileStatus) -> bool {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let modified = Duration::from_secs(u64::try_from(found.modified[0]).unwrap_or(u64::MAX));
    now.checked_sub(modified).is_some_and(|age| age > OLD)
}
