//! The net: a process between the harness and the fork server that kills what a killed fork server leaves.
//!
//! It is a subreaper, has one thread and all signals blocked, and runs no user code. Only guarded processes
//! are ever below it: the harness, and a process that is taken over before `main`, may have other children,
//! so they fork the net before anything else. So the net may kill every process that is reparented to it, and
//! the harness kills nothing.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::failure::{GuardFailure, Role};
use super::keep;
use super::kill;
use super::messages::{Hello, Request};
use super::scratch::RunDirectory;
use super::server::Server;
use super::supervisor::{ChildEntry, RunContext, ServeOutcome};
use crate::proc::mounts;
use crate::proc::process::{self, Stat};
use crate::sys::channel::Channel;
use crate::sys::lifeline::Watch;
use crate::sys::wire::Wire;
use crate::sys::{self, ChildState, Children, Fork, Mask, Pid};

/// The command line of net and fork server, and the name of the net. It contains no word that `pkill` would
/// match, since they kill what the others leave.
pub(super) const TITLE: &str = process::NET;

/// How long the first message of the harness may take. It is sent at once.
const FIRST: Duration = Duration::from_secs(15);

/// How long a fork server may take to shut down once the harness is gone, before it is killed.
const WIND_DOWN: Duration = Duration::from_secs(15);

/// One net.
pub(super) struct Net {
    pub(super) control: Channel,
    pub(super) context: RunContext,
    /// The cargo or nextest that started the harness.
    pub(super) runner: Option<OwnedFd>,
    /// The run's directory for temporary files.
    pub(super) directory: RunDirectory,
    /// How many fork servers have been started.
    pub(super) servers: u32,
    /// A signalfd for SIGCHLD.
    pub(super) children: SignalFd,
    pid: Pid,
}

/// Why the net stopped watching a fork server.
enum Ended {
    /// The fork server was killed while the harness lives.
    Killed,
    /// The run is over.
    Over,
}

/// Runs a net below a harness until that is gone. Returns in a test process, or at its end.
///
/// Must be called in a fresh fork with one thread and no child.
pub(super) fn hold(control: Channel, harness: Pid, mask: Mask, then: &ChildEntry<'_>) -> ServeOutcome {
    let fd = control.as_fd().try_clone_to_owned();
    match Net::start(control, harness, mask) {
        Ok(net) => {
            drop(fd);
            net.watch(then)
        }
        Err(error) => {
            if let Ok(fd) = fd {
                report(&Channel::from_fd(fd), error);
            }
            ServeOutcome::Done(1)
        }
    }
}

/// Stays the parent of what the constructors of this process have started, for as long as its child, the net, lives.
pub(super) fn wait_beside(net: Pid) -> ! {
    sys::Argv::at(process::argv_of_self().unwrap_or_default()).show(&[TITLE]);
    if let Ok(name) = CString::new(TITLE) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    // It ends when the harness does.
    sys::outlive(net);
    sys::exit_now(0)
}

/// A signalfd for SIGCHLD. It reports the children of each process that reads it.
pub(super) fn children_fd() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Reports to the harness why there is no fork server.
pub(super) fn report(control: &Channel, error: GuardFailure) {
    let _ = control.send(&Hello { pid: 0, error: Some(error), not_isolated: None }.encode(), &[]);
}

impl Net {
    fn start(control: Channel, harness: Pid, mask: Mask) -> Result<Net, GuardFailure> {
        let directory = |failure| GuardFailure::MakeDirectory { failure };
        let chosen = RunDirectory::choose().map_err(directory)?;
        let net = Net::prepare(control, harness, mask, chosen).map_err(GuardFailure::set_up(Role::Net))?;
        let directory = net.directory.clone().make().map_err(directory)?;
        Ok(Net { directory, ..net })
    }

    fn prepare(control: Channel, harness: Pid, mask: Mask, directory: RunDirectory) -> io::Result<Net> {
        // A reader of the harness's output must not have to wait for this process to exit.
        for standard in 0..=2 {
            sys::null_at(standard)?;
        }
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        block_all_signals()?;
        mounts::remember_proc();
        let stat = Stat::of_self().ok_or(io::ErrorKind::NotFound)?;
        let title = sys::Argv::at(process::argv_of_self().unwrap_or_default());
        title.show(&[TITLE]);
        let _ = nix::sys::prctl::set_name(&CString::new(TITLE).unwrap_or_default());
        if !sys::readable(&control, Some(FIRST)) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (request, fds) = match control.receive()? {
            Some((bytes, fds)) => (Request::decode(&bytes), fds),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let mut fds = fds.into_iter();
        let (Some(Request::Watch), Some(lifeline), Some(harness_fd)) = (request, fds.next(), fds.next())
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let pid = nix::unistd::getpid().as_raw();
        Ok(Net {
            control,
            context: RunContext {
                lifeline: Watch::from(lifeline),
                harness: harness_fd,
                mask,
                command_line: process::arguments(title.original()),
                title,
                // After an exec of `/proc/self/exe` the kernel names the process `exe`.
                comm: CString::new(Stat::read(harness).map_or(stat.comm, |harness| harness.comm))
                    .unwrap_or_default(),
                server: 0,
            },
            runner: fds.next(),
            directory,
            servers: 0,
            children: children_fd()?,
            pid,
        })
    }

    /// Keeps a fork server running until the run is over: starts another one after each that was killed.
    fn watch(mut self, then: &ChildEntry<'_>) -> ServeOutcome {
        let mut has_swept = false;
        loop {
            self.servers += 1;
            let server = match sys::fork() {
                Ok(Fork::Child) => return Server::serve(self, then),
                Ok(Fork::Parent(pid)) => pid,
                Err(error) => {
                    report(&self.control, GuardFailure::fork(Role::ForkServer)(error));
                    return ServeOutcome::Done(self.end());
                }
            };
            if !std::mem::replace(&mut has_swept, true) {
                // While the first test runs.
                self.directory.sweep_beside();
            }
            match self.follow(server) {
                Ended::Killed => {}
                Ended::Over => return ServeOutcome::Done(self.end()),
            }
        }
    }

    /// Waits for a fork server to exit, and reaps all other children that exit. Continues the fork server if it was
    /// stopped.
    fn follow(&self, server: Pid) -> Ended {
        let mut until = None;
        loop {
            let mut left = until.map(|until: Instant| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                if !keep::stays(server) {
                    return Ended::Over;
                }
                // Until what is kept has ended.
                keep::become_keeper();
                left = None;
            }
            let mut fds = [
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.context.lifeline.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.context.harness.as_fd(), PollFlags::POLLIN),
            ];
            // Once the harness is gone, only the children are waited for.
            let watched = if until.is_some() { 1 } else { fds.len() };
            // As long as the harness lives.
            if poll(&mut fds[..watched], sys::poll_timeout(left)).is_err() {
                continue;
            }
            let ready = fds.map(|fd| fd.any().unwrap_or(false));
            if until.is_none() && (ready[1] || ready[2]) {
                until = Some(Instant::now() + WIND_DOWN);
            }
            let _ = self.children.read_signal();
            while let Ok(Children::Ready(child)) = sys::waitid(None, libc::WEXITED | libc::WSTOPPED) {
                if child.pid != server {
                    continue;
                }
                match child.state {
                    // An unreaped child, so its pid cannot have been reused.
                    ChildState::Stopped(_) => drop(sys::kill(server, libc::SIGCONT)),
                    ChildState::Signalled(_) if until.is_none() => return Ended::Killed,
                    _ => return Ended::Over,
                }
            }
        }
    }

    /// Kills what is left and removes the run's directory; returns the exit code.
    fn end(self) -> i32 {
        let is_clean = !sys::has_children();
        if !is_clean {
            kill::kill_below(self.pid, &[]);
        }
        let _ = self.directory.remove();
        i32::from(!is_clean)
    }
}

/// Blocks all signals that can be blocked, so that none ends this process or its forks, the fork servers and
/// supervisors. An orphan may send its parent, which is then a supervisor, SIGUSR1 when it is ready, so none
/// can be left out. They are blocked and not ignored: dispositions stay as a test must find them, and its
/// mask is restored in one call.
pub(super) fn block_all_signals() -> nix::Result<()> {
    sys::default_signal(libc::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
}
