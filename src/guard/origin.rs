//! Records what this process inherited: open fds and its parent.
//!
//! Both can change soon. An unguarded test may open an fd that every program it starts inherits, and the fork
//! server must not have it. And the cargo that started a run may be killed before it is watched.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use nix::libc;

use crate::proc::process::{GUARD, Stat};
use crate::sys::{self, FdIdentity, Pid};

/// The state before the program's first constructor.
struct Inherited {
    /// The inherited fds of 3 and above.
    fds: Vec<(RawFd, FdIdentity)>,
    parent: Pid,
    is_runner: bool,
    /// Whether it dies with its parent. The kernel keeps that for each thread, and a new one inherits nothing of it.
    dies_with_parent: bool,
    /// Whether SIGPIPE was ignored: Rust's start-up ignores it in any case.
    ignores_sigpipe: bool,
}

static INHERITED: OnceLock<Inherited> = OnceLock::new();

/// Records what this process inherited. Called before the constructors of the program.
pub(super) fn remember() {
    INHERITED.get_or_init(|| {
        let (parent, is_runner) = parent();
        let mut fds = Vec::new();
        if !sys::only_standard_streams_are_open() {
            sys::each_open_fd(|fd| {
                fds.extend(sys::fd_identity(fd).filter(|_| fd > 2).map(|identity| (fd, identity)));
            });
        }
        let ignores_sigpipe = sys::is_ignored(libc::SIGPIPE);
        let dies_with_parent =
            !is_runner && nix::sys::prctl::get_pdeathsig().is_ok_and(|signal| signal.is_some());
        Inherited { fds, parent, is_runner, dies_with_parent, ignores_sigpipe }
    });
}

/// Whether this process was started with SIGPIPE ignored.
pub(super) fn ignores_sigpipe() -> bool {
    INHERITED.get().is_some_and(|origin| origin.ignores_sigpipe)
}

/// The inherited fds of 3 and above that still refer to the same files.
pub(super) fn given_fds() -> Vec<RawFd> {
    let given = INHERITED.get().map(|origin| origin.fds.as_slice()).unwrap_or_default();
    let same = given.iter().filter(|(fd, was)| sys::fd_identity(*fd).as_ref() == Some(was));
    same.map(|(fd, _)| *fd).collect()
}

/// A handle on the cargo or nextest that started this process, if one did. If it is already gone, this
/// process is killed, since nothing reads its results.
///
/// Killing cargo or nextest leaves the test binary running (cargo#14929). If the parent is a shell, an init
/// or a debugger, it is not watched: its exit says nothing about the run.
pub(super) fn runner() -> Option<OwnedFd> {
    let origin = INHERITED.get()?;
    if !origin.is_runner {
        if was_orphaned(origin) {
            end();
        }
        return None;
    }
    let pidfd = sys::pidfd_open(origin.parent);
    // The parent may have exited before the handle was opened, and its pid been reused.
    if nix::unistd::getppid().as_raw() != origin.parent {
        end();
    }
    pidfd.ok()
}

/// Ends this process, as the fork server does when the runner exits later.
fn end() {
    eprintln!("error: the cargo or nextest that started this run is gone");
    let _ = sys::kill(nix::unistd::getpid().as_raw(), libc::SIGKILL);
}

/// The parent of this process, and whether it is a cargo or nextest. It may be exiting.
fn parent() -> (Pid, bool) {
    /// Each round is caused by one more ancestor that exited meanwhile.
    const MOST: usize = 16;
    let mut parent = nix::unistd::getppid().as_raw();
    for _ in 0..MOST {
        if is_runner(parent) {
            return (parent, true);
        }
        let now = nix::unistd::getppid().as_raw();
        if now == parent {
            break;
        }
        parent = now;
    }
    (parent, false)
}

/// Whether the program of a process is a cargo or nextest. An exiting process has no program from the moment
/// its memory is gone, which is before its children are reparented; the name of its first thread remains
/// until it is reaped.
pub(crate) fn is_runner(process: Pid) -> bool {
    let is_named = |name: &[u8]| name.starts_with(b"cargo") || name.starts_with(b"nextest");
    match fs::read_link(format!("/proc/{process}/exe")) {
        Ok(program) => is_named(program.file_name().unwrap_or(OsStr::new("")).as_bytes()),
        Err(_) => Stat::read(process).is_some_and(|stat| is_named(stat.comm.as_bytes())),
    }
}

/// Whether a cargo or nextest started this process and was gone before its first constructor ran.
///
/// They start a test in the directory of its package, and in their own session. Only an orphan has a parent
/// in another session, unless it is a guarded command: the supervisor of one has a session of its own, and the command
/// dies with it. An orphan may have the supervisor of a guarded test as its new parent.
fn was_orphaned(origin: &Inherited) -> bool {
    let is_set = |name| std::env::var_os(name).is_some();
    if !is_set("CARGO") && !is_set("NEXTEST") {
        return false;
    }
    let package = std::env::var_os("CARGO_MANIFEST_DIR");
    if package.is_none() || package != std::env::current_dir().ok().map(Into::into) {
        return false;
    }
    match (Stat::of_self(), Stat::read(origin.parent)) {
        (Some(own), Some(parent)) => {
            let is_guarded = parent.comm.as_bytes() == GUARD.to_bytes() && origin.dies_with_parent;
            own.sid != own.pid && own.sid != parent.sid && !is_guarded
        }
        _ => false,
    }
}
