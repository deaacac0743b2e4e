//! Guards a command: a program that is started by exec and does not know its guard.
//!
//! ```text
//! childproof ── net ── supervisor ── command ── whatever it starts
//! ```
//!
//! The command stays in the process group and the session of the tool that started it, so that a shell's job
//! control works as without a guard. Net and supervisor move to sessions of their own once they have forked,
//! so a signal to the session does not kill them. A process group is never killed as a whole if it has a
//! member outside of the tree.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signalfd::SignalFd;

use super::client::check_proc;
use super::events::Sources;
use super::facts::{Answer, EvidenceLimit};
use super::failure::{GuardFailure, Role};
use super::guarded_run::GuardedRun;
use super::isolation::{self, Forked, Forker, Isolated};
use super::keep::{self, Decision};
use super::kill;
use super::messages::SlotRequest;
use super::net::{TITLE, block_all_signals, children_fd};
use super::origin;
use super::report_page::Body;
use super::scratch::RunDirectory;
use super::snapshot::SubjectStart;
use super::subject::Subject;
use crate::config::policy::Settings;
use crate::proc::mounts;
use crate::proc::process::{self, GUARD};
use crate::sys::channel::Channel;
use crate::sys::lifeline::{Lifeline, Watch};
use crate::sys::wire::Wire;
use crate::sys::{self, Fork, Mask, Pid};

/// How long the guard may take to shut down after the end of the command: longer than it waits for the
/// processes that it kills.
pub(super) const WIND_DOWN: Duration = Duration::from_secs(30);

/// A command that runs below a guard. Dropping it ends the guard and every process of the command.
#[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "only the tool forks its guard"))]
pub(crate) struct GuardedCommand {
    slot: Channel,
    net: Pid,
    pidfd: OwnedFd,
    lifeline: Option<Lifeline>,
}

/// How long a tool may stay stopped after the end of the command.
const CONTINUED: Duration = Duration::from_secs(1);

impl GuardedCommand {
    /// Starts a command below a guard, with this signal mask. The calling process must have one thread.
    /// `scratch` is removed with its contents when the guard ends, also if the calling process is killed. `others` are
    /// the fds of guards that were started before: only this process may have them.
    ///
    /// # Errors
    ///
    /// If the guard cannot be set up. A program that cannot be started is reported as [`Answer::NotStarted`].
    pub(crate) fn start(
        command: Command,
        settings: Settings,
        mask: Mask,
        scratch: Option<&RunDirectory>,
        others: &[RawFd],
    ) -> Result<GuardedCommand, GuardFailure> {
        check_proc()?;
        let (slot, theirs) = Channel::pair().map_err(GuardFailure::set_up(Role::Net))?;
        let harness = sys::pidfd_open(nix::unistd::getpid().as_raw());
        let harness = harness.map_err(GuardFailure::set_up(Role::Net))?;
        match sys::fork().map_err(GuardFailure::fork(Role::Net))? {
            Fork::Child => {
                drop(slot);
                close(others);
                // While the command runs.
                let sweep = || scratch.into_iter().for_each(RunDirectory::sweep_beside);
                let code = hold(theirs, harness, mask, command, &settings, sweep, await_tool);
                if let Some(scratch) = scratch {
                    let _ = scratch.remove();
                }
                sys::exit_now(code)
            }
            Fork::Parent(net) => {
                drop(theirs);
                GuardedCommand::connect(slot, net).map_err(GuardFailure::set_up(Role::Net))
            }
        }
    }

    fn connect(slot: Channel, net: Pid) -> io::Result<GuardedCommand> {
        let pidfd = sys::pidfd_open(net)?;
        // Created after the fork, so that no other process ever has the write end.
        let (lifeline, watch) = Lifeline::new()?;
        slot.send(&[], &[watch.as_fd()])?;
        Ok(GuardedCommand { slot, net, pidfd, lifeline: Some(lifeline) })
    }

    /// The fds by which this process holds the guard.
    #[cfg_attr(feature = "__engine", allow(dead_code, reason = "the tool has one guard"))]
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let lifeline = self.lifeline.iter().map(|lifeline| lifeline.write_end().as_raw_fd());
        lifeline.chain([self.slot.as_fd().as_raw_fd(), self.pidfd.as_raw_fd()]).collect()
    }

    /// Receives the next message of the guard; `None` if it is gone. Blocks; see [`AsFd`].
    pub(crate) fn receive(&self) -> io::Result<Option<Answer>> {
        Ok(self.slot.receive()?.and_then(|(bytes, _)| Answer::decode(&bytes)))
    }

    /// Sends a signal to the command's own process.
    pub(crate) fn signal(&self, signal: i32) {
        let _ = self.slot.send(&SlotRequest::Signal { signal }.encode(), &[]);
    }

    /// Tells the guard to inspect the running processes, kill them and report.
    pub(crate) fn cut(&self) {
        let _ = self.slot.send(&SlotRequest::Cut.encode(), &[]);
    }

    /// Has the guard look at what runs and report it, and change nothing.
    #[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "only the tool asks for it"))]
    pub(crate) fn inspect(&self) {
        let _ = self.slot.send(&SlotRequest::Inspect.encode(), &[]);
    }

    /// Keeps the processes that were stopped, and lets go of the guard. The fds are open as long as they are. Returns
    /// whether they are kept: if not, the guard ends with them.
    #[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "only the tool keeps what it guards"))]
    pub(crate) fn keep(&mut self, fds: &[BorrowedFd<'_>]) -> bool {
        let is_kept = keep::request(&self.slot, fds);
        if is_kept {
            self.lifeline = None;
        }
        is_kept
    }

    /// Kills the processes that were stopped.
    #[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "as above"))]
    pub(crate) fn kill_kept(&self) {
        let _ = self.slot.send(&SlotRequest::Kill.encode(), &[]);
    }

    /// Ends the guard and waits until it is gone.
    pub(crate) fn shut_down(&mut self) {
        if self.lifeline.take().is_none() {
            return;
        }
        self.slot.hang_up();
        if !sys::readable_beside(&self.pidfd, self.net, WIND_DOWN) {
            let _ = sys::pidfd_send_signal(&self.pidfd, libc::SIGKILL);
        }
        let _ = sys::wait_for(self.net);
    }
}

impl AsFd for GuardedCommand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.slot.as_fd()
    }
}

impl Drop for GuardedCommand {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Runs the net: forks the supervisor, and kills all remaining processes if the supervisor is killed. Calls `beside` once
/// the supervisor starts the command, and `last` with the lifeline and the pidfd of the tool when nothing of the command is
/// left. Returns the exit code.
pub(super) fn hold(
    slot: Channel,
    harness: OwnedFd,
    mask: Mask,
    command: Command,
    settings: &Settings,
    beside: impl FnOnce(),
    last: impl FnOnce(&Watch, &OwnedFd),
) -> i32 {
    // The command shares session and process group with the tool, and with other processes that a shell
    // started with them.
    kill::spare_groups();
    mounts::remember_proc();
    let prepared = (|| -> io::Result<Watch> {
        nix::sys::prctl::set_child_subreaper(true)?;
        block_all_signals()?;
        // A fork of an owner that is gone may keep the socket from EOF.
        sys::any_readable([slot.as_fd(), harness.as_fd()], None);
        let lifeline = match sys::readable(&slot, Some(Duration::ZERO)) {
            true => slot.receive()?.and_then(|(_, mut fds)| fds.pop()),
            false => None,
        };
        lifeline.map(Watch::from).ok_or(io::ErrorKind::UnexpectedEof.into())
    })();
    let lifeline = match prepared {
        Ok(lifeline) => lifeline,
        Err(error) => return refuse(&slot, GuardFailure::set_up(Role::Net)(error)),
    };
    let children = match children_fd() {
        Ok(children) => children,
        Err(error) => return refuse(&slot, GuardFailure::set_up(Role::Net)(error)),
    };
    let pid = nix::unistd::getpid().as_raw();
    let (gate, held) = match Channel::pair() {
        Ok(pair) => pair,
        Err(error) => return refuse(&slot, GuardFailure::set_up(Role::Net)(error)),
    };
    let (isolated, refused) = match isolation::wanted(settings) {
        Ok(isolated) => (isolated, None),
        Err(why) => (false, Some(why)),
    };
    let supervisor = match Forker::default().fork(isolated) {
        Ok(Forked::Child(mut place)) => {
            place.refused = place.refused.or(refused);
            let mut supervisor = CommandSupervisor { slot, harness, lifeline, children, place };
            // The net alone removes the files, after all of them have been read.
            sys::exit_now(supervisor.guard((gate, held), mask, command, settings))
        }
        Ok(Forked::Parent(supervisor)) => supervisor,
        Err(error) => return refuse(&slot, GuardFailure::fork(Role::Supervisor)(error)),
    };
    drop((slot, gate, command));
    leave_terminal(TITLE, None, false);
    drop(held);
    beside();
    let code = follow(supervisor, &children, &lifeline, &harness).unwrap_or(1);
    if sys::has_children() {
        kill::kill_below(pid, &[]);
    }
    last(&lifeline, &harness);
    code
}

/// Waits for the end of the tool: it still reads the recorder's log, and then closes the lifeline.
///
/// The tool stops when the command was stopped. If the command was killed then, only this process can continue it. It
/// may read of the stop later than this process is here, so it is continued again.
fn await_tool(lifeline: &Watch, tool: &OwnedFd) {
    loop {
        let _ = sys::pidfd_send_signal(tool, libc::SIGCONT);
        if sys::readable(lifeline, Some(CONTINUED)) || sys::readable(tool, Some(Duration::ZERO)) {
            return;
        }
    }
}

/// Waits for the end of the supervisor, and reaps it; continues it if it was stopped. Gives its exit code; `None` if it was
/// killed or does not end.
fn follow(supervisor: Pid, children: &SignalFd, lifeline: &Watch, harness: &OwnedFd) -> Option<i32> {
    let mut until = None;
    loop {
        match sys::wait_or_continue(supervisor) {
            Some(sys::ChildState::Exited(code)) => return Some(code),
            Some(_) => return None,
            None => {}
        }
        let mut left = until.map(|until: Instant| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            if !keep::stays(supervisor) {
                break;
            }
            left = None;
        }
        let mut fds = [
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
            PollFd::new(lifeline.as_fd(), PollFlags::POLLIN),
            PollFd::new(harness.as_fd(), PollFlags::POLLIN),
        ];
        // Once the tool is gone, only the supervisor is waited for.
        let watched = if until.is_some() { 1 } else { fds.len() };
        // As long as the command runs, or what is kept of it is there. An error is a signal, and all are blocked.
        let _ = poll(&mut fds[..watched], sys::poll_timeout(left));
        let is_over = fds[1..watched].iter().any(|fd| fd.any().unwrap_or(false));
        let _ = children.read_signal();
        if is_over {
            until = Some(Instant::now() + WIND_DOWN);
        }
    }
    // An unreaped child, so its pid cannot have been reused.
    let _ = sys::kill(supervisor, libc::SIGKILL);
    let _ = sys::wait_for(supervisor);
    None
}

fn refuse(slot: &Channel, failure: GuardFailure) -> i32 {
    let _ = slot.send(&Answer::NotBegun { failure }.encode(), &[]);
    1
}

/// Leaves the session and the terminal, and closes the command's stdin, stdout and stderr: a reader of its
/// output must not have to wait for this process to exit.
///
/// `stays_in_session` if processes of the command are to be kept: then this one only moves to a process group of its own.
/// A process group is not orphaned as long as the parent of a member is in the same session and in another group; and of an
/// orphaned one the kernel ends and continues all members, if one of them has stopped.
fn leave_terminal(title: &str, name: Option<&std::ffi::CStr>, stays_in_session: bool) {
    for standard in 0..=2 {
        let _ = sys::null_at(standard);
    }
    close_given_fds();
    if stays_in_session {
        let own = nix::unistd::Pid::from_raw(0);
        let _ = nix::unistd::setpgid(own, own);
    } else {
        let _ = nix::unistd::setsid();
    }
    sys::Argv::at(process::argv_of_self().unwrap_or_default()).show(&[title]);
    let own = CString::new(title).unwrap_or_default();
    let _ = nix::sys::prctl::set_name(name.unwrap_or(&own));
}

/// Closes fds of the process that this one was forked from.
pub(super) fn close(fds: &[RawFd]) {
    for fd in fds {
        drop(sys::own(*fd));
    }
}

/// Closes the inherited fds of 3 and above: they belong to the command.
pub(crate) fn close_given_fds() {
    for fd in origin::given_fds() {
        drop(sys::own(fd));
    }
}

/// The supervisor of one command.
struct CommandSupervisor {
    slot: Channel,
    harness: OwnedFd,
    lifeline: Watch,
    /// A signalfd for SIGCHLD, inherited from the net.
    children: SignalFd,
    place: Isolated,
}

impl CommandSupervisor {
    /// Starts the command, guards it to its end and reports it. Returns the exit code.
    fn guard(&mut self, gate: (Channel, Channel), mask: Mask, command: Command, settings: &Settings) -> i32 {
        let begin = Instant::now();
        let pid = nix::unistd::getpid().as_raw();
        let session = nix::unistd::getsid(None).map_or(0, nix::unistd::Pid::as_raw);
        if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
            return refuse(&self.slot, GuardFailure::set_up(Role::Supervisor)(error));
        }
        // Such as the pipes that the command's own output goes to.
        let before = sys::baseline_fds(&[]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let command_line: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let title = format!("childproof: {}", command_line.join(" "));
        let subject = match self.start(pid, gate, mask, command, (&title, settings.keep)) {
            Ok(subject) => subject,
            Err(answer) => {
                let _ = self.slot.send(&answer.encode(), &[]);
                return 0;
            }
        };
        let start =
            SubjectStart { supervisor: pid, test: subject, begin, before, command_line: &command_line };
        let subject = Subject::Command { pid: subject };
        let run = GuardedRun::new(self.sources(), subject, start, settings.timeout, settings.grace);
        let Some((mut facts, preexisting)) = run.keeping(settings.keep).run() else { return 0 };
        facts.body = Body::OfCommand;
        facts.session = session;
        facts.preexisting = preexisting;
        facts.note_isolation();
        facts.limits.extend(self.place.refused.take().map(|why| EvidenceLimit::NotIsolated { why }));
        facts.time = begin.elapsed();
        let (left, is_held) = (i32::from(!facts.survivors.is_empty()), !facts.kept.is_empty());
        let _ = self.slot.send(&Answer::Other { facts }.encode(), &[]);
        if is_held { self.end_held(pid) } else { left }
    }

    /// Keeps or kills what was stopped, as the tool says. Returns the exit code.
    fn end_held(&self, pid: Pid) -> i32 {
        match keep::decision(&self.sources()) {
            Decision::Keep(held) => {
                keep::stay(&self.slot, &self.children);
                drop(held);
                0
            }
            Decision::Kill | Decision::Abandoned => {
                i32::from(!kill::kill_below(pid, &[]).survivors.is_empty())
            }
        }
    }

    fn sources(&self) -> Sources<'_> {
        let CommandSupervisor { slot, harness, lifeline, children, .. } = self;
        Sources { lifeline, harness, slot, children }
    }

    /// Starts the program. Returns its pid, or why it could not be started.
    ///
    /// The child waits until net and supervisor have left the session, as each closes its end of the gate: a
    /// signal that kills the session can then no longer kill the guard with it.
    fn start(
        &self,
        supervisor: Pid,
        (gate, held): (Channel, Channel),
        mask: Mask,
        command: Command,
        (title, keeps): (&str, bool),
    ) -> Result<Pid, Answer> {
        let guard = |error: io::Error| Answer::NotBegun {
            failure: GuardFailure::StartCommand { error: error.into() },
        };
        let (ours, theirs) = Channel::pair().map_err(guard)?;
        let fork = sys::fork()
            .map_err(|error| Answer::NotBegun { failure: GuardFailure::fork(Role::Command)(error) })?;
        match fork {
            Fork::Child => {
                drop(held);
                let _ = gate.receive();
                isolation::separate_mounts();
                // Closed by exec, like all of the guard's fds.
                let error = sys::exec_below(supervisor, command, mask, origin::ignores_sigpipe());
                let error = error.raw_os_error().unwrap_or(libc::ENOEXEC);
                let _ = theirs.send(&error.to_le_bytes(), &[]);
                sys::exit_now(127)
            }
            Fork::Parent(pid) => {
                drop((theirs, gate, command));
                leave_terminal(title, Some(GUARD), keeps);
                drop(held);
                // It is still this program: a stop was meant for the guard.
                while !sys::readable(&ours, Some(CONTINUED)) {
                    let _ = sys::kill(pid, libc::SIGCONT);
                }
                match ours.receive() {
                    // Exec has closed the child's end.
                    Ok(None) | Err(_) => {
                        let (outside, supervisor) = (self.place.of_child(pid), self.place.pid());
                        let _ = self.slot.send(&Answer::Started { pid: outside, supervisor }.encode(), &[]);
                        Ok(pid)
                    }
                    Ok(Some((bytes, _))) => {
                        let _ = sys::wait_for(pid);
                        let error =
                            bytes.first_chunk().map_or(libc::ENOEXEC, |bytes| i32::from_le_bytes(*bytes));
                        Err(Answer::NotStarted { error })
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
    use super::*;
    use crate::config::policy::Policy;
    use crate::guard::facts::{Class, Facts};
    use crate::guard::report_page::End;

    /// Runs a shell script below a guard, from a fork with one thread, and passes the report to `check`.
    fn guarded(script: &str, check: impl FnOnce(Option<Pid>, Box<Facts>) -> bool) {
        let (ours, theirs) = Channel::pair().unwrap();
        // The test harness has threads, so the guard is started from a fork that uses only its own memory.
        match sys::fork().unwrap() {
            Fork::Child => {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                let settings = Policy::new().grace(Duration::from_millis(300)).settle();
                let mut guarded =
                    GuardedCommand::start(command, settings, Mask::current().unwrap(), None, &[]).unwrap();
                let mut pid = None;
                let mut is_right = false;
                let mut check = Some(check);
                while let Ok(Some(answer)) = guarded.receive() {
                    match answer {
                        Answer::Started { pid: started, .. } => pid = Some(started),
                        Answer::Other { facts } => {
                            is_right = check.take().is_some_and(|check| check(pid, facts));
                            break;
                        }
                        _ => {}
                    }
                }
                guarded.shut_down();
                let _ = theirs.send(&[u8::from(is_right)], &[]);
                sys::exit_now(0)
            }
            Fork::Parent(pid) => {
                drop(theirs);
                assert!(sys::readable(&ours, Some(Duration::from_secs(60))), "no report within 60 s");
                let said = ours.receive().unwrap();
                sys::wait_for(pid).unwrap();
                assert_eq!(said.map(|(bytes, _)| bytes), Some(vec![1]), "another report was expected");
            }
        }
    }

    #[test]
    fn a_plain_command_is_guarded() {
        guarded("exit 3", |pid, facts| {
            pid == Some(facts.pid) && facts.end == (End::Exited { code: 3 }) && facts.processes.is_empty()
        });
    }

    #[test]
    fn what_a_command_leaves_is_found_and_killed() {
        guarded("sleep 3137 > /dev/null 2>&1 &", |_, facts| {
            facts.end == (End::Exited { code: 0 })
                && matches!(&facts.processes[..], [left] if left.class == Class::Leaked && left.killed)
        });
    }
}
