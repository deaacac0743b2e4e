//! Guards one test at a time: runs it, watches it, tears it down.
//!
//! A supervisor has one thread, a session of its own, is a child subreaper, runs no user code and
//! hears no signal that can be blocked. It has no `PR_SET_PDEATHSIG`: that would kill it before it could
//! kill what it guards. Instead it watches the lifeline and a pidfd of the harness.
//!
//! It takes the next test only after the kernel has said `ECHILD`. From its second test on it forks
//! the process of the next one ahead, while the harness still tells of the last.

use std::ffi::CString;
use std::fs::{self, File, FileTimes};
use std::io;
use std::iter;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::channel::{Channel, Message};
use crate::facts::{Answer, Class, Facts, Makes, Process, Site};
use crate::forkserver::Hello;
use crate::kill;
use crate::lifeline::Watch;
use crate::outcome::{Body, End, Page, Phase};
use crate::policy::{Settings, ThreadedFork};
use crate::proc::fds::pipe_of;
use crate::proc::process::{GUARD, are_hidden};
use crate::proc::sockets::Socket;
use crate::registry;
use crate::sites;
use crate::snapshot::{Depth, Scene, Snapshot};
use crate::sys::{self, ChildState, Children, FdIdentity, Fork, Mask, Pid, Shared, Waited};
use crate::testproc::{Order, TestProcess};
use crate::wire::{Wire, wire_struct};

wire_struct! {
    /// Which test to run, under which policy.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Job {
        /// The place in the harness's list, which is the same in every process of a run.
        pub(crate) index: u64,
        pub(crate) name: String,
        pub(crate) settings: crate::policy::Settings,
    }
}

/// What a supervisor shares with every other process of the run.
pub(crate) struct World {
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

/// Where a test's output goes.
pub(crate) struct Output {
    stdout: OwnedFd,
    /// `None`: to the same file.
    stderr: Option<OwnedFd>,
}

impl Output {
    /// Takes the fds that came with a job: one, or stdout and stderr.
    fn new(mut fds: impl Iterator<Item = OwnedFd>) -> Option<Output> {
        Some(Output { stdout: fds.next()?, stderr: fds.next() })
    }

    /// The same fds, to be sent on.
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        iter::once(&self.stdout).chain(&self.stderr).map(AsFd::as_fd).collect()
    }

    /// Where stdout and stderr go. The same number twice: to the same file.
    fn numbers(&self) -> [RawFd; 2] {
        let stdout = self.stdout.as_raw_fd();
        [stdout, self.stderr.as_ref().map_or(stdout, AsRawFd::as_raw_fd)]
    }
}

/// Takes these for the stdout and stderr that a test finds. Writes nothing if they are known already:
/// in a fork, what is written to is copied.
fn expect(before: &mut [(RawFd, FdIdentity)], output: [RawFd; 2]) {
    let [stdout, stderr] = output;
    let out = sys::fd_identity(stdout);
    let err = if stderr == stdout { out } else { sys::fd_identity(stderr) };
    for (fd, known) in before {
        let given = match fd {
            1 => out,
            2 => err,
            _ => continue,
        };
        if let Some(given) = given
            && *known != given
        {
            *known = given;
        }
    }
}

/// How long a supervisor without work shows the name of its last test.
const IDLE: Duration = Duration::from_millis(50);

/// How long after a first look at blocked threads a second one is taken.
const AGAIN: Duration = Duration::from_millis(50);

/// How long a test process may look at what its body has left once its time is over, beyond the grace: longer than
/// it waits for threads to end.
const CHECKING: Duration = Duration::from_secs(1);

/// How a test's watch ended.
enum Ending {
    Ended(ChildState),
    TimedOut,
    /// The harness is gone or gave the test up: kill everything, tell nobody.
    Abandoned,
}

/// One supervisor.
pub(crate) struct Supervisor {
    world: World,
    slot: Channel,
    desk: Desk,
    children: SignalFd,
    page: Shared<Page>,
    log: sites::Recorder,
    scratch: Scratch,
    /// What a test process finds open, ascending: its input and output, and the fds from before the harness
    /// began. The output is that of the last test, which mostly is that of the next.
    before: Vec<(RawFd, FdIdentity)>,
    /// `CHILDPROOF_TRACE=fds`.
    traced: bool,
    may_take_ahead: bool,
    pid: Pid,
}

/// The most programs that are told of because a process may have come from one of them.
const PROGRAMS: usize = 16;

/// Where a test process is given its job, with its output. Both ends are the supervisor's, so that one
/// pair does for all of its test processes.
struct Desk {
    ours: Channel,
    theirs: Channel,
}

impl Desk {
    /// Takes away a job that nobody took.
    fn clear(&self) {
        while sys::readable(&self.theirs, Some(Duration::ZERO)) && self.theirs.receive().is_ok() {}
    }
}

/// Below this limit on a user's processes none is taken ahead: a test may need its place.
const MANY: u64 = 1024;

/// Whether processes may be taken that only a test to come needs.
pub(crate) fn may_take_ahead() -> bool {
    sys::process_limit() >= MANY
}

/// Says that a fork failed, and what to do if that is for want of processes.
pub(crate) fn cannot_fork(what: &str, error: &io::Error) -> String {
    // fork(2) has the four limits that EAGAIN is for.
    let advice = match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            "; there may be no more processes: raise the limit (`ulimit -u`, or `pids.max` of the cgroup) or run \
             fewer tests at once (`--test-threads`)"
        }
        _ => "",
    };
    format!("cannot fork {what}: {error}{advice}")
}

/// How a test process comes to its body.
pub(crate) enum Then<'a> {
    /// At once, on top of the supervisor's stack: to go back down would be to copy it, for every
    /// test. Does not come back.
    Run(&'a dyn Fn(&TestProcess)),
    /// By way of `main`, once every call of the supervisor has returned.
    Return,
}

/// What a supervisor's life came to.
pub(crate) enum Served {
    /// This process is a test process now.
    Test(Box<TestProcess>),
    /// The supervisor's work is over; the value is its exit code.
    Done(i32),
}

impl Supervisor {
    /// Turns a freshly forked process into a supervisor.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refuses: a process without subreaper, signalfd or shared memory
    /// guards nothing.
    pub(crate) fn new(world: World, slot: Channel, scratch: PathBuf) -> io::Result<Supervisor> {
        let pid = nix::unistd::getpid().as_raw();
        let fd = slot.as_fd().try_clone_to_owned()?;
        let directory = scratch.parent().unwrap_or(&scratch).to_string_lossy().into_owned();
        let made = Supervisor::prepare(world, slot, scratch, pid);
        let error = made.as_ref().err().map(|error| format!("cannot set up a supervisor: {error}"));
        Channel::from_fd(fd).send(&Hello { pid, directory, error }.encode(), &[])?;
        made
    }

    fn prepare(world: World, slot: Channel, scratch: PathBuf, pid: Pid) -> io::Result<Supervisor> {
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        // Every signal is blocked in it, as in the fork server that it is a fork of.
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        let children = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let (ours, theirs) = Channel::pair()?;
        let mut supervisor = Supervisor {
            world,
            slot,
            desk: Desk { ours, theirs },
            children,
            page: Shared::zeroed()?,
            log: sites::Log::install(pid)?,
            scratch: Scratch::make(scratch)?,
            before: Vec::new(),
            traced: std::env::var_os("CHILDPROOF_TRACE").is_some_and(|value| value == "fds"),
            may_take_ahead: may_take_ahead(),
            pid,
        };
        let _ = nix::sys::prctl::set_name(GUARD);
        supervisor.show("idle");
        // Every test of this supervisor has the same one.
        sys::set_env("TMPDIR", supervisor.scratch.path.as_os_str());
        let private = supervisor.private_fds();
        let mut before = Vec::new();
        sys::each_open_fd(|fd| {
            if !private.contains(&fd) {
                before.extend(sys::fd_identity(fd).map(|identity| (fd, identity)));
            }
        });
        supervisor.before = before;
        Ok(supervisor)
    }

    /// Runs tests until there are no more.
    pub(crate) fn serve(mut self, then: &Then<'_>) -> Served {
        let mut ahead = None;
        let mut forks_ahead = false;
        loop {
            let Some((bytes, mut fds)) = self.next_job() else { return self.leave(0, ahead) };
            let Some(job) = Job::decode(&bytes) else { return self.leave(1, ahead) };
            // Kept as long as anything of the test is left.
            let turn = job.settings.serial.as_ref().and_then(|_| fds.pop());
            let Some(output) = Output::new(fds.into_iter()) else { return self.leave(1, ahead) };
            drop(bytes);
            self.show(&job.name);
            let test = match ahead.take().filter(|test| self.is_waiting(*test)) {
                Some(test) => Ok(Forked::Test(test)),
                None => {
                    let [stdout, stderr] = output.numbers();
                    self.fork_test(then, [stdout, stderr, turn.as_ref().map_or(-1, AsRawFd::as_raw_fd)])
                }
            };
            let guarded = match test {
                Ok(Forked::Test(test)) => self.guard(test, &job, output),
                Ok(Forked::InTest(test)) => {
                    // Closed already.
                    mem::forget((output, turn));
                    return self.become_test(test);
                }
                Err(error) => {
                    let why = cannot_fork("the test process", &error);
                    if self.slot.send(&Answer::NotBegun { why }.encode(), &[]).is_err() {
                        return self.leave(0, None);
                    }
                    continue;
                }
            };
            let Some(facts) = guarded else { return self.leave(0, None) };
            let empty = facts.survivors.is_empty();
            if self.slot.send(&Answer::of(facts).encode(), &[]).is_err() || !empty {
                // What could not be killed must not be taken for the next test's.
                return self.leave(i32::from(!empty), None);
            }
            // Before anything is forked that has not been told of it.
            drop(turn);
            // Nothing is left of the test. Who has been given two will be given a third: its process is
            // forked while the harness tells of this one. nextest gives one test to a process.
            if mem::replace(&mut forks_ahead, self.may_take_ahead) {
                match self.fork_test(then, [-1; 3]) {
                    Ok(Forked::Test(test)) => ahead = Some(test),
                    Ok(Forked::InTest(test)) => return self.become_test(test),
                    // It is said when it is needed, if it cannot be forked then either.
                    Err(_) => {}
                }
            }
        }
    }

    /// Waits for a job; `None` if there are no more.
    fn next_job(&self) -> Option<Message> {
        let mut deadline = Some(Instant::now() + IDLE);
        loop {
            match self.wait(deadline, true) {
                Event::Request => return self.slot.receive().ok()?,
                Event::Deadline => {
                    self.show("idle");
                    deadline = None;
                }
                // Somebody has killed the process that waits. That is seen when it is needed.
                Event::Children => {}
                Event::Abandoned => return None,
            }
        }
    }

    /// Whether a process that was forked ahead is still there. Reaps it if it is not.
    fn is_waiting(&self, test: Pid) -> bool {
        matches!(sys::waitid(Some(test), libc::WEXITED), Ok(Children::Quiet))
    }

    /// Forks a test process, which takes its job from the desk. `open` is what else of ours is open just now:
    /// -1 is nothing.
    fn fork_test(&mut self, then: &Then<'_>, open: [RawFd; 3]) -> io::Result<Forked> {
        self.page.reset();
        self.log.reset();
        match sys::fork()? {
            Fork::Parent(pid) => Ok(Forked::Test(pid)),
            Fork::Child => {
                let test = self.enter(open);
                if let Then::Run(run) = then {
                    run(&test);
                    sys::exit_now(1);
                }
                Ok(Forked::InTest(Box::new(test)))
            }
        }
    }

    /// Turns a fork of the supervisor into a test process: leaves the supervisor, waits for a job, and
    /// goes on as if the harness had never been. It waits as long as the supervisor lives.
    fn enter(&mut self, open: [RawFd; 3]) -> TestProcess {
        let mut before = mem::take(&mut self.before);
        let entrance = self.entrance(open);
        entrance.leave();
        let Some((order, fds)) = self.desk.theirs.receive_small::<{ Order::LENGTH }>() else {
            sys::exit_now(1)
        };
        let (Some(order), Some(output)) = (Order::decode(&order), Output::new(fds.into_iter().flatten()))
        else {
            sys::exit_now(1)
        };
        // Closed on the way, and not by their owner.
        let output = mem::ManuallyDrop::new(output);
        expect(&mut before, output.numbers());
        entrance.go(output.numbers());
        TestProcess::new(order, self.page.another(), before, self.traced)
    }

    /// Leaves the supervisor that this process was, without writing to its memory.
    fn become_test(self, test: Box<TestProcess>) -> Served {
        mem::forget(self);
        Served::Test(test)
    }

    /// Guards one test, from its job to the verdict; `None` if there is nobody to tell it to.
    fn guard(&mut self, test: Pid, job: &Job, output: Output) -> Option<Box<Facts>> {
        let begin = Instant::now();
        let order = Order {
            index: job.index,
            mark: registry::mark_of(&[&job.name]),
            fds: job.settings.fds,
            deny_threads: job.settings.deny_threads,
            grace: job.settings.grace,
        };
        if let Err(error) = self.desk.ours.send(&order.encode(), &output.fds()) {
            let mut facts = Facts::lost(format!("cannot reach the test process: {error}"));
            facts.survivors = kill::kill_below(self.pid, &[]).survivors;
            self.desk.clear();
            return Some(Box::new(facts));
        }
        expect(&mut self.before, output.numbers());
        drop(output);
        let deadline = job.settings.timeout.map(|limit| begin + limit);
        let scene = Scene {
            supervisor: self.pid,
            test,
            begin,
            foreign: self.before.iter().map(|(_, identity)| identity.ino).collect(),
            command_line: &self.world.command_line,
        };
        let mut at_end = None;
        let mut facts = Facts::lost(String::new());
        facts.pid = test;
        facts.session = self.pid;
        facts.end = match self.watch(&scene, deadline, job.settings.grace, &mut at_end) {
            Ending::Ended(ChildState::Exited(code)) => End::Exited { code },
            Ending::Ended(ChildState::Signalled(signal)) => End::Signalled { signal },
            Ending::Ended(ChildState::Stopped | ChildState::Trapped(_)) | Ending::TimedOut => End::TimedOut,
            Ending::Abandoned => {
                kill::kill_below(self.pid, &[]);
                return None;
            }
        };
        facts.ran = begin.elapsed();
        if self.tear_down(&scene, job.settings.grace, at_end, &mut facts) == Event::Abandoned {
            return None;
        }
        if let Err(error) = self.scratch.reset() {
            facts.notes.push(format!(
                "cannot empty the scratch directory `{}`: {error}",
                self.scratch.path.display()
            ));
            // The next test has done nothing to be given what this one has left.
            if let Ok(another) = self.scratch.another() {
                self.scratch = another;
                sys::set_env("TMPDIR", self.scratch.path.as_os_str());
            }
        }
        let page = &self.page;
        if page.phase() == Phase::Starting {
            // It was killed on its way, and the next one must not take its job.
            self.desk.clear();
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
            facts.foreign = scene.foreign;
        }
        self.look_up_sites(&job.settings, &mut facts);
        facts.time = begin.elapsed();
        Some(Box::new(facts))
    }

    /// Follows the test process to its end, its deadline or the harness's death. Reaps it if it
    /// ended.
    fn watch(
        &self,
        scene: &Scene<'_>,
        deadline: Option<Instant>,
        grace: Duration,
        at_end: &mut Option<Snapshot>,
    ) -> Ending {
        let test = scene.test;
        let mut deadline = deadline;
        let mut is_over = false;
        loop {
            match self.wait(deadline, false) {
                Event::Children | Event::Request => {}
                // The body came back in time: what it has left is still being looked at.
                Event::Deadline if !is_over && self.page.phase() == Phase::BodyEnded => {
                    is_over = true;
                    deadline = Some(Instant::now() + grace + CHECKING);
                }
                Event::Deadline => return Ending::TimedOut,
                Event::Abandoned => return Ending::Abandoned,
            }
            match sys::waitid(Some(test), libc::WEXITED | libc::WSTOPPED) {
                Ok(Children::Ready(Waited {
                    state: state @ (ChildState::Exited(_) | ChildState::Signalled(_)),
                    ..
                })) => return Ending::Ended(state),
                // It wants to be traced, and would wait for ever for us to let it go on.
                Ok(Children::Ready(Waited { state: ChildState::Trapped(signal), .. }))
                    if signal != libc::SIGSTOP || self.page.phase() != Phase::Stopped =>
                {
                    sys::ptrace_detach(test, signal);
                }
                // Stopped, and it says that it did so itself: it left something behind, and waits
                // to be looked at while parents are still parents. Any other stop is its own.
                Ok(Children::Ready(_)) => {
                    if self.page.phase() == Phase::Stopped && at_end.is_none() {
                        *at_end = Some(Snapshot::take(scene, Depth::Tree));
                        // If it is traced by us, no signal lets it go on.
                        sys::ptrace_detach(test, 0);
                        let _ = sys::kill(test, libc::SIGCONT);
                    }
                }
                // `None` cannot be: nobody but us reaps our child.
                Ok(Children::None) | Err(_) => return Ending::Ended(ChildState::Exited(0)),
                Ok(Children::Quiet) => {}
            }
            // Orphans that ended while the test still runs: they are done, and nobody's business.
            self.reap_others(Some(test));
        }
    }

    /// Leaves nothing of the test, and notes what there was.
    fn tear_down(
        &self,
        scene: &Scene<'_>,
        grace: Duration,
        at_end: Option<Snapshot>,
        facts: &mut Facts,
    ) -> Event {
        let timed_out = facts.end == End::TimedOut;
        if !timed_out && at_end.is_none() && self.nothing_left() {
            return Event::Children;
        }
        let at_end = match at_end {
            Some(at_end) => at_end,
            // All is looked at in a moment.
            None if timed_out => Snapshot::default(),
            None => Snapshot::take(scene, Depth::Tree),
        };
        let until = Instant::now() + grace;
        // After a timeout nobody gets a grace.
        let mut ending = if timed_out { Event::Deadline } else { Event::Children };
        let clean = loop {
            match ending {
                Event::Children | Event::Request => {}
                // The last one may have ended just now.
                Event::Deadline => {
                    self.reap_others(timed_out.then_some(scene.test));
                    break self.nothing_left();
                }
                Event::Abandoned => {
                    kill::kill_below(self.pid, &[]);
                    return Event::Abandoned;
                }
            }
            self.reap_others(None);
            if self.nothing_left() {
                break true;
            }
            ending = self.wait(Some(until), false);
        };
        let mut left = Vec::new();
        let strays = self.stray_pipes();
        if !clean || !strays.is_empty() {
            // The harness gets ready meanwhile. If it is gone, that will show.
            let _ = self.slot.send(&Answer::Looking {}.encode(), &[]);
        }
        if clean {
            facts.outside = at_end.outside(&strays);
        } else {
            // Evidence first, then the kill.
            let mut now = Snapshot::take(scene, Depth::Waits);
            now.remember(&at_end);
            if self.examine(&mut now, strays, facts) == Event::Abandoned {
                kill::kill_below(self.pid, &[]);
                return Event::Abandoned;
            }
            let (tree, processes) = now.into_parts();
            let killed = kill::kill_seen_below(self.pid, tree);
            left = processes;
            left.retain(|process| process.class == Class::Leaked || timed_out);
            for process in left.iter_mut().filter(|process| process.class == Class::Leaked) {
                process.killed = !killed.survivors.iter().any(|survivor| survivor.pid == process.pid);
            }
            // Descendants that end and leave another behind are nowhere when one looks, and yet
            // the kernel says that there is one.
            facts.unseen = left.is_empty() && !timed_out;
            facts.survivors = killed.survivors;
        }
        let gone = at_end
            .processes()
            .iter()
            .filter(|process| !process.is_test && !left.iter().any(|leaked| leaked.pid == process.pid));
        facts.processes = gone
            .map(|process| Process {
                class: if process.class == Class::Leaked { Class::Straggler } else { process.class },
                ..process.clone()
            })
            .collect();
        facts.processes.extend(left);
        let foreign = self.page.foreign();
        let is_foreign = |pid: &Pid| foreign.contains(pid);
        facts
            .processes
            .retain(|process| !is_foreign(&process.pid) && !process.lineage.iter().any(is_foreign));
        Event::Children
    }

    /// Gathers what a look at the tree alone does not give: who else holds its pipes, whether a
    /// blocked thread runs after all, and where it is.
    fn examine(&self, now: &mut Snapshot, strays: Vec<String>, facts: &mut Facts) -> Event {
        let again = Instant::now() + AGAIN;
        facts.pipes = now.pipes();
        facts.sockets = now.sockets();
        let mut targets = strays;
        targets.extend(facts.pipes.iter().map(|pipe| format!("pipe:[{}]", pipe.ino)));
        targets.extend(facts.sockets.iter().flat_map(Socket::ends).map(|ino| format!("socket:[{ino}]")));
        facts.outside = now.outside(&targets);
        if now.waits_forever() {
            loop {
                match self.wait(Some(again), false) {
                    Event::Deadline => break,
                    Event::Abandoned => return Event::Abandoned,
                    Event::Children | Event::Request => {}
                }
            }
            facts.outside.came = now.look_again();
            facts.outside.moved = now.has_fd_moved();
            facts.outside.hides = are_hidden();
        }
        #[cfg(feature = "sites")]
        now.read_stacks();
        Event::Children
    }

    /// The pipes that the body left open.
    fn stray_pipes(&self) -> Vec<String> {
        let (strays, _) = self.page.strays();
        let pipes = strays.into_iter().filter(|stray| pipe_of(&stray.target).is_some());
        pipes.map(|stray| stray.target).collect()
    }

    /// Finds out who made what was left, and who forked among threads if that is asked for.
    fn look_up_sites(&self, settings: &Settings, facts: &mut Facts) {
        let mut keys: Vec<(Makes, u64)> = Vec::new();
        let told = |process: &&Process| match process.class {
            Class::Leaked => true,
            Class::Unwaited => settings.deny_unwaited,
            // It may be who has the other end.
            Class::Straggler => !facts.strays.is_empty(),
        };
        for process in facts.processes.iter().filter(told) {
            keys.push((Makes::Process, process.pid as u64));
            keys.extend(process.lineage.iter().map(|pid| (Makes::Process, *pid as u64)));
            let fds = process.known_fds().iter();
            keys.extend(fds.filter_map(|fd| Some((Makes::Fds, fd.pipe_or_socket()?))));
        }
        keys.extend(facts.strays.iter().map(|stray| (Makes::Fds, stray.ino)));
        keys.extend(facts.returned_child.map(|pid| (Makes::Process, pid as u64)));
        let is_left = !keys.is_empty();
        if facts.body == Body::Unfinished && matches!(facts.end, End::Exited { .. } | End::Signalled { .. }) {
            keys.push((Makes::End, facts.pid as u64));
        }
        facts.sites = self.log.sites(&keys, settings.threaded_fork != ThreadedFork::Allow);
        let has_site = |pid: Pid| {
            let made = |site: &Site| site.makes == Makes::Process && site.keys[0] == pid as u64;
            facts.sites.iter().any(made)
        };
        let is_orphan = |process: &Process| process.adopted && !has_site(process.pid);
        if facts.processes.iter().filter(told).any(is_orphan) {
            facts.sites.extend(self.log.programs(&keys, PROGRAMS));
        }
        if is_left {
            facts.notes.extend(sites::UNKNOWN.map(str::to_owned));
            facts.unrecorded = !self.log.is_complete();
        }
    }

    /// The kernel's word for "clean": no child, so no descendant, is left.
    fn nothing_left(&self) -> bool {
        !sys::has_children()
    }

    /// Reaps every dead child but `test`.
    fn reap_others(&self, test: Option<Pid>) {
        while let Ok(Children::Ready(child)) = sys::waitid(None, libc::WEXITED | libc::WNOWAIT) {
            if Some(child.pid) == test || sys::waitid(Some(child.pid), libc::WEXITED).is_err() {
                return;
            }
        }
    }

    /// Waits for the next thing to happen: one poll for everything there is.
    fn wait(&self, deadline: Option<Instant>, idle: bool) -> Event {
        loop {
            let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Event::Deadline,
                // Rounded up, or the last millisecond would be a busy loop.
                Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
                // Waits for the next request, or for the end of a test without a timeout: as long
                // as the harness lives.
                None => PollTimeout::NONE,
            };
            let request = if idle { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(self.world.lifeline.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.world.harness.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.slot.as_fd(), request),
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            ];
            // EINTR and the like: look again.
            if poll(&mut fds, timeout).is_err() {
                continue;
            }
            let [lifeline, harness, slot, children] =
                fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if !lifeline.is_empty() || !harness.is_empty() {
                return Event::Abandoned;
            }
            if slot.contains(PollFlags::POLLIN) {
                return Event::Request;
            }
            if !slot.is_empty() {
                return Event::Abandoned;
            }
            if !children.is_empty() {
                // One is all there can be: a signal that is pending already is not queued again.
                let _ = self.children.read_signal();
                return Event::Children;
            }
        }
    }

    /// Ends the supervisor's work, and the process that was forked ahead for more of it.
    fn leave(&self, code: i32, ahead: Option<Pid>) -> Served {
        if let Some(test) = ahead {
            // Our unreaped child: the pid is still its own.
            let _ = sys::kill(test, libc::SIGKILL);
            if let Ok(pidfd) = sys::pidfd_open(test) {
                sys::readable(&pidfd, Some(kill::LIMIT));
            }
            let _ = sys::waitid(Some(test), libc::WEXITED);
        }
        let _ = self.scratch.remove();
        // The fork server would remove the directory of them all. If it was killed, the last
        // supervisor does: nobody else's is empty.
        if nix::unistd::getppid().as_raw() != self.world.server {
            let _ = self.scratch.path.parent().map(fs::remove_dir);
        }
        Served::Done(code)
    }

    /// What a fork has to do to be a test process, with nothing of the harness left in it.
    fn entrance(&self, open: [RawFd; 3]) -> sys::Entrance<'_> {
        let [slot, ours, theirs, children, lifeline, harness] = self.private_fds();
        let World { mask, title, comm, .. } = &self.world;
        let close = [slot, ours, children, lifeline, harness, open[0], open[1], open[2]];
        sys::Entrance::new(self.pid, close, theirs, mask, title, comm)
    }

    /// Shows what this process is and guards, where `ps` and `pkill -f` look.
    fn show(&self, what: &str) {
        self.world.title.show(&["childproof: ", what]);
    }

    /// The fds that are none of a test's business.
    fn private_fds(&self) -> [RawFd; 6] {
        [
            self.slot.as_raw_fd(),
            self.desk.ours.as_raw_fd(),
            self.desk.theirs.as_raw_fd(),
            self.children.as_raw_fd(),
            self.world.lifeline.as_fd().as_raw_fd(),
            self.world.harness.as_raw_fd(),
        ]
    }
}

/// What there was to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A child changed state.
    Children,
    /// The harness has sent a job.
    Request,
    /// Time is over.
    Deadline,
    /// The harness is gone, or has given this slot up.
    Abandoned,
}

/// Which side of a fork this is.
enum Forked {
    /// The supervisor; the pid is the test process's.
    Test(Pid),
    /// The test process, which has its job.
    InTest(Box<TestProcess>),
}

/// A test's directory for temporary files, the same for all tests of one supervisor.
struct Scratch {
    path: PathBuf,
    /// What the kernel tells of it while nobody has used it.
    unused: Option<Marks>,
}

/// Mode, owner, group, and the times of the last change of the entries and of anything.
type Marks = (u32, u32, u32, [i64; 2], [i64; 2]);

fn marks(of: &fs::Metadata) -> Marks {
    let (entries, anything) = ([of.mtime(), of.mtime_nsec()], [of.ctime(), of.ctime_nsec()]);
    (of.mode(), of.uid(), of.gid(), entries, anything)
}

impl Scratch {
    /// Makes the directory, as open as /tmp, whatever the umask: a test may change its user. The
    /// directory above it has a name nobody can guess and cannot be listed.
    fn make(path: PathBuf) -> io::Result<Scratch> {
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?;
        // A directory changes its time with every entry that comes or goes, so one `stat` tells
        // later whether it was used. Times are coarse: "now" would not do as a mark.
        // Nor would a round number: archives and `touch -d @0` set those.
        let mark = UNIX_EPOCH + Duration::from_nanos(u64::from(std::process::id()) + 1);
        File::open(&path)?.set_times(FileTimes::new().set_modified(mark))?;
        let unused = fs::symlink_metadata(&path).ok().map(|found| marks(&found));
        Ok(Scratch { path, unused })
    }

    /// Leaves the directory empty and unused, as it is most of the time.
    fn reset(&mut self) -> io::Result<()> {
        let found = fs::symlink_metadata(&self.path).ok().map(|found| marks(&found));
        if found.is_some() && found == self.unused {
            return Ok(());
        }
        self.remove()?;
        *self = Scratch::make(self.path.clone())?;
        Ok(())
    }

    /// Makes another beside this one, which stays as it is.
    fn another(&self) -> io::Result<Scratch> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push("+");
        Scratch::make(self.path.with_file_name(name))
    }

    fn remove(&self) -> io::Result<()> {
        match remove_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Removes a tree, whatever permissions a test has left in it.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    let first = fs::remove_dir_all(path);
    if first.is_ok() {
        return first;
    }
    // A test may have taken its own permissions away, or have nested deeper than there are fds and a path is long.
    remove_from_the_top(path)
}

/// Removes a directory and all below it, of which every directory is moved to its top before it is removed. Follows no
/// link.
fn remove_from_the_top(top: &Path) -> io::Result<()> {
    let open_up = |directory: &Path| fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    let mut moved = 0_u64;
    loop {
        let _ = open_up(top);
        let before = moved;
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            let path = entry.path();
            if !entry.file_type()?.is_dir() {
                fs::remove_file(path)?;
                continue;
            }
            let _ = open_up(&path);
            for below in fs::read_dir(&path)? {
                let below = below?;
                if !below.file_type()?.is_dir() {
                    fs::remove_file(below.path())?;
                    continue;
                }
                // To move a directory is to write to it: it has its parent in it.
                let _ = open_up(&below.path());
                moved += 1;
                fs::rename(below.path(), top.join(format!(".childproof-{moved}")))?;
            }
            fs::remove_dir(path)?;
        }
        if moved == before {
            return fs::remove_dir(top);
        }
    }
}
