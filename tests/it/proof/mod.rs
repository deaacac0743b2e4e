//! The proof that nothing escapes and nothing is blamed wrongly. PLATFORM.md has the figures of the long versions.

mod alarms;
mod faults;
mod kills;
mod nested;
mod poor;
mod signature;
mod trees;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::support::{Fixture, Run, root, scratch};

/// The fixture of all of these.
fn fixture() -> Fixture {
    Fixture::build("proof")
}

/// How many trials a test makes: `PROOF_TRIALS`, if that is set.
fn trials(otherwise: usize) -> usize {
    std::env::var("PROOF_TRIALS").map_or(otherwise, |count| count.parse().unwrap())
}

/// The directory of the built command-line tool.
pub(crate) fn tool() -> PathBuf {
    let target = root().join("target/fixtures");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--package", "childproof-cli"]).current_dir(root());
    let built = cargo.env("CARGO_TARGET_DIR", &target).env_remove("RUSTFLAGS").status();
    assert!(built.unwrap().success());
    target.join("debug")
}

/// A run of which each process has the write end of a FIFO, as fd 9: at EOF once all of them are gone, whatever their
/// names, environments and parents.
struct Held {
    run: Run,
    fifo: PathBuf,
    read: File,
}

impl Held {
    /// Starts a command in a session of its own, in which each signal has its default effect.
    fn start(like: &Command) -> Held {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let fifo = scratch().join(format!("held-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let read = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        let mut command = Command::new("sh");
        let script = "exec 9> \"$0\"; exec setsid env --default-signal=HUP,INT,QUIT,TERM \"$@\"";
        command.args(["-c", script]).arg(&fifo).arg(like.get_program()).args(like.get_args());
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = like.get_current_dir() {
            command.current_dir(directory);
        }
        Held { run: Run::spawn(command), fifo, read }
    }

    /// Whether all processes are gone, or are within `limit`.
    fn are_gone(&self, limit: Duration) -> bool {
        // There is no EOF before a first writer: none of them may have got so far.
        drop(File::options().write(true).open(&self.fifo).unwrap());
        let mut fds = [PollFd::new(self.read.as_fd(), PollFlags::empty())];
        let limit = PollTimeout::try_from(limit).unwrap();
        poll(&mut fds, limit).unwrap();
        fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}

/// Calls a function for each item, on some threads, and returns the results in the order of the items.
fn each<T: Send, R: Send>(items: Vec<T>, call: impl Fn(T) -> R + Sync) -> Vec<R> {
    /// Enough to use the time that a run waits.
    const THREADS: usize = 4;
    let items = Mutex::new(items.into_iter().enumerate());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some((number, item)) = items.lock().unwrap().next() else { return };
                    let result = call(item);
                    results.lock().unwrap().push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
