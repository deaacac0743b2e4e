//! Runs a guarded test inside a stock `#[test]` target, with libtest as its harness.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::{Once, OnceLock};

use crate::config::bazel::XML_FILE;
use crate::config::policy::{self, Policy};
use crate::config::registry::{self, Test};
use crate::guard::client::ForkServer;
use crate::guard::messages::Job;
use crate::guard::report_page::Body;
use crate::guard::takeover::Takeover;
use crate::guard::test_process::judge;
use crate::harness::capture::Pool;
use crate::harness::failures::{self, Failures};
use crate::harness::run::{IS_DEBUG, NEEDS_JUNIT, guard, join, layout, say_that_no_xml_is_written};
use crate::harness::{serial, signals, stock_cut};
use crate::proc::process::Stat;
use crate::report::failure;
use crate::report::text::{self, Layout};
use crate::sys::{self, Mark};

/// The run's fork server, started by the first guarded test. It ends when the harness calls `exit`, which
/// waits for it, or at EOF of the lifeline.
static SERVER: OnceLock<Result<ForkServer, String>> = OnceLock::new();
/// Set in the harness. A process that an unguarded test forks has no mark, but may have the harness's pid: both are
/// the first of a PID namespace.
static HARNESS: Mark = Mark::new();
static ENVIRONMENT: OnceLock<Result<Policy, String>> = OnceLock::new();
/// See [`runs_unguarded`].
static IS_UNGUARDED: OnceLock<bool> = OnceLock::new();
static CAPTURES: Pool = Pool::new(Vec::new());

thread_local! {
    /// Set if the next call of a test's function on this thread runs its body.
    static IS_BODY: Cell<bool> = const { Cell::new(false) };
}

/// Says once that `CHILDPROOF_SHARED` is for other targets.
fn say_that_shared_has_no_effect() {
    static SAID: Once = Once::new();
    if policy::is_shared(|name| std::env::var_os(name)) {
        SAID.call_once(|| {
            // Written directly: libtest captures `eprint!`.
            let _ = writeln!(
                std::io::stderr(),
                "childproof: `CHILDPROOF_SHARED` is for `harness = false` targets and has no effect here; \
                 `cargo childproof test` runs the tests of this one on threads of one guarded process"
            );
        });
    }
}

impl Test {
    /// Runs the test under guard if libtest called its function, and returns whether it did. If not, the
    /// function continues with its body.
    ///
    /// # Panics
    ///
    /// Like [`Test::run_in_libtest`].
    pub fn has_run_in_libtest(&'static self) -> bool {
        self.reach();
        if IS_BODY.replace(false) || (runs_unguarded() && !self.judges_a_panic()) {
            return false;
        }
        self.run_in_libtest();
        true
    }

    /// Makes the next call of the test's function on this thread run its body.
    pub fn enter_body(&self) {
        IS_BODY.set(true);
    }

    /// Adds a test that another `#[test]` must make one of libtest's, and checks at the end of the run that
    /// one did. Runs before `main`.
    pub fn register_guard(&'static self) {
        self.register_in_libtest();
        if STARTED.get().is_none() {
            STARTED.prepare();
            STARTED.set();
            sys::at_exit(check_guards);
        }
    }

    /// Runs the test under guard, from the `#[test]` function of the same name.
    ///
    /// # Panics
    ///
    /// If the test failed, which tells libtest so. The report is printed before.
    pub fn run_in_libtest(&'static self) {
        self.reach();
        if runs_unguarded() {
            return self.run_unguarded();
        }
        let name = self.full_name();
        // libtest names a test's thread after the test: then no other test called the function.
        let is_libtests = std::thread::current().name() == Some(&name);
        if is_libtests && self.has_run_before() {
            fail(&self.is_twice(&name));
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
        say_that_shared_has_no_effect();
        static SIGNALS: Once = Once::new();
        SIGNALS.call_once(|| {
            signals::receive(|signal| stock_cut::cut(server, signal), || signals::inspect(server))
        });
        stock_cut::begin();
        let settings = environment.clone().over(&self.attribute.policy());
        let settings = settings.over(&registry::target_policy()).settle();
        let job = Job { index: self.index() as u64, name, settings };
        let slow = || {
            // libtest prints this in JSON itself, if it runs more than one test at once.
            if !prints_json() {
                println!("test {} has been running for over 60 seconds", job.name);
            }
        };
        let guarded = guard(server, &job, shows_output(), &CAPTURES, &slow);
        let Some((mut verdict, output)) = guarded else { stock_cut::not_begun() };
        verdict.syntax = self.attribute.syntax();
        verdict.drop_overridden_hints(environment);
        verdict.find_unused(&self.attribute.policy(), job.settings.unused_allowances);
        let is_said = text::is_ordinary_panic(&verdict) && (shows_output() || !output.is_empty());
        let report =
            verdict.failed().then(|| all_failures().add(&verdict, None, self.place, is_said, own_layout()));
        // Output that libtest has captured is lost if the run is cut.
        let error_line =
            if is_single() && !is_said { format!("{}\n", text::error_line(&verdict)) } else { String::new() };
        let kept = report.as_ref().filter(|_| !shows_output() || signals::cut_by().is_some()).map(|report| {
            let report = report.again(&verdict, layout_on_stderr());
            format!("{error_line}---- {} ----\n{}\n", job.name, join(&output, &report))
        });
        if verdict.keeps() {
            let report = report.as_ref().filter(|_| shows_output()).map_or("", |report| &report.text);
            stock_cut::keep(server, kept.unwrap_or_else(|| format!("{error_line}{report}")));
        }
        if kept.is_some() || !verdict.failed() {
            stock_cut::end(kept);
        }
        // Uses `print!`: libtest captures it, and shows it with the test.
        if !output.is_empty() {
            print!("{output}");
        }
        let is_reported = verdict.failed() || !verdict.warnings.is_empty();
        if is_reported && !output.is_empty() && !output.ends_with('\n') {
            // Ends the output's last line: the report begins with an empty one.
            println!();
        }
        if let Some(report) = report {
            if !is_said {
                eprintln!("\n{error_line}{}", report.text);
            }
            if shows_output() {
                stock_cut::end(None);
            }
            fail_silently();
        }
        all_failures().add_warnings(&verdict);
        if let Some(warning) = text::warning(&verdict, own_layout()) {
            eprint!("\n{warning}");
        }
        if self.attribute.libtest_expects_panic {
            // The body panicked as expected in another process; libtest expects the panic in this one.
            let expected = self.attribute.should_panic.unwrap_or_default();
            std::panic::resume_unwind(Box::new(expected.to_owned()));
        }
    }

    /// The message if libtest has run it a second time.
    fn is_twice(&self, name: &str) -> String {
        let Some(above) = self.attribute.above else {
            return format!(
                "error: `{name}` is a test twice, by `#[test]` and by the `#[childproof::test]` below it: remove `#[test]`"
            );
        };
        format!(
            "error: `{name}` is a test twice, by `#[{above}]`, which makes the `#[test]` itself, and by `#[childproof::test]`: \
             put `#[childproof::guard]` below `#[{above}]`, in place of `#[childproof::test]`"
        )
    }

    /// Whether childproof judges the panic, and not libtest.
    fn judges_a_panic(&self) -> bool {
        self.attribute.should_panic.is_some() && !self.attribute.libtest_expects_panic
    }

    /// Runs the test as libtest would. A test that runs its own binary again, to have a body in a process of
    /// its own, relies on the exit code, signals and parent of that process. All of its descendants are
    /// guarded with the test that started it.
    fn run_unguarded(&self) {
        let expected = self.attribute.should_panic.filter(|_| self.judges_a_panic());
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

/// Whether bodies run as plain tests: this process was started by a guarded test of the same program, or for a debugger.
fn runs_unguarded() -> bool {
    *IS_UNGUARDED.get_or_init(|| {
        let is_debug = policy::is_debug(|name| std::env::var_os(name));
        if is_debug {
            let _ = writeln!(std::io::stderr(), "{IS_DEBUG}");
        }
        is_debug || Stat::has_own_guard_above()
    })
}

fn start() -> Result<ForkServer, String> {
    const NEEDS_A_HARNESS: &str = "a target with `harness = false`";
    let is_xml_wanted = std::env::var_os(XML_FILE).is_some_and(|path| !path.is_empty());
    say_that_no_xml_is_written(
        is_xml_wanted,
        &if cfg!(feature = "junit") {
            format!("that needs {NEEDS_A_HARNESS}")
        } else {
            format!("{NEEDS_JUNIT}, and {NEEDS_A_HARNESS}")
        },
    );
    let server = ForkServer::exec(Takeover::Late, runs_one_test(arguments().skip(1)));
    // While the fork server starts.
    serial::sweep();
    HARNESS.prepare();
    HARNESS.set();
    sys::at_exit(end);
    server.map_err(|failure| format!("cannot start the fork server: {}", failure::words(&failure)))
}

/// Whether cargo-nextest has started this process for one test.
fn is_single() -> bool {
    std::env::var_os("NEXTEST").is_some() && runs_one_test(arguments().skip(1))
}

/// Whether libtest was told to run just one test, as by cargo-nextest. Then no other test is running that
/// might wait for all children of the process. `false` if there is an unknown argument.
fn runs_one_test(arguments: impl Iterator<Item = String>) -> bool {
    const FLAGS: [&str; 5] =
        ["--nocapture", "--no-capture", "--show-output", "--ignored", "--include-ignored"];
    let (mut is_exact, mut names) = (false, 0);
    for argument in arguments {
        match argument.as_str() {
            "--exact" => is_exact = true,
            flag if FLAGS.contains(&flag) => {}
            option if option.starts_with('-') => return false,
            _ => names += 1,
        }
    }
    is_exact && names == 1
}

/// The failures of guarded tests.
fn all_failures() -> &'static Failures {
    static FAILURES: OnceLock<Failures> = OnceLock::new();
    FAILURES.get_or_init(|| Failures::new(|name| std::env::var_os(name)))
}

/// Prints what the failures have in common: libtest's own output is complete by then, or the run is cut.
pub(super) fn end_failures() {
    if !prints_json() {
        let summary = all_failures().summary(shows_output(), None);
        // The end of libtest's last line, in a run that is cut.
        failures::print(if summary.is_empty() { "" } else { "\n" });
        failures::print(&summary);
    }
    if let Err(message) = all_failures().write_step_summary(is_single()) {
        let _ = writeln!(std::io::stderr(), "{message}");
    }
}

/// Ends the fork server when libtest calls `exit`.
extern "C" fn end() {
    // Not in a process that an unguarded test forked.
    if HARNESS.get().is_none() {
        return;
    }
    end_failures();
    if let Some(Ok(server)) = SERVER.get() {
        server.shut_down();
    }
}

/// Set in the process in which constructors registered guards, and not in its forks.
static STARTED: Mark = Mark::new();

/// Ends a run of all tests with an error if no test has reached a guard, because nothing made it a test.
extern "C" fn check_guards() {
    if STARTED.get().is_none() || !runs_all(arguments().skip(1)) {
        return;
    }
    let is_missing =
        |test: &&Test| test.attribute.needs_test && test.attribute.ignore.is_none() && !test.is_reached();
    let mut is_well = true;
    for test in registry::registered().into_iter().filter(|test| is_missing(test)) {
        let ((file, line), name) = (test.place, test.full_name());
        let why = match test.attribute.above.filter(|_| !test.attribute.is_guard) {
            Some(above) => format!("`#[{above}]` below `#[childproof::test]` has made no test of it"),
            None => {
                "it has `#[childproof::guard]`, and nothing makes it a test: write `#[childproof::test]` in \
                     place of that, or `#[test]` above it"
                    .to_owned()
            }
        };
        is_well = false;
        eprintln!("error: {file}:{line}: `{name}` never runs: {why}");
    }
    if !is_well {
        end();
        sys::exit_now(101);
    }
}

/// Whether libtest was told to run all tests that are not ignored. `false` if there is an unknown argument.
fn runs_all(mut arguments: impl Iterator<Item = String>) -> bool {
    const FLAGS: [&str; 10] = [
        "--nocapture",
        "--no-capture",
        "--show-output",
        "--include-ignored",
        "--test",
        "--quiet",
        "-q",
        "--report-time",
        "--shuffle",
        "--ensure-time",
    ];
    const OPTIONS: [&str; 6] = ["--test-threads", "--color", "--format", "--logfile", "-Z", "--shuffle-seed"];
    while let Some(argument) = arguments.next() {
        let name = argument.split('=').next().unwrap_or_default();
        if OPTIONS.contains(&name) {
            if name == argument {
                arguments.next();
            }
        } else if !FLAGS.contains(&argument.as_str()) && !argument.starts_with("-Z") {
            return false;
        }
    }
    // The filter of Bazel.
    std::env::var_os("TESTBRIDGE_TEST_ONLY").is_none()
}

/// Fails the test with a message, without a panic message.
fn fail(message: &str) -> ! {
    eprintln!("{message}");
    fail_silently();
}

/// The same without a message, where the report has been printed.
fn fail_silently() -> ! {
    std::panic::resume_unwind(Box::new("the test failed under childproof"));
}

/// The layout of a report that libtest shows.
fn own_layout() -> Layout {
    layout(has_colours(), if shows_output() { 2 } else { 1 })
}

/// The layout of a report on stderr, where libtest does not capture it.
pub(super) fn layout_on_stderr() -> Layout {
    layout(std::io::stderr().is_terminal() && has_colours(), 2)
}

/// Whether libtest was told to print JSON and nothing else.
fn prints_json() -> bool {
    argument("--format").as_deref() == Some("json")
}

/// Whether a report that libtest shows is coloured: it appears on libtest's stdout, or on stderr if that is
/// not captured.
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

fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())
}

/// The value of one of libtest's arguments: `--name value` or `--name=value`.
fn argument(name: &str) -> Option<String> {
    let mut arguments = arguments();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(name) {
            Some("") => return arguments.next(),
            Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
            _ => {}
        }
    }
    None
}

/// Whether libtest was told not to capture the output.
fn shows_output() -> bool {
    let by_argument =
        std::env::args_os().any(|argument| argument == "--nocapture" || argument == "--no-capture");
    by_argument || std::env::var_os("RUST_TEST_NOCAPTURE").is_some_and(|value| value != "0")
}

#[cfg(test)]
mod tests {
    use super::{runs_all, runs_one_test};

    #[test]
    fn all_tests_run_where_no_argument_leaves_one_out() {
        let all = |line: &str| runs_all(line.split_whitespace().map(str::to_owned));
        for line in [
            "",
            "--test-threads 2",
            "--test-threads=2 --nocapture",
            "-q --color always",
            "-Zunstable-options",
        ] {
            assert!(all(line), "{line}");
        }
        for line in ["a", "--skip a", "--ignored", "--list", "--exact", "--bench", "--help"] {
            assert!(!all(line), "{line}");
        }
    }

    #[test]
    fn one_test_is_an_exact_name_and_nothing_that_is_not_known() {
        let one = |line: &str| runs_one_test(line.split_whitespace().map(str::to_owned));
        assert!(one("--exact a::b --nocapture"));
        assert!(one("a::b --exact --ignored"));
        for line in ["", "a::b", "--exact", "--exact a b", "--exact a --test-threads 2", "--exact a --skip b"]
        {
            assert!(!one(line), "{line}");
        }
    }
}
