//! A guarded test inside a stock `#[test]` target, whose harness is libtest.

use std::fs::File;
use std::io::IsTerminal;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::forkserver::{self, ForkServer, Takeover};
use crate::harness::{NEEDS_JUNIT, guard, say_that_no_xml_is_written};
use crate::outcome::Body;
use crate::policy::{self, Policy};
use crate::proc::process::Stat;
use crate::registry::Test;
use crate::report;
use crate::report::annotations::{self, Checkout};
use crate::supervisor::Job;
use crate::sys;
use crate::testproc::judge;

/// The run's fork server, started by its first guarded test. It ends with the harness: at its
/// `exit`, which waits for it, or when the lifeline is at end-of-file.
static SERVER: OnceLock<Result<ForkServer, String>> = OnceLock::new();
/// The harness, to tell it from what an unguarded test forks.
static HARNESS: AtomicU32 = AtomicU32::new(0);
static ENVIRONMENT: OnceLock<Result<Policy, String>> = OnceLock::new();
/// Whether this process was started by one of the guarded tests of this very program.
static IS_WITHIN: OnceLock<bool> = OnceLock::new();
static CAPTURES: Mutex<Vec<File>> = Mutex::new(Vec::new());

impl Test {
    /// Runs the test under guard, from the `#[test]` function of the same name.
    ///
    /// # Panics
    ///
    /// If the test failed: that is how libtest is told. The report is printed before.
    pub fn run_in_libtest(&'static self) {
        if *IS_WITHIN.get_or_init(Stat::has_own_guard_above) {
            return self.run_unguarded();
        }
        let name = self.full_name();
        // libtest's thread for a test has its name: it has not been called by some other test.
        let is_libtests = std::thread::current().name() == Some(&name);
        if is_libtests && self.has_run_before() {
            fail(&format!(
                "error: `{name}` is a test twice, by `#[test]` and by the `#[childproof::test]` below it: remove `#[test]`"
            ));
        }
        let server = SERVER.get_or_init(start);
        let environment =
            ENVIRONMENT.get_or_init(|| match policy::misspelt(std::env::vars_os().map(|(name, _)| name)) {
                Some(message) => Err(message),
                None => {
                    policy::from_environment(|name| std::env::var_os(name)).map_err(|bad| bad.to_string())
                }
            });
        let (server, environment) = match (server, environment) {
            (Ok(server), Ok(environment)) => (server, environment),
            (Err(error), _) | (_, Err(error)) => fail(&format!("error: {error}")),
        };
        let settings = environment.clone().over(&self.attribute.policy()).settle();
        let job = Job { index: self.index() as u64, name, settings };
        let (mut verdict, output) = guard(server, &job, shows_output(), &CAPTURES);
        verdict.form = self.attribute.form();
        verdict.obey(environment);
        // Printed and not written: libtest catches what is printed, and shows it with the test.
        if !output.is_empty() {
            print!("{output}");
        }
        let is_told = verdict.failed() || !verdict.warnings.is_empty();
        if is_told && !output.is_empty() && !output.ends_with('\n') {
            // The report begins with an empty line, and not with the end of this one.
            println!();
        }
        if verdict.failed() {
            let checkout = Checkout::of_runner(|name| std::env::var_os(name)).filter(|_| !prints_json());
            if let Some(checkout) = checkout {
                // Not behind a line of somebody's that has no end yet.
                println!("\n{}", annotations::annotation(&verdict, self.place, &checkout));
            }
            fail(&format!("\n{}", report::text::report(&verdict, has_colours())));
        }
        if let Some(warning) = report::text::warning(&verdict, has_colours()) {
            eprint!("\n{warning}");
        }
        if self.attribute.libtest_expects_panic {
            // The body panicked as it should, in another process; libtest waits for it in this one.
            let expected = self.attribute.should_panic.unwrap_or_default();
            std::panic::resume_unwind(Box::new(expected.to_owned()));
        }
    }

    /// Runs the test as libtest would. A test that runs its own binary again, to have a body in a process of
    /// its own, means that process by its exit code, its signals and its parent; and all that comes of it is
    /// guarded, with the test that has started it.
    fn run_unguarded(&self) {
        let expected = self.attribute.should_panic.filter(|_| !self.attribute.libtest_expects_panic);
        let Some(expected) = expected else {
            if (self.body)() != ExitCode::SUCCESS {
                fail("the test returned an error");
            }
            return;
        };
        match judge(catch_unwind(self.body), Some(expected)) {
            Body::PanickedAsExpected => {}
            Body::PanickedOtherwise { message } => {
                fail(&format!("the test panicked with {message:?}, which does not contain {expected:?}"))
            }
            _ => fail("the test did not panic as expected"),
        }
    }
}

fn start() -> Result<ForkServer, String> {
    const NEEDS_A_HARNESS: &str = "a target with `harness = false`";
    forkserver::second_net();
    say_that_no_xml_is_written(&if cfg!(feature = "junit") {
        format!("that needs {NEEDS_A_HARNESS}")
    } else {
        format!("{NEEDS_JUNIT}, and {NEEDS_A_HARNESS}")
    });
    let server = ForkServer::exec(Takeover::Late);
    HARNESS.store(std::process::id(), Ordering::Relaxed);
    sys::at_exit(end);
    server.map_err(|error| format!("cannot start the fork server: {error}"))
}

/// Leaves no process behind when libtest calls `exit`.
extern "C" fn end() {
    // Not in what an unguarded test forks.
    if HARNESS.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    if let Some(Ok(server)) = SERVER.get() {
        server.shut_down();
    }
}

/// Tells libtest, and the reader, without the words of a panic.
fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::panic::resume_unwind(Box::new("the test failed under childproof"));
}

/// Whether libtest was told to print JSON and nothing else.
fn prints_json() -> bool {
    argument("--format").as_deref() == Some("json")
}

/// Whether the report is to have colours, where libtest shows it: on its stdout, or on our stderr
/// if it does not catch that.
fn has_colours() -> bool {
    let terminal = || {
        if shows_output() { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() }
    };
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match argument("--color").as_deref() {
        Some("always") => !prints_json(),
        Some("never") => false,
        _ => {
            let capable = set("TERM").is_some_and(|term| term != "dumb");
            capable && set("NO_COLOR").is_none() && terminal() && !prints_json()
        }
    }
}

/// The value of one of libtest's arguments: `--name value` or `--name=value`.
fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(name) {
            Some("") => return arguments.next(),
            Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
            _ => {}
        }
    }
    None
}

/// Whether libtest was told not to catch the output.
fn shows_output() -> bool {
    let by_argument =
        std::env::args_os().any(|argument| argument == "--nocapture" || argument == "--no-capture");
    by_argument || std::env::var_os("RUST_TEST_NOCAPTURE").is_some_and(|value| value != "0")
}
