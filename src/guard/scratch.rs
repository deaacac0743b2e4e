//! The directories for temporary files: one for the run, and in it one for each supervisor.
//!
//! A test may leave anything in them: a bind mount of one of the user's directories, a symlink to one,
//! directories without permissions, more levels than there are fds. So files are removed through open
//! directories, one name at a time, never across a mount and never through a symlink; mounts are detached
//! first. A path is only used to find the parent of the run's directory, which must still be the same one.
//!
//! What a killed guard has left is removed by a later run: see [`sweep`].

mod sweep;

use std::ffi::{CStr, CString, OsStr};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{mem, process};

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::libc;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

#[cfg(feature = "__engine")]
pub(crate) use sweep::InUse;

use super::facts::LeftMount;
use super::failure::{PathError, ScratchFailure, ScratchOperation};
use crate::config::bazel;
use crate::proc::mounts::Mount;
use crate::sys::{self, DirectoryEntry, FileStatus};

/// The directory of a run, and how it is identified.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
    /// Device, inode and mount of the parent directory.
    above: (u64, u64, Option<u64>),
    /// Its own device and inode, once it exists.
    own: Option<[u64; 2]>,
    /// Locked as long as a process has it. `None` if it cannot be locked: then it is never swept.
    lock: Option<Arc<OwnedFd>>,
}

impl RunDirectory {
    /// Chooses a path below `TEST_TMPDIR` or `TMPDIR` and creates nothing yet: the process that removes the directory must
    /// know the path first.
    pub(crate) fn choose() -> Result<RunDirectory, ScratchFailure> {
        RunDirectory::choose_in(&bazel::temp_dir())
    }

    /// Chooses a path in this directory.
    pub(crate) fn choose_in(above: &Path) -> Result<RunDirectory, ScratchFailure> {
        // The name cannot be predicted: the kernel seeds the state.
        RunDirectory::at(above.join(sweep::name(RandomState::new().hash_one(process::id()))))
    }

    /// The directory with this path.
    fn at(path: PathBuf) -> Result<RunDirectory, ScratchFailure> {
        let above = path.parent().unwrap_or(Path::new("/"));
        let found = sys::open_directory(above).and_then(|fd| sys::status(&fd));
        let found = found.map_err(ScratchFailure::of(ScratchOperation::UseParent, above))?;
        Ok(RunDirectory { above: identity(&found), own: None, lock: None, path })
    }

    /// Creates the directory, searchable but not listable: a test that changes its user still reaches its own
    /// directory.
    pub(crate) fn make(self) -> Result<RunDirectory, ScratchFailure> {
        self.make_with(0o711)
    }

    /// Creates the directory for this user alone.
    #[cfg(feature = "__engine")]
    pub(crate) fn make_private(self) -> Result<RunDirectory, ScratchFailure> {
        self.make_with(0o700)
    }

    fn make_with(mut self, mode: u32) -> Result<RunDirectory, ScratchFailure> {
        let made = self.open_above().and_then(|above| {
            mkdirat(&above, self.name().as_c_str(), Mode::S_IRWXU)?;
            let fd = open_to_read(&above, &self.name())?;
            let is_locked = sys::lock_shared(&fd).is_ok();
            // Only now it may be swept.
            sys::change_mode(&fd, if is_locked { mode | sweep::LOCKED } else { mode })?;
            Ok((sys::status(&fd)?, is_locked.then(|| Arc::new(fd))))
        });
        let (made, lock) = made.map_err(ScratchFailure::of(ScratchOperation::Make, &self.path))?;
        (self.own, self.lock) = (Some([made.device, made.inode]), lock);
        Ok(self)
    }

    #[cfg(feature = "__engine")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory in a copy of the mount namespace, whose mounts have other ids.
    pub(super) fn in_own_namespace(mut self) -> RunDirectory {
        let parent = sys::open_directory(self.path.parent().unwrap_or(Path::new("/")));
        self.above.2 = parent.and_then(|fd| sys::status(&fd)).map_or(None, |found| found.mount);
        self
    }

    /// Removes it with its contents. It is no error if it does not exist.
    pub(crate) fn remove(&self) -> Result<(), ScratchFailure> {
        let mut removal = Removal { own: self.own, ..Removal::default() };
        let above = match self.open(&mut removal) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.and_then(|_| self.open_above()),
        };
        let above = above.map_err(ScratchFailure::of(ScratchOperation::Remove, &self.path))?;
        removal.remove(&above, &self.name(), &self.path);
        removal.result()
    }

    /// Removes it if it is empty.
    pub(crate) fn remove_if_empty(&self) {
        if self.open(&mut Removal::default()).is_ok()
            && let Ok(above) = self.open_above()
        {
            let _ = unlinkat(above, self.name().as_c_str(), UnlinkatFlags::RemoveDir);
        }
    }

    /// A handle on it. Mounts over it are detached.
    fn open(&self, removal: &mut Removal) -> io::Result<OwnedFd> {
        let (above, name) = (self.open_above()?, self.name());
        let fd = removal.open(&above, &name, &self.path, OFlag::O_PATH)?;
        let found = sys::status(&fd)?;
        match self.own {
            Some(own) if own != [found.device, found.inode] => Err(replaced()),
            _ => Ok(fd),
        }
    }

    fn open_above(&self) -> io::Result<OwnedFd> {
        let path = self.path.parent().unwrap_or(Path::new("/"));
        let above = sys::open_directory(path)?;
        if identity(&sys::status(&above)?) == self.above { Ok(above) } else { Err(replaced()) }
    }

    fn name(&self) -> CString {
        c_string(self.path.file_name().unwrap_or_default())
    }
}

fn identity(found: &FileStatus) -> (u64, u64, Option<u64>) {
    (found.device, found.inode, found.mount)
}

/// The error for a directory that was replaced by another one.
fn replaced() -> io::Error {
    Errno::ESTALE.into()
}

fn c_string(name: &OsStr) -> CString {
    // A name that the kernel returned contains no NUL.
    CString::new(name.as_bytes()).unwrap_or_default()
}

/// A directory for temporary files that all tests of one supervisor use in turn.
pub(super) struct Scratch {
    run: RunDirectory,
    pub(super) path: PathBuf,
    /// Its status while no test has used it. Includes device, inode and mount: something may be mounted over
    /// it.
    unused: Option<FileStatus>,
    /// Whether the kernel knows its status without asking a server.
    is_local: bool,
}

/// The result of emptying a directory.
#[derive(Default)]
pub(super) struct Reset {
    /// The mounts that were in it, or over it.
    pub(super) mounts: Vec<LeftMount>,
    pub(super) failure: Option<ScratchFailure>,
}

impl Scratch {
    /// Creates the directory of this name in the run's.
    pub(super) fn make(run: RunDirectory, name: &str) -> Result<Scratch, ScratchFailure> {
        let mut scratch = Scratch { path: run.path.join(name), run, unused: None, is_local: false };
        let above = scratch.run.open(&mut Removal::default());
        let above = above.map_err(ScratchFailure::of(ScratchOperation::Make, &scratch.path))?;
        scratch.make_in(&above)?;
        Ok(scratch)
    }

    /// Creates the directory with the mode of /tmp, whatever the umask: a test may change its user. The name
    /// of the parent directory cannot be guessed or listed.
    fn make_in(&mut self, above: &OwnedFd) -> Result<(), ScratchFailure> {
        let make = || -> io::Result<bool> {
            mkdirat(above, self.name().as_c_str(), Mode::S_IRWXU)?;
            let fd = sys::open_beneath(above, &self.name(), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            sys::change_mode(&fd, 0o1777)?;
            // A directory's time changes with every entry that is created or removed, so one `stat` shows
            // later whether it was used. The present time would not do, since times are coarse; nor would a
            // round number, since archives and `touch -d @0` set those.
            sys::set_modified(&sys::reopen_directory(&fd)?, 0, i64::from(process::id()) + 1)?;
            Ok(sys::is_local(&fd).unwrap_or(false))
        };
        self.is_local = make().map_err(ScratchFailure::of(ScratchOperation::Make, &self.path))?;
        self.unused = sys::status_of_path(&self.path).ok();
        Ok(())
    }

    fn name(&self) -> CString {
        c_string(self.path.file_name().unwrap_or_default())
    }

    /// Whether no test has used it. What is mounted over it is asked nothing: its server may never answer.
    fn is_unused(&self) -> bool {
        let (Some(unused), Ok(known)) = (self.unused, sys::known_status_of_path(&self.path)) else {
            return false;
        };
        if self.is_local || identity(&known) != identity(&unused) {
            return known == unused;
        }
        sys::status_of_path(&self.path).is_ok_and(|found| found == unused)
    }

    /// Makes the directory empty and unused, as it usually already is.
    pub(super) fn reset(&mut self) -> Reset {
        if self.is_unused() {
            return Reset::default();
        }
        let mut removal = Removal::default();
        let made = self.remove_with(&mut removal).and_then(|above| self.make_in(&above));
        Reset { mounts: mem::take(&mut removal.mounts), failure: made.err() }
    }

    /// Creates another directory beside this one, which stays unchanged.
    pub(super) fn another(&self) -> Result<Scratch, ScratchFailure> {
        let mut name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.push('+');
        Scratch::make(self.run.clone(), &name)
    }

    pub(super) fn remove(&self) -> Result<(), ScratchFailure> {
        self.remove_with(&mut Removal::default()).map(drop)
    }

    /// Removes the run's directory as well, if it is empty.
    pub(super) fn remove_run_if_empty(&self) {
        self.run.remove_if_empty();
    }

    /// The fd with the lock of the run's directory, which no test may have; -1 if there is none.
    pub(super) fn lock(&self) -> RawFd {
        self.run.lock.as_ref().map_or(-1, |lock| lock.as_raw_fd())
    }

    /// Removes the directory; returns a handle on its parent.
    fn remove_with(&self, removal: &mut Removal) -> Result<OwnedFd, ScratchFailure> {
        let above = self.run.open(removal);
        let above = above.map_err(ScratchFailure::of(ScratchOperation::Remove, &self.path))?;
        removal.remove(&above, &self.name(), &self.path);
        removal.result()?;
        Ok(above)
    }
}

/// How many nested directories are open at once. Deeper ones are moved to the top first.
const DEEPEST: usize = 16;
/// How often a name is retried because it has changed, not counting detached mounts.
const TRIES: usize = 8;
/// How many mounts, and names that could not be removed, are reported.
const MOUNTS: usize = 16;
const FAILURES: usize = 3;

/// The state of a removal.
#[derive(Default)]
struct Removal {
    mounts: Vec<LeftMount>,
    failures: Vec<PathError>,
    failed: usize,
    /// How many directories had to be moved to the top, and how many were moved.
    to_move: u64,
    relocated: u64,
    /// Device and inode of the directory itself, if known.
    own: Option<[u64; 2]>,
    /// Mounts stay, with the directories that they are in.
    spares_mounts: bool,
    /// When it ends, whatever is left.
    until: Option<Instant>,
}

/// A directory that is being emptied.
struct Level<'a> {
    fd: &'a OwnedFd,
    /// The directory at which the removal began; `None` if it is this one.
    top: Option<&'a OwnedFd>,
    depth: usize,
    path: &'a Path,
}

impl Removal {
    /// Removes one entry of a directory with its contents, if it exists. Records what cannot be removed.
    fn remove(&mut self, above: &OwnedFd, name: &CStr, path: &Path) {
        let entry = DirectoryEntry { name: name.to_owned(), is_directory: true };
        let above = Level { fd: above, top: None, depth: 0, path: path.parent().unwrap_or(path) };
        self.remove_entry(&above, &entry);
    }

    fn result(&mut self) -> Result<(), ScratchFailure> {
        let errors = mem::take(&mut self.failures);
        if errors.is_empty() {
            return Ok(());
        }
        let more = (self.failed - errors.len()) as u64;
        Err(ScratchFailure { operation: ScratchOperation::Remove, errors, more })
    }

    fn fail(&mut self, path: &Path, error: io::Error) {
        self.failed += 1;
        if self.failures.len() < FAILURES {
            self.failures.push(PathError::new(path, error));
        }
    }

    fn remove_entry(&mut self, level: &Level<'_>, entry: &DirectoryEntry) {
        let path = level.path.join(OsStr::from_bytes(entry.name.as_bytes()));
        let mut is_directory = entry.is_directory;
        let mut tries = 0;
        loop {
            let failed = self.failed;
            let result = if is_directory {
                self.remove_directory(level, &entry.name, &path)
            } else {
                unlinkat(level.fd, entry.name.as_c_str(), UnlinkatFlags::NoRemoveDir).map_err(io::Error::from)
            };
            let Err(error) = result else { return };
            let error = match error.raw_os_error() {
                Some(libc::ENOENT) => return,
                // The entries that are left in it have been recorded.
                Some(libc::ENOTEMPTY | libc::EEXIST) if self.failed > failed => return,
                Some(libc::EXDEV | libc::EBUSY) => match self.detach(level.fd, &entry.name, &path) {
                    Ok(true) => continue,
                    Ok(false) => error,
                    Err(error) => error,
                },
                // Another process has replaced it, or its type was unknown.
                Some(libc::EISDIR) => {
                    is_directory = true;
                    error
                }
                Some(libc::ENOTDIR | libc::ELOOP) => {
                    is_directory = false;
                    error
                }
                // The test has removed its own permissions.
                Some(libc::EACCES) if tries == 0 && level.depth > 0 => {
                    let _ = sys::change_mode(level.fd, 0o700);
                    error
                }
                // An entry was created meanwhile, or the walk met a moved directory.
                Some(libc::EAGAIN | libc::ENOTEMPTY | libc::EEXIST) => error,
                _ => return self.fail(&path, error),
            };
            tries += 1;
            if tries == TRIES {
                return self.fail(&path, error);
            }
        }
    }

    /// Removes a directory with its contents.
    fn remove_directory(&mut self, level: &Level<'_>, name: &CStr, path: &Path) -> io::Result<()> {
        let fd = match (level.top, open_to_read(level.fd, name)) {
            (Some(top), Ok(_)) if level.depth >= DEEPEST => return self.move_to(top, level.fd, name),
            (Some(top), Err(error)) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                return self.move_to(top, level.fd, name);
            }
            (_, fd) => fd?,
        };
        if level.top.is_none() && self.own.is_some() {
            let found = sys::status(&fd)?;
            if self.own != Some([found.device, found.inode]) {
                return Err(replaced());
            }
        }
        let top = level.top.unwrap_or(&fd);
        let below = Level { fd: &fd, top: Some(top), depth: level.depth + 1, path };
        loop {
            let relocated = self.relocated;
            self.empty(&below)?;
            // A directory that was moved here may have been listed behind the read position.
            if level.top.is_some() || self.relocated == relocated {
                break;
            }
            sys::rewind(fd.as_fd())?;
            // These entries will be listed again.
            (self.failed, self.failures) = (0, Vec::new());
        }
        Ok(unlinkat(level.fd, name, UnlinkatFlags::RemoveDir)?)
    }

    fn empty(&mut self, level: &Level<'_>) -> io::Result<()> {
        loop {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let entries = sys::next_entries(level.fd.as_fd())?;
            if entries.is_empty() {
                return Ok(());
            }
            entries.iter().for_each(|entry| self.remove_entry(level, entry));
        }
    }

    /// Moves a directory to the top, where it will be listed again.
    fn move_to(&mut self, top: &OwnedFd, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
        self.to_move += 1;
        let new = c_string(OsStr::new(&format!(".childproof-{}", self.to_move)));
        let result = match renameat(directory, name, top, new.as_c_str()) {
            // Moving a directory requires write permission on it, since its `..` changes.
            Err(Errno::EACCES) => {
                let fd = sys::open_beneath(directory, name, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                sys::change_mode(&fd, 0o700)?;
                renameat(directory, name, top, new.as_c_str())
            }
            result => result,
        };
        self.relocated += u64::from(result.is_ok());
        Ok(result?)
    }

    /// Opens a directory that is not a symlink. Detaches mounts over it first.
    fn open(&mut self, above: &OwnedFd, name: &CStr, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        loop {
            match sys::open_beneath(above, name, flags | OFlag::O_DIRECTORY) {
                Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                    if !self.detach(above, name, path)? {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Detaches the topmost mount over an entry; returns whether there was one.
    ///
    /// It cannot be from before the test: the entry is in a directory that the guard created, on the same
    /// mount.
    fn detach(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> io::Result<bool> {
        let root = sys::open_mounted(directory, name)?;
        let id = sys::mount_of(&root)?;
        if self.spares_mounts || id == sys::mount_of(directory)? {
            return Ok(false);
        }
        let all = Mount::all();
        let found = all.iter().find(|mount| mount.id == id);
        let detached = sys::detach_mount(&root);
        let at = found.map_or_else(|| path.display().to_string(), |mount| mount.at.clone());
        let what = found.map_or_else(String::new, |mount| mount.what(&all));
        let why = detached.as_ref().err().map(ToString::to_string);
        if self.mounts.len() < MOUNTS {
            self.mounts.push(LeftMount { at, what, why });
        }
        detached.map(|()| true)
    }
}

/// Opens a directory for reading. Restores its permissions first if necessary.
fn open_to_read(above: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
    match sys::open_beneath(above, name, flags) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            let handle = sys::open_beneath(above, name, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            sys::change_mode(&handle, 0o700)?;
            sys::reopen_directory(&handle)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Removes the entry of this name from a directory.
    fn remove(above: &Path, name: &str) -> io::Result<()> {
        let mut removal = Removal::default();
        removal.remove(&sys::open_directory(above)?, &c_string(OsStr::new(name)), &above.join(name));
        removal.result().map_err(untyped)
    }

    fn untyped(failure: ScratchFailure) -> io::Error {
        io::Error::other(format!("{failure:?}"))
    }

    #[test]
    fn a_tree_is_removed_whatever_it_is_made_of() -> io::Result<()> {
        let above = tempfile::tempdir()?;
        let top = above.path().join("top");
        for branch in ["a", "b"] {
            fs::create_dir_all(top.join(format!("{branch}{}", "/d".repeat(200))))?;
        }
        fs::create_dir_all(top.join(".childproof-1/full"))?;
        for number in 0..2000 {
            fs::write(top.join(number.to_string()), "")?;
        }
        fs::create_dir(top.join("closed"))?;
        fs::write(top.join("closed/file"), "")?;
        symlink("/", top.join("closed/link"))?;
        fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o000))?;
        fs::set_permissions(top.join("a/d"), fs::Permissions::from_mode(0o500))?;
        remove(above.path(), "top")?;
        assert_eq!(fs::read_dir(above.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn what_is_not_there_is_removed_already() -> io::Result<()> {
        let above = tempfile::tempdir()?;
        remove(above.path(), "nothing")
    }

    /// A process may replace a directory by a symlink while it is being emptied.
    #[test]
    fn no_race_leads_out_of_a_tree() -> io::Result<()> {
        const ROUNDS: usize = 200;
        let above = tempfile::tempdir()?;
        let precious = above.path().join("precious");
        fs::create_dir_all(precious.join("inner"))?;
        for number in 0..8 {
            fs::write(precious.join(format!("inner/{number}")), "")?;
        }
        let top = above.path().join("top");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // Both may fail: the directory is created and removed concurrently.
                    let _ = fs::rename(top.join("inner"), top.join("aside"));
                    let _ = symlink(precious.join("inner"), top.join("inner"));
                    let _ = fs::remove_file(top.join("inner"));
                    let _ = fs::rename(top.join("aside"), top.join("inner"));
                }
            });
            let result: io::Result<()> = (0..ROUNDS).try_for_each(|_| {
                fs::create_dir_all(top.join("inner/x")).or_else(|error| match error.kind() {
                    // The other thread has it.
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
                for number in 0..8 {
                    let _ = fs::write(top.join(format!("inner/x{number}")), "");
                }
                // It may not terminate while another process keeps writing.
                let _ = remove(above.path(), "top");
                Ok(())
            });
            is_over.store(true, Ordering::Relaxed);
            result
        })?;
        remove(above.path(), "top")?;
        // The writes above may have followed the symlink.
        assert!((0..8).all(|number| precious.join(format!("inner/{number}")).exists()));
        Ok(())
    }

    #[test]
    fn the_runs_directory_is_known_again() -> io::Result<()> {
        let above = tempfile::tempdir()?;
        let run = RunDirectory::at(above.path().join("run")).and_then(RunDirectory::make).map_err(untyped)?;
        fs::rename(above.path().join("run"), above.path().join("moved"))?;
        run.remove().map_err(untyped)?;
        fs::create_dir(above.path().join("run"))?;
        fs::write(above.path().join("run/file"), "")?;
        assert!(run.remove().is_err_and(|failure| failure.errors[0].error.errno == Some(libc::ESTALE)));
        assert!(above.path().join("run/file").exists());
        fs::remove_dir_all(above.path().join("run"))?;
        symlink(above.path().join("moved"), above.path().join("run"))?;
        assert!(run.remove().is_err());
        fs::remove_file(above.path().join("run"))?;
        fs::rename(above.path().join("moved"), above.path().join("run"))?;
        fs::write(above.path().join("run/file"), "")?;
        run.remove().map_err(untyped)?;
        assert_eq!(fs::read_dir(above.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let failure = RunDirectory::at("/nonexistent/run".into()).err();
        assert!(failure.is_some_and(|failure| failure.errors[0].path == "/nonexistent"));
    }
}
