//! The harness's side of the fork server: starts it, requests supervisors, gives them tests.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::libc;

use super::command;
use super::facts::{Answer, EvidenceLimit, Facts};
use super::guarded_run::EXITING;
use super::isolation::{self, NotIsolated};
use super::keep;
use super::kill;
use super::messages::{Hello, Job, Request, SlotRequest};
use super::net;
use super::origin;
use super::supervisor::{self, ChildEntry, ServeOutcome};
use super::takeover::{Start, Takeover};
use super::test_process::TestProcess;
use crate::guard::failure::{GuardFailure, Role, Tracer};
use crate::proc::process;
use crate::sys::channel::Channel;
use crate::sys::keeper::{KILLED, Program, keeper_error};
use crate::sys::lifeline::Lifeline;
use crate::sys::lock::lock;
use crate::sys::wire::Wire;
use crate::sys::{self, ChildState, Children, Fork, Mask, Pid};

/// The harness's handle on its fork server.
pub(crate) struct ForkServer {
    control: Mutex<Channel>,
    /// The idle supervisors, and those in PID namespaces.
    idle: [Mutex<Idle>; 2],
    /// The supervisors that run a test.
    busy: Mutex<Vec<Arc<Channel>>>,
    /// The supervisors that have stopped what a test left, and wait to be told what becomes of it.
    held: Mutex<Vec<Slot>>,
    /// Whether the run was cut.
    is_cut: AtomicBool,
    /// Why a test that was to run in a PID namespace does not. Reported once.
    not_isolated: OnceLock<NotIsolated>,
    /// Why there is no fork server, if it has reported that.
    failure: OnceLock<GuardFailure>,
    /// The net, or the keeper of the process that forked it.
    child: Pid,
    pidfd: OwnedFd,
    _lifeline: Lifeline,
}

/// The idle supervisors. They are used in turn, and there is one more than tests that run at once: so each
/// has the duration of a test to prefork the next process.
struct Idle {
    slots: VecDeque<Slot>,
    /// How many tests have been started.
    tests: usize,
    /// No further supervisor can or should be created: the limit on processes may be reached.
    is_last: bool,
}

impl Default for Idle {
    fn default() -> Idle {
        Idle { slots: VecDeque::new(), tests: 0, is_last: !supervisor::may_prefork() }
    }
}

/// How many tests are run before a spare supervisor is created. A process under nextest has only one.
const FEW: usize = 4;

impl Idle {
    /// Takes the supervisor that has been idle longest; `None` if one must be created.
    fn take(&mut self) -> Option<Slot> {
        self.tests += 1;
        let wants_another = self.slots.len() == 1 && self.tests > FEW && !self.is_last;
        if wants_another { None } else { self.slots.pop_front() }
    }
}

/// An idle supervisor.
struct Slot {
    channel: Arc<Channel>,
    pid: Pid,
    /// Whether it was to be in a PID namespace.
    isolated: bool,
}

impl Drop for Slot {
    /// Tells the supervisor to exit.
    fn drop(&mut self) {
        self.channel.hang_up();
    }
}

/// How long a fork server may take to reply to a request for a supervisor, and a supervisor to a job.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long net and fork server may take to shut down: longer than both wait for the processes that they
/// kill.
const WIND_DOWN: Duration = Duration::from_secs(30);

/// How long a supervisor may be silent before it is asked to respond, and how long it has for that before its state is
/// read. A clean test takes far less.
const SILENCE: Duration = Duration::from_secs(1);

/// How often a supervisor is requested if the fork server is killed meanwhile. The net starts another one.
const ATTEMPTS: usize = 3;

/// After this time a test is reported as slow, as libtest does.
pub(crate) const SLOW: Duration = Duration::from_secs(60);

/// How long a supervisor has been silent.
struct Silence {
    /// When it is asked, or was to have responded, from the beginning of the test.
    until: Duration,
    is_asked: bool,
}

/// An event during a test.
pub(crate) enum Progress {
    /// It has run for more than 60 s.
    Slow,
    /// Something was left, and the supervisor inspects it.
    Looking,
    /// The state of the running processes, as requested.
    Inspected(Box<Facts>),
    /// The timeout has passed while a debugger is attached. Reported once.
    Traced,
    /// It was to run in a PID namespace, and there is none. Reported once a run.
    NotIsolated(NotIsolated),
}

impl ForkServer {
    /// Forks a net and its fork server; `run` is called in each test process. The calling process must have
    /// one thread.
    ///
    /// `others` are the fds of guards that were started before: only this process may have them.
    pub(crate) fn fork(run: &dyn Fn(&TestProcess), others: &[RawFd]) -> Result<ForkServer, GuardFailure> {
        check_proc()?;
        let runner = origin::runner();
        let (ours, theirs) = Channel::pair().map_err(GuardFailure::set_up(Role::Net))?;
        let mask = Mask::current().map_err(GuardFailure::set_up(Role::Net))?;
        let harness = nix::unistd::getpid().as_raw();
        // Buffered output would be printed by every fork that calls `exit`.
        let _ = io::Write::flush(&mut io::stdout());
        match sys::fork().map_err(GuardFailure::fork(Role::Net))? {
            Fork::Child => {
                drop((ours, runner));
                command::close(others);
                match net::hold(theirs, harness, mask, &ChildEntry::Run(run)) {
                    ServeOutcome::Done(code) => sys::exit_now(code),
                    ServeOutcome::Test(_) => sys::exit_now(1),
                }
            }
            Fork::Parent(net) => {
                drop(theirs);
                ForkServer::connect(ours, net, runner).map_err(GuardFailure::set_up(Role::Net))
            }
        }
    }

    /// Starts a net and its fork server by exec, from a process that may have threads. `is_alone`: no other
    /// code in this process may wait for all its children.
    pub(crate) fn exec(takeover: Takeover, is_alone: bool) -> Result<ForkServer, GuardFailure> {
        check_proc()?;
        let runner = origin::runner();
        let (ours, theirs, program) = prepare_exec(takeover).map_err(GuardFailure::set_up(Role::Net))?;
        let null = sys::null().map_err(GuardFailure::set_up(Role::Net))?;
        let stdin = theirs.as_raw_fd();
        let child = match is_alone {
            true => program.start_as_child(stdin, null.as_raw_fd()),
            false => program.start_with_keeper(stdin, null.as_raw_fd()),
        };
        let child = child.map_err(GuardFailure::fork(Role::Restarted))?;
        drop(theirs);
        ForkServer::connect(ours, child, runner).map_err(GuardFailure::set_up(Role::Net))
    }

    fn connect(control: Channel, child: Pid, runner: Option<OwnedFd>) -> io::Result<ForkServer> {
        // Created after the fork, so that no other process ever has the write end.
        let (lifeline, watch) = Lifeline::new()?;
        let harness = sys::pidfd_open(nix::unistd::getpid().as_raw())?;
        let mut fds = vec![watch.as_fd(), harness.as_fd()];
        fds.extend(runner.as_ref().map(AsFd::as_fd));
        // If the net is gone, it has reported why.
        let _ = control.send(&Request::Watch.encode(), &fds);
        Ok(ForkServer {
            control: Mutex::new(control),
            idle: Default::default(),
            busy: Mutex::new(Vec::new()),
            held: Mutex::new(Vec::new()),
            is_cut: AtomicBool::new(false),
            not_isolated: OnceLock::new(),
            failure: OnceLock::new(),
            // The child is not reaped yet, so its pid cannot have been reused.
            pidfd: sys::pidfd_open(child)?,
            child,
            _lifeline: lifeline,
        })
    }

    /// Runs one test in a supervisor. `fds` are its output (one file, or stdout and stderr), and the lock of
    /// its serial key if it has one.
    ///
    /// Calls `progress` for each event meanwhile. Waits for the test's timeout, its grace and the time limit
    /// of a kill, and no longer, unless a debugger is attached to the test.
    pub(crate) fn run(&self, job: &Job, fds: &[BorrowedFd<'_>], progress: &dyn Fn(Progress)) -> Facts {
        let message = SlotRequest::Run { job: job.clone() }.encode();
        let (isolated, mut refused) = match isolation::wanted(&job.settings) {
            Ok(isolated) => (isolated, None),
            Err(why) => (false, Some(why)),
        };
        let mut slot = match self.give(isolated, &message, fds, &mut refused) {
            Ok(slot) => slot,
            Err(failure) => return Facts::unguarded(failure),
        };
        let refused = refused.filter(|why| self.not_isolated.set(why.clone()).is_ok());
        if let Some(why) = &refused {
            progress(Progress::NotIsolated(why.clone()));
        }
        self.begin(&slot);
        let result = self.follow(&mut slot, job, &message, fds, progress);
        lock(&self.busy).retain(|channel| !Arc::ptr_eq(channel, &slot.channel));
        match result {
            Ok(mut facts) => {
                facts.limits.extend(refused.map(|why| EvidenceLimit::NotIsolated { why }));
                if !facts.kept.is_empty() {
                    lock(&self.held).push(slot);
                } else if facts.survivors.is_empty() {
                    lock(&self.idle[usize::from(slot.isolated)]).slots.push_back(slot);
                }
                facts
            }
            Err(failure) => Facts::unguarded(failure),
        }
    }

    /// Notes that a supervisor runs a test. If the run was cut before, has it inspected and killed at once.
    fn begin(&self, slot: &Slot) {
        lock(&self.busy).push(Arc::clone(&slot.channel));
        if self.is_cut.load(Ordering::SeqCst) {
            let _ = slot.channel.send(&SlotRequest::Cut.encode(), &[]);
        }
    }

    /// Cuts the run: each supervisor inspects its test, kills it, and reports what it saw. The caller must
    /// not start further tests.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        // First of all: Ctrl-C ends cargo as well, and the fork server kills a harness that survives its
        // cargo.
        let _ = lock(&self.control).send(&Request::Cut.encode(), &[]);
        for channel in lock(&self.busy).iter() {
            let _ = channel.send(&SlotRequest::Cut.encode(), &[]);
        }
    }

    /// Has a supervisor kill what it has stopped: it is not to be kept.
    pub(crate) fn kill_held(&self, supervisor: Pid) {
        let mut held = lock(&self.held);
        let Some(at) = held.iter().position(|slot| slot.pid == supervisor) else { return };
        let slot = held.remove(at);
        drop(held);
        if slot.channel.send(&SlotRequest::Kill.encode(), &[]).is_ok() {
            lock(&self.idle[usize::from(slot.isolated)]).slots.push_back(slot);
        }
    }

    /// Tells the supervisor of a suite that a test of it has exceeded its timeout.
    pub(crate) fn time_out(&self) {
        for channel in lock(&self.busy).iter() {
            let _ = channel.send(&SlotRequest::TimeOut.encode(), &[]);
        }
    }

    /// Has each running test inspected and reported. No test ends because of it. Returns their number.
    pub(crate) fn inspect(&self) -> usize {
        let busy = lock(&self.busy);
        busy.iter().filter(|channel| channel.send(&SlotRequest::Inspect.encode(), &[]).is_ok()).count()
    }

    /// Waits for a supervisor's report on a test; the error says why there is none. `slot` becomes another
    /// supervisor if this one could not start the test.
    fn follow(
        &self,
        slot: &mut Slot,
        job: &Job,
        message: &[u8],
        fds: &[BorrowedFd<'_>],
        progress: &dyn Fn(Progress),
    ) -> Result<Facts, GuardFailure> {
        let begin = Instant::now();
        let settings = &job.settings;
        let beyond = settings.grace + EXITING + kill::LONGEST + PATIENCE;
        let mut limit = settings.timeout.map(|limit| limit + beyond);
        let (mut slow, mut is_traced) = (Some(SLOW), false);
        let mut silence = Silence { until: SILENCE, is_asked: false };
        loop {
            let until = slow.into_iter().chain(limit).fold(silence.until, Duration::min);
            if !sys::readable(&slot.channel, Some(until.saturating_sub(begin.elapsed()))) {
                let now = begin.elapsed();
                if slow.take_if(|slow| *slow <= now).is_some() {
                    progress(Progress::Slow);
                }
                let tracer =
                    if silence.until <= now { self.look_after(slot, &mut silence, now) } else { None };
                if tracer.is_some() || limit.is_some_and(|limit| limit <= now) {
                    let kill = Request::Kill { pid: slot.pid }.encode();
                    let _ = lock(&self.control).send(&kill, &[]);
                    return Err(GuardFailure::AskSupervisor { pid: slot.pid, tracer });
                }
                continue;
            }
            silence = Silence { until: begin.elapsed() + SILENCE, is_asked: false };
            let answer = match slot.channel.receive() {
                Ok(Some((bytes, _))) => Answer::decode(&bytes),
                Ok(None) => return Err(GuardFailure::KeepSupervisor { pid: slot.pid }),
                Err(error) => {
                    return Err(GuardFailure::HearSupervisor { pid: slot.pid, error: error.into() });
                }
            };
            match answer {
                Some(Answer::Looking {}) => progress(Progress::Looking),
                Some(Answer::Inspected { facts }) => progress(Progress::Inspected(facts)),
                Some(Answer::Responds {}) => {}
                Some(Answer::Traced {}) => {
                    limit = limit.map(|limit| limit.max(begin.elapsed() + beyond));
                    if !std::mem::replace(&mut is_traced, true) {
                        progress(Progress::Traced);
                    }
                }
                Some(Answer::NotBegun { failure }) => {
                    lock(&self.busy).retain(|channel| !Arc::ptr_eq(channel, &slot.channel));
                    match self.give_to_another(slot, message, fds) {
                        Some(another) => *slot = another,
                        // The supervisor waits for the next test.
                        None => return Ok(Facts::unguarded(failure)),
                    }
                    self.begin(slot);
                }
                Some(Answer::Clean { pid, session, body_time, time }) => {
                    return Ok(Facts::clean(pid, session, body_time, time));
                }
                Some(Answer::Other { facts }) => return Ok(*facts),
                _ => return Err(GuardFailure::ReadAnswer { pid: slot.pid }),
            }
        }
    }

    /// Asks a silent supervisor to respond, once. Returns the process that keeps it from that.
    ///
    /// A process of the guard that was stopped is continued by its parent, and the topmost one here. One that is traced
    /// is stopped without notice to its parent.
    fn look_after(&self, slot: &Slot, silence: &mut Silence, now: Duration) -> Option<Tracer> {
        sys::continue_if_stopped(self.child);
        silence.until = now + SILENCE;
        if !std::mem::replace(&mut silence.is_asked, true) {
            let _ = slot.channel.send(&SlotRequest::Respond.encode(), &[]);
            return None;
        }
        let (pid, name) = process::stopped_by_tracer(slot.pid)?;
        Some(Tracer { pid, name })
    }

    /// Gives a job to a supervisor.
    fn give(
        &self,
        isolated: bool,
        job: &[u8],
        fds: &[BorrowedFd<'_>],
        refused: &mut Option<NotIsolated>,
    ) -> Result<Slot, GuardFailure> {
        let idle = &self.idle[usize::from(isolated)];
        loop {
            let Some(slot) = lock(idle).take() else { break };
            // A supervisor that was killed while idle has lost no test.
            if slot.channel.send(job, fds).is_ok() {
                return Ok(slot);
            }
        }
        let slot = self.new_slot(isolated, refused).or_else(|error| {
            let mut idle = lock(idle);
            idle.is_last = true;
            idle.slots.pop_front().ok_or(error)
        })?;
        let sent = slot.channel.send(job, fds);
        sent.map_err(|error| GuardFailure::HearSupervisor { pid: slot.pid, error: error.into() })?;
        Ok(slot)
    }

    /// Sends a job that `slot` could not start, maybe because of the limit on processes, to an idle
    /// supervisor: that one may have preforked a process, and the exit of `slot` makes room for one. `None`
    /// if none is idle.
    fn give_to_another(&self, slot: &Slot, job: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Slot> {
        let mut idle = lock(&self.idle[usize::from(slot.isolated)]);
        idle.is_last = true;
        if idle.slots.is_empty() {
            return None;
        }
        drop(idle);
        // A process counts until it is reaped (`release_task` in kernel/exit.c), which only the fork server
        // can observe.
        if let Ok((reaped, theirs)) = Channel::pair() {
            let request = Request::Reaped { pid: slot.pid }.encode();
            let _ = lock(&self.control).send(&request, &[theirs.as_fd()]);
            slot.channel.hang_up();
            drop(theirs);
            sys::readable(&reaped, Some(PATIENCE));
        }
        self.give(slot.isolated, job, fds, &mut None).ok()
    }

    fn new_slot(&self, isolated: bool, refused: &mut Option<NotIsolated>) -> Result<Slot, GuardFailure> {
        for _ in 0..ATTEMPTS {
            let (channel, theirs) = Channel::pair().map_err(GuardFailure::set_up(Role::Supervisor))?;
            if lock(&self.control).send(&Request::Slot { isolated }.encode(), &[theirs.as_fd()]).is_err() {
                break;
            }
            drop(theirs);
            if !sys::readable_beside(&channel, self.child, PATIENCE) {
                return Err(GuardFailure::AskForkServer {});
            }
            let hello = channel
                .receive()
                .map_err(GuardFailure::set_up(Role::Supervisor))?
                .and_then(|(bytes, _)| Hello::decode(&bytes));
            match hello {
                Some(Hello { error: Some(failure), .. }) => return Err(failure),
                Some(Hello { pid, error: None, not_isolated }) => {
                    if not_isolated.is_some() {
                        *refused = not_isolated;
                    }
                    return Ok(Slot { channel: Arc::new(channel), pid, isolated });
                }
                // The fork server was killed after it had received the request. The next one gets another.
                None => {}
            }
        }
        Err(self.why_gone().cloned().unwrap_or(GuardFailure::FindForkServer {}))
    }

    /// Why there is no fork server.
    fn why_gone(&self) -> Option<&GuardFailure> {
        let control = lock(&self.control);
        // The first read may return the error of a socket that was closed with an unread message in it.
        for _ in 0..2 {
            if self.failure.get().is_some() || !sys::readable(&*control, Some(Duration::ZERO)) {
                break;
            }
            let hello = control.receive().ok().flatten().and_then(|(bytes, _)| Hello::decode(&bytes));
            if let Some(error) = hello.and_then(|hello| hello.error) {
                let _ = self.failure.set(error);
            }
        }
        if let Ok(Children::Ready(child)) = sys::waitid(Some(self.child), libc::WEXITED | libc::WNOWAIT)
            && let ChildState::Exited(code) = child.state
            && let Some(error) = keeper_error(code)
        {
            let _ = self.failure.set(GuardFailure::fork(Role::ForkServer)(error));
        }
        self.failure.get()
    }

    /// Ends the supervisors, the fork server and the net, and waits until they are gone. Those that have stopped what a test
    /// left keep it, and stay.
    pub(crate) fn shut_down(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        let kept = held.iter().filter(|slot| keep::request(&slot.channel, &[])).count();
        self.idle.iter().for_each(|idle| lock(idle).slots.clear());
        let control = lock(&self.control);
        let _ = control.send(&Request::End.encode(), &[]);
        // This also ends a fork server that was started after the first one was killed.
        control.end_sends();
        if kept > 0 {
            return;
        }
        let until = Instant::now() + WIND_DOWN;
        sys::readable_beside(&self.pidfd, self.child, WIND_DOWN);
        let has_been_killed = match sys::waitid(Some(self.child), libc::WEXITED) {
            Ok(Children::Ready(child)) => !matches!(child.state, ChildState::Exited(code) if code != KILLED),
            // If SIGCHLD is ignored, the kernel has reaped it.
            _ => false,
        };
        // Other processes of the guard may still be there. The last one closes the other end.
        while has_been_killed
            && sys::readable(&*control, Some(until.saturating_duration_since(Instant::now())))
            && matches!(control.receive(), Ok(Some(_)))
        {}
    }
}

/// The two ends of the socket to an exec'ed net, and the program to start for it.
fn prepare_exec(takeover: Takeover) -> io::Result<(Channel, OwnedFd, Program)> {
    let (ours, theirs) = Channel::pair()?;
    // Not one of 0, 1 and 2, even if those are closed.
    let theirs = sys::dup_above(theirs.as_raw_fd(), 3)?;
    let socket = sys::fd_identity(theirs.as_raw_fd()).map_or(0, |socket| socket.ino);
    let program = Start::new(takeover, Mask::current()?.bits(), socket).program()?;
    Ok((ours, theirs, program))
}

/// Refuses a `/proc` of another PID namespace: it shows other processes, so a leak would be neither seen nor
/// killed.
pub(super) fn check_proc() -> Result<(), GuardFailure> {
    let shown =
        fs::read_link("/proc/self").map_err(|error| GuardFailure::FindProc { error: error.into() })?;
    let own = nix::unistd::getpid().as_raw();
    if shown.as_os_str() == OsStr::new(&own.to_string()) {
        return Ok(());
    }
    Err(GuardFailure::ReadProc { shown: shown.display().to_string(), own })
}
