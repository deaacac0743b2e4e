//! Serial keys: tests with one key never run at the same time.
//!
//! Under nextest each test has a harness of its own, so a lock inside one process would keep
//! nobody apart. The lock is a file; the kernel lets it go when its holder dies, however it dies.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{Flock, FlockArg};

/// A test's turn. Others with the same key wait until it is dropped.
pub(crate) struct Turn {
    _lock: Flock<File>,
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
    let path = std::env::temp_dir().join(name);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(Turn { _lock: lock }),
            Err((again, nix::errno::Errno::EINTR)) => file = again,
            Err((_, error)) => return Err(error.into()),
        }
    }
}
