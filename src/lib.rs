//! Runs every test in a guarded process tree of its own, and fails it if it leaves a process or a
//! pipe behind.
//!
//! Put [`#[childproof::test]`](macro@test) where tests start processes, in place of `#[test]`. When the body
//! has ended, everything that it started must end too, within a grace of 200 ms, and every pipe that it
//! opened must be closed. Otherwise the test fails with a report that names the process, the call that it is
//! blocked in and the holders of both ends of each pipe. What is left is killed, also when the test, the
//! harness or cargo itself is killed in the middle.
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
//! The attribute works in stock targets, under `cargo test` and `cargo nextest run`. For a whole target of
//! such tests set `harness = false` and write [`main!`]; tests that are generated from data are added to a
//! [`Harness`], and a [`Policy`] sets what is checked. A [`Lifeline`] guards a child process of your own.
//!
//! The [`guide`] says how to read a report, and lists the variables of the environment.
//!
//! Tests are guarded on Linux 5.9 or newer. PLATFORM.md lists what cannot be guarded there. On other systems
//! and under Miri the crate compiles, its tests run unguarded, and each target says so once;
//! `CHILDPROOF_REQUIRE=1` makes that an error.
//!
//! # Features
//!
//! `json`: `--json PATH`, one object per test and line.
//!
//! `junit`: `--junit PATH` writes JUnit XML; so does Bazel's variable `XML_OUTPUT_FILE`.
//!
//! `sites`, on by default: reports name the lines of code that created what was left.

#![cfg_attr(
    not(all(target_os = "linux", not(miri), not(childproof_unguarded))),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "what guards is left out, and what it alone needs stays"
    )
)]
#![allow(clippy::test_attr_in_doctest, reason = "that is what this crate is about")]

// On other systems and under Miri, `harness` runs the tests unguarded, and says so.
mod config;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod diagnosis;
#[cfg(all(feature = "__engine", target_os = "linux", not(miri), not(childproof_unguarded)))]
mod engine;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod guard;
mod harness;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
pub mod lifeline;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod proc;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod recorder;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod report;
#[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
mod startup;
mod sys;

#[doc = include_str!("guide.md")]
pub mod guide {}

/// Guards a function that already has a foreign `#[test]` above or below it.
///
/// For attributes that must make the test themselves. Takes the arguments of [`test`](macro@test). It needs
/// libtest: in a `harness = false` target rustc silently drops a function below a `#[test]`. A guard that no
/// test reaches is an error: at compile time if that can be known, else at the end of a run of all tests.
///
/// # Example
///
/// ```
/// #[test]
/// #[childproof::guard(timeout = "5s")]
/// fn restarts() {}
/// ```
pub use childproof_macros::guard;
/// Sets what is checked in all tests of a target, and the time limits.
///
/// It takes the arguments of [`test`](macro@test), stands once at the root of the target, and works in both kinds of
/// target. The attribute of a test wins over it, and so does [`Harness::policy`]; lists add up.
///
/// It has one argument more, for stock targets: `unguarded = "warn"`, `"deny"` or `"allow"` is the verdict if tests without a
/// guard, as a plain `#[test]`, leave a process at the end of the run.
///
/// # Example
///
/// ```
/// childproof::policy!(timeout = "10s", fds = "all");
///
/// #[childproof::test]
/// fn restarts() {}
/// # fn main() {}
/// ```
pub use childproof_macros::policy;
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
/// | `processes` | `"deny"`, `"warn"`, `"allow"` | descendants that are alive after the grace fail the test |
/// | `allow_process` | a glob on the command line, repeatable | left behind, but expected |
/// | `fds` | `"pipes"`, `"all"`, `"off"` | which kinds of fds must be closed when the body has returned |
/// | `allow_created_by` | a path such as `"signal_hook_registry"`, repeatable | fds made there or below are expected |
/// | `unused_allowances` | `"allow"`, `"warn"`, `"deny"` | an `allow_process` or `allow_created_by` of the test's own that allowed nothing |
/// | `unwaited` | `"allow"`, `"deny"` | zombies: children that were not waited for |
/// | `threads` | `"allow"`, `"deny"` | threads that still run when the body returns |
/// | `threaded_fork` | `"warn"`, `"deny"`, `"allow"` | forks among threads whose child does not go straight on to exec |
/// | `isolation` | `"off"`, `"pidns"` | run it in a PID namespace, with which the kernel kills everything: see [`Isolation`] |
/// | `serial` | a key | tests with one key never run at the same time |
/// | `crate` | a path | where this crate is, if it was renamed |
///
/// The attributes of serial_test become `serial`: `#[serial(key)]` is `serial = "key"`, and so is `#[parallel(key)]`.
///
/// Anything else is an error at its place in the source, which says what would be valid.
///
/// `#[ignore]` and `#[should_panic]` are respected, above or below. Attributes that change the function, such
/// as `#[tokio::test]`, `#[rstest]` and `#[test_log::test]`, may also stand above or below.
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
pub use config::policy::{Fds, Isolation, Policy, ThreadedFork};
pub use harness::{Harness, shared};
#[cfg(unix)]
pub use sys::lifeline::{Lifeline, Watch};

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

/// Not public API: the code that the attributes expand to uses it.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __private {
    pub use crate::config::policy::{Fds, Isolation, Level, ThreadedFork};
    pub use crate::config::registry::{Attribute, Test, set_target_policy};
    pub use childproof_macros::{__guard as guard, __test as test};
    pub use std::process::ExitCode;
    pub use std::time::Duration;

    /// What the function of a test returns to libtest when the test has passed in its own process.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` cannot be made for a test that has passed",
        note = "a type that is called `Result` or `ExitCode` is taken for std's: give it another name for this test"
    )]
    pub trait Passed {
        fn passed() -> Self;
    }

    impl Passed for () {
        fn passed() {}
    }

    impl<T: Passed, E> Passed for Result<T, E> {
        fn passed() -> Self {
            Ok(T::passed())
        }
    }

    impl Passed for ExitCode {
        fn passed() -> Self {
            ExitCode::SUCCESS
        }
    }

    /// Makes the value that a passed test returns.
    pub fn passed<T: Passed>() -> T {
        T::passed()
    }

    /// Refuses the path of a module that is not the root of its crate.
    pub const fn only_at_the_root(module_path: &str) {
        let bytes = module_path.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(
                bytes[at] != b':',
                "`childproof::policy!` is for a whole target: put it at the root of the target, outside of modules"
            );
            at += 1;
        }
    }

    /// Ends a body as `fn main` would end.
    pub fn report<T: std::process::Termination>(value: T) -> ExitCode {
        value.report()
    }
}

/// Not public API: the engine of the command-line tool.
#[cfg(all(feature = "__engine", target_os = "linux", not(miri), not(childproof_unguarded)))]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod __engine {
    pub use crate::engine::*;
}
