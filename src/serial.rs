//! Serial keys: tests with one key never run at the same time.
//!
//! Under nextest each test has a harness of its own, so a lock inside one process would keep
//! nobody apart. The lock is a file; the kernel lets it go when its holder dies, however it dies.
//! The supervisor has it too, so that a test whose harness is killed keeps its turn until nothing is left of it.
//! Who had it takes the file away; who was waiting for it then makes another.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

/// A test's turn. Others with the same key wait until it is dropped.
pub(crate) struct Turn {
    path: PathBuf,
    /// Locked until this is dropped, or, if we are killed, until the supervisor has closed its copy.
    lock: Flock<File>,
}

impl AsFd for Turn {
    /// The lock itself: whoever has a copy has the turn with us, and keeps it if we are killed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Ours as long as we have the lock. If it cannot be removed the next one uses it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits until no other test with this key runs.
///
/// As long as that takes: whoever holds the key has a timeout of its own.
pub(crate) fn wait(key: &str) -> io::Result<Turn> {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    // All test binaries of a workspace lie in one directory; other projects' keys are their own.
    std::env::current_exe()?.parent().hash(&mut hasher);
    let user = nix::unistd::geteuid();
    let name = format!("childproof-serial-{user}-{:016x}", hasher.finish());
    turn(std::env::temp_dir().join(name))
}

fn turn(path: PathBuf) -> io::Result<Turn> {
    loop {
        // Not for ever where somebody has put a FIFO.
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&path)?;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                Err((again, Errno::EINTR)) => file = again,
                Err((_, error)) => return Err(error.into()),
            }
        };
        if is_at(&lock, &path)? {
            return Ok(Turn { path, lock });
        }
    }
}

/// Whether a file is the one that is found there: not if who had it before has removed it.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_after_the_other_has_the_turn_and_leaves_no_file() -> io::Result<()> {
        const TURNS: u32 = 500;
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("key");
        let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while taken.fetch_add(1, Ordering::Relaxed) < TURNS {
                        let Ok(_turn) = turn(path.clone()) else { panic!("no turn") };
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
}
