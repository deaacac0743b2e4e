//! Serial keys: tests with one key never run at the same time.
//!
//! Under nextest each test has a harness of its own, so a lock inside one process would not exclude other
//! tests. The lock is a file lock, which the kernel releases when its holder dies. The supervisor holds it
//! too: if the harness of a test is killed, the next test waits until the supervisor has killed all of the
//! first one's processes. The holder removes the file, and the next waiter creates a new one. If all of these processes
//! are killed, the file stays, and the next run removes it.
//!
//! Another user could create a lock with a known name first, or put something else in its place. So it lies
//! in a directory that belongs to this user and is open to no other, at a place where no other user can
//! create names if there is one: see [`directories`].

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::signals;
use crate::sys;

/// The right of a test to run. Others with the same key wait until it is dropped.
pub(crate) struct Turn {
    directory: OwnedFd,
    /// The path of the directory.
    path: PathBuf,
    /// The name of the lock file in it.
    name: CString,
    /// Locked until this is dropped, or, if the harness is killed, until the supervisor has closed its copy.
    lock: Flock<File>,
}

impl AsFd for Turn {
    /// The lock itself: a process with a copy holds it too, and keeps it if the harness is killed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The file is ours while we hold the lock. If it cannot be removed the next holder uses it.
        let _ = unlinkat(&self.directory, self.name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        // Succeeds only if the directory is empty, which it is not while another test holds a lock.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Waits until no other test with this key runs.
///
/// There is no deadline: the test that holds the lock has a timeout of its own.
///
/// # Errors
///
/// If the run is cut meanwhile, or if there is no directory for the lock that only this user can change; each
/// candidate is named, with the reason.
pub(crate) fn wait(key: &str) -> io::Result<Turn> {
    let binary = std::env::current_exe()?;
    let binaries = binary.parent().unwrap_or(Path::new("/"));
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    // All test binaries of a workspace lie in one directory; so the keys of other projects are different.
    binaries.hash(&mut hasher);
    let name = CString::new(format!("{:016x}", hasher.finish()))?;
    turn(&directories(binaries), &name)
}

/// Removes the files of locks that no process holds: all of their holders were killed.
pub(crate) fn sweep() {
    if let Ok(binary) = std::env::current_exe() {
        directories(binary.parent().unwrap_or(Path::new("/"))).iter().for_each(|path| drop(sweep_in(path)));
    }
}

fn sweep_in(path: &Path) -> io::Result<()> {
    let directory = open_existing(path)?;
    while let Some(names) = Some(sys::next_entries(directory.as_fd())?).filter(|names| !names.is_empty()) {
        for entry in names {
            let name = entry.name;
            let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            let Ok(file) = openat(&directory, name.as_c_str(), flags, Mode::empty()) else { continue };
            // As any other holder: a process that waits for it meanwhile creates a new file.
            let Ok(lock) = Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) else { continue };
            if lock.metadata()?.is_file() && is_at(&lock, &directory, &name)? {
                let directory = directory.try_clone()?;
                drop(Turn { directory, path: path.to_owned(), name, lock });
            }
        }
    }
    Ok(())
}

/// The candidates for a lock's directory. All processes of a user must choose the same one, so the first does
/// not depend on the environment.
///
/// 1. The directory of the test binaries, if it belongs to this user: another user that can create names in
///    it can also replace the binaries.
/// 2. `XDG_RUNTIME_DIR`, which belongs to one user by its definition, and `.cache` in the user's home.
/// 3. `TMPDIR`. There another user can create the name first: then the test cannot run, and its error says
///    why.
fn directories(binaries: &Path) -> Vec<PathBuf> {
    let user = nix::unistd::geteuid();
    let is_own =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == user.as_raw());
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let (runtime, home) = (named("XDG_RUNTIME_DIR"), named("HOME").map(|home| home.join(".cache")));
    let own = [Some(binaries.to_owned()), runtime, home].into_iter().flatten().filter(is_own);
    let name = OsString::from(format!("childproof-serial-{user}"));
    own.chain([std::env::temp_dir()]).map(|path| path.join(&name)).collect()
}

/// Takes the lock of this name in the first directory that can be used.
fn turn(directories: &[PathBuf], name: &CString) -> io::Result<Turn> {
    let mut errors = Vec::new();
    for path in directories {
        match turn_in(path, name) {
            Ok(turn) => return Ok(turn),
            Err(error) => {
                errors.push(format!("`{}`: {error}", path.display()));
                // Another process may hold a lock there, and would not see one elsewhere.
                if is_passing(&error) {
                    break;
                }
            }
        }
    }
    Err(io::Error::other(errors.join("; ")))
}

/// Whether the error may be temporary or differ between processes, or means that the run was cut.
fn is_passing(error: &io::Error) -> bool {
    use nix::libc::{EDQUOT, EINTR, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC};
    matches!(error.raw_os_error(), Some(EDQUOT | EINTR | EIO | EMFILE | ENFILE | ENOMEM | ENOSPC))
}

fn turn_in(path: &Path, name: &CString) -> io::Result<Turn> {
    loop {
        let directory = open(path)?;
        let flags =
            OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let mut file = match openat(&directory, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(file) => File::from(file),
            // The previous holder has just removed the directory.
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                // The run was cut while waiting.
                Err((_, Errno::EINTR)) if signals::cut_by().is_some() => return Err(Errno::EINTR.into()),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, error)) => return Err(error.into()),
            }
        };
        if is_at(&lock, &directory, name)? {
            return Ok(Turn { directory, path: path.to_owned(), name: name.clone(), lock });
        }
    }
}

/// Opens a lock's directory, and creates it if needed.
fn open(path: &Path) -> io::Result<OwnedFd> {
    loop {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match open_existing(path) {
            // The holder of a lock has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
}

/// Opens a lock's directory. It must belong to this user, be open to no other, and not be a symlink.
fn open_existing(path: &Path) -> io::Result<OwnedFd> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match nix::fcntl::open(path, flags, Mode::empty()) {
        Ok(directory) => File::from(directory),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            let owner = fs::symlink_metadata(path)
                .map_or_else(|_| "another user".to_owned(), |found| format!("user {}", found.uid()));
            return refuse(format!("{owner} has put something there that is no directory: remove it"));
        }
        // It may belong to another user.
        Err(Errno::EACCES) => {
            let owner = fs::symlink_metadata(path)?.uid();
            return refuse(format!("it belongs to user {owner} and cannot be read: remove it"));
        }
        Err(error) => return Err(error.into()),
    };
    let found = directory.metadata()?;
    let user = nix::unistd::geteuid().as_raw();
    if found.uid() != user {
        return refuse(format!("it belongs to user {}, who may take every turn: remove it", found.uid()));
    }
    if found.mode() & 0o077 != 0 {
        return refuse(format!(
            "its mode is {:o}, and other users may take every turn: remove it",
            found.mode() & 0o7777
        ));
    }
    Ok(directory.into())
}

/// Whether a file is still the one of this name: the previous holder may have removed it.
fn is_at(file: &File, directory: &OwnedFd, name: &CString) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (ours.dev(), ours.ino())),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_after_the_other_has_the_turn_and_leaves_no_file() -> io::Result<()> {
        const TURNS: u32 = 500;
        let directory = tempfile::tempdir()?;
        let path = [directory.path().join("locks")];
        let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while taken.fetch_add(1, Ordering::Relaxed) < TURNS {
                        let turn = turn(&path, &c"key".to_owned());
                        let Ok(_turn) = turn else { panic!("no turn: {:?}", turn.err()) };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(directory.path())?.count(), 0);
        Ok(())
    }

    /// Another user may have put something there first.
    #[test]
    fn no_lock_is_in_a_directory_that_others_may_change() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let own = directory.path().join("own");
        let others = directory.path().join("others");
        let use_it = |what: &str| {
            let paths = [others.clone(), own.clone()];
            let second = turn(&paths, &c"key".to_owned())?;
            assert_eq!(second.path, own, "{what}");
            let error = turn(&paths[..1], &c"key".to_owned()).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("/others`: ")), "{what}");
            io::Result::Ok(())
        };
        fs::create_dir(&others)?;
        fs::set_permissions(&others, fs::Permissions::from_mode(0o777))?;
        use_it("open to all")?;
        fs::remove_dir(&others)?;
        fs::create_dir(directory.path().join("elsewhere"))?;
        fs::set_permissions(directory.path().join("elsewhere"), fs::Permissions::from_mode(0o700))?;
        symlink(directory.path().join("elsewhere"), &others)?;
        use_it("a link")?;
        fs::remove_file(&others)?;
        fs::write(&others, "")?;
        use_it("a file")?;
        fs::remove_file(&others)?;
        if nix::unistd::geteuid().is_root() {
            fs::create_dir(&others)?;
            fs::set_permissions(&others, fs::Permissions::from_mode(0o700))?;
            std::os::unix::fs::chown(&others, Some(65534), None)?;
            use_it("another user's")?;
        }
        Ok(())
    }
}
