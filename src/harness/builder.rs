//! Builds a harness in `main`, with the registered tests and those that are added by hand.

use std::fmt::Display;
use std::panic::Location;
use std::process::{Command, ExitCode, Termination};

use crate::config::policy::Policy;
use crate::config::registry;

/// Runs the tests of a target; `childproof::main!()` makes one and runs it.
///
/// It runs every `#[childproof::test]` of the target, and the tests that are added by hand, such as tests
/// that are generated from data.
///
/// # Example
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     let mut harness = childproof::Harness::new();
///     for shell in ["sh", "bash"] {
///         harness = harness.test(format!("runs::{shell}"), move || {
///             let status = std::process::Command::new(shell).args(["-c", "true"]).status();
///             assert!(status.is_ok_and(|status| status.success()));
///         });
///     }
///     harness.run()
/// }
/// ```
#[must_use = "a harness does nothing until it is `run`"]
#[derive(Default)]
pub struct Harness {
    pub(super) policy: Policy,
    pub(super) added: Vec<Added>,
    pub(super) shared: Vec<SharedFixture>,
}

/// A program that all tests of a target use.
pub(super) struct SharedFixture {
    pub(super) name: String,
    /// Makes the command, and its address.
    pub(super) start: Box<dyn FnOnce() -> (Command, String)>,
    /// Where it was added.
    pub(super) place: &'static Location<'static>,
}

/// A test that was added by hand. Kept small: all of them are copied for every forked test.
pub(super) struct Added {
    pub(super) name: Box<str>,
    pub(super) body: Box<dyn Fn() -> ExitCode + Send + Sync>,
    /// The fields that few tests have.
    pub(super) more: Option<Box<More>>,
    /// Where it was added.
    pub(super) place: &'static Location<'static>,
}

pub(super) enum More {
    Policy(Policy),
    /// It cannot run, with the reason.
    Ignored(String),
}

impl Harness {
    /// Makes a harness with the tests that `#[childproof::test]` registered in this target.
    pub fn new() -> Self {
        Harness::default()
    }

    /// Sets the default policy of all tests; a test's attribute takes precedence. It takes precedence over
    /// the target's `childproof::policy!`; lists add up.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Starts a program once for the target, such as a server that several tests use. Tests get its address from
    /// [`shared`](crate::shared).
    ///
    /// `start` makes the command and its address; it runs in the harness, before any test. The program is guarded by
    /// the run and not by a test: whatever kills the run kills it too. At the end of the run it gets SIGTERM, and is
    /// killed if it has not ended 5 s later; what it leaves then fails the run, with a report of its own. It is not
    /// started if no test is selected. Under cargo-nextest, where each test has a run of its own, each has its own
    /// program. Where tests are not guarded, it is not started.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use std::process::{Command, ExitCode};
    ///
    /// fn main() -> ExitCode {
    ///     let harness = childproof::Harness::new().shared("redis", || {
    ///         let name = format!("redis-{}.sock", std::process::id());
    ///         let socket = std::env::temp_dir().join(name).display().to_string();
    ///         let mut server = Command::new("redis-server");
    ///         server.args(["--port", "0", "--unixsocket", &socket, "--save", ""]);
    ///         (server, socket)
    ///     });
    ///     harness.run()
    /// }
    ///
    /// #[childproof::test]
    /// fn answers() {
    ///     let socket = childproof::shared("redis");
    ///     // ..
    /// }
    /// ```
    #[track_caller]
    pub fn shared(
        mut self,
        name: impl Into<String>,
        start: impl FnOnce() -> (Command, String) + 'static,
    ) -> Self {
        self.shared.push(SharedFixture {
            name: name.into(),
            start: Box::new(start),
            place: Location::caller(),
        });
        self
    }

    /// Adds a test. `body` runs in a process of its own, and may return any type that `main` may return.
    #[track_caller]
    pub fn test<F, T>(self, name: impl Into<String>, body: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Termination,
    {
        self.test_with(name, Policy::new(), body)
    }

    /// Adds a test with a policy of its own, which takes precedence over the harness's.
    #[track_caller]
    pub fn test_with<F, T>(mut self, name: impl Into<String>, policy: Policy, body: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Termination,
    {
        // Its code, unlike that of the closure behind the box, has an address that can be taken.
        registry::note_code_of_added(compiled_for::<F> as *const () as usize);
        let body = Box::new(move || body().report());
        let more = (policy != Policy::new()).then(|| Box::new(More::Policy(policy)));
        let place = Location::caller();
        self.added.push(Added { name: name.into().into(), body, more, place });
        self
    }

    /// Adds a test that cannot run here, for `reason`. It is listed and reported as ignored.
    #[track_caller]
    pub fn ignored(mut self, name: impl Into<String>, reason: impl Display) -> Self {
        let body = Box::new(|| ExitCode::FAILURE);
        let more = Some(Box::new(More::Ignored(reason.to_string())));
        let place = Location::caller();
        self.added.push(Added { name: name.into().into(), body, more, place });
        self
    }
}

/// Is compiled in the crate that adds a test of this type.
#[inline(never)]
fn compiled_for<F>() {
    std::hint::black_box(std::any::type_name::<F>());
}
