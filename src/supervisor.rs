//! Guards one test at a time: runs it, watches it, tears it down.
//!
//! A supervisor has one thread, a session of its own, is a child subreaper, runs no user code and
//! ignores every signal it can. It has no `PR_SET_PDEATHSIG`: that would kill it before it could
//! kill what it guards. Instead it watches the lifeline and a pidfd of the harness.
//!
//! It takes the next test only after the kernel has said `ECHILD`.

use std::ffi::CString;
use std::fs::{self, File, FileTimes};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::channel::Channel;
use crate::facts::{Answer, Class, Facts, Process};
use crate::forkserver::Hello;
use crate::kill;
use crate::lifeline::Watch;
use crate::outcome::{End, Page, Phase};
use crate::policy::{Settings, ThreadedFork};
use crate::proc::fds::pipe_of;
use crate::proc::process::are_hidden;
use crate::proc::sockets::Socket;
use crate::sites;
use crate::snapshot::{Depth, Scene, Snapshot};
use crate::sys::{self, ChildState, Children, FdIdentity, Fork, Pid, Shared, Signals, Waited};
use crate::testproc::TestProcess;
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
    pub(crate) signals: Signals,
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
    fn new(fds: Vec<OwnedFd>) -> Option<Output> {
        let mut fds = fds.into_iter();
        Some(Output { stdout: fds.next()?, stderr: fds.next() })
    }
}

/// How long a supervisor without work shows the name of its last test.
const IDLE: Duration = Duration::from_millis(50);

/// How long after a first look at blocked threads a second one is taken.
const AGAIN: Duration = Duration::from_millis(50);

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
    children: SignalFd,
    page: Shared<Page>,
    log: sites::Recorder,
    scratch: Scratch,
    /// What a test process finds open: the fds from before the harness began.
    inherited: Vec<(RawFd, FdIdentity)>,
    /// `CHILDPROOF_TRACE=fds`.
    traced: bool,
    /// Who fd 0 is.
    input: Option<FdIdentity>,
    pid: Pid,
}

/// The most programs that are told of because a process may have come from one of them.
const PROGRAMS: usize = 16;

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
        for signal in sys::DEAF_TO {
            sys::ignore_signal(signal);
        }
        sys::default_signal(libc::SIGCHLD);
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?;
        let children = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut supervisor = Supervisor {
            world,
            slot,
            children,
            page: Shared::zeroed()?,
            log: sites::Log::install(pid)?,
            scratch: Scratch::make(scratch)?,
            inherited: Vec::new(),
            traced: std::env::var_os("CHILDPROOF_TRACE").is_some_and(|value| value == "fds"),
            input: sys::fd_identity(0),
            pid,
        };
        let _ = nix::sys::prctl::set_name(c"childproof");
        supervisor.show("idle");
        // Every test of this supervisor has the same one.
        sys::set_env("TMPDIR", supervisor.scratch.path.as_os_str());
        let private = supervisor.private_fds();
        let mut inherited = Vec::new();
        sys::each_open_fd(|fd| {
            if fd > 2 && !private.contains(&fd) {
                inherited.extend(sys::fd_identity(fd).map(|identity| (fd, identity)));
            }
        });
        supervisor.inherited = inherited;
        Ok(supervisor)
    }

    /// Runs tests until there are no more.
    pub(crate) fn serve(self, then: &Then<'_>) -> Served {
        loop {
            let mut event = self.wait(Some(Instant::now() + IDLE), true);
            if event == Event::Deadline {
                self.show("idle");
                event = self.wait(None, true);
            }
            if event == Event::Abandoned {
                return self.leave(0);
            }
            let Ok(Some((bytes, fds))) = self.slot.receive() else { return self.leave(0) };
            let (Some(job), Some(output)) = (Job::decode(&bytes), Output::new(fds)) else {
                return self.leave(1);
            };
            self.show(&job.name);
            let facts = match self.guard(job, output, then) {
                Guarded::Test(test) => {
                    // Closed already, for the most part.
                    mem::forget((self, bytes));
                    return Served::Test(test);
                }
                Guarded::Abandoned => return self.leave(0),
                Guarded::Judged(facts) => facts,
            };
            let empty = facts.survivors.is_empty();
            if self.slot.send(&Answer::of(facts).encode(), &[]).is_err() || !empty {
                // What could not be killed must not be taken for the next test's.
                return self.leave(i32::from(!empty));
            }
        }
    }

    /// Guards one test, from the fork to the verdict.
    fn guard(&self, job: Job, output: Output, then: &Then<'_>) -> Guarded {
        let begin = Instant::now();
        let before = self.before(&output);
        let deadline = job.settings.timeout.map(|limit| begin + limit);
        let grace = job.settings.grace;
        self.page.reset();
        self.log.reset();
        let ready = TestProcess::new(job, self.page.another(), before, self.traced);
        let entrance = self.entrance(&output);
        // Its fds are closed in the fork, and not by their owner.
        let output = mem::ManuallyDrop::new(output);
        let test = match sys::fork() {
            Ok(Fork::Child) => {
                entrance.go();
                match then {
                    Then::Run(run) => {
                        run(&ready);
                        sys::exit_now(1);
                    }
                    Then::Return => return Guarded::Test(ready),
                }
            }
            Ok(Fork::Parent(pid)) => pid,
            Err(error) => {
                let why = format!("cannot fork the test process: {error}");
                return Guarded::Judged(Box::new(Facts::lost(why)));
            }
        };
        drop(mem::ManuallyDrop::into_inner(output));
        let scene = Scene {
            supervisor: self.pid,
            test,
            foreign: ready.before().iter().map(|(_, identity)| identity.ino).collect(),
            command_line: &self.world.command_line,
        };
        let mut at_end = None;
        let mut facts = Facts::lost(String::new());
        facts.pid = test;
        facts.session = self.pid;
        facts.end = match self.watch(&scene, deadline, &mut at_end) {
            Ending::Ended(ChildState::Exited(code)) => End::Exited { code },
            Ending::Ended(ChildState::Signalled(signal)) => End::Signalled { signal },
            Ending::Ended(ChildState::Stopped | ChildState::Trapped(_)) | Ending::TimedOut => End::TimedOut,
            Ending::Abandoned => {
                kill::kill_below(self.pid, &[]);
                return Guarded::Abandoned;
            }
        };
        facts.ran = begin.elapsed();
        if self.tear_down(&scene, grace, at_end, &mut facts) == Event::Abandoned {
            return Guarded::Abandoned;
        }
        facts.notes.extend(self.scratch.reset().err().map(|error| {
            format!("cannot empty the scratch directory `{}`: {error}", self.scratch.path.display())
        }));
        let page = &self.page;
        facts.body = page.body();
        facts.body_time = page.body_time();
        facts.threads = page.threads();
        facts.running = page.running();
        facts.returned_children = page.returned_children();
        (facts.strays, facts.stray_count) = page.strays();
        if !facts.processes.is_empty() || !facts.strays.is_empty() {
            facts.foreign = scene.foreign;
        }
        self.look_up_sites(&ready.job().settings, &mut facts);
        facts.time = begin.elapsed();
        Guarded::Judged(Box::new(facts))
    }

    /// Follows the test process to its end, its deadline or the harness's death. Reaps it if it
    /// ended.
    fn watch(&self, scene: &Scene<'_>, deadline: Option<Instant>, at_end: &mut Option<Snapshot>) -> Ending {
        let test = scene.test;
        loop {
            match self.wait(deadline, false) {
                Event::Children | Event::Request => {}
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
        let mut keys: Vec<(bool, u64)> = Vec::new();
        let told = |process: &&Process| match process.class {
            Class::Leaked => true,
            Class::Unwaited => settings.deny_unwaited,
            // It may be who has the other end.
            Class::Straggler => !facts.strays.is_empty(),
        };
        for process in facts.processes.iter().filter(told) {
            keys.push((true, process.pid as u64));
            keys.extend(process.lineage.iter().map(|pid| (true, *pid as u64)));
            let fds = process.known_fds().iter();
            keys.extend(fds.filter_map(|fd| Some((false, fd.pipe_or_socket()?))));
        }
        keys.extend(facts.strays.iter().map(|stray| (false, stray.ino)));
        facts.sites = self.log.sites(&keys, settings.threaded_fork != ThreadedFork::Allow);
        let has_site =
            |pid: Pid| facts.sites.iter().any(|site| site.is_process && site.keys[0] == pid as u64);
        let is_orphan = |process: &Process| process.adopted && !has_site(process.pid);
        if facts.processes.iter().filter(told).any(is_orphan) {
            facts.sites.extend(self.log.programs(&keys, PROGRAMS));
        }
        if !keys.is_empty() {
            facts.notes.extend(sites::UNKNOWN.map(str::to_owned));
            if !self.log.is_complete() {
                facts.notes.push(
                    "the test made more pipes and processes than are recorded, the first and the last of them: where a \
                     line is not known, that may be why"
                        .to_owned(),
                );
            }
        }
    }

    /// What a test finds open: its input and output, and the fds from before the harness.
    fn before(&self, output: &Output) -> Vec<(RawFd, FdIdentity)> {
        let mut before = Vec::with_capacity(3 + self.inherited.len());
        let stdout = sys::fd_identity(output.stdout.as_raw_fd());
        let stderr = output.stderr.as_ref().map_or(stdout, |stderr| sys::fd_identity(stderr.as_raw_fd()));
        let standard = [self.input, stdout, stderr];
        before.extend((0..).zip(standard).filter_map(|(fd, identity)| Some((fd, identity?))));
        before.extend_from_slice(&self.inherited);
        before
    }

    /// The kernel's word for "clean": no child, so no descendant, is left.
    fn nothing_left(&self) -> bool {
        matches!(sys::waitid(None, libc::WEXITED | libc::WNOWAIT), Ok(Children::None))
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

    /// Ends the supervisor's work.
    fn leave(&self, code: i32) -> Served {
        let _ = self.scratch.remove();
        // The fork server would remove the directory of them all. If it was killed, the last
        // supervisor does: nobody else's is empty.
        if nix::unistd::getppid().as_raw() != self.world.server {
            let _ = self.scratch.path.parent().map(fs::remove_dir);
        }
        Served::Done(code)
    }

    /// What a fork has to do to be a test process, with nothing of the harness left in it.
    fn entrance(&self, output: &Output) -> sys::Entrance<'_> {
        let stdout = output.stdout.as_raw_fd();
        let stderr = output.stderr.as_ref().map(AsRawFd::as_raw_fd);
        let [slot, children, lifeline, harness] = self.private_fds();
        let World { signals, title, comm, .. } = &self.world;
        let close = [slot, children, lifeline, harness, stdout, stderr.unwrap_or(-1)];
        sys::Entrance::new(self.pid, [stdout, stderr.unwrap_or(stdout)], close, signals, title, comm)
    }

    /// Shows what this process is and guards, where `ps` and `pkill -f` look.
    fn show(&self, what: &str) {
        self.world.title.show(&format!("childproof: {what}"));
    }

    /// The fds that are none of a test's business.
    fn private_fds(&self) -> [RawFd; 4] {
        [
            self.slot.as_raw_fd(),
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

enum Guarded {
    Test(Box<TestProcess>),
    Judged(Box<Facts>),
    Abandoned,
}

/// A test's directory for temporary files, the same for all tests of one supervisor.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes the directory, as open as /tmp, whatever the umask: a test may change its user. The
    /// directory above it has a name nobody can guess and cannot be listed.
    fn make(path: PathBuf) -> io::Result<Scratch> {
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?;
        // A directory changes its time with every entry that comes or goes, so one `stat` tells
        // later whether it was used. Times are coarse: "now" would not do as a mark.
        File::open(&path)?.set_times(FileTimes::new().set_modified(UNIX_EPOCH))?;
        Ok(Scratch { path })
    }

    /// Leaves the directory empty and unused, as it is most of the time.
    fn reset(&self) -> io::Result<()> {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| found.is_dir() && found.modified().is_ok_and(|at| at == UNIX_EPOCH)) {
            return Ok(());
        }
        self.remove()?;
        Scratch::make(self.path.clone()).map(drop)
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
    // A test may have taken its own permissions away. Follow no link on the way down.
    make_writable(path);
    fs::remove_dir_all(path)
}

fn make_writable(directory: &Path) {
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}
