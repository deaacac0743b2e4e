//! Guards one test at a time: starts it, observes it, kills what is left.
//!
//! A supervisor has one thread and a session of its own, is a child subreaper, runs no user code and has all
//! signals blocked. It does not use `PR_SET_PDEATHSIG`: that would kill it before it could kill what it
//! guards. Instead it watches the lifeline and a pidfd of the harness.
//!
//! It takes the next test only after the kernel has returned `ECHILD`. From its second test on, it preforks
//! the next test process while the harness still reports the last test.

use std::ffi::CString;
use std::io;
use std::iter;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signalfd::SignalFd;

use crate::config::policy::Settings;
use crate::config::registry;
use crate::guard::call_sites;
use crate::guard::events::{Sources, Wakeup};
use crate::guard::facts::{Answer, EvidenceLimit, Facts};
use crate::guard::failure::{GuardFailure, Role};
use crate::guard::guarded_run::GuardedRun;
use crate::guard::isolation::{self, Isolated};
use crate::guard::keep::{self, Decision};
use crate::guard::kill;
use crate::guard::messages::{BodyRequest, Hello, Job, SlotRequest};
use crate::guard::panics::note_panics;
use crate::guard::report_page::{End, Phase, ReportPage};
use crate::guard::scratch::{Reset, RunDirectory, Scratch};
use crate::guard::snapshot::SubjectStart;
use crate::guard::subject::Subject;
use crate::guard::suite;
use crate::guard::test_process::TestProcess;
use crate::proc::process::{self, GUARD};
use crate::recorder::hooks;
use crate::sys::channel::{Channel, Message};
use crate::sys::lifeline::Watch;
use crate::sys::wire::Wire;
use crate::sys::{self, BaselineFds, Children, Fork, Mask, Pid, Shared};

/// The state that a supervisor shares with all processes of the run.
pub(crate) struct RunContext {
    pub(crate) lifeline: Watch,
    pub(crate) harness: OwnedFd,
    pub(crate) mask: Mask,
    pub(crate) title: sys::Argv,
    pub(crate) comm: CString,
    /// The test binary's arguments.
    pub(crate) command_line: Vec<String>,
    /// The fork server's pid.
    pub(crate) server: Pid,
}

/// The files that a test's output goes to.
pub(crate) struct Output {
    stdout: OwnedFd,
    /// `None` if it goes to the same file.
    stderr: Option<OwnedFd>,
}

impl Output {
    /// Takes the fds of a job: one, or stdout and stderr.
    fn new(mut fds: impl Iterator<Item = OwnedFd>) -> Option<Output> {
        Some(Output { stdout: fds.next()?, stderr: fds.next() })
    }

    /// The same fds, to be passed on.
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        iter::once(&self.stdout).chain(&self.stderr).map(AsFd::as_fd).collect()
    }

    /// The fds for stdout and stderr. The same number twice if both go to one file.
    fn numbers(&self) -> [RawFd; 2] {
        let stdout = self.stdout.as_raw_fd();
        [stdout, self.stderr.as_ref().map_or(stdout, AsRawFd::as_raw_fd)]
    }
}

/// How long an idle supervisor shows the name of its last test.
const IDLE: Duration = Duration::from_millis(50);

/// One supervisor.
pub(crate) struct Supervisor {
    context: RunContext,
    pub(super) slot: Channel,
    job_socket: JobSocket,
    /// A signalfd for SIGCHLD, inherited from the fork server. It reports the children of each process that reads it.
    children: SignalFd,
    pub(super) page: Shared<ReportPage>,
    pub(super) log: hooks::Recorder,
    scratch: Scratch,
    /// The fd baseline of a test process. Its stdout and stderr are those of the last test, which usually are
    /// the next one's too.
    before: BaselineFds,
    /// `CHILDPROOF_TRACE=fds`.
    traced: bool,
    may_prefork: bool,
    pub(super) pid: Pid,
}

/// The socket pair on which a test process receives its job and its output. The supervisor holds both ends,
/// so that one pair suffices for all of its test processes.
struct JobSocket {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl JobSocket {
    /// Sends a job.
    fn send(&self, order: &BodyRequest, output: &Output) -> io::Result<()> {
        sys::send_words(&self.ours, &order.words(), &output.fds())
    }

    /// Removes a job that was not received.
    fn clear(&self) {
        while sys::readable(&self.theirs, Some(Duration::ZERO))
            && sys::receive(&self.theirs, [&mut [], &mut []]).is_ok()
        {}
    }
}

/// With a lower limit on the user's processes, none is preforked: a test may need the room.
const MANY: u64 = 1024;

/// Whether processes may be preforked.
pub(crate) fn may_prefork() -> bool {
    sys::process_limit() >= MANY
}

/// How a test process reaches its body.
pub(crate) enum ChildEntry<'a> {
    /// At once, on top of the supervisor's stack: returning first would copy the pages of that stack, for
    /// every test. Does not return.
    Run(&'a dyn Fn(&TestProcess)),
    /// Through `main`, once every call of the supervisor has returned.
    Return,
}

/// Why a supervisor's function returned.
pub(crate) enum ServeOutcome {
    /// This process is now a test process.
    Test(Box<TestProcess>),
    /// The supervisor is done; the value is its exit code.
    Done(i32),
}

impl Supervisor {
    /// Turns a freshly forked process into a supervisor.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refuses: without subreaper, signalfd or shared memory nothing can be guarded.
    pub(crate) fn new(
        context: RunContext,
        slot: Channel,
        children: SignalFd,
        run: RunDirectory,
        name: &str,
        place: Isolated,
    ) -> Result<Supervisor, GuardFailure> {
        let pid = nix::unistd::getpid().as_raw();
        let (outside, not_isolated) = (place.pid(), place.refused.clone());
        let run = if place.inside.is_some() { run.in_own_namespace() } else { run };
        drop(place);
        let fd = slot.as_fd().try_clone_to_owned().map_err(GuardFailure::set_up(Role::Supervisor))?;
        let scratch = Scratch::make(run, name);
        let scratch = scratch.map_err(|failure| GuardFailure::MakeDirectory { failure });
        let made = scratch.and_then(|scratch| {
            Supervisor::prepare(context, slot, children, scratch, pid)
                .map_err(GuardFailure::set_up(Role::Supervisor))
        });
        let error = made.as_ref().err().cloned();
        let sent = Channel::from_fd(fd).send(&Hello { pid: outside, error, not_isolated }.encode(), &[]);
        sent.map_err(GuardFailure::set_up(Role::Supervisor))?;
        let mut supervisor = made?;
        // Only now: the baseline must not hold the fd that the greeting went through.
        supervisor.before = sys::baseline_fds(&supervisor.private_fds());
        Ok(supervisor)
    }

    fn prepare(
        context: RunContext,
        slot: Channel,
        children: SignalFd,
        scratch: Scratch,
        pid: Pid,
    ) -> io::Result<Supervisor> {
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        sys::run_when_woken();
        // All signals are blocked, as in the fork server that it is a fork of.
        let [ours, theirs] = Channel::pair_of_fds()?;
        let supervisor = Supervisor {
            context,
            slot,
            job_socket: JobSocket { ours, theirs },
            children,
            page: Shared::zeroed()?,
            log: hooks::Log::install(pid)?,
            scratch,
            before: &[],
            traced: std::env::var_os("CHILDPROOF_TRACE").is_some_and(|value| value == "fds"),
            may_prefork: may_prefork(),
            pid,
        };
        sys::prepare_mark();
        let _ = nix::sys::prctl::set_name(GUARD);
        supervisor.show("idle");
        // The same for all tests of this supervisor.
        sys::set_env("TMPDIR", supervisor.scratch.path.as_os_str());
        Ok(supervisor)
    }

    /// Runs tests until there are no more.
    pub(crate) fn serve(mut self, then: &ChildEntry<'_>) -> ServeOutcome {
        if matches!(then, ChildEntry::Run(_)) {
            note_panics();
        }
        let mut preforked = None;
        let mut preforks = false;
        loop {
            let Some((bytes, mut fds)) = self.next_request() else { return self.leave(0, preforked) };
            let job = match SlotRequest::decode(&bytes) {
                Some(SlotRequest::Run { job }) => job,
                // No test is running, and there is no command.
                Some(
                    SlotRequest::Cut
                    | SlotRequest::TimeOut
                    | SlotRequest::Inspect
                    | SlotRequest::Respond
                    | SlotRequest::Signal { .. }
                    | SlotRequest::Keep
                    | SlotRequest::Kill,
                ) => continue,
                None => return self.leave(1, preforked),
            };
            // Held as long as any process of the test is left.
            let turn = job.settings.serial.as_ref().and_then(|_| fds.pop());
            let Some(output) = Output::new(fds.into_iter()) else { return self.leave(1, preforked) };
            drop(bytes);
            self.show(&job.name);
            let test = match preforked.take().filter(|test| self.is_waiting(*test)) {
                Some(test) => Ok(Forked::Test(test)),
                None => {
                    let [stdout, stderr] = output.numbers();
                    self.fork_test(then, [stdout, stderr, turn.as_ref().map_or(-1, AsRawFd::as_raw_fd)])
                }
            };
            let guarded = match test {
                Ok(Forked::Test(test)) => self.guard(test, &job, output),
                Ok(Forked::InTest(test)) => {
                    // They are closed already.
                    mem::forget((output, turn));
                    return self.become_test(test);
                }
                Err(error) => {
                    let failure = GuardFailure::fork(Role::TestProcess)(error);
                    if self.slot.send(&Answer::NotBegun { failure }.encode(), &[]).is_err() {
                        return self.leave(0, None);
                    }
                    continue;
                }
            };
            let Some(facts) = guarded else { return self.leave(0, None) };
            let (empty, is_held) = (facts.survivors.is_empty(), !facts.kept.is_empty());
            if self.slot.send(&Answer::of(facts).encode(), &[]).is_err() || !empty {
                if is_held {
                    kill::kill_below(self.pid, &[]);
                }
                // A process that could not be killed must not count as the next test's.
                return self.leave(i32::from(!empty), None);
            }
            // Before anything is forked, which would inherit the lock. What was stopped does nothing until it is killed.
            drop(turn);
            if is_held && let Some(code) = self.end_held() {
                return self.leave(code, None);
            }
            // Nothing is left of the test. A supervisor that has had two tests will probably get a third: it
            // preforks its process while the harness reports this one. Under nextest a process has only one
            // test.
            if mem::replace(&mut preforks, self.may_prefork) {
                match self.fork_test(then, [-1; 3]) {
                    Ok(Forked::Test(test)) => preforked = Some(test),
                    Ok(Forked::InTest(test)) => return self.become_test(test),
                    // Reported later, if the fork also fails when the process is needed.
                    Err(_) => {}
                }
            }
        }
    }

    /// Keeps or kills what was stopped, as the harness says. Returns the exit code, unless there may be another test.
    fn end_held(&mut self) -> Option<i32> {
        match keep::decision(&self.sources()) {
            Decision::Keep(held) => {
                keep::stay(&self.slot, &self.children);
                drop(held);
                Some(0)
            }
            Decision::Abandoned => Some(i32::from(!kill::kill_below(self.pid, &[]).survivors.is_empty())),
            Decision::Kill => {
                let is_empty = kill::kill_below(self.pid, &[]).survivors.is_empty();
                let _ = self.empty_scratch();
                (!is_empty).then_some(1)
            }
        }
    }

    /// Removes what a test has left in its directory for temporary files.
    fn empty_scratch(&mut self) -> Reset {
        let reset = self.scratch.reset();
        // The next test must not get what this one left in its directory.
        if reset.failure.is_some()
            && let Ok(another) = self.scratch.another()
        {
            self.scratch = another;
            sys::set_env("TMPDIR", self.scratch.path.as_os_str());
        }
        reset
    }

    /// Waits for a request; `None` if there are no more.
    fn next_request(&self) -> Option<Message> {
        let mut deadline = Some(Instant::now() + IDLE);
        loop {
            match self.sources().wait(deadline) {
                Wakeup::Request => return self.slot.receive().ok()?,
                Wakeup::Deadline => {
                    self.show("idle");
                    deadline = None;
                }
                // The preforked process was killed. That is noticed when it is needed.
                Wakeup::Children => {}
                Wakeup::Abandoned => return None,
            }
        }
    }

    /// The sources of events: the harness and children.
    fn sources(&self) -> Sources<'_> {
        let RunContext { lifeline, harness, .. } = &self.context;
        Sources { lifeline, harness, slot: &self.slot, children: &self.children }
    }

    /// Whether a preforked process still exists. Reaps it if not.
    fn is_waiting(&self, test: Pid) -> bool {
        matches!(sys::waitid(Some(test), libc::WEXITED), Ok(Children::Quiet))
    }

    /// Forks a test process, which receives its job from the job socket. `open` are further fds of the
    /// supervisor that are open now; -1 stands for none.
    ///
    /// The test process waits for its job as long as the supervisor lives, and then restores the state from
    /// before the harness was started.
    fn fork_test(&self, then: &ChildEntry<'_>, open: [RawFd; 3]) -> io::Result<Forked> {
        self.page.reset();
        self.log.reset();
        let process_entry = self.process_entry(open);
        let mut test =
            TestProcess { order: [0; 4], page: self.page.get(), before: self.before, traced: self.traced };
        // Asked here: each function that a test process calls is a page fault.
        let isolated = isolation::is_inside();
        match (process_entry.fork(&mut test.order), then) {
            (Ok(Fork::Child), ChildEntry::Run(run)) => {
                if isolated {
                    sys::separate_mounts();
                }
                // Not through the reference, which would add a function call.
                (**run)(&test);
                sys::exit_now(1);
            }
            (Ok(Fork::Child), ChildEntry::Return) => {
                if isolated {
                    sys::separate_mounts();
                }
                Ok(Forked::InTest(Box::new(test)))
            }
            (Ok(Fork::Parent(pid)), _) => Ok(Forked::Test(pid)),
            (Err(error), _) => Err(error),
        }
    }

    /// Turns this process into a test process, without writing to the supervisor's memory.
    fn become_test(self, test: Box<TestProcess>) -> ServeOutcome {
        mem::forget(self);
        ServeOutcome::Test(test)
    }

    /// Guards one test, from its job to the facts; `None` if the harness is gone.
    fn guard(&mut self, test: Pid, job: &Job, output: Output) -> Option<Box<Facts>> {
        let begin = Instant::now();
        let order = BodyRequest {
            index: job.index,
            name_hash: registry::name_hash(&[&job.name]),
            fds: job.settings.fds,
            deny_threads: job.settings.deny_threads,
            grace: job.settings.grace,
        };
        if let Err(error) = self.job_socket.send(&order, &output) {
            let mut facts = Facts::unguarded(GuardFailure::ReachTestProcess { error: error.into() });
            facts.survivors = kill::kill_below(self.pid, &[]).survivors;
            self.job_socket.clear();
            return Some(Box::new(facts));
        }
        sys::update_baseline(self.before, output.numbers());
        drop(output);
        let start = SubjectStart {
            supervisor: self.pid,
            test,
            begin,
            before: self.before,
            command_line: &self.context.command_line,
        };
        let subject = match job.index {
            suite::JOB => Subject::Suite { pid: test, page: &self.page },
            _ => Subject::Body { pid: test, page: &self.page },
        };
        let Settings { timeout, grace, .. } = job.settings;
        let complete = |facts: &mut Facts| call_sites::look_up(&self.log, &job.settings, facts);
        let run = GuardedRun::new(self.sources(), subject, start, timeout, grace);
        let guarded = run.keeping(job.settings.keep).completed_by(&complete).run();
        let (mut facts, preexisting) = guarded?;
        if facts.kept.is_empty() {
            let reset = self.empty_scratch();
            facts.mounts.extend(reset.mounts);
            let failure = reset.failure.map(|failure| EvidenceLimit::ScratchNotEmptied { failure });
            facts.limits.extend(failure);
        }
        let page = &self.page;
        if page.phase() == Phase::Starting {
            // It was killed on its way, and the next one must not receive its job.
            self.job_socket.clear();
        }
        facts.body = page.body();
        facts.body_time = page.body_time();
        facts.threads = page.threads();
        facts.running = page.running();
        facts.returned_children = page.returned_children();
        facts.returned_child = page.returned_child();
        facts.unchecked = page.phase() == Phase::BodyEnded && matches!(facts.end, End::Exited { .. });
        (facts.strays, facts.stray_count) = page.strays();
        if !facts.processes.is_empty() || !facts.strays.is_empty() {
            facts.preexisting = preexisting;
        }
        call_sites::look_up(&self.log, &job.settings, &mut facts);
        facts.note_isolation();
        facts.time = begin.elapsed();
        Some(facts)
    }

    /// Ends the supervisor, and kills the preforked process.
    fn leave(&self, code: i32, preforked: Option<Pid>) -> ServeOutcome {
        if let Some(test) = preforked {
            // An unreaped child, so its pid cannot have been reused.
            let _ = sys::kill(test, libc::SIGKILL);
            if let Ok(pidfd) = sys::pidfd_open(test) {
                sys::readable(&pidfd, Some(kill::LIMIT));
            }
            let _ = sys::waitid(Some(test), libc::WEXITED);
        }
        let _ = self.scratch.remove();
        // The fork server would remove the run's directory. If it was killed, the last supervisor does so:
        // only then the directory is empty.
        // In a namespace there is no number of the parent.
        if !isolation::is_inside() && nix::unistd::getppid().as_raw() != self.context.server {
            self.scratch.remove_run_if_empty();
        }
        ServeOutcome::Done(code)
    }

    /// What a fork must do to become a test process without traces of the harness.
    fn process_entry(&self, open: [RawFd; 3]) -> sys::ProcessEntry<'_> {
        let [slot, ours, theirs, children, lifeline, harness, directory] = self.private_fds();
        let RunContext { mask, title, comm, .. } = &self.context;
        let close = [slot, ours, children, lifeline, harness, directory, open[0], open[1], open[2]];
        sys::ProcessEntry::new(self.pid, close, theirs, mask, title, comm, self.before)
    }

    /// Sets the process title, which `ps` and `pkill -f` show, to what this process guards.
    fn show(&self, what: &str) {
        self.context.title.show(&[process::GUARDS, what]);
    }

    /// The supervisor's fds, which do not belong to a test.
    fn private_fds(&self) -> [RawFd; 7] {
        [
            self.slot.as_raw_fd(),
            self.job_socket.ours.as_raw_fd(),
            self.job_socket.theirs.as_raw_fd(),
            self.children.as_raw_fd(),
            self.context.lifeline.as_fd().as_raw_fd(),
            self.context.harness.as_raw_fd(),
            self.scratch.lock(),
        ]
    }
}

/// Which side of a fork this is.
enum Forked {
    /// The supervisor; the pid is the test process's.
    Test(Pid),
    /// The test process, which has its job.
    InTest(Box<TestProcess>),
}
