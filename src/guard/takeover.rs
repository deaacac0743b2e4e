//! Turns an exec'ed test binary into a fork server, before `main`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::failure::{GuardFailure, Role};
use super::guarded;
use super::net;
use super::origin;
use super::panics::Name;
use super::supervisor::{ChildEntry, ServeOutcome};
use super::test_process::TestProcess;
use crate::config::{bazel, registry};
use crate::sys::channel::Channel;
use crate::sys::keeper::Program;
use crate::sys::lock::lock;
use crate::sys::{self, Fork, Mask, Pid};

/// When a fork server that was started by exec takes its process over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// After all constructors, in place of `main`: test processes run registered bodies only. For stock
    /// targets, where `main` is libtest's.
    Late,
    /// Before all constructors: a test process runs them, then `main`, which calls `Harness::run`. For
    /// harnesses that had threads before that call.
    Early,
    /// Before all constructors: a test process runs them, and its body in place of `main`. For stock targets
    /// with a constructor that starts a thread.
    EarlyInStock,
}

impl Takeover {
    const ALL: [Takeover; 3] = [Takeover::Late, Takeover::Early, Takeover::EarlyInStock];

    fn name(self) -> &'static str {
        match self {
            Takeover::Late => "late",
            Takeover::Early => "early",
            Takeover::EarlyInStock => "early-in-stock",
        }
    }
}

/// Set in a process that is to be taken over, to a [`Start`].
pub(super) const VARIABLE: &str = "CHILDPROOF_FORK_SERVER";

/// Takes over before any constructor if this process was started for that.
///
/// Returns in every other process, in one that is to be taken over after the constructors, and in each test
/// process.
pub(crate) fn take_over_early() {
    guarded::take_over();
    origin::remember();
    let Some(taken) = Taken::from_environment() else { return };
    let Start { takeover, run, .. } = taken.start;
    if takeover == Takeover::Late {
        *lock(&LATE) = Some(taken);
    } else if let ServeOutcome::Test(test) = taken.serve(&ChildEntry::Return) {
        *lock(&PENDING) = Some(Pending { test, takeover, run });
    }
}

/// Takes over after the last constructor if this process was started for that.
pub(crate) fn take_over_late(run_later_constructors: impl FnOnce()) {
    let pending = lock(&PENDING).take_if(|pending| pending.takeover == Takeover::EarlyInStock);
    let taken = lock(&LATE).take();
    if pending.is_none() && taken.is_none() {
        return;
    }
    run_later_constructors();
    let taken = match taken {
        Some(taken) if sys::is_threaded() => taken.begin_again(),
        taken => taken,
    };
    // Once for all tests: it reads the process's mappings, and its effect outlives a fork.
    sys::watch_stack();
    let tests = registry::registered();
    let run = |test: &TestProcess| match registry::find(&tests, test.index(), test.name_hash()) {
        Some(found) => test.run(Name::Registered(found), found.body, found.attribute.should_panic),
        None => sys::exit_now(1),
    };
    if let Some(Pending { mut test, .. }) = pending {
        // Constructors have run since the fork; the fds that they opened are not the body's.
        test.rebase();
        run(&test);
    }
    taken.into_iter().for_each(|taken| drop(taken.serve(&ChildEntry::Run(&run))));
}

/// An order to be carried out after the constructors.
static LATE: Mutex<Option<Taken>> = Mutex::new(None);

/// A test process that was taken over before the constructors, and has not reached its body.
struct Pending {
    test: Box<TestProcess>,
    takeover: Takeover,
    /// The number of the `Harness::run` call that it belongs to.
    run: u32,
}

static PENDING: Mutex<Option<Pending>> = Mutex::new(None);

/// How often `Harness::run` was called in this process.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// The purpose of a call of `Harness::run`.
pub(crate) enum Called {
    /// Run all tests.
    Harness,
    /// Run this one test: the process was forked for it.
    Test(Box<TestProcess>),
    /// Return at once: the process was forked for a test of a later call.
    TooEarly,
}

/// Counts a call of `Harness::run`, and returns its purpose.
pub(crate) fn called() -> Called {
    let run = RUNS.fetch_add(1, Ordering::Relaxed) + 1;
    let mut pending = lock(&PENDING);
    match pending.take_if(|pending| pending.run == run) {
        Some(Pending { test, .. }) => Called::Test(test),
        None if pending.is_some() => Called::TooEarly,
        None => Called::Harness,
    }
}

/// The value of [`VARIABLE`].
pub(super) struct Start {
    pub(super) takeover: Takeover,
    /// The signal mask for tests.
    pub(super) mask: u64,
    /// The harness's pid.
    pub(super) harness: Pid,
    /// The inode of the socket that is stdin.
    pub(super) socket: u64,
    /// The number of the `Harness::run` call.
    pub(super) run: u32,
}

impl Start {
    /// The order for a process that this one is about to start.
    pub(super) fn new(takeover: Takeover, mask: u64, socket: u64) -> Start {
        let run = RUNS.load(Ordering::Relaxed);
        Start { takeover, mask, harness: nix::unistd::getpid().as_raw(), socket, run }
    }

    fn parse(value: &str) -> Option<Start> {
        let mut words = value.split(' ');
        let name = words.next()?;
        Some(Start {
            takeover: Takeover::ALL.into_iter().find(|takeover| takeover.name() == name)?,
            mask: u64::from_str_radix(words.next()?, 16).ok()?,
            harness: words.next()?.parse().ok()?,
            socket: words.next()?.parse().ok()?,
            run: words.next()?.parse().ok()?,
        })
    }

    /// The test binary, prepared to be started with this order and the fds that this process inherited.
    pub(super) fn program(&self) -> io::Result<Program> {
        let Start { takeover, mask, harness, socket, run } = self;
        let order: OsString = format!("{} {mask:x} {harness} {socket} {run}", takeover.name()).into();
        // The tests of this kind of target do not get what is meant for its harness.
        let removed: Vec<&str> = match takeover {
            Takeover::Early => bazel::not_passed_on().chain([VARIABLE]).collect(),
            _ => vec![VARIABLE],
        };
        let mut environment: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(name, _)| !removed.iter().any(|removed| name == removed)).collect();
        environment.push((VARIABLE.into(), order));
        let environment = environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        Program::own(environment, origin::given_fds())
    }
}

/// An order that was read, and its socket.
struct Taken {
    start: Start,
    control: Channel,
}

impl Taken {
    /// Reads the order, before constructors: processes that they start must inherit neither the socket nor
    /// the order.
    fn from_environment() -> Option<Taken> {
        /// A number that no constructor gets, and for which the fd table need not grow.
        const NUMBER: RawFd = 60;
        let start = Start::parse(&std::env::var(VARIABLE).ok()?)?;
        // A value that leaked into another process's environment is not an order: stdin must be the harness's
        // socket.
        let stdin = sys::fd_identity(0)?;
        if stdin.kind != libc::S_IFSOCK || stdin.ino != start.socket {
            return None;
        }
        // The harness has exited meanwhile. Continuing into `main` would run its tests again, unguarded.
        if sys::is_hung_up(sys::borrow(0)) {
            sys::exit_now(1);
        }
        // No test may see the order, nor follow it.
        sys::remove_env(VARIABLE);
        let control = sys::dup_above(0, NUMBER).or_else(|_| sys::dup_above(0, 3));
        match (control, sys::null_at(0)) {
            (Ok(control), Ok(())) => Some(Taken { start, control: Channel::from_fd(control) }),
            _ => sys::exit_now(1),
        }
    }

    /// Execs the program again, to be taken over before its constructors: one of them has started a thread,
    /// and a fork would inherit the locks that it holds.
    fn begin_again(self) -> ! {
        let start = Start { takeover: Takeover::EarlyInStock, ..self.start };
        let error = match (start.program(), sys::dup2(self.control.as_raw_fd(), 0)) {
            (Ok(program), Ok(())) => program.exec(),
            (Err(error), _) | (_, Err(error)) => error,
        };
        refuse(&self.control, GuardFailure::Restart { error: error.into() })
    }

    /// Forks the net, and waits for it: this process stays the parent of processes that constructors have
    /// started, so they never become the net's children.
    fn serve(self, then: &ChildEntry<'_>) -> ServeOutcome {
        let Taken { start, control } = self;
        // Rust's start-up ignores SIGPIPE in every program; a start by exec resets that.
        sys::ignore_signal(libc::SIGPIPE);
        if sys::is_threaded() {
            refuse(&control, GuardFailure::ForkAmongThreads {});
        }
        match sys::fork() {
            Ok(Fork::Child) => match net::hold(control, start.harness, Mask::from_bits(start.mask), then) {
                ServeOutcome::Done(code) => sys::exit_now(code),
                test => test,
            },
            Ok(Fork::Parent(net)) => {
                drop(control);
                net::wait_beside(net)
            }
            Err(error) => refuse(&control, GuardFailure::fork(Role::Net)(error)),
        }
    }
}

/// Reports to the harness why there is no fork server.
fn refuse(control: &Channel, failure: GuardFailure) -> ! {
    net::report(control, failure);
    sys::exit_now(1)
}
