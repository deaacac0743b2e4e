//! Runs every test in a guarded process tree of its own, and fails it if it leaves a process or a
//! pipe behind.
//!
//! Put [`#[childproof::test]`](macro@test) where tests start processes, in place of `#[test]`. When the
//! body has ended, everything that it started must have ended too, within a grace of 200 ms, and
//! every pipe that it opened must be closed; otherwise the test fails with a report that names
//! the process, what it is blocked in and who holds which end of which pipe. What is left is
//! killed, also when the test, the harness or cargo itself is killed in the middle.
//!
//! ```
//! #[childproof::test(timeout = "5s")]
//! fn restarts() {
//!     let mut server = std::process::Command::new("sleep").arg("600").spawn().unwrap();
//!     server.kill().unwrap();
//!     server.wait().unwrap();
//! }
//! ```
//!
//! The attribute works in stock targets, under `cargo test` and `cargo nextest run`. For a whole
//! target of such tests set `harness = false` and write [`main!`]; tests that are made of data are
//! added to a [`Harness`], and a [`Policy`] says what is checked. A [`Lifeline`] guards a child of
//! your own.
//!
//! Linux 5.9 or newer. What cannot be guarded is told in PLATFORM.md.
//!
//! # Features
//!
//! `json`: `--json PATH`, one object per test and line.
//!
//! `junit`: `--junit PATH`, JUnit's XML, also where Bazel's variable `XML_OUTPUT_FILE` says.
//!
//! `sites`, on by default: reports name the lines of code that made what was left.

#![allow(clippy::test_attr_in_doctest, reason = "that is what this crate is about")]

#[cfg(not(target_os = "linux"))]
compile_error!("childproof runs on Linux 5.9 or newer: it is built on subreapers and pidfds");

mod channel;
mod diagnosis;
mod facts;
mod forkserver;
mod harness;
mod kill;
mod libtest;
mod lifeline;
#[cfg(feature = "sites")]
mod lines;
mod options;
mod outcome;
mod policy;
mod proc;
mod registry;
mod report;
mod serial;
// The hooks of the recorder go on to the function behind them, which is libc's: so it must be
// another library, and one whose functions have the same names inside and outside.
#[cfg(all(feature = "sites", target_env = "gnu", not(target_feature = "crt-static")))]
mod sites;
#[cfg(not(all(feature = "sites", target_env = "gnu", not(target_feature = "crt-static"))))]
#[path = "sites_off.rs"]
mod sites;
mod snapshot;
mod supervisor;
#[cfg(feature = "sites")]
mod symbols;
mod sys;
mod testproc;
mod threads;
mod wire;

/// Guards a function that already has a foreign `#[test]` above or below it.
///
/// For attributes that insist on making the test themselves. Takes the arguments of
/// [`test`](macro@test). It needs libtest: in a `harness = false` target rustc deletes what stands below
/// a `#[test]`.
///
/// # Example
///
/// ```
/// #[test]
/// #[childproof::guard(timeout = "5s")]
/// fn restarts() {}
/// ```
pub use childproof_macros::guard;
/// Makes a function a test that runs in a guarded process tree of its own.
///
/// It takes the place of `#[test]`, and like `#[test]` it vanishes where tests are not compiled.
/// The function has no parameters and is not generic; it returns what `main` may return
/// ([`Termination`](std::process::Termination)).
///
/// # Arguments
///
/// All are optional. A duration is a number directly followed by `us`, `ms`, `s`, `m` or `h`.
///
/// | argument | values, the default first | meaning |
/// | --- | --- | --- |
/// | `timeout` | `"300s"`, a duration, `"none"` | the body must end in time |
/// | `grace` | `"200ms"`, a duration | how long descendants may take to end by themselves, and threads to close what they own |
/// | `processes` | `"deny"`, `"allow"` | descendants that are alive after the grace fail the test |
/// | `allow_process` | a glob on the command line, repeatable | left behind, but expected |
/// | `fds` | `"pipes"`, `"all"`, `"off"` | which kinds of fds must be closed when the body has returned |
/// | `allow_created_by` | a path such as `"signal_hook_registry"`, repeatable | fds made there or below are expected |
/// | `unwaited` | `"allow"`, `"deny"` | zombies: children that nobody waited for |
/// | `threads` | `"allow"`, `"deny"` | threads that still run when the body returns |
/// | `threaded_fork` | `"warn"`, `"deny"`, `"allow"` | forks among threads whose child does not go straight on to exec |
/// | `serial` | a key | tests with one key never run at the same time |
/// | `crate` | a path | where this crate is, if it was renamed |
///
/// Something else is an error at the place where it stands, which says what would be valid.
///
/// `#[ignore]` and `#[should_panic]` are obeyed, above or below. Attributes that change the
/// function, such as `#[tokio::test]`, `#[rstest]` and `#[test_log::test]`, may stand above or
/// below too.
///
/// # Example
///
/// ```
/// #[childproof::test(timeout = "5s", grace = "1s")]
/// fn drains() -> std::io::Result<()> {
///     let mut server = std::process::Command::new("sleep").arg("600").spawn()?;
///     server.kill()?;
///     server.wait().map(drop)
/// }
/// ```
///
/// # Safety
///
/// The body runs in a forked process with one thread. It may fork in turn; code that caches the
/// pid of the process before `main` sees another one.
pub use childproof_macros::test;
pub use harness::Harness;
pub use lifeline::{Lifeline, Watch};
pub use policy::{Fds, Policy, ThreadedFork};

/// Makes the `main` of a test target with `harness = false`: a [`Harness`] with the tests of the
/// target and nothing else.
///
/// # Example
///
/// ```no_run
/// childproof::main!();
///
/// #[childproof::test]
/// fn restarts() {}
/// ```
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            $crate::Harness::new().run()
        }
    };
}

/// Not public API: what the attributes expand to.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __private {
    pub use crate::policy::{Fds, ThreadedFork};
    pub use crate::registry::{Attribute, Test};
    pub use childproof_macros::{__guard as guard, __test as test};
    pub use std::process::ExitCode;
    pub use std::time::Duration;

    /// Ends a body as `fn main` would end.
    pub fn report<T: std::process::Termination>(value: T) -> ExitCode {
        value.report()
    }
}
