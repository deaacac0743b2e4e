//! The harness of a `harness = false` target: arguments, trials, libtest-mimic.
//!
//! Longer than 600 lines: the whole of a run, from its options to its exit code.

use std::fs::File;
use std::io::{self, Write};
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, FormatSetting, Trial};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::bazel;
use super::builder::{Added, Harness};
use super::capture::{self, Capture, Pool};
use super::entries::{Entries, Entry, FILTERED, arguments, check, list_entry, now_in_nanoseconds, shuffle};
use super::failures::Failures;
use super::fixtures::Fixtures;
#[cfg(not(feature = "junit"))]
use super::no_junit::Junit;
use super::outputs::{self, TargetNames};
use super::shared::{self, Shared};
use super::{say, serial, signals};
use crate::config::bazel::{not_passed_on, temp_dir};
use crate::config::options::Options;
use crate::config::policy::{self, Policy};
use crate::config::registry;
use crate::config::registry::Test;
use crate::diagnosis::{self, Verdict};
use crate::guard::client::{ForkServer, Progress};
use crate::guard::facts::Facts;
use crate::guard::failure::GuardFailure;
use crate::guard::messages::Job;
use crate::guard::panics::Name;
use crate::guard::takeover::{self, Called, Takeover};
use crate::guard::test_process::{TestProcess, judge as judge_body};
use crate::proc::process::Stat;
use crate::recorder::call_site::Names;
#[cfg(feature = "sites")]
use crate::recorder::symbols::{self, Threads};
#[cfg(feature = "json")]
use crate::report;
use crate::report::escape;
use crate::report::failure;
#[cfg(feature = "junit")]
use crate::report::junit::Junit;
use crate::report::text::{self, Layout};
use crate::report::words::plural;
use crate::sys;
use crate::sys::lock::lock;

impl Harness {
    /// Runs the tests as the command line says, and returns the exit code.
    ///
    /// The value is 0 if all was well, 101 if a test failed, 2 if arguments, environment or names were not
    /// valid or a file could not be written. Call it before any thread is started: a threaded process cannot
    /// be forked safely, so the harness then starts its tests in a slower way.
    #[allow(clippy::too_many_lines, reason = "the way of a run from its arguments to its exit code")]
    pub fn run(self) -> ExitCode {
        let Harness { policy, added, shared } = self;
        // In the order of registration. Work that allocates, such as sorting, waits until the fork server has
        // been started: memory that was written before is copied for every test.
        let entries = Entries { registered: registry::registered(), added };
        match takeover::called() {
            Called::Harness => {}
            // `main` continues to the call that this process was started for.
            Called::TooEarly => return ExitCode::SUCCESS,
            Called::Test(mut test) => {
                // `main` has run since the fork; the fds that it opened are not the body's.
                test.rebase();
                let known = entries.get(test.index());
                let known =
                    known.is_some_and(|entry| registry::name_hash(&[&entry.name()]) == test.name_hash());
                if !known {
                    // The added tests are not the same ones as before.
                    sys::exit_now(1);
                }
                run_body(&test, &entries.registered, &entries.added);
            }
        }
        let mut options = match Options::read(std::env::args_os(), |name| std::env::var_os(name)) {
            Ok(options) => options,
            Err(stop) => return say(&stop.message, stop.code),
        };
        if let Some(message) = policy::misspelt(std::env::vars_os().map(|(name, _)| name)) {
            return say(&format!("error: {message}\n"), 2);
        }
        match policy::from_environment(|name| std::env::var_os(name)) {
            Ok(environment) => options.policy = options.policy.over(&environment),
            Err(bad) => return say(&format!("error: {bad}\n"), 2),
        }
        options.keep_shard(entries.iter().map(Entry::name));
        let _premature_exit = match bazel::begin(&options) {
            Ok(file) => file,
            Err(message) => return say(&format!("error: {message}\n"), 2),
        };
        // Where it has threads, the fork server is another program, which gets its own environment.
        if not_passed_on().any(|name| std::env::var_os(name).is_some()) && !sys::is_threaded() {
            not_passed_on().collect::<Vec<_>>().into_iter().for_each(sys::remove_env);
        }
        let (registered, added) = (&entries.registered[..], &entries.added[..]);
        let is_debug = policy::is_debug(|name| std::env::var_os(name));
        let fixtures =
            match (!options.list).then(|| Fixtures::start(shared, &entries, &options, &policy)).transpose() {
                Ok(fixtures) => fixtures.unwrap_or_default(),
                Err(message) => return say(&format!("error: {message}\n"), 2),
            };
        let suite =
            match (options.shared && !options.list).then(|| Shared::new(&entries, &options)).transpose() {
                Ok(suite) => suite,
                Err(message) => return say(&format!("error: {message}\n"), 2),
            };
        let run = |test: &TestProcess| match &suite {
            Some(suite) if test.is_suite() => suite.run(test, &entries),
            _ => run_body(test, registered, added),
        };
        let start = || start(&run, &fixtures.fds());
        let server = match (!options.list && !is_debug).then(start).transpose() {
            Ok(server) => server,
            Err(failure) => {
                let why = failure::words(&failure);
                return say(&format!("error: cannot start the fork server: {why}\n"), 2);
            }
        };
        let order = match check(&entries, &options) {
            Ok(order) => order,
            Err(message) => {
                server.iter().for_each(ForkServer::shut_down);
                return say(&format!("error: {message}\n"), 2);
            }
        };
        let arguments = arguments(&options);
        if is_debug && !options.list {
            return run_for_debugger(&entries, &order, &options);
        }
        let Some(server) = server else {
            let entries = order.iter().filter_map(|index| entries.get(*index));
            let trials = entries.map(|entry| list_entry(entry, &options)).collect();
            let _ = libtest_mimic::run(&arguments, trials);
            return ExitCode::SUCCESS;
        };
        let is_xml_wanted = options.bazel.xml_file.is_some();
        if cfg!(not(feature = "junit")) {
            say_that_no_xml_is_written(is_xml_wanted, NEEDS_JUNIT);
        } else if options.is_nextests && options.junit.is_none() {
            say_that_no_xml_is_written(
                is_xml_wanted,
                "cargo-nextest runs each test by itself, and each would replace the file of the one before. It can \
                 write JUnit's XML of all of them: `[profile.default.junit]` in its configuration",
            );
        }
        let names = TargetNames::of_self();
        let files = match Files::open(&mut options, &names) {
            Ok(files) => files,
            Err(message) => {
                server.shut_down();
                return say(&message, 2);
            }
        };
        let run = Arc::new(Run {
            entries,
            order,
            policy,
            options,
            server,
            suite,
            json: files.json.map(Mutex::new),
            junit: files.junit.map(Mutex::new),
            failures: Failures::new(|name| std::env::var_os(name)),
            failed: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            not_begun: AtomicUsize::new(0),
            pass_notes: Mutex::new(Vec::new()),
            warnings: Mutex::new(Vec::new()),
            captures: Pool::default(),
        });
        let cut = Arc::clone(&run);
        let inspected = Arc::clone(&run);
        signals::receive(move |signal| cut.cut(signal), move || signals::inspect(&inspected.server));
        // Rust ignores SIGPIPE, so libtest-mimic would panic when `| head` has closed the pipe.
        sys::default_signal(nix::libc::SIGPIPE);
        let mut failed = rounds(&run, &arguments);
        sys::ignore_signal(nix::libc::SIGPIPE);
        run.server.shut_down();
        failed |= fixtures.end(&run.options, &|verdict| {
            run.write_json(|| verdict_line(verdict, None));
            run.write_junit(|junit| junit.ran(verdict, "", None));
        });
        if let Some(signal) = signals::cut_by() {
            run.end_cut(signal);
        }
        run.write_step_summary();
        if let Some(Err(error)) = run.finish_junit() {
            return say(&cannot_write(&run.options, &error), if failed { 101 } else { 2 });
        }
        if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
    }
}

/// The machine-readable reports of a run.
struct Files {
    json: Option<File>,
    junit: Option<Junit>,
}

impl Files {
    /// Opens the files of the options, and stores the resolved paths in them; the error is a message.
    fn open(options: &mut Options, names: &TargetNames) -> Result<Files, String> {
        let json = options.json.iter().map(|path| ("--json ", path));
        for (option, path) in json.chain(options.junit.iter().map(|(option, path)| (*option, path))) {
            if let Some(word) = TargetNames::unknown(path) {
                let path = path.display();
                return Err(format!(
                    "error: unknown `{word}` in `{option}{path}`: expected `{{package}}` or `{{binary}}`\n"
                ));
            }
        }
        let json = options.json.as_mut().map(|path| {
            *path = outputs::resolve("--json ", path, names);
            let opened = File::create(&*path);
            opened.map_err(|error| format!("error: cannot write `--json {}`: {error}\n", path.display()))
        });
        let json = json.transpose()?;
        let junit = options.junit.as_mut().map(|(option, path)| {
            *path = outputs::resolve(option, path, names);
            Junit::create(path, &names.binary)
        });
        let junit = junit.transpose().map_err(|error| cannot_write(options, &error))?;
        Ok(Files { json, junit })
    }
}

fn cannot_write(options: &Options, error: &io::Error) -> String {
    let (place, path) = options.junit.clone().unwrap_or_default();
    format!("error: cannot write `{place}{}`: {error}\n", path.display())
}

/// Runs the body that this process was forked for.
///
/// Indexes slices and calls as little as possible; see [`crate::sys::entrance`].
fn run_body(test: &TestProcess, registered: &[&'static Test], added: &[Added]) -> ! {
    let at = test.index();
    if at < registered.len() {
        let found = registered[at];
        test.run(Name::Registered(found), found.body, found.attribute.should_panic)
    }
    let at = at - registered.len();
    if at < added.len() {
        // The process ends without returning.
        let name = Box::leak(added[at].name.clone());
        test.run(Name::Added(name), &added[at].body, None)
    }
    sys::exit_now(1)
}

/// What a run under a debugger says.
pub(crate) const IS_DEBUG: &str =
    "childproof: `CHILDPROOF_DEBUG` is set: the test runs in this process, unguarded and without a timeout";

/// Runs one test in this process, and returns the exit code.
fn run_for_debugger(entries: &Entries, order: &[usize], options: &Options) -> ExitCode {
    let selected = order.iter().filter_map(|index| entries.get(*index));
    let selected: Vec<Entry<'_>> = selected.filter(|entry| entry.selected(options)).collect();
    let [entry] = selected[..] else {
        let count = plural(selected.len(), "test");
        let message =
            format!("error: `CHILDPROOF_DEBUG` is set, and {count} selected: select one by `--exact NAME`\n");
        return say(&message, 2);
    };
    eprintln!("{IS_DEBUG}");
    let result = match entry {
        Entry::Registered(test) => catch_unwind(test.body),
        Entry::Added(added) => catch_unwind(AssertUnwindSafe(&added.body)),
    };
    let has_passed = judge_body(result, entry.should_panic()).has_passed();
    println!("test {} ... {}", entry.name(), if has_passed { "ok" } else { "FAILED" });
    if has_passed { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Starts the fork server in the way that is safe here.
fn start(run: &dyn Fn(&TestProcess), others: &[RawFd]) -> Result<ForkServer, GuardFailure> {
    let server = match Stat::of_self().map(|stat| stat.threads) {
        Some(1) => ForkServer::fork(run, others),
        threads => {
            let threads =
                threads.map_or_else(|| "an unknown number of".to_owned(), |threads| threads.to_string());
            eprintln!(
                "childproof: the process has {threads} threads already, so tests start by exec: \
                 call `Harness::run` before any thread is started to start them by fork"
            );
            ForkServer::exec(Takeover::Early, false)
        }
    };
    // While the fork server starts.
    serial::sweep();
    server
}

/// The state that all tests of one run share.
pub(super) struct Run {
    pub(super) entries: Entries,
    /// The order of the tests, if they are not shuffled.
    order: Vec<usize>,
    policy: Policy,
    pub(super) options: Options,
    pub(super) server: ForkServer,
    /// `Some` if all tests run on threads of one process.
    pub(super) suite: Option<Shared>,
    json: Option<Mutex<File>>,
    junit: Option<Mutex<Junit>>,
    failures: Failures,
    pub(super) failed: AtomicBool,
    /// Whether what a test left is kept.
    keeps: AtomicBool,
    /// How many rounds have begun.
    rounds: AtomicU64,
    /// How many tests had not started when the run was cut.
    not_begun: AtomicUsize,
    /// Times, and output of passed tests: printed after the results.
    pass_notes: Mutex<Vec<(String, Duration, String)>>,
    /// The warnings of passed tests, printed after those.
    warnings: Mutex<Vec<String>>,
    /// Empty capture files, ready for the next test.
    pub(super) captures: Pool,
}

/// Runs all rounds of the tests; returns whether a test failed.
fn rounds(run: &Arc<Run>, arguments: &Arguments) -> bool {
    let options = &run.options;
    let chatty = options.format != Some(FormatSetting::Json);
    let mut failed = false;
    for round in 1..=options.repeat {
        run.rounds.store(round, Ordering::Relaxed);
        if let Some(round) = run.round(round).filter(|_| chatty) {
            println!("\n{round}");
        }
        let mut order = run.order.clone();
        if let Some(seed) = options.shuffle {
            let seed = seed.unwrap_or_else(now_in_nanoseconds).wrapping_add(round - 1);
            if chatty {
                println!("\nshuffle seed: {seed}");
            }
            shuffle(&mut order, seed);
        }
        let suite = run.suite.is_some().then(|| Arc::new(shared::Round::new(run, &order)));
        let mut trials: Vec<Trial> =
            order.into_iter().map(|index| trial(run, index, round, suite.as_ref())).collect();
        trials.extend(suite.as_ref().and_then(|suite| shared::trial(run, suite, round)));
        failed |= libtest_mimic::run(arguments, trials).has_failed();
        if let Some(suite) = suite.filter(|_| chatty && (failed || options.show_output)) {
            suite.show_output();
        }
        if chatty {
            run.show_pass_notes();
        }
        if failed && (options.fail_fast || options.until_failure)
            || run.keeps.load(Ordering::Acquire)
            || signals::cut_by().is_some()
        {
            break;
        }
    }
    if chatty && signals::cut_by().is_none() {
        run.show_summary();
    }
    failed
}

fn trial(run: &Arc<Run>, index: usize, round: u64, suite: Option<&Arc<shared::Round>>) -> Trial {
    let selected = run.entries.get(index).filter(|entry| entry.selected(&run.options));
    let Some(name) = selected.map(Entry::name) else {
        return Trial::test(FILTERED, || Ok(()));
    };
    let (run, suite) = (Arc::clone(run), suite.cloned());
    Trial::ignorable_test(name, move || run.one(index, round, suite.as_deref()))
}

/// Why a test does not run after a failure.
pub(super) const FAILED_BEFORE: &str = "a test failed before it, and --fail-fast is set";
/// Why a test does not run after one whose processes are kept.
const KEPT_BEFORE: &str = "what a test before it has left is kept";

impl Run {
    /// Runs one test, from the queue to the report.
    fn one(&self, index: usize, round: u64, suite: Option<&shared::Round>) -> Result<Completion, Failed> {
        let entry = self.entries.get(index).ok_or("there is no such test")?;
        let name = entry.name();
        if let Some(reason) = entry.left_out(&self.options) {
            self.write_json(|| ignored_line(&name));
            self.write_junit(|junit| junit.skipped(&name, reason));
            return Ok(if reason.is_empty() {
                Completion::ignored()
            } else {
                Completion::ignored_with(escape::text(reason))
            });
        }
        if let Some(suite) = suite {
            return match suite.result_of(self, index) {
                shared::TestResult::Judged(verdict) => self.finish(entry, *verdict, "", round),
                shared::TestResult::NotBegunBeforeCut => Ok(self.pass_over_as_cut(&name)),
                shared::TestResult::NotJudged(reason) => Ok(self.pass_over(&name, &reason)),
            };
        }
        if signals::cut_by().is_some() {
            return Ok(self.pass_over_as_cut(&name));
        }
        if self.options.fail_fast && self.failed.load(Ordering::Acquire) {
            return Ok(self.pass_over(&name, FAILED_BEFORE));
        }
        if self.keeps.load(Ordering::Acquire) {
            return Ok(self.pass_over(&name, KEPT_BEFORE));
        }
        let settings = self.policy_with(&entry.policy()).settle();
        let job = Job { index: index as u64, name, settings };
        let slow = || println!("{}", slow_line(&job.name, self.options.format));
        let Some((verdict, output)) =
            guard(&self.server, &job, self.options.no_capture, &self.captures, &slow)
        else {
            return Ok(self.pass_over_as_cut(&job.name));
        };
        self.finish(entry, verdict, &output, round)
    }

    /// All layers of the policy of a test whose own is `own`.
    pub(super) fn policy_with(&self, own: &Policy) -> Policy {
        self.options.policy.clone().over(own).over(&self.policy).over(&registry::target_policy())
    }

    /// Writes the verdict on a test to the files, and gives its report.
    fn finish(
        &self,
        entry: Entry<'_>,
        mut verdict: Verdict,
        output: &str,
        round: u64,
    ) -> Result<Completion, Failed> {
        verdict.syntax = entry.syntax();
        verdict.drop_overridden_hints(&self.options.policy);
        let own = entry.policy();
        verdict.find_unused(&own, self.policy_with(&own).settle().unused_allowances);
        self.record(&verdict, output, round);
        if verdict.failed() {
            self.failed.store(true, Ordering::Release);
            self.note_kept(&verdict);
            self.keep_pass_note(&verdict, "");
            // libtest-mimic removes the colours where they are not wanted.
            let colour = self.options.format != Some(FormatSetting::Json);
            let is_said =
                text::is_ordinary_panic(&verdict) && (self.options.no_capture || !output.is_empty());
            let layout = layout(colour, 1);
            let report =
                self.failures.add(&verdict, self.round(round).as_deref(), entry.place(), is_said, layout);
            if self.options.is_nextests && !is_said {
                let _ = writeln!(io::stderr(), "{}", text::error_line(&verdict));
            }
            return Err(Failed::from(join(output, &report.text)));
        }
        self.keep_pass_note(&verdict, output);
        if !verdict.warnings.is_empty() {
            self.failures.add_warnings(&verdict);
            bazel::warn(&self.options, &text::warning_lines(&verdict));
            lock(&self.warnings).extend(text::warning(&verdict, layout(self.options.coloured(), 1)));
        }
        Ok(Completion::Completed)
    }

    /// Ends the run after this test, if what it left is kept.
    pub(super) fn note_kept(&self, verdict: &Verdict) {
        self.keeps.fetch_or(verdict.keeps(), Ordering::AcqRel);
    }

    /// Writes a verdict to the files of the run.
    pub(super) fn record(&self, verdict: &Verdict, output: &str, round: u64) {
        let captured = (!self.options.no_capture).then_some(output);
        self.write_json(|| verdict_line(verdict, captured));
        self.write_junit(|junit| junit.ran(verdict, output, self.round(round).as_deref()));
    }

    /// The name of a round, if there are several.
    fn round(&self, round: u64) -> Option<String> {
        match self.options.repeat {
            1 => None,
            u64::MAX => Some(format!("round {round}")),
            all => Some(format!("round {round} of {all}")),
        }
    }

    fn pass_over_as_cut(&self, name: &str) -> Completion {
        self.not_begun.fetch_add(1, Ordering::Relaxed);
        self.pass_over(name, "the run was cut before it began")
    }

    /// Records that a selected test is not run, or not judged.
    pub(super) fn pass_over(&self, name: &str, reason: &str) -> Completion {
        self.write_json(|| ignored_line(name));
        self.write_junit(|junit| junit.skipped(name, reason));
        Completion::ignored_with(reason)
    }

    /// Has the running tests inspected and killed. No other test starts, so the run ends by itself and prints
    /// their reports; if it does not, this ends the process.
    fn cut(&self, signal: i32) {
        self.server.cut();
        let until = Instant::now() + signals::LIMIT;
        while Instant::now() < until {
            sys::interrupt_waits();
            thread::sleep(signals::AGAIN);
        }
        let _ = writeln!(
            io::stderr(),
            "childproof: the tests did not end within {} s of the signal, and what they left is killed without a report",
            signals::LIMIT.as_secs()
        );
        self.end_cut(signal);
    }

    /// Prints that the run was cut, completes its files and ends the process by the signal.
    fn end_cut(&self, signal: i32) -> ! {
        let not_begun = match self.not_begun.load(Ordering::Relaxed) {
            0 => String::new(),
            count => format!("; {} had not begun", plural(count, "test")),
        };
        let line = signals::last_line(signal, &not_begun);
        if self.options.format == Some(FormatSetting::Json) {
            let _ = writeln!(io::stderr(), "{line}");
        } else {
            self.show_summary();
            let _ = writeln!(io::stdout(), "{line}");
        }
        let _ = io::stdout().flush();
        self.write_step_summary();
        if let Some(Err(error)) = self.finish_junit() {
            let _ = writeln!(io::stderr(), "{}", cannot_write(&self.options, &error).trim_end());
        }
        sys::end_by_signal(signal)
    }

    fn write_json(&self, line: impl FnOnce() -> String) {
        let Some(json) = &self.json else { return };
        let mut line = line();
        line.push('\n');
        let mut json = lock(json);
        if let Err(error) = json.write_all(line.as_bytes()) {
            eprintln!("childproof: cannot write the JSON of a test: {error}");
        }
    }

    fn write_junit(&self, add: impl FnOnce(&mut Junit)) {
        if let Some(junit) = &self.junit {
            add(&mut lock(junit));
        }
    }

    fn finish_junit(&self) -> Option<io::Result<()>> {
        let junit = self.junit.as_ref()?;
        Some(lock(junit).write(&self.failures.groups()))
    }

    fn write_step_summary(&self) {
        if let Err(message) = self.failures.write_step_summary(self.options.is_nextests) {
            let _ = writeln!(io::stderr(), "{message}");
        }
    }

    fn keep_pass_note(&self, verdict: &Verdict, output: &str) {
        if !self.options.show_output && !self.options.report_time {
            return;
        }
        let left = text::pass_note(verdict).filter(|_| !verdict.failed()).unwrap_or_default();
        let shown = join(output, &left);
        let mut notes = lock(&self.pass_notes);
        notes.push((verdict.name.clone(), verdict.facts.time, shown));
    }

    fn show_pass_notes(&self) {
        let mut notes = lock(&self.pass_notes);
        let mut out = io::stdout().lock();
        if self.options.show_output {
            for (name, _, shown) in notes.iter().filter(|(_, _, shown)| !shown.is_empty()) {
                let _ = writeln!(out, "---- {name} ----\n{shown}\n");
            }
        }
        if self.options.report_time {
            let _ = writeln!(out, "times:");
            for (name, time, _) in notes.iter() {
                let _ = writeln!(out, "    {name} <{:.3}s>", time.as_secs_f64());
            }
        }
        notes.clear();
        for warning in lock(&self.warnings).drain(..) {
            let _ = writeln!(out, "{warning}");
        }
    }

    fn show_summary(&self) {
        let rounds = (self.options.repeat > 1).then(|| self.rounds.load(Ordering::Relaxed));
        let _ = io::stdout().lock().write_all(self.failures.summary(true, rounds).as_bytes());
    }
}

#[cfg(feature = "json")]
fn verdict_line(verdict: &Verdict, output: Option<&str>) -> String {
    report::json::line(verdict, output)
}

#[cfg(feature = "json")]
fn ignored_line(name: &str) -> String {
    report::json::ignored(name)
}

// `check` has refused `--json` before.
#[cfg(not(feature = "json"))]
fn verdict_line(_: &Verdict, _: Option<&str>) -> String {
    String::new()
}

#[cfg(not(feature = "json"))]
fn ignored_line(_: &str) -> String {
    String::new()
}

/// The message that a test is slow, as libtest prints it in each of its formats.
pub(super) fn slow_line(name: &str, format: Option<FormatSetting>) -> String {
    match format {
        Some(FormatSetting::Json) => {
            // A name contains no control characters: `check` has refused them.
            let name = name.replace('\\', "\\\\").replace('"', "\\\"");
            format!(r#"{{ "type": "test", "event": "timeout", "name": "{name}" }}"#)
        }
        _ => format!("test {name} has been running for over 60 seconds"),
    }
}

/// The error for an option that needs the feature `junit`.
pub(crate) const NEEDS_JUNIT: &str = "that needs childproof's feature `junit`, which is off in this build";

/// Prints that Bazel's variable has no effect, and why. Bazel sets it for every test, so it is not an error.
pub(crate) fn say_that_no_xml_is_written(is_wanted: bool, why: &str) {
    if is_wanted {
        // Written and not printed: libtest catches what is printed.
        let _ = writeln!(
            io::stderr(),
            "childproof: `XML_OUTPUT_FILE` is set and nothing is written there: {why}"
        );
    }
}

/// The output of the body, followed by the report.
pub(crate) fn join(output: &str, ours: &str) -> String {
    match (output.trim_end_matches('\n'), ours) {
        ("", ours) => ours.to_owned(),
        (output, "") => output.to_owned(),
        (output, ours) => format!("{output}\n\n{ours}"),
    }
}

/// The layout of a report on `fd`, which may be a terminal.
pub(crate) fn layout(colour: bool, fd: i32) -> Layout {
    Layout::new(colour, std::env::var("COLUMNS").ok().as_deref(), sys::terminal_width(&sys::borrow(fd)))
}

/// Runs one test under guard. Returns its verdict, and its output if that was captured; `None` if the run was
/// cut before the test's turn.
pub(crate) fn guard(
    server: &ForkServer,
    job: &Job,
    no_capture: bool,
    captures: &Pool,
    slow: &dyn Fn(),
) -> Option<(Verdict, String)> {
    let unguarded = |failure| Some((judge(job, Facts::unguarded(failure)), String::new()));
    let turn = job.settings.serial.as_deref().map(|key| sys::interruptible(|| serial::wait(key)));
    if turn.is_some() && signals::cut_by().is_some() {
        return None;
    }
    let turn = match turn.transpose() {
        Ok(turn) => turn,
        Err(error) => return unguarded(GuardFailure::WaitForSerialKey { error: error.into() }),
    };
    let turn = turn.as_ref().map(AsFd::as_fd);
    let (facts, output) = observe(server, job, turn, no_capture, captures, slow);
    let mut verdict = judge(job, facts);
    if !verdict.keeps() && !verdict.facts.kept.is_empty() {
        server.kill_held(verdict.facts.session);
        verdict.facts.set_killed();
    }
    if !no_capture {
        verdict.add_output(&output, capture::limit());
    }
    Some((verdict, output))
}

/// Runs one job under guard, with the lock of its serial key if it has one. Returns what was observed, and the output if
/// that was captured. What is kept must not keep a reader of this process's own output waiting, so then it is captured in any
/// case, and printed afterwards.
pub(super) fn observe(
    server: &ForkServer,
    job: &Job,
    turn: Option<BorrowedFd<'_>>,
    no_capture: bool,
    captures: &Pool,
    slow: &dyn Fn(),
) -> (Facts, String) {
    let progress = |progress| match progress {
        Progress::Slow => slow(),
        #[cfg(feature = "sites")]
        Progress::Looking => symbols::get_ready(registered(job)),
        #[cfg(not(feature = "sites"))]
        Progress::Looking => {}
        Progress::Inspected(facts) => signals::show(&judge(job, *facts)),
        Progress::Traced => signals::say_that_it_is_traced(&job.name),
        Progress::NotIsolated(why) => signals::say_that_it_is_not_isolated(&why),
    };
    if no_capture && !job.settings.keep {
        let own = [sys::borrow(1), sys::borrow(2)];
        let fds: Vec<BorrowedFd<'_>> = own.into_iter().chain(turn).collect();
        let flags = own.map(|fd| fcntl(fd, FcntlArg::F_GETFL));
        let facts = server.run(job, &fds, &progress);
        // All processes that share the file share its flags: the harness, the next test, and a shell.
        for (fd, flags) in own.into_iter().zip(flags) {
            if let Ok(flags) = flags
                && fcntl(fd, FcntlArg::F_GETFL) != Ok(flags)
            {
                let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags)));
            }
        }
        return (facts, String::new());
    }
    let capture = match Capture::new(captures) {
        Ok(capture) => capture,
        Err(error) => {
            let directory = temp_dir().display().to_string();
            let failure = GuardFailure::MakeOutputFile { directory, error: error.into() };
            return (Facts::unguarded(failure), String::new());
        }
    };
    let fds: Vec<BorrowedFd<'_>> = iter::once(capture.as_fd()).chain(turn).collect();
    let facts = server.run(job, &fds, &progress);
    // After a failure, a process that was left may still write to the file, so it is not used again.
    let output = capture.finish(captures, facts.are_clean());
    if no_capture {
        let _ = io::stdout().write_all(output.as_deref().unwrap_or_default().as_bytes());
        return (facts, String::new());
    }
    (facts, output.unwrap_or_else(|error| format!("[its output cannot be read: {error}]")))
}

/// The registered test of a job.
#[cfg(feature = "sites")]
fn registered(job: &Job) -> Option<&'static Test> {
    let index = usize::try_from(job.index).ok()?;
    registry::find(&registry::registered(), index, registry::name_hash(&[&job.name]))
}

pub(super) fn judge(job: &Job, facts: Facts) -> Verdict {
    let names = names(job, &facts);
    diagnosis::conclude(&job.name, &job.settings, facts, names)
}

/// The names of all addresses in what was observed of a job.
#[cfg(feature = "sites")]
pub(super) fn names(job: &Job, facts: &Facts) -> Names {
    let mut threads = Threads { mapped: &facts.mapped, stacks: &facts.stacks, ..Threads::default() };
    for (process, thread) in facts.tasks() {
        if process.runs_own_program() { &mut threads.own } else { &mut threads.others }.push(thread);
    }
    symbols::names(&facts.call_sites, &threads, || registered(job))
}

#[cfg(not(feature = "sites"))]
pub(super) fn names(_: &Job, _: &Facts) -> Names {
    Names::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_test_takes_long_is_said_in_the_format_of_the_run() {
        let text = slow_line("a::b", Some(FormatSetting::Pretty));
        assert_eq!(text, "test a::b has been running for over 60 seconds");
        let json = slow_line(r#"a "b" \c"#, Some(FormatSetting::Json));
        assert_eq!(json, r#"{ "type": "test", "event": "timeout", "name": "a \"b\" \\c" }"#);
    }
}
