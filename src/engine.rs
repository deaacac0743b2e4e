//! The engine of the command-line tool: guards one command, from its start to its report.
//!
//! Makes no decisions of its own: `guard` runs the command, `diagnosis` judges what was seen, `report` writes
//! it.

#[cfg(feature = "json")]
pub mod inspect;
mod relay;
mod terminal;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::relay::{Pipe, Relay};
use self::terminal::Foreground;
use crate::config::policy::{Settings, from_environment, misspelt};
use crate::config::registry::{ArgumentPosition, ArgumentSyntax};
use crate::diagnosis::{self, Groups, Verdict};
use crate::guard::command::{GuardedCommand, close_given_fds};
use crate::guard::facts::{Answer, EvidenceLimit, Facts, Unrecorded};
use crate::guard::failure::ScratchFailure;
use crate::guard::report_page::{Body, End};
use crate::guard::scratch::{self, RunDirectory};
use crate::proc::process::{self, Stat};
use crate::proc::tree::Tree;
use crate::recorder::call_site::Names;
use crate::recorder::symbols::{self, Threads};
use crate::report::escape::command_line;
use crate::report::failure;
#[cfg(feature = "junit")]
use crate::report::junit::Junit;
use crate::report::text::{self, Layout};
use crate::report::words;
use crate::sys::{self, Mask, Pid};

pub use crate::config::policy::{Fds, Isolation, Policy};
pub use crate::recorder::preload;
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub use crate::recorder::program_log;

/// The signals that are forwarded to the command, unless this process was started with them ignored.
const FORWARDED: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];
/// The signals that would stop this process. They are handled instead: it stops when the command has stopped.
/// SIGTTOU would also stop the report, if the command has given the terminal to another process group.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// What this process has from its caller, for commands that run one after the other.
pub struct Inherited {
    streams: [OwnedFd; 2],
    mask: Mask,
}

impl Inherited {
    /// Keeps it, before the first command is started.
    ///
    /// # Errors
    ///
    /// If an fd cannot be duplicated.
    pub fn keep() -> io::Result<Inherited> {
        Ok(Inherited { streams: [sys::dup_above(0, 3)?, sys::dup_above(1, 3)?], mask: Mask::current()? })
    }

    /// Makes this process as it was, for the next command.
    ///
    /// # Errors
    ///
    /// If an fd cannot be duplicated.
    pub fn restore(&self) -> io::Result<()> {
        for (to, from) in self.streams.iter().enumerate() {
            sys::dup2(from.as_raw_fd(), to as RawFd)?;
        }
        self.mask.give_back();
        Ok(())
    }
}

/// A command that runs guarded.
pub struct Guarded {
    command: GuardedCommand,
    /// What reads its output, if what is left of it may be kept.
    relays: Vec<Relay>,
    /// What they have read from.
    pipes: Vec<OwnedFd>,
    signals: SignalFd,
    settings: Settings,
    name: String,
    pid: Option<Pid>,
    supervisor: Option<Pid>,
    /// Dropped last, when the processes of the command have ended.
    _foreground: Option<Foreground>,
}

/// An event of a guarded command.
pub enum Event {
    /// The command's program is running.
    Started,
    /// The program could not be started.
    NotStarted(io::Error),
    /// A signal stopped the command.
    Stopped(i32),
    /// This process received a signal.
    Signal(Received),
    /// The deadline has passed.
    Deadline,
    /// What [`Guarded::inspect`] has seen.
    Inspected(Box<Outcome>),
    /// The command has ended, and no process of it is left.
    Over(Box<Outcome>),
    /// The guard failed, with the reason.
    Failed(String),
}

/// A signal that this process received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The kernel sent it for a terminal, to each process of the foreground process group.
    pub by_terminal: bool,
    /// A process below the guard sent it, to a process group that includes the command.
    pub by_command: bool,
}

/// A directory of the tool, which a command may mount something over.
pub struct Scratch(RunDirectory);

impl Scratch {
    /// Creates one in this directory, or in that for temporary files. If nothing removes it, since the guard is killed as a
    /// whole, the next one that is created there does.
    ///
    /// # Errors
    ///
    /// If it cannot be created.
    pub fn create(above: Option<&Path>) -> io::Result<Scratch> {
        let chosen = above.map_or_else(RunDirectory::choose, RunDirectory::choose_in);
        chosen.and_then(RunDirectory::make_private).map(Scratch).map_err(in_words)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes the directory with its contents, and nothing that is mounted in it or is in its place. It is no error if it
    /// does not exist.
    ///
    /// # Errors
    ///
    /// If something in it cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        self.0.remove().map_err(in_words)
    }
}

/// The directory of another guard, which this process and its guard use. Nothing removes it meanwhile but that guard.
pub struct InUse(#[expect(dead_code, reason = "held")] scratch::InUse);

impl InUse {
    /// Takes the directory that is created by [`Scratch::create`].
    ///
    /// # Errors
    ///
    /// If it cannot be locked.
    pub fn new(path: &Path) -> io::Result<InUse> {
        scratch::InUse::new(path).map(InUse)
    }
}

fn in_words(failure: ScratchFailure) -> io::Error {
    io::Error::other(failure::scratch(&failure))
}

impl Guarded {
    /// Starts a command guarded. `scratch` is a directory that is removed when the guard ends. The calling
    /// process must have one thread. From here on it has only its stderr left of the inherited fds, and its
    /// signals are events. With `inherited`, another command may follow, and it keeps the fds.
    ///
    /// # Errors
    ///
    /// If the guard cannot be set up.
    pub fn start(
        mut command: Command,
        policy: Policy,
        scratch: Option<&Scratch>,
        inherited: Option<&Inherited>,
    ) -> io::Result<Guarded> {
        let settings = policy.settle();
        let pipes = if settings.keep { relay::between(&mut command)? } else { Vec::new() };
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let name = command_line(&words);
        let foreground = Foreground::read();
        let mask = Mask::current()?;
        let mut blocked = SigSet::empty();
        for signal in FORWARDED.into_iter().filter(|signal| !sys::is_ignored(*signal as i32)) {
            blocked.add(signal);
        }
        let signals = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        blocked.extend(STOPPING);
        blocked.thread_block()?;
        let scratch = scratch.map(|scratch| &scratch.0);
        let streams =
            inherited.iter().flat_map(|inherited| inherited.streams.each_ref().map(AsRawFd::as_raw_fd));
        let private: Vec<RawFd> = pipes.iter().flat_map(Pipe::fds).chain(streams).collect();
        let guarded = GuardedCommand::start(command, settings.clone(), mask, scratch, &private)
            .map_err(|failure| io::Error::other(failure::words(&failure)))?;
        for standard in 0..=1 {
            sys::null_at(standard)?;
        }
        if inherited.is_none() {
            close_given_fds();
        }
        let relays = pipes.into_iter().map(Relay::start).collect::<io::Result<_>>()?;
        Ok(Guarded {
            command: guarded,
            relays,
            pipes: Vec::new(),
            signals,
            settings,
            name,
            pid: None,
            supervisor: None,
            _foreground: foreground,
        })
    }

    /// Waits for the next event, at most until `deadline`.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Event {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Event::Deadline;
            }
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.command.as_fd(), PollFlags::POLLIN),
            ];
            // Without a deadline, until the command ends.
            if poll(&mut fds, sys::poll_timeout(left)).is_err() {
                continue;
            }
            let [signals, command] = fds.map(|fd| fd.any().unwrap_or(false));
            if signals && let Ok(Some(info)) = self.signals.read_signal() {
                let sender = info.ssi_pid as Pid;
                let by_terminal = info.ssi_code == libc::SI_KERNEL;
                // The supervisor wakes this process when the command is continued.
                if info.ssi_signo as i32 == libc::SIGCONT && Some(sender) == self.supervisor {
                    continue;
                }
                return Event::Signal(Received {
                    signal: info.ssi_signo as i32,
                    by_terminal,
                    by_command: !by_terminal && self.is_below(sender),
                });
            }
            if command && let Some(event) = self.receive() {
                return event;
            }
        }
    }

    fn receive(&mut self) -> Option<Event> {
        Some(match self.command.receive() {
            Ok(Some(Answer::Started { pid, supervisor })) => {
                (self.pid, self.supervisor) = (Some(pid), Some(supervisor));
                Event::Started
            }
            Ok(Some(Answer::NotStarted { error })) => Event::NotStarted(io::Error::from_raw_os_error(error)),
            Ok(Some(Answer::Stopped { signal })) => Event::Stopped(signal),
            Ok(Some(Answer::Other { facts })) => {
                // Before the report.
                self.pipes = self.relays.drain(..).filter_map(Relay::end).collect();
                Event::Over(self.outcome(*facts))
            }
            Ok(Some(Answer::Inspected { facts })) => Event::Inspected(self.outcome(*facts)),
            Ok(Some(Answer::NotBegun { failure })) => Event::Failed(failure::words(&failure)),
            // The others are never sent for a command.
            Ok(Some(
                Answer::Looking {}
                | Answer::Clean { .. }
                | Answer::Traced {}
                | Answer::Responds {}
                | Answer::Kept {},
            )) => return None,
            Ok(None) => Event::Failed("the guard was killed, and the command with it".to_owned()),
            Err(error) => Event::Failed(format!("the guard cannot be followed: {error}")),
        })
    }

    fn outcome(&self, mut facts: Facts) -> Box<Outcome> {
        facts.body = Body::OfCommand;
        Box::new(Outcome { facts, settings: self.settings.clone(), name: self.name.clone() })
    }

    /// Has the guard look at what runs, and change nothing.
    pub fn inspect(&self) {
        self.command.inspect();
    }

    /// The processes of the command, now.
    pub fn processes(&self) -> Vec<Running> {
        let Some(supervisor) = self.supervisor else { return Vec::new() };
        let tree = Tree::read();
        let below = tree.below(supervisor, &[]).into_iter().filter(|stat| !stat.is_zombie());
        below
            .map(|stat| Running {
                pid: stat.pid,
                name: stat.comm.clone(),
                switches: process::context_switches(stat.pid),
            })
            .collect()
    }

    /// Sends a signal to the command's own process.
    pub fn signal(&self, signal: i32) {
        self.command.signal(signal);
    }

    /// Tells the guard to inspect the running processes, kill them and report.
    pub fn cut(&self) {
        self.command.cut();
    }

    /// Ends the guard, and every process of the command.
    pub fn shut_down(&mut self) {
        self.command.shut_down();
    }

    /// Keeps the processes of the command, which were stopped, and lets go of the guard; it ends when they have. Returns
    /// whether they are kept.
    pub fn keep(&mut self) -> bool {
        // What is kept may write again, and would be killed by SIGPIPE if nothing could read that.
        let fds: Vec<BorrowedFd<'_>> = self.pipes.iter().map(AsFd::as_fd).collect();
        self.command.keep(&fds)
    }

    /// Kills the processes of the command that were stopped: they are not to be kept.
    pub fn kill_kept(&self) {
        self.command.kill_kept();
    }

    /// Whether the command's own process has a handler for a signal.
    pub fn catches(&self, signal: i32) -> bool {
        self.pid.is_some_and(|pid| crate::proc::process::catches(pid, signal))
    }

    /// Whether a process is a descendant of the supervisor.
    fn is_below(&self, mut pid: Pid) -> bool {
        /// The most ancestors that are read: parents may change meanwhile.
        const MOST: usize = 64;
        let Some(supervisor) = self.supervisor else { return false };
        for _ in 0..MOST {
            match Stat::read(pid) {
                Some(stat) if stat.ppid == supervisor => return true,
                Some(stat) if stat.ppid > 1 => pid = stat.ppid,
                _ => return false,
            }
        }
        false
    }
}

/// Stops this process by a signal, as the command was stopped, and returns when it is continued.
pub fn stop_by(signal: i32) {
    take_effect(signal);
}

/// Ends this process by a signal, as the command was ended.
pub fn end_by(signal: i32) {
    take_effect(signal);
}

/// Sends this process a signal with its default effect.
fn take_effect(signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else { return };
    let mut set = SigSet::empty();
    set.add(signal);
    let _ = raise(signal);
    let _ = set.thread_unblock();
    if signal != Signal::SIGSTOP {
        let _ = set.thread_block();
    }
}

/// The name of a signal, such as `SIGTERM`.
pub fn signal_name(signal: i32) -> String {
    words::signal_word(signal)
}

/// The outcome of a command.
pub struct Outcome {
    facts: Facts,
    settings: Settings,
    name: String,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
    /// It exceeded its timeout.
    TimedOut,
    /// The run was cut from outside.
    Cut,
    /// It could not be guarded.
    Unguarded,
}

impl Outcome {
    /// How the command's own process ended.
    pub fn ending(&self) -> Ending {
        match self.facts.end {
            End::Exited { code } => Ending::Exited(code),
            End::Signalled { signal } => Ending::Signalled(signal),
            End::TimedOut if self.facts.cut => Ending::Cut,
            End::TimedOut => Ending::TimedOut,
            End::Unguarded { .. } => Ending::Unguarded,
        }
    }

    /// Whether anything may have been left that a recorded call explains.
    pub fn needs_calls(&self) -> bool {
        self.settings.fds != Fds::Off || self.facts.processes.iter().any(|process| !process.is_test)
    }

    /// Adds the recorded calls of the command.
    #[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
    pub fn add_calls(&mut self, log: &program_log::ProgramLog) {
        crate::guard::call_sites::look_up_of_command(log, &self.settings, &mut self.facts);
    }

    /// Notes why the calls of the command's program are not recorded.
    pub fn set_unrecorded(&mut self, why: String) {
        let why = Unrecorded::Command { why };
        self.facts.limits.push(EvidenceLimit::NotRecorded { why });
    }

    /// Draws the conclusions. `program` is the path of the command's program.
    pub fn conclude(self, program: Option<&Path>) -> Report {
        let Outcome { facts, settings, name } = self;
        let mut threads = Threads { mapped: &facts.mapped, ..Threads::default() };
        for (process, thread) in facts.tasks() {
            if process.runs_own_program() { &mut threads.own } else { &mut threads.others }.push(thread);
        }
        let names: Names = symbols::names(&facts.call_sites, &threads, || None);
        let is_libtest = !facts.call_sites.is_empty() && program.is_some_and(symbols::is_libtest);
        // If there are no calls, missing line information does not matter.
        let lineless = names.lineless && !facts.call_sites.is_empty();
        let names = Names { is_libtest, lineless, ..names };
        let mut verdict = diagnosis::conclude(&name, &settings, facts, names);
        verdict.syntax = ArgumentSyntax { position: ArgumentPosition::CommandLine, has_arguments: false };
        Report(verdict)
    }
}

/// A process of a command that runs.
pub struct Running {
    /// Its pid.
    pub pid: i32,
    /// The name that the kernel has for it.
    pub name: String,
    /// How often its first thread has given up a processor: the same as before if it has waited since.
    pub switches: u64,
}

/// Whether a policy keeps what is left.
pub fn keeps(policy: &Policy) -> bool {
    policy.keep.unwrap_or(false)
}

/// Adds what the environment sets for guarded commands: `CHILDPROOF_GRACE`, `_FDS`, `_PROCESSES`, `_ALLOW_PROCESS` and
/// `_ALLOW_CREATED_BY`. What the policy sets itself wins, and lists add up. `CHILDPROOF_TIMEOUT` is for one test, and a
/// command may be a whole suite.
///
/// # Errors
///
/// If a variable cannot be read, or is misspelt: what would be valid.
pub fn over_environment(policy: Policy) -> Result<Policy, String> {
    if let Some(why) = misspelt(std::env::vars_os().map(|(name, _)| name)) {
        return Err(why);
    }
    let environment = from_environment(|name| std::env::var_os(name)).map_err(|bad| bad.to_string())?;
    let policy = policy.over(&environment);
    // The fds of a program that ends are closed anyway.
    Ok(if policy.sets("fds") { policy } else { policy.fds(Fds::Off) })
}

/// The report on a command.
pub struct Report(Verdict);

impl Report {
    /// Whether there is anything to report: something was left, or the command did not end normally.
    pub fn failed(&self) -> bool {
        self.0.failed()
    }

    /// How long the command and what it started ran, in seconds.
    pub fn seconds(&self) -> f64 {
        self.0.facts.time.as_secs_f64()
    }

    /// Whether processes were stopped.
    pub fn has_stopped(&self) -> bool {
        !self.0.facts.kept.is_empty()
    }

    /// Whether those are to be kept.
    pub fn keeps(&self) -> bool {
        self.0.keeps()
    }

    /// Why the command did not run in a PID namespace, if it was to.
    pub fn not_isolated(&self) -> Option<String> {
        self.0.facts.limits.iter().find_map(|limit| match limit {
            EvidenceLimit::NotIsolated { why } => Some(failure::not_isolated(why)),
            _ => None,
        })
    }

    /// Formats it for people, fitted to the terminal behind stderr if there is one.
    pub fn text(&self, colour: bool) -> String {
        text::report(&self.0, layout(colour, 2))
    }

    /// Formats it in three lines: the report of the round `first` says the same.
    pub fn folded(&self, first: &str, colour: bool) -> String {
        text::folded(&self.0, first, layout(colour, 2))
    }

    /// Writes what is known of a command that runs on.
    pub fn inspection(&self, colour: bool) -> String {
        text::inspection(&self.0, layout(colour, 2))
    }

    /// Writes a file of JUnit's XML with this as its only case.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    #[cfg(feature = "junit")]
    pub fn write_junit(&self, path: &Path, suite: &str) -> io::Result<()> {
        let mut junit = Junit::create(path, suite)?;
        junit.ran(&self.0, "", None);
        junit.write(&Groups::default())
    }

    /// Formats it as one line of JSON.
    #[cfg(feature = "json")]
    pub fn json(&self) -> String {
        crate::report::json::line(&self.0, None)
    }
}

/// How a report looks, for the terminal that may be behind an fd.
fn layout(colour: bool, fd: i32) -> Layout {
    let columns = std::env::var("COLUMNS").ok();
    Layout::new(colour, columns.as_deref(), sys::terminal_width(&sys::borrow(fd)))
}
