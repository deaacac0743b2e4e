//! The fork server: a single-threaded process that forks supervisors.
//!
//! The race that it exists for: a harness runs tests on threads, and a process forked from a
//! threaded one inherits every lock that another thread held at that moment, for ever. So the
//! harness never forks. In a `harness = false` target it forks this process once, before any
//! thread exists; elsewhere the server is an exec of `/proc/self/exe` that is taken over before
//! `main` (see [`Takeover`]).
//!
//! It is the second net too: a subreaper that kills what a killed supervisor leaves.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::channel::Channel;
use crate::facts::{Answer, Facts};
use crate::kill;
use crate::lifeline::{Lifeline, Watch};
use crate::proc::process::{self, Stat};
use crate::registry;
use crate::supervisor::{self, Job, Served, Supervisor, Then, World};
use crate::sys::{self, Children, Fork, Mask, Pid};
use crate::testproc::TestProcess;
use crate::wire::{Wire, wire_enum, wire_struct};

wire_enum! {
    /// What the harness asks of the fork server.
    enum Request {
        /// The first message: watch the lifeline whose read end comes with it.
        Watch,
        /// Fork a supervisor that serves the channel whose end comes with it.
        Slot,
        /// Kill a supervisor that has stopped answering.
        Kill { pid: i32 },
        /// Close the fd that comes with it once this supervisor has ended and is reaped.
        Reaped { pid: i32 },
        /// The run is over.
        End,
    }
}

wire_struct! {
    /// A new supervisor's first word: its pid, or what stood in its way.
    pub(crate) struct Hello {
        pub(crate) pid: i32,
        /// The run's directory, which the harness removes if the fork server no longer can.
        pub(crate) directory: String,
        pub(crate) error: Option<String>,
    }
}

// ---------------------------------------------------------------------------------------------
// The harness's side

/// The harness's handle on its fork server.
pub(crate) struct ForkServer {
    control: Mutex<Channel>,
    idle: Mutex<Idle>,
    directory: OnceLock<PathBuf>,
    pid: Pid,
    _lifeline: Lifeline,
}

/// The supervisors without work. They take turns, and there is one more than tests that run at once: so each
/// has the time of a test to fork the next process ahead.
struct Idle {
    slots: VecDeque<Slot>,
    /// How many tests there were.
    tests: usize,
    /// One more could not be made, or shall not: there may be no more processes.
    is_last: bool,
}

impl Default for Idle {
    fn default() -> Idle {
        Idle { slots: VecDeque::new(), tests: 0, is_last: !supervisor::may_take_ahead() }
    }
}

/// How many tests there are before a supervisor is made that is not needed at once. A run of nextest has one.
const FEW: usize = 4;

impl Idle {
    /// Gives who waits for the longest, if nobody has to be made.
    fn take(&mut self) -> Option<Slot> {
        self.tests += 1;
        let wants_another = self.slots.len() == 1 && self.tests > FEW && !self.is_last;
        if wants_another { None } else { self.slots.pop_front() }
    }
}

/// One supervisor, waiting for work.
struct Slot {
    channel: Channel,
    pid: Pid,
}

/// How a fork server that was started by exec comes to its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// After all constructors, in place of `main`: test processes run registered bodies only.
    /// For stock targets, whose `main` is libtest's.
    Late,
    /// Before all constructors: a test process runs them, then `main`, which comes to
    /// `Harness::run`. For harnesses that had threads before they got there.
    Early,
}

/// Tells an exec'ed process that it is to be a fork server: takeover, signal mask, the harness's
/// pid, the inode of the socket that is its stdin.
const VARIABLE: &str = "CHILDPROOF_FORK_SERVER";

/// What a fork server shows for its command line. Its name is still `childproof`.
const TITLE: &str = "()";

/// How long a fork server may take to wind down, and to answer for a supervisor.
const PATIENCE: Duration = Duration::from_secs(15);

impl ForkServer {
    /// Forks a fork server, in whose test processes `run` is called. The calling process has one
    /// thread.
    pub(crate) fn fork(run: &dyn Fn(&TestProcess)) -> io::Result<ForkServer> {
        check_proc()?;
        let (ours, theirs) = Channel::pair()?;
        let mask = Mask::current()?;
        let harness = nix::unistd::getpid().as_raw();
        // What is buffered would be printed by every process that ends in `exit`.
        let _ = io::Write::flush(&mut io::stdout());
        match sys::fork()? {
            Fork::Child => {
                drop(ours);
                match serve(theirs, harness, mask, &Then::Run(run)) {
                    Served::Done(code) => sys::exit_now(code),
                    Served::Test(_) => sys::exit_now(1),
                }
            }
            Fork::Parent(pid) => {
                drop(theirs);
                ForkServer::connect(ours, pid)
            }
        }
    }

    /// Starts a fork server by exec, from a process that may have threads.
    pub(crate) fn exec(takeover: Takeover) -> io::Result<ForkServer> {
        check_proc()?;
        let (ours, theirs) = Channel::pair()?;
        let takeover = match takeover {
            Takeover::Late => "late",
            Takeover::Early => "early",
        };
        let mask = Mask::current()?.bits();
        let socket = sys::fd_identity(theirs.as_raw_fd()).map_or(0, |socket| socket.ino);
        let mut arguments = std::env::args_os();
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        let child = command
            .args(arguments)
            .env(VARIABLE, format!("{takeover} {mask:x} {} {socket}", std::process::id()))
            // The one fd that is passed on travels as stdin, so that no window exists in which a
            // concurrent `Command` of somebody else could inherit it.
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        ForkServer::connect(ours, child.id() as Pid)
    }

    fn connect(control: Channel, pid: Pid) -> io::Result<ForkServer> {
        // Made after the fork: no other process ever has the write end.
        let (lifeline, watch) = Lifeline::new()?;
        control.send(&Request::Watch.encode(), &[watch.as_fd()])?;
        Ok(ForkServer {
            control: Mutex::new(control),
            idle: Mutex::new(Idle::default()),
            directory: OnceLock::new(),
            pid,
            _lifeline: lifeline,
        })
    }

    /// Runs one test in a supervisor. `fds` are where its output goes, one or stdout and stderr, and the lock of
    /// its serial key if it has one.
    ///
    /// Calls `slow` once if the test runs for more than 60 s, and `looking` when something was left
    /// that the supervisor looks at. Waits for the test's timeout, its grace and a kill's limit, and
    /// no longer.
    pub(crate) fn run(
        &self,
        job: &Job,
        fds: &[BorrowedFd<'_>],
        slow: impl FnOnce(),
        looking: impl Fn(),
    ) -> Facts {
        let message = job.encode();
        let mut slot = match self.give(&message, fds) {
            Ok(slot) => slot,
            Err(error) => return Facts::lost(format!("no supervisor: {error}")),
        };
        let begin = Instant::now();
        let settings = &job.settings;
        let limit = settings.timeout.map(|limit| limit + settings.grace + kill::LIMIT + PATIENCE);
        let mut slow = Some((Duration::from_secs(60), slow));
        let facts = loop {
            let until = slow.as_ref().map(|(at, _)| *at).into_iter().chain(limit).min();
            let left = until.map(|until| until.saturating_sub(begin.elapsed()));
            if !sys::readable(&slot.channel, left) {
                if limit.is_none_or(|limit| until < Some(limit))
                    && let Some((_, slow)) = slow.take()
                {
                    slow();
                    continue;
                }
                let kill = Request::Kill { pid: slot.pid }.encode();
                let _ = lock(&self.control).send(&kill, &[]);
                return Facts::lost(format!("supervisor {} does not answer and was killed", slot.pid));
            }
            let answer = match slot.channel.receive() {
                Ok(Some((bytes, _))) => Answer::decode(&bytes),
                Ok(None) => return Facts::lost(format!("supervisor {} was killed", slot.pid)),
                Err(error) => return Facts::lost(format!("lost supervisor {}: {error}", slot.pid)),
            };
            match answer {
                Some(Answer::Looking {}) => looking(),
                Some(Answer::NotBegun { why }) => {
                    slot = match self.give_to_another(slot, &message, fds) {
                        Some(another) => another,
                        None => return Facts::lost(why),
                    }
                }
                Some(Answer::Clean { pid, session, body_time, time }) => {
                    break Facts::clean(pid, session, body_time, time);
                }
                Some(Answer::Other { facts }) => break *facts,
                None => return Facts::lost(format!("supervisor {} sent an unreadable answer", slot.pid)),
            }
        };
        if facts.survivors.is_empty() {
            lock(&self.idle).slots.push_back(slot);
        }
        facts
    }

    /// Gives a job to a supervisor.
    fn give(&self, job: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Slot> {
        loop {
            let Some(slot) = lock(&self.idle).take() else { break };
            // One that was killed while it had no test has lost none.
            if slot.channel.send(job, fds).is_ok() {
                return Ok(slot);
            }
        }
        let slot = self.new_slot().or_else(|error| {
            let mut idle = lock(&self.idle);
            idle.is_last = true;
            idle.slots.pop_front().ok_or(error)
        })?;
        slot.channel.send(job, fds)?;
        Ok(slot)
    }

    /// Gives a job that `slot` could not begin, as there may be no more processes, to one that waits: that may
    /// have a process already, and `slot` makes room for one. `None` if none waits.
    fn give_to_another(&self, slot: Slot, job: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Slot> {
        let mut idle = lock(&self.idle);
        idle.is_last = true;
        if idle.slots.is_empty() {
            idle.slots.push_back(slot);
            return None;
        }
        drop(idle);
        // It counts until it is reaped (`release_task` in kernel/exit.c), which only the server can know.
        if let Ok((reaped, theirs)) = Channel::pair() {
            let request = Request::Reaped { pid: slot.pid }.encode();
            let _ = lock(&self.control).send(&request, &[theirs.as_fd()]);
            drop((slot, theirs));
            sys::readable(&reaped, Some(PATIENCE));
        }
        self.give(job, fds).ok()
    }

    fn new_slot(&self) -> io::Result<Slot> {
        let (channel, theirs) = Channel::pair()?;
        lock(&self.control).send(&Request::Slot.encode(), &[theirs.as_fd()])?;
        drop(theirs);
        if !sys::readable(&channel, Some(PATIENCE)) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the fork server does not answer"));
        }
        let hello = channel.receive()?.and_then(|(bytes, _)| Hello::decode(&bytes));
        match hello {
            Some(Hello { error: Some(error), .. }) => Err(io::Error::other(error)),
            Some(Hello { pid, directory, error: None }) => {
                self.directory.get_or_init(|| PathBuf::from(directory));
                Ok(Slot { channel, pid })
            }
            None => Err(io::Error::other("the fork server is gone")),
        }
    }

    /// Ends the supervisors and the server, and waits until they are gone.
    ///
    /// A server that did not end as it should has left something: then this process, which is a
    /// subreaper ([`second_net`]), kills what has come to it. It cannot tell a child that an
    /// unguarded test left from one that a guarded test did, and kills both.
    pub(crate) fn shut_down(&self) {
        lock(&self.idle).slots.clear();
        let _ = lock(&self.control).send(&Request::End.encode(), &[]);
        if wait_for(self.pid) {
            return;
        }
        kill::kill_below(nix::unistd::getpid().as_raw(), &[]);
        if let Some(directory) = self.directory.get() {
            let _ = supervisor::remove_all(directory);
        }
    }
}

/// Refuses a `/proc` that is not this PID namespace's: the processes that it shows are others, so
/// that a leak would neither be seen nor killed.
fn check_proc() -> io::Result<()> {
    let shown = fs::read_link("/proc/self")?;
    let own = std::process::id().to_string();
    if shown.as_os_str() == OsStr::new(&own) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "`/proc` belongs to another PID namespace: it says that this process is {}, and it is {own}; mount one of \
         this namespace's own (`unshare --mount-proc`)",
        shown.display()
    )))
}

/// Makes this process, the harness, the one that orphans of a killed fork server come to.
pub(crate) fn second_net() {
    sys::stop_ignoring_children();
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// Waits for the end of a fork server, our child, and reaps it. Tells whether it ended well.
fn wait_for(pid: Pid) -> bool {
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return false;
    };
    if !sys::readable(&pidfd, Some(PATIENCE)) {
        let _ = sys::pidfd_send_signal(&pidfd, libc::SIGKILL);
        sys::readable(&pidfd, Some(PATIENCE));
    }
    let ended = sys::waitid(Some(pid), libc::WEXITED);
    matches!(ended, Ok(Children::Ready(child)) if child.state == sys::ChildState::Exited(0))
}

/// Locks even if a panicking thread held the lock: the values in here are whole at any time.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

// ---------------------------------------------------------------------------------------------
// Before main, in an exec'ed server

/// Takes over before any constructor if this process was started for [`Takeover::Early`].
///
/// Returns in every other process, and in each test process of that server.
pub(crate) fn take_over_early() {
    let Some(start) = Start::take("early") else { return };
    if let Served::Test(test) = start.serve(&Then::Return) {
        *lock(&PENDING) = Some(test);
    }
}

/// Takes over after the last constructor if this process was started for [`Takeover::Late`].
pub(crate) fn take_over_late(run_later_constructors: impl FnOnce()) {
    let Some(start) = Start::take("late") else {
        return;
    };
    run_later_constructors();
    // Once for all tests: it reads the process's mappings, and what it sets up outlives a fork.
    sys::watch_stack();
    let tests = registry::registered();
    let run = |test: &TestProcess| match registry::find(&tests, test.index(), test.mark()) {
        Some(found) => test.run(found.body, found.attribute.should_panic),
        None => sys::exit_now(1),
    };
    start.serve(&Then::Run(&run));
}

/// The test that this process is for, if it came out of an early takeover.
pub(crate) fn pending() -> Option<Box<TestProcess>> {
    lock(&PENDING).take()
}

static PENDING: Mutex<Option<Box<TestProcess>>> = Mutex::new(None);

/// What [`VARIABLE`] says.
struct Start {
    mask: u64,
    harness: Pid,
}

impl Start {
    fn take(takeover: &str) -> Option<Start> {
        let value = std::env::var(VARIABLE).ok()?;
        let mut words = value.split(' ');
        if words.next() != Some(takeover) {
            return None;
        }
        let start = Start {
            mask: u64::from_str_radix(words.next()?, 16).ok()?,
            harness: words.next()?.parse().ok()?,
        };
        let socket: u64 = words.next()?.parse().ok()?;
        // A value that leaked into somebody's environment is not an order: that has the harness's
        // very socket as stdin.
        let stdin = sys::fd_identity(0)?;
        if stdin.kind != libc::S_IFSOCK || stdin.ino != socket {
            return None;
        }
        // The harness died meanwhile. To go on to `main` would be to run its tests once more,
        // with nobody to end them.
        if nix::unistd::getppid().as_raw() != start.harness {
            sys::exit_now(1);
        }
        Some(start)
    }

    fn serve(self, then: &Then<'_>) -> Served {
        // No test may see the order, nor obey it.
        sys::remove_env(VARIABLE);
        // Rust's start-up ignores SIGPIPE in every program, `Command` undoes it for children.
        sys::ignore_signal(libc::SIGPIPE);
        let Ok(control) = sys::dup_above(0, 3) else { sys::exit_now(1) };
        match serve(Channel::from_fd(control), self.harness, Mask::from_bits(self.mask), then) {
            Served::Done(code) => sys::exit_now(code),
            test => test,
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The server's side

/// A supervisor that was forked and not yet reaped.
struct Live {
    pid: Pid,
    pidfd: OwnedFd,
    /// Closed when it is reaped: the harness waits for that.
    _awaited: Option<OwnedFd>,
}

struct Server {
    control: Channel,
    world: World,
    /// The cargo or nextest that started the harness.
    runner: Option<OwnedFd>,
    supervisors: Vec<Live>,
    directory: PathBuf,
    forked: u32,
    pid: Pid,
}

/// Serves a harness until it is gone; returns in a test process, or when it is over.
fn serve(control: Channel, harness: Pid, mask: Mask, then: &Then<'_>) -> Served {
    match Server::start(control, harness, mask) {
        Ok(server) => server.run(then),
        Err(_) => Served::Done(1),
    }
}

/// Lets no signal end this process and its supervisors but those that nobody can refuse. All of them: an orphan may
/// tell its parent by SIGUSR1 that it is ready, and that is the supervisor. They are blocked and not
/// ignored, so that what a test finds is as it was, and its mask is given back in one call.
fn turn_deaf() -> nix::Result<()> {
    sys::default_signal(libc::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
}

impl Server {
    fn start(control: Channel, harness: Pid, mask: Mask) -> io::Result<Server> {
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        // Whoever reads the harness's output must not have to wait for us to end.
        for standard in 0..=2 {
            sys::dup2(null.as_raw_fd(), standard)?;
        }
        drop(null);
        nix::unistd::setsid()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        turn_deaf()?;
        let stat = Stat::of_self().ok_or_else(|| io::Error::other("cannot read `/proc/self/stat`"))?;
        let title = sys::Argv::at(process::argv_of_self().unwrap_or_default());
        // Whatever is matched by name, this process must not be: it kills what a killed supervisor
        // leaves. So its title has no word in it, of ours or of a test's.
        title.show(&[TITLE]);
        let _ = nix::sys::prctl::set_name(process::GUARD);

        let harness_fd = sys::pidfd_open(harness)?;
        if nix::unistd::getppid().as_raw() != harness {
            return Err(io::Error::other("the harness is gone"));
        }
        let lifeline = match control.receive()? {
            Some((bytes, mut fds)) if matches!(Request::decode(&bytes), Some(Request::Watch)) => fds.pop(),
            _ => None,
        };
        let lifeline = lifeline.ok_or_else(|| io::Error::other("no lifeline"))?;
        let directory = nix::unistd::mkdtemp(&std::env::temp_dir().join("childproof-XXXXXX"))?;
        // Passable, not listable: tests that change their user still reach their own part.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
        Ok(Server {
            control,
            world: World {
                lifeline: Watch::from(lifeline),
                harness: harness_fd,
                mask,
                command_line: title.arguments(),
                title,
                // An exec'ed server is called `exe`, after the link it was started by.
                comm: CString::new(Stat::read(harness).map_or(stat.comm, |harness| harness.comm))?,
                server: nix::unistd::getpid().as_raw(),
            },
            runner: runner_of(harness),
            supervisors: Vec::new(),
            directory,
            forked: 0,
            pid: nix::unistd::getpid().as_raw(),
        })
    }

    fn run(mut self, then: &Then<'_>) -> Served {
        let slot = loop {
            let mut fds = vec![
                PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.world.lifeline.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.world.harness.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(
                self.supervisors.iter().map(|live| PollFd::new(live.pidfd.as_fd(), PollFlags::POLLIN)),
            );
            if let Some(runner) = &self.runner {
                fds.push(PollFd::new(runner.as_fd(), PollFlags::POLLIN));
            }
            // Waits for requests as long as the harness lives, which it also watches.
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let requested = fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
            let (control, harness) = (ready[0], ready[1] || ready[2]);
            let runner = self.runner.is_some() && ready.last() == Some(&true);
            if runner {
                // Nobody reads the results any more: the harness must not go on without it.
                let _ = sys::pidfd_send_signal(&self.world.harness, libc::SIGKILL);
                self.runner = None;
            }
            if harness {
                return self.wind_down();
            }
            self.reap_supervisors();
            if !control {
                continue;
            }
            let message = if requested { self.control.receive() } else { Ok(None) };
            let Ok(Some((bytes, mut fds))) = message else {
                return self.wind_down();
            };
            match (Request::decode(&bytes), fds.pop()) {
                (Some(Request::Slot), Some(slot)) => {
                    let slot = Channel::from_fd(slot);
                    if let Some(Fork::Child) = self.fork_supervisor(&slot) {
                        break slot;
                    }
                }
                (Some(Request::Kill { pid }), _) => {
                    if let Some(live) = self.supervisors.iter().find(|live| live.pid == pid) {
                        let _ = sys::pidfd_send_signal(&live.pidfd, libc::SIGKILL);
                    }
                }
                (Some(Request::Reaped { pid }), awaited) => {
                    if let Some(live) = self.supervisors.iter_mut().find(|live| live.pid == pid) {
                        live._awaited = awaited;
                    }
                }
                (Some(Request::End), _) => return self.wind_down(),
                _ => {}
            }
        };
        // Out here nothing of the loop is left to be freed.
        self.become_supervisor(slot, then)
    }

    /// Forks a supervisor for `slot`; the child goes on in [`Server::become_supervisor`].
    fn fork_supervisor(&mut self, slot: &Channel) -> Option<Fork> {
        self.forked += 1;
        match sys::fork() {
            Ok(Fork::Parent(pid)) => {
                // Our unreaped child: the pid is still its own.
                if let Ok(pidfd) = sys::pidfd_open(pid) {
                    self.supervisors.push(Live { pid, pidfd, _awaited: None });
                }
                Some(Fork::Parent(pid))
            }
            Ok(child) => Some(child),
            Err(error) => {
                let error = Some(supervisor::cannot_fork("a supervisor", &error));
                let _ = slot.send(&Hello { pid: 0, directory: String::new(), error }.encode(), &[]);
                None
            }
        }
    }

    /// Leaves everything of the server behind that a supervisor has no use for.
    fn become_supervisor(self, slot: Channel, then: &Then<'_>) -> Served {
        let Server { world, directory, forked, control, runner, supervisors, .. } = self;
        drop((control, runner, supervisors));
        let scratch = directory.join(forked.to_string());
        drop(directory);
        match Supervisor::new(world, slot, scratch) {
            Ok(supervisor) => supervisor.serve(then),
            Err(_) => Served::Done(1),
        }
    }

    /// Reaps supervisors that have ended, and kills what a killed one left.
    fn reap_supervisors(&mut self) {
        let mut left_something = false;
        self.supervisors.retain(|live| match sys::waitid(Some(live.pid), libc::WEXITED) {
            Ok(Children::Ready(child)) => {
                left_something |= child.state != sys::ChildState::Exited(0);
                false
            }
            _ => true,
        });
        if left_something {
            let live: Vec<Pid> = self.supervisors.iter().map(|live| live.pid).collect();
            kill::kill_below(self.pid, &live);
        }
    }

    /// Waits for the supervisors to end, kills what they could not, and cleans up.
    fn wind_down(mut self) -> Served {
        let until = Instant::now() + kill::LIMIT + Duration::from_secs(2);
        while let Some(live) = self.supervisors.first() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sys::readable(&live.pidfd, Some(left));
            self.reap_supervisors();
        }
        let clean = !sys::has_children();
        if !clean {
            kill::kill_below(self.pid, &[]);
        }
        let _ = supervisor::remove_all(&self.directory);
        Served::Done(i32::from(!clean))
    }
}

/// A handle on the cargo or nextest that started the harness, if one did.
///
/// Killing them leaves a test binary running (cargo#14929). A shell, an init or a debugger as
/// parent is not followed: their end says nothing of the run.
fn runner_of(harness: Pid) -> Option<OwnedFd> {
    let parent = Stat::read(harness)?.ppid;
    let name = fs::read_link(format!("/proc/{parent}/exe")).ok()?;
    let name = name.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned();
    if !name.starts_with("cargo") && !name.starts_with("nextest") {
        return None;
    }
    let pidfd = sys::pidfd_open(parent).ok()?;
    // The parent may have died before the handle was opened, and its pid been given away.
    (Stat::read(harness)?.ppid == parent).then_some(pidfd)
}
