//! Guards the processes of any program with the mechanism that childproof guards tests with.
//!
//! [`Command`] starts a program whose whole process tree dies with its owner, whatever ends the owner: a return,
//! a panic, `exit`, SIGKILL. [`Lifeline`] and [`Watch`] are for children that cooperate and end by themselves.
//!
//! | wrong | its report, in a guarded test | right |
//! | --- | --- | --- |
//! | `std::process::Command::spawn` and no `wait`: the child outlives its owner | `pid 7 ... was still running 200 ms after the test ended`, with the line of the `spawn` | [`Command::spawn`]: the tree dies with the [`Guarded`] |
//! | `PR_SET_PDEATHSIG` in the child: it follows the thread that called `spawn`, not the process, and reaches no grandchild | the same, for the grandchild | the same |
//! | a pipe that the child watches, created before the fork: the child has the write end too, and waits for itself | `deadlocks on itself: it reads a pipe whose only writer is its own fd 4` | [`Lifeline::new`] after the fork, or [`after_fork`] in the child |

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{self, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::guard::facts::{Answer, Class, Facts};
use crate::guard::guarded::{Guard, own_program};
use crate::guard::report_page::End;
use crate::report::failure;
pub use crate::sys::lifeline::{Lifeline, Watch, after_fork, close_inherited_fds_above_stdio};

/// Starts a program whose whole process tree dies with its owner. Built as [`std::process::Command`] is.
///
/// The guard is this program, started again and taken over before its constructors and `main`, so this works in
/// a process with any number of threads. It takes some milliseconds, and two processes besides the command's.
///
/// # Example
///
/// ```
/// use std::process::Stdio;
/// use childproof::lifeline::Command;
///
/// let mut guarded = Command::new("sh").args(["-c", "sleep 600 & cat"]).stdin(Stdio::piped()).spawn()?;
/// // `cat` reads to EOF, and `wait` closes its stdin.
/// let ended = guarded.wait()?;
/// assert!(ended.status.success());
/// assert_eq!(ended.left[0].command, ["sleep", "600"]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Command {
    program: OsString,
    arguments: Vec<OsString>,
    /// What std starts: the guard. It has the environment, directory and standard streams of the command.
    guard: process::Command,
    grace: Duration,
}

impl Command {
    /// Prepares the start of a program, which is searched for in `PATH` as execvp(3) does.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref().to_owned();
        Command { program, arguments: Vec::new(), guard: own_program(), grace: Duration::ZERO }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Command {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<A: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = A>) -> &mut Command {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Command {
        self.guard.env(name, value);
        self
    }

    /// Removes a variable of the environment.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Command {
        self.guard.env_remove(name);
        self
    }

    /// Removes every variable of the environment.
    pub fn env_clear(&mut self) -> &mut Command {
        self.guard.env_clear();
        self
    }

    /// Sets the working directory.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Command {
        self.guard.current_dir(directory);
        self
    }

    /// Sets the stdin. Inherited by default.
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Command {
        self.guard.stdin(stdin);
        self
    }

    /// Sets the stdout. Inherited by default.
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Command {
        self.guard.stdout(stdout);
        self
    }

    /// Sets the stderr. Inherited by default.
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Command {
        self.guard.stderr(stderr);
        self
    }

    /// Sets how long descendants may take to end by themselves after the program has exited. None by default.
    pub fn grace(&mut self, grace: Duration) -> &mut Command {
        self.grace = grace;
        self
    }

    /// Starts the program, and returns once it runs. A command can be started once.
    ///
    /// # Errors
    ///
    /// If the program cannot be started, with the error of execvp(3); if the guard cannot be set up (the message
    /// names the step); `InvalidInput` if it was started before.
    pub fn spawn(&mut self) -> io::Result<Guarded> {
        let program = std::mem::take(&mut self.program);
        if program.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let guard = std::mem::replace(&mut self.guard, own_program());
        let mut guard = Guard::start(guard, &program, &self.arguments, self.grace)?;
        let pid = match guard.first()? {
            Some(Answer::Started { pid, .. }) => pid,
            Some(Answer::NotStarted { error }) => return Err(io::Error::from_raw_os_error(error)),
            Some(Answer::NotBegun { failure }) => return Err(io::Error::other(failure::words(&failure))),
            _ => return Err(killed()),
        };
        let net = &mut guard.net;
        let (stdin, stdout, stderr) = (net.stdin.take(), net.stdout.take(), net.stderr.take());
        Ok(Guarded { stdin, stdout, stderr, guard, pid, ended: None })
    }
}

/// A running program and its whole process tree. Dropping it kills all of them, and waits until they are gone.
///
/// If the owner dies without dropping it, the guard does the same.
pub struct Guarded {
    /// The write end of its stdin, if that is piped.
    pub stdin: Option<ChildStdin>,
    /// The read end of its stdout, if that is piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of its stderr, if that is piped.
    pub stderr: Option<ChildStderr>,
    guard: Guard,
    pid: i32,
    ended: Option<Ended>,
}

/// The end of a [`Guarded`].
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit status of the program.
    pub status: ExitStatus,
    /// The processes that it had left running, and that were killed.
    pub left: Vec<Left>,
}

/// A process that a program had left running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The pid that it had.
    pub pid: u32,
    /// Its command line.
    pub command: Vec<String>,
}

impl Guarded {
    /// The pid of the program. It is not reused before [`Guarded::wait`] has returned.
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Waits for the end of the program and of everything that it started: what is left is killed. Closes stdin
    /// first, as [`std::process::Child::wait`] does. Waits without a limit; see [`Guarded::wait_timeout`].
    ///
    /// # Errors
    ///
    /// If the guard was killed, and the program with it.
    pub fn wait(&mut self) -> io::Result<Ended> {
        self.stdin = None;
        loop {
            if let Some(ended) = self.wait_timeout(Duration::MAX)? {
                return Ok(ended);
            }
        }
    }

    /// Waits as [`Guarded::wait`] does, at most for `limit`; `None` if the program still runs then. Leaves stdin
    /// open.
    ///
    /// # Errors
    ///
    /// If the guard was killed, and the program with it.
    pub fn wait_timeout(&mut self, limit: Duration) -> io::Result<Option<Ended>> {
        let deadline = Instant::now().checked_add(limit);
        while self.ended.is_none() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match self.guard.receive(left) {
                Ok(Some(Answer::Other { facts })) => {
                    self.ended = Some(Ended::of(&facts)?);
                    self.guard.shut_down();
                }
                // It was stopped, or is being looked at.
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Ok(None) | Err(_) => return Err(killed()),
            }
        }
        Ok(self.ended.clone())
    }

    /// Kills the program and everything that it started, and waits until they are gone. The program's status is
    /// then SIGKILL, if it had not ended before.
    ///
    /// # Errors
    ///
    /// If the guard was killed, and the program with it.
    pub fn kill(&mut self) -> io::Result<Ended> {
        if let Some(ended) = self.wait_timeout(Duration::ZERO)? {
            return Ok(ended);
        }
        self.guard.shut_down();
        let ended = Ended { status: ExitStatus::from_raw(nix::libc::SIGKILL), left: Vec::new() };
        Ok(self.ended.insert(ended).clone())
    }
}

impl AsFd for Guarded {
    /// The fd that is readable when the program has ended, for an event loop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.guard.slot.as_fd()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Guarded")
            .field("pid", &self.pid)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Ended {
    fn of(facts: &Facts) -> io::Result<Ended> {
        let status = match &facts.end {
            End::Exited { code } => code << 8,
            End::Signalled { signal } => *signal,
            End::TimedOut => nix::libc::SIGKILL,
            End::Unguarded { failure } => return Err(io::Error::other(failure::words(failure))),
        };
        let left =
            facts.processes.iter().filter(|process| !process.is_test && process.class == Class::Leaked);
        let left = left
            .map(|process| Left { pid: process.pid.unsigned_abs(), command: process.command_line.clone() });
        Ok(Ended { status: ExitStatus::from_raw(status), left: left.collect() })
    }
}

fn killed() -> io::Error {
    io::Error::other("the guard was killed, and the program with it")
}
