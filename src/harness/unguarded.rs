//! Runs tests unguarded, on systems other than Linux and under Miri.
//!
//! Each target says so once. `CHILDPROOF_REQUIRE=1` makes it an error.

use std::any::Any;
use std::cell::Cell;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::OnceLock;

use libtest_mimic::{Completion, Failed, Trial};

use super::bazel;
use super::builder::Harness;
use super::entries::{Entries, Entry, FILTERED, arguments, check, list_entry, now_in_nanoseconds, shuffle};
use super::say;
use crate::config::options::Options;
use crate::config::policy;
use crate::config::registry::{self, Test};

/// Why nothing is guarded here.
const WHY: &str = if cfg!(miri) {
    "Miri has no processes"
} else if cfg!(childproof_unguarded) {
    "it was built with `--cfg childproof_unguarded`"
} else {
    "this system is not Linux"
};

impl Harness {
    /// Runs the tests unguarded, as the command line says, and returns the exit code.
    ///
    /// The value is 0 if all was well, 101 if a test failed, 2 if arguments, environment or names were not valid
    /// or `CHILDPROOF_REQUIRE=1` asks for a guard.
    pub fn run(self) -> ExitCode {
        let Harness { added, .. } = self;
        let entries = Entries { registered: registry::registered(), added };
        let mut options = match Options::read(std::env::args_os(), |name| std::env::var_os(name)) {
            Ok(options) => options,
            Err(stop) => return say(&stop.message, stop.code),
        };
        if let Some(message) = policy::misspelt(std::env::vars_os().map(|(name, _)| name)) {
            return say(&format!("error: {message}\n"), 2);
        }
        if let Err(bad) = policy::from_environment(|name| std::env::var_os(name)) {
            return say(&format!("error: {bad}\n"), 2);
        }
        options.keep_shard(entries.iter().map(Entry::name));
        let _premature_exit = match bazel::begin(&options) {
            Ok(file) => file,
            Err(message) => return say(&format!("error: {message}\n"), 2),
        };
        let order = match check(&entries, &options) {
            Ok(order) => order,
            Err(message) => return say(&format!("error: {message}\n"), 2),
        };
        let arguments = arguments(&options);
        if options.list {
            let trials = order.iter().filter_map(|index| entries.get(*index));
            let _ = libtest_mimic::run(&arguments, trials.map(|entry| list_entry(entry, &options)).collect());
            return ExitCode::SUCCESS;
        }
        if let Err(message) = notice() {
            return say(&format!("error: {message}\n"), 2);
        }
        let entries = Arc::new(entries);
        let trials = order.iter().map(|index| trial(&entries, *index, &options)).collect();
        if libtest_mimic::run(&arguments, trials).has_failed() {
            ExitCode::from(101)
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// Whether an unguarded run is an error: `CHILDPROOF_REQUIRE` is set, and not to `0`.
fn requires_guard() -> bool {
    std::env::var_os("CHILDPROOF_REQUIRE").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Prints once per process that nothing is guarded.
///
/// # Errors
///
/// If the environment requires a guard.
fn notice() -> Result<(), String> {
    static SAID: OnceLock<Result<(), String>> = OnceLock::new();
    let say = || {
        if requires_guard() {
            return Err(format!(
                "`CHILDPROOF_REQUIRE` asks for guarded tests, and none can be guarded: {WHY}"
            ));
        }
        // Written directly: libtest captures `eprint!`.
        let _ = writeln!(io::stderr(), "childproof: the tests run unguarded: {WHY}");
        Ok(())
    };
    SAID.get_or_init(say).clone()
}

fn trial(entries: &Arc<Entries>, index: usize, options: &Options) -> Trial {
    let selected = entries.get(index).filter(|entry| entry.selected(options));
    let Some(name) = selected.map(Entry::name) else {
        return Trial::test(FILTERED, || Ok(()));
    };
    let left_out = selected.and_then(|entry| entry.left_out(options)).map(str::to_owned);
    let entries = Arc::clone(entries);
    Trial::ignorable_test(name, move || {
        if let Some(reason) = left_out {
            return Ok(Completion::ignored_with(reason));
        }
        let entry = entries.get(index).ok_or("there is no such test")?;
        let result = match entry {
            Entry::Registered(test) => catch_unwind(test.body),
            Entry::Added(added) => catch_unwind(AssertUnwindSafe(&added.body)),
        };
        judge(result, entry.should_panic()).map(|()| Completion::Completed).map_err(Failed::from)
    })
}

/// Judges the result of a body; `should_panic` is the text that an expected panic must contain.
fn judge(result: Result<ExitCode, Box<dyn Any + Send>>, should_panic: Option<&str>) -> Result<(), String> {
    match (result, should_panic) {
        (Ok(code), None) if code == ExitCode::SUCCESS => Ok(()),
        (Ok(_), None) => Err("the test returned an error".to_owned()),
        (Ok(_), Some(_)) => Err("the test did not panic as expected".to_owned()),
        (Err(payload), expected) => {
            let message = payload.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
            match expected {
                None => Err(format!("the test panicked: {message}")),
                Some(expected) if message.contains(expected) => Ok(()),
                Some(expected) => {
                    Err(format!("the test panicked with {message:?}, which does not contain {expected:?}"))
                }
            }
        }
    }
}

thread_local! {
    /// Set if the next call of a test's function on this thread runs its body.
    static IS_BODY: Cell<bool> = const { Cell::new(false) };
}

impl Test {
    /// Runs and judges the test if it must panic, and returns whether it did. If not, the function continues
    /// with its body.
    ///
    /// # Panics
    ///
    /// Like [`Test::run_in_libtest`].
    pub fn has_run_in_libtest(&'static self) -> bool {
        if IS_BODY.replace(false) {
            return false;
        }
        if self.attribute.should_panic.is_some() && !self.attribute.libtest_expects_panic {
            self.run_in_libtest();
            return true;
        }
        if let Err(message) = notice() {
            fail(&format!("error: {message}"));
        }
        false
    }

    /// Makes the next call of the test's function on this thread run its body.
    pub fn enter_body(&self) {
        IS_BODY.set(true);
    }

    /// Adds a test that another `#[test]` must make one of libtest's. Runs before `main`.
    pub fn register_guard(&'static self) {
        self.register();
    }

    /// Runs the test, unguarded, from the `#[test]` function of the same name.
    ///
    /// # Panics
    ///
    /// If the test failed, which tells libtest so.
    pub fn run_in_libtest(&'static self) {
        if let Err(message) = notice() {
            fail(&format!("error: {message}"));
        }
        let expected = self.attribute.should_panic.filter(|_| !self.attribute.libtest_expects_panic);
        let Some(expected) = expected else {
            // libtest judges a panic, with its message.
            if (self.body)() != ExitCode::SUCCESS {
                fail("the test returned an error");
            }
            return;
        };
        if let Err(message) = judge(catch_unwind(self.body), Some(expected)) {
            fail(&message);
        }
    }
}

/// Reports a failure to libtest, without a panic message.
fn fail(message: &str) -> ! {
    eprintln!("{message}");
    resume_unwind(Box::new("the test failed under childproof"));
}
