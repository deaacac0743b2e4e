//! Starts a guarded command from a process that may have threads: the program is started again, and taken
//! over before its constructors, so the fork that the guard needs is made by a process with one thread.
//!
//! ```text
//! owner ── exec of the owner's program, which becomes the net ── supervisor ── command ── whatever it starts
//! ```
//!
//! If a library's constructor has started a process there, the net is a fork of that program.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command};
use std::time::Duration;

use super::command;
use super::facts::Answer;
use super::net;
use super::origin;
use crate::config::policy::{Fds, Policy};
use crate::sys::channel::{Channel, Message};
use crate::sys::lifeline::Lifeline;
use crate::sys::wire::{Wire, wire_struct};
use crate::sys::{self, Fork, Mask, Pid};

/// Set in a process that is to become a guard: the pid of its owner, and the abstract name of the socket that the owner
/// listens at (unix(7)).
const VARIABLE: &str = "CHILDPROOF_GUARD";
/// How long each side waits for the other at the start.
const PATIENCE: Duration = Duration::from_secs(30);

wire_struct! {
    /// What is to be started. A pidfd of the owner comes with it.
    struct Request {
        program: Vec<u8>,
        arguments: Vec<Vec<u8>>,
        grace: Duration,
    }
}

/// A guard, and the socket to it.
pub(crate) struct Guard {
    pub(crate) slot: Channel,
    /// The process that was taken over. It exits when nothing of the command is left.
    pub(crate) net: Child,
    pidfd: OwnedFd,
    lifeline: Option<Lifeline>,
}

/// The program of this process, to be started as a guard.
pub(crate) fn own_program() -> Command {
    Command::new("/proc/self/exe")
}

impl Guard {
    /// Starts a guard: `guard` is [`own_program`] with the environment, directory, stdin, stdout and stderr of
    /// the command.
    pub(crate) fn start(
        mut guard: Command,
        program: &OsStr,
        arguments: &[OsString],
        grace: Duration,
    ) -> io::Result<Guard> {
        let (slot, theirs) = Channel::pair()?;
        // The guard asks for its socket. If it inherited that, std would have to run code between fork and exec, and would
        // then wait for the end of each fork that another thread makes meanwhile.
        let name = format!("childproof-{:016x}", RandomState::new().hash_one(std::process::id()));
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        guard.env(VARIABLE, format!("{} {name}", std::process::id()));
        let net = guard.spawn()?;
        let pidfd = sys::pidfd_open(net.id() as sys::Pid)?;
        let mut started = Guard { slot, net, pidfd, lifeline: None };
        started.admit(&listener)?.send(&[], &[theirs.as_fd()])?;
        drop((theirs, listener));
        let owner = sys::pidfd_open(std::process::id() as sys::Pid)?;
        let arguments = arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect();
        let request = Request { program: program.as_bytes().to_vec(), arguments, grace };
        // Created after the fork, so that the guard does not have the write end.
        let (lifeline, watch) = Lifeline::new()?;
        started.slot.send(&request.encode(), &[owner.as_fd()])?;
        started.slot.send(&[], &[watch.as_fd()])?;
        started.lifeline = Some(lifeline);
        Ok(started)
    }

    /// Waits until the guard has connected.
    fn admit(&self, listener: &UnixListener) -> io::Result<Channel> {
        loop {
            sys::any_readable([listener.as_fd(), self.pidfd.as_fd()], Some(PATIENCE));
            let guest = OwnedFd::from(listener.accept()?.0);
            // Any process of the machine may connect.
            if sys::peer_pid(&guest) == Some(self.net.id() as Pid) {
                return Ok(Channel::from_fd(guest));
            }
        }
    }

    /// Receives the next message of the guard, at most until `limit` has passed; `None` if it is gone.
    pub(crate) fn receive(&self, limit: Option<Duration>) -> io::Result<Option<Answer>> {
        // A fork of this process by another thread may hold the other end of the socket: then there is no EOF.
        if !sys::any_readable([self.slot.as_fd(), self.pidfd.as_fd()], limit) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if !sys::readable(&self.slot, Some(Duration::ZERO)) {
            return Ok(None);
        }
        Ok(self.slot.receive()?.and_then(|(bytes, _)| Answer::decode(&bytes)))
    }

    /// Receives the first message.
    pub(crate) fn first(&self) -> io::Result<Option<Answer>> {
        self.receive(Some(PATIENCE))
    }

    /// Ends the guard and every process of the command, and waits until they are gone.
    pub(crate) fn shut_down(&mut self) {
        if self.lifeline.take().is_none() && self.net.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        self.slot.hang_up();
        if !sys::readable(&self.pidfd, Some(command::WIND_DOWN)) {
            let _ = self.net.kill();
        }
        let _ = self.net.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Becomes a guard if this process was started for that. Called before the constructors of the program.
pub(super) fn take_over() {
    let Some((owner, name)) = ordered() else { return };
    // What is open now was inherited for the command.
    origin::remember();
    // A value that leaked into another process's environment names no socket.
    let connected = SocketAddr::from_abstract_name(name).and_then(|at| UnixStream::connect_addr(&at));
    let Ok(connected) = connected else { return };
    // No process of the command may see it.
    sys::remove_env(VARIABLE);
    let first = Channel::from_fd(connected.into());
    let slot = match sent(&first, owner) {
        Some((_, mut fds)) => fds.pop().and_then(|slot| sys::dup_above(slot.as_raw_fd(), 3).ok()),
        None => None,
    };
    drop(first);
    let Some(slot) = slot.map(Channel::from_fd) else { sys::exit_now(1) };
    let request =
        sent(&slot, owner).and_then(|(bytes, mut fds)| Some((Request::decode(&bytes)?, fds.pop()?)));
    let (Some((request, owner)), Ok(mask)) = (request, Mask::current()) else { sys::exit_now(1) };
    let mut program = Command::new(OsString::from_vec(request.program));
    program.args(request.arguments.into_iter().map(OsString::from_vec));
    let settings = Policy::new().fds(Fds::Off).grace(request.grace).settle();
    if sys::has_children() {
        become_fork();
    }
    // Its exit tells the owner that the guard is gone: a fork of the owner may keep the socket from EOF.
    sys::exit_now(command::hold(slot, owner, mask, program, &settings, || {}, |_, _| {}))
}

/// Continues in a fork. This process stays the parent of what the constructors of libraries have started: it is not of
/// the command, and the net kills all of its own descendants.
fn become_fork() {
    match sys::fork() {
        Ok(Fork::Child) => {}
        Ok(Fork::Parent(net)) => {
            // A signal to the command's group must not end it before the net.
            let _ = net::block_all_signals();
            for standard in 0..=2 {
                let _ = sys::null_at(standard);
            }
            let _ = sys::close_fds_above_stdio(&[]);
            net::wait_beside(net)
        }
        Err(_) => sys::exit_now(1),
    }
}

/// Receives a message of the owner, as long as that lives: if it dies before, a fork of it may keep the socket from EOF.
fn sent(socket: &Channel, owner: Pid) -> Option<Message> {
    let pidfd = sys::pidfd_open(owner).ok();
    // As long as it is the parent, its pid has not been reused. 0 if it is in another PID namespace.
    match (nix::unistd::getppid().as_raw(), pidfd) {
        (parent, Some(pidfd)) if parent == owner => {
            sys::any_readable([socket.as_fd(), pidfd.as_fd()], Some(PATIENCE));
        }
        (0, _) => {
            sys::readable(socket, Some(PATIENCE));
        }
        _ => {}
    }
    let is_there = sys::readable(socket, Some(Duration::ZERO));
    if is_there { socket.receive().ok().flatten() } else { None }
}

/// The owner's pid and the name of its socket, if this process is to become a guard.
fn ordered() -> Option<(Pid, String)> {
    let order = std::env::var(VARIABLE).ok()?;
    let (owner, name) = order.split_once(' ')?;
    Some((owner.parse().ok()?, name.to_owned()))
}
