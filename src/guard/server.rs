//! The fork server: a single-threaded process that forks supervisors.
//!
//! A harness runs tests on threads, and a process forked from a threaded one inherits every lock that another
//! thread held at that moment, locked forever. So the harness never forks for a test. In a `harness = false`
//! target it forks the [net](super::net) once, before any thread exists; elsewhere the net is forked from an
//! exec of `/proc/self/exe` that is taken over before `main` (see [`Takeover`](super::takeover::Takeover)).
//! The net forks the fork server, and another one if that is killed.
//!
//! It is a subreaper, kills what a killed supervisor leaves, and continues a supervisor that was stopped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;

use super::isolation::{Forked, Forker, Isolated};
use super::keep;
use super::kill;
use super::messages::{Hello, Request};
use super::net::{Net, report};
use super::scratch::RunDirectory;
use super::supervisor::{ChildEntry, RunContext, ServeOutcome, Supervisor};
use crate::guard::failure::{GuardFailure, Role};
use crate::proc::process;
use crate::sys::channel::Channel;
use crate::sys::wire::Wire;
use crate::sys::{self, ChildState, Pid};

/// A supervisor that is not reaped yet.
struct Live {
    pid: Pid,
    /// Closed when it is reaped: the harness waits for that.
    _awaited: Option<OwnedFd>,
}

/// How long a harness may outlive the cargo or nextest that started it, so that it can report that the run is
/// cut: a terminal signals both.
const WITHOUT_RUNNER: Duration = Duration::from_millis(500);
/// The same once it has reported that: longer than the harness takes for its reports.
const CUT_WITHOUT_RUNNER: Duration = Duration::from_secs(10);

pub(super) struct Server {
    control: Channel,
    context: RunContext,
    /// The cargo or nextest that started the harness.
    runner: Option<OwnedFd>,
    /// When the harness is killed because its runner is gone.
    kill_at: Option<Instant>,
    /// Whether the harness has reported that the run is cut.
    is_cut: bool,
    supervisors: Vec<Live>,
    /// A signalfd for SIGCHLD, that of the net.
    children: SignalFd,
    directory: RunDirectory,
    /// How many fork servers have been started, including this one.
    number: u32,
    forked: u32,
    forker: Forker,
    pid: Pid,
}

impl Server {
    /// Serves a harness until it is gone, in a fresh fork of the net; returns in a test process, or at its
    /// end.
    pub(super) fn serve(net: Net, then: &ChildEntry<'_>) -> ServeOutcome {
        let Net { control, mut context, runner, directory, servers, children, .. } = net;
        if let Err(error) = Server::prepare() {
            report(&control, GuardFailure::set_up(Role::ForkServer)(error));
            return ServeOutcome::Done(1);
        }
        let pid = nix::unistd::getpid().as_raw();
        context.server = pid;
        let supervisors = Vec::new();
        Server {
            control,
            context,
            runner,
            kill_at: None,
            is_cut: false,
            supervisors,
            children,
            directory,
            number: servers,
            forked: 0,
            forker: Forker::default(),
            pid,
        }
        .run(then)
    }

    /// As a fork of the net, it has all signals blocked and the title set.
    fn prepare() -> io::Result<()> {
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        let _ = nix::sys::prctl::set_name(process::GUARD);
        sys::watch_faults();
        Ok(())
    }

    fn run(mut self, then: &ChildEntry<'_>) -> ServeOutcome {
        let (slot, place) = loop {
            let mut fds = vec![
                PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.context.lifeline.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.context.harness.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(runner) = &self.runner {
                fds.push(PollFd::new(runner.as_fd(), PollFlags::POLLIN));
            }
            // Waits for requests as long as the harness lives; the poll watches that too.
            let left = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()));
            if poll(&mut fds, sys::poll_timeout(left)).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let requested = fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
            let (control, harness, children) = (ready[0], ready[1] || ready[2], ready[3]);
            let runner = self.runner.is_some() && ready.last() == Some(&true);
            if runner {
                self.runner = None;
                self.kill_without_runner();
            }
            if self.kill_at.is_some_and(|at| Instant::now() >= at) {
                // Nothing reads the results any more, so the harness must not go on.
                let _ = sys::pidfd_send_signal(&self.context.harness, libc::SIGKILL);
                self.kill_at = None;
            }
            if harness {
                return self.wind_down();
            }
            if children {
                self.reap_supervisors();
            }
            if !control {
                continue;
            }
            let message = if requested { self.control.receive() } else { Ok(None) };
            let Ok(Some((bytes, mut fds))) = message else {
                return self.wind_down();
            };
            match (Request::decode(&bytes), fds.pop()) {
                (Some(Request::Slot { isolated }), Some(slot)) => {
                    let slot = Channel::from_fd(slot);
                    if let Some(place) = self.fork_supervisor(&slot, isolated) {
                        break (slot, place);
                    }
                }
                (Some(Request::Kill { pid }), _) => self.kill_supervisor(pid),
                (Some(Request::Reaped { pid }), awaited) => {
                    if let Some(live) = self.supervisors.iter_mut().find(|live| live.pid == pid) {
                        live._awaited = awaited;
                    }
                }
                (Some(Request::Cut), _) => {
                    self.is_cut = true;
                    if self.kill_at.is_some() {
                        self.kill_without_runner();
                    }
                }
                (Some(Request::End), _) => return self.wind_down(),
                _ => {}
            }
        };
        // Called here, outside of the loop, so that none of the loop's values need to be freed.
        self.become_supervisor(slot, place, then)
    }

    /// Sets the time at which the harness, having lost its runner, is killed.
    fn kill_without_runner(&mut self) {
        let limit = if self.is_cut { CUT_WITHOUT_RUNNER } else { WITHOUT_RUNNER };
        self.kill_at = Some(Instant::now() + limit);
    }

    /// Forks a supervisor for `slot`; the child continues in [`Server::become_supervisor`].
    fn fork_supervisor(&mut self, slot: &Channel, isolated: bool) -> Option<Isolated> {
        self.forked += 1;
        match self.forker.fork(isolated) {
            Ok(Forked::Parent(pid)) => {
                self.supervisors.push(Live { pid, _awaited: None });
                None
            }
            Ok(Forked::Child(place)) => Some(place),
            Err(error) => {
                let error = Some(GuardFailure::fork(Role::Supervisor)(error));
                let _ = slot.send(&Hello { pid: 0, error, not_isolated: None }.encode(), &[]);
                None
            }
        }
    }

    /// Drops what a supervisor does not need of the server.
    fn become_supervisor(self, slot: Channel, place: Isolated, then: &ChildEntry<'_>) -> ServeOutcome {
        let Server { context, directory, number, forked, control, runner, supervisors, children, .. } = self;
        drop((control, runner, supervisors));
        // Supervisors of a fork server that was killed may still use theirs.
        let scratch = match number {
            1 => forked.to_string(),
            _ => format!("{number}-{forked}"),
        };
        match Supervisor::new(context, slot, children, directory, &scratch, place) {
            Ok(supervisor) => supervisor.serve(then),
            Err(_) => ServeOutcome::Done(1),
        }
    }

    /// Reaps supervisors that have ended, and kills what a killed one left. Continues those that were stopped:
    /// their tests would have no guard.
    fn reap_supervisors(&mut self) {
        let _ = self.children.read_signal();
        let mut left_something = false;
        self.supervisors.retain(|live| match sys::wait_or_continue(live.pid) {
            Some(state) => {
                left_something |= state != ChildState::Exited(0);
                false
            }
            None => true,
        });
        if left_something {
            let live: Vec<Pid> = self.supervisors.iter().map(|live| live.pid).collect();
            kill::kill_below(self.pid, &live);
        }
    }

    /// Kills a supervisor and what is below it. If a process traces it, the kernel reports its death to that one first,
    /// which may be one of those below.
    fn kill_supervisor(&mut self, pid: Pid) {
        let before = self.supervisors.len();
        self.supervisors.retain(|live| live.pid != pid);
        if self.supervisors.len() == before {
            return;
        }
        // An unreaped child, so its pid cannot have been reused. Its children become this process's.
        let _ = sys::kill(pid, libc::SIGKILL);
        let live: Vec<Pid> = self.supervisors.iter().map(|live| live.pid).collect();
        kill::kill_below(self.pid, &live);
    }

    /// Waits for the supervisors to exit, kills what they could not, and cleans up.
    fn wind_down(mut self) -> ServeOutcome {
        let begin = Instant::now();
        let until = begin + kill::LONGEST + Duration::from_secs(2);
        // The others exit at once, and nothing is read for them.
        let begin_to_ask = begin + Duration::from_secs(1);
        while !self.supervisors.is_empty() {
            let now = Instant::now();
            if now >= until
                || now >= begin_to_ask && self.supervisors.iter().all(|live| keep::stays(live.pid))
            {
                break;
            }
            let next = if now < begin_to_ask { begin_to_ask } else { until };
            sys::readable(&self.children, Some(next.saturating_duration_since(now)));
            self.reap_supervisors();
        }
        self.supervisors.retain(|live| keep::stays(live.pid));
        if !self.supervisors.is_empty() {
            let kept: Vec<Pid> = self.supervisors.iter().map(|live| live.pid).collect();
            kill::kill_below(self.pid, &kept);
            keep::become_keeper();
            keep::until_empty(&self.children);
        }
        let clean = !sys::has_children();
        if !clean {
            kill::kill_below(self.pid, &[]);
        }
        let _ = self.directory.remove();
        ServeOutcome::Done(i32::from(!clean))
    }
}
