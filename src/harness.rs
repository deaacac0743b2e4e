//! The harness of a `harness = false` target: arguments, trials, libtest-mimic.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Termination};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Completion, Failed, FormatSetting, Trial};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use crate::diagnosis::{self, Verdict};
use crate::facts::Facts;
use crate::forkserver::{self, ForkServer, Takeover, lock};
use crate::options::Options;
use crate::policy::{self, Policy};
use crate::proc::process::Stat;
use crate::registry::{self, Form, Place, Test};
use crate::report;
use crate::report::annotations::{self, Checkout};
use crate::report::escape;
#[cfg(feature = "junit")]
use crate::report::junit::Junit;
use crate::serial;
use crate::supervisor::Job;
use crate::sys;
use crate::testproc::TestProcess;

/// A test target's harness: what `childproof::main!()` makes and runs.
///
/// It runs every `#[childproof::test]` of the target, and the tests that are added by hand: the
/// way to a suite that is driven by data.
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
    policy: Policy,
    added: Vec<Added>,
}

/// A test that was added by hand. Small: all of them are copied for every test that is forked.
struct Added {
    name: Box<str>,
    body: Box<dyn Fn() -> ExitCode + Send + Sync>,
    /// What few tests have.
    more: Option<Box<More>>,
    /// Where it was added.
    place: &'static Location<'static>,
}

enum More {
    Policy(Policy),
    /// It cannot be run, for a reason.
    Ignored(String),
}

impl Harness {
    /// Makes a harness with the tests that `#[childproof::test]` registered in this target.
    pub fn new() -> Self {
        Harness::default()
    }

    /// Sets the policy of tests whose attribute says nothing else.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds a test. `body` runs in a process of its own, and may return what `main` may return.
    #[track_caller]
    pub fn test<F, T>(self, name: impl Into<String>, body: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Termination,
    {
        self.test_with(name, Policy::new(), body)
    }

    /// Adds a test with a policy of its own, which wins over the harness's.
    #[track_caller]
    pub fn test_with<F, T>(mut self, name: impl Into<String>, policy: Policy, body: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Termination,
    {
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

    /// Runs the tests as the command line says, and tells how it went.
    ///
    /// The value is 0 if all was well, 101 if a test failed, 2 if arguments, environment or names
    /// were not valid or a file could not be written. Call it before any thread is started: a
    /// threaded process cannot be forked safely, so the harness starts its tests by a slower way
    /// then.
    pub fn run(self) -> ExitCode {
        let Harness { policy, added } = self;
        // As they were registered. What takes memory, as sorting them does, waits until the fork
        // server is there: what was touched before is copied for every test.
        let entries = Entries { registered: registry::registered(), added };
        if let Some(mut test) = forkserver::pending() {
            // `main` has run since the fork, and what it opened is not the body's.
            test.rebase();
            let known = entries.get(test.index());
            let known = known.is_some_and(|entry| registry::mark_of(&[&entry.name()]) == test.mark());
            if !known {
                // Somebody added tests that depend on time or chance.
                sys::exit_now(1);
            }
            run_body(&test, &entries);
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
        let run = |test: &TestProcess| run_body(test, &entries);
        let server = match (!options.list).then(|| start(&run)).transpose() {
            Ok(server) => server,
            Err(error) => {
                return say(&format!("error: cannot start the fork server: {error}\n"), 2);
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
        let Some(server) = server else {
            let entries = order.iter().filter_map(|index| entries.get(*index));
            let trials = entries.map(|entry| list_entry(entry, &options)).collect();
            let _ = libtest_mimic::run(&arguments, trials);
            return ExitCode::SUCCESS;
        };
        if cfg!(not(feature = "junit")) {
            say_that_no_xml_is_written(NEEDS_JUNIT);
        } else if options.is_nextests {
            say_that_no_xml_is_written(
                "cargo-nextest runs each test by itself, and each would replace the file of the one before. It can \
                 write JUnit's XML of all of them: `[profile.default.junit]` in its configuration",
            );
        }
        for path in options.json.iter_mut().chain(options.junit.as_mut().map(|(_, path)| path)) {
            *path = of_target(path, &target());
        }
        let json = match options.json.as_ref().map(File::create).transpose() {
            Ok(json) => json.map(Mutex::new),
            Err(error) => {
                let path = options.json.unwrap_or_default();
                server.shut_down();
                return say(&format!("error: cannot write `--json {}`: {error}\n", path.display()), 2);
            }
        };
        let junit = match options.junit.as_ref().map(|(_, path)| Junit::create(path, &target())).transpose() {
            Ok(junit) => junit.map(Mutex::new),
            Err(error) => {
                server.shut_down();
                return say(&cannot_write(&options, &error), 2);
            }
        };
        let checkout = Checkout::of_runner(|name| std::env::var_os(name));
        let run = Arc::new(Run {
            entries,
            order,
            policy,
            options,
            server,
            json,
            junit,
            checkout,
            annotations: Mutex::new(BTreeMap::new()),
            failed: AtomicBool::new(false),
            aside: Mutex::new(Vec::new()),
            warnings: Mutex::new(Vec::new()),
            captures: Mutex::new(Vec::new()),
        });
        // Rust ignores SIGPIPE, and libtest-mimic would panic when `| head` has read enough.
        sys::default_signal(nix::libc::SIGPIPE);
        let failed = rounds(&run, &arguments);
        sys::ignore_signal(nix::libc::SIGPIPE);
        run.server.shut_down();
        if let Some(Err(error)) = run.junit.as_ref().map(|junit| lock(junit).write()) {
            return say(&cannot_write(&run.options, &error), if failed { 101 } else { 2 });
        }
        if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
    }
}

/// Prints a last word and gives the exit code that goes with it.
fn say(message: &str, code: u8) -> ExitCode {
    if code == 0 {
        let _ = io::stdout().write_all(message.as_bytes());
    } else {
        let _ = io::stderr().write_all(message.as_bytes());
    }
    ExitCode::from(code)
}

fn cannot_write(options: &Options, error: &io::Error) -> String {
    let (place, path) = options.junit.clone().unwrap_or_default();
    format!("error: cannot write `{place}{}`: {error}\n", path.display())
}

/// The name of the test target: that of its binary, without the hash that cargo adds.
fn target() -> String {
    let path = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            name.to_owned()
        }
        _ => name.into_owned(),
    }
}

/// Puts the target's name in place of each `{binary}`: `cargo test` runs one target after the other
/// with the same arguments, and each would replace the file of the one before.
fn of_target(path: &Path, target: &str) -> PathBuf {
    const PLACE: &[u8] = b"{binary}";
    let mut rest = path.as_os_str().as_bytes();
    let mut named = Vec::with_capacity(rest.len());
    while let Some(at) = rest.windows(PLACE.len()).position(|bytes| bytes == PLACE) {
        named.extend_from_slice(&rest[..at]);
        named.extend_from_slice(target.as_bytes());
        rest = &rest[at + PLACE.len()..];
    }
    named.extend_from_slice(rest);
    OsString::from_vec(named).into()
}

/// One test of the run.
struct Entries {
    registered: Vec<&'static Test>,
    added: Vec<Added>,
}

impl Entries {
    fn get(&self, index: usize) -> Option<Entry<'_>> {
        match self.registered.get(index) {
            Some(test) => Some(Entry::Registered(test)),
            None => self.added.get(index - self.registered.len()).map(Entry::Added),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..).map_while(|index| self.get(index))
    }
}

#[derive(Clone, Copy)]
enum Entry<'a> {
    Registered(&'static Test),
    Added(&'a Added),
}

impl<'a> Entry<'a> {
    fn name(self) -> String {
        match self {
            Entry::Registered(test) => test.full_name(),
            Entry::Added(added) => added.name.to_string(),
        }
    }

    /// The file and the line that it is in.
    fn place(self) -> (&'static str, u32) {
        match self {
            Entry::Registered(test) => test.place,
            Entry::Added(added) => (added.place.file(), added.place.line()),
        }
    }

    fn ignore(self) -> Option<&'a str> {
        match self {
            Entry::Registered(test) => test.attribute.ignore,
            Entry::Added(added) => match added.more.as_deref() {
                Some(More::Ignored(reason)) => Some(reason),
                _ => None,
            },
        }
    }

    fn should_panic(self) -> Option<&'static str> {
        match self {
            Entry::Registered(test) => test.attribute.should_panic,
            Entry::Added(_) => None,
        }
    }

    fn policy(self) -> Policy {
        match self {
            Entry::Registered(test) => test.attribute.policy(),
            Entry::Added(added) => match added.more.as_deref() {
                Some(More::Policy(policy)) => policy.clone(),
                _ => Policy::new(),
            },
        }
    }

    fn form(self) -> Form {
        match self {
            Entry::Registered(test) => test.attribute.form(),
            Entry::Added(added) => Form { place: Place::Policy, has_arguments: added.more.is_some() },
        }
    }

    /// Whether it is left out of this run, and why. Nobody can ask for an added test that cannot
    /// run here.
    fn left_out(self, options: &Options) -> Option<&'a str> {
        let asked_for = options.ignored || options.include_ignored;
        match self {
            Entry::Registered(_) if asked_for => None,
            _ => self.ignore(),
        }
    }

    fn selected(self, options: &Options) -> bool {
        options.selects(&self.name(), self.ignore().is_some(), self.should_panic().is_some())
    }
}

/// Runs the body that this process was forked for.
fn run_body(test: &TestProcess, entries: &Entries) -> ! {
    match entries.get(test.index()) {
        Some(Entry::Registered(found)) => test.run(found.body, found.attribute.should_panic),
        Some(Entry::Added(added)) => test.run(&added.body, None),
        None => sys::exit_now(1),
    }
}

/// Starts the fork server the way that is safe here.
fn start(run: &dyn Fn(&TestProcess)) -> io::Result<ForkServer> {
    forkserver::second_net();
    match Stat::of_self().map(|stat| stat.threads) {
        Some(1) => ForkServer::fork(run),
        threads => {
            let threads =
                threads.map_or_else(|| "an unknown number of".to_owned(), |threads| threads.to_string());
            eprintln!(
                "childproof: the process has {threads} threads already, so tests start by exec: \
                 call `Harness::run` before any thread is started to start them by fork"
            );
            ForkServer::exec(Takeover::Early)
        }
    }
}

/// The most characters of a test's name: those who print results pad names to the longest.
const NAME: usize = 1000;

/// Refuses names that could not be told apart, listed or selected. Gives the order of the tests:
/// the registered ones by name, as libtest has it, then the added ones as they were added.
fn check(entries: &Entries, options: &Options) -> Result<Vec<usize>, String> {
    let names: Vec<String> = entries.iter().map(Entry::name).collect();
    if names.iter().any(String::is_empty) {
        return Err("a test that was added has an empty name: expected text".to_owned());
    }
    if let Some(name) = names.iter().find(|name| name.contains(escape::rearranges)) {
        return Err(format!(
            "invalid test name `{}`: expected text without control characters",
            escape::text(name)
        ));
    }
    if let Some(name) = names.iter().find(|name| name.chars().count() > NAME) {
        let begin: String = name.chars().take(40).collect();
        return Err(format!("the test name `{begin}..` is too long: expected at most {NAME} characters"));
    }
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|index| &names[*index]);
    if let Some(pair) = order.windows(2).find(|pair| names[pair[0]] == names[pair[1]]) {
        return Err(format!("two tests are called `{}`: names must differ", names[pair[0]]));
    }
    let first_added = entries.registered.len();
    order.sort_by_key(|index| (*index >= first_added).then_some(*index));
    let off = [
        ("json", options.json.is_some() && !cfg!(feature = "json")),
        ("junit", options.junit.is_some() && !cfg!(feature = "junit")),
    ];
    if let Some((name, _)) = off.iter().find(|(_, missing)| *missing) {
        return Err(format!("`--{name}` needs childproof's feature `{name}`, which is off in this build"));
    }
    Ok(order)
}

/// The name of trials that libtest-mimic is to count as filtered out: no test can have it.
const FILTERED: &str = "\0";

/// Fills libtest-mimic's arguments. Selection is done here, so it only sees who was left out.
fn arguments(options: &Options) -> Arguments {
    Arguments {
        skip: vec![FILTERED.to_owned()],
        list: options.list,
        ignored: options.list && options.ignored && !options.include_ignored,
        quiet: options.quiet,
        test_threads: options.threads,
        color: options.color,
        format: options.format,
        logfile: options.logfile.clone(),
        ..Arguments::default()
    }
}

fn list_entry(entry: Entry<'_>, options: &Options) -> Trial {
    let name = if entry.selected(options) { entry.name() } else { FILTERED.to_owned() };
    Trial::test(name, || Ok(())).with_ignored_flag(entry.ignore().is_some())
}

/// Everything that the tests of one run share.
struct Run {
    entries: Entries,
    /// The order in which they run, if they are not shuffled.
    order: Vec<usize>,
    policy: Policy,
    options: Options,
    server: ForkServer,
    json: Option<Mutex<File>>,
    junit: Option<Mutex<Junit>>,
    checkout: Option<Checkout>,
    /// One a test, however often it failed: GitHub shows only ten a step.
    annotations: Mutex<BTreeMap<usize, String>>,
    failed: AtomicBool,
    /// What is shown after the results: times, and output of tests that passed.
    aside: Mutex<Vec<(String, Duration, String)>>,
    /// The warnings of tests that passed, shown after that.
    warnings: Mutex<Vec<String>>,
    /// Files that caught a test's output, empty and ready for the next.
    captures: Mutex<Vec<File>>,
}

/// Runs the tests as often as asked for; tells whether one failed.
fn rounds(run: &Arc<Run>, arguments: &Arguments) -> bool {
    let options = &run.options;
    let chatty = options.format != Some(FormatSetting::Json);
    let mut failed = false;
    for round in 1..=options.repeat {
        if options.repeat > 1 && chatty {
            println!("\nround {round} of {}", options.repeat);
        }
        let mut order = run.order.clone();
        if let Some(seed) = options.shuffle {
            let seed = seed.unwrap_or_else(now_in_nanoseconds).wrapping_add(round - 1);
            if chatty {
                println!("\nshuffle seed: {seed}");
            }
            shuffle(&mut order, seed);
        }
        let trials = order.into_iter().map(|index| trial(run, index, round)).collect();
        failed |= libtest_mimic::run(arguments, trials).has_failed();
        if chatty {
            run.show_aside();
        }
        if failed && options.fail_fast {
            break;
        }
    }
    if chatty {
        run.show_annotations();
    }
    failed
}

fn trial(run: &Arc<Run>, index: usize, round: u64) -> Trial {
    let selected = run.entries.get(index).filter(|entry| entry.selected(&run.options));
    let Some(name) = selected.map(Entry::name) else {
        return Trial::test(FILTERED, || Ok(()));
    };
    let run = Arc::clone(run);
    Trial::ignorable_test(name, move || run.one(index, round))
}

impl Run {
    /// Runs one test, from the queue to the report.
    fn one(&self, index: usize, round: u64) -> Result<Completion, Failed> {
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
        if self.options.fail_fast && self.failed.load(Ordering::Acquire) {
            let reason = "a test failed before it, and --fail-fast is set";
            self.write_json(|| ignored_line(&name));
            self.write_junit(|junit| junit.skipped(&name, reason));
            return Ok(Completion::ignored_with(reason));
        }
        let settings = self.options.policy.clone().over(&entry.policy()).over(&self.policy).settle();
        let job = Job { index: index as u64, name, settings };
        let (mut verdict, output) = guard(&self.server, &job, self.options.no_capture, &self.captures);
        verdict.form = entry.form();
        verdict.obey(&self.options.policy);
        self.write_json(|| verdict_line(&verdict));
        let round = (self.options.repeat > 1).then(|| format!("round {round} of {}", self.options.repeat));
        self.write_junit(|junit| junit.ran(&verdict, &output, round.as_deref()));
        if verdict.failed() {
            self.failed.store(true, Ordering::Release);
            self.keep_aside(&verdict, "");
            if let Some(checkout) = &self.checkout {
                let annotation = || annotations::annotation(&verdict, entry.place(), checkout);
                lock(&self.annotations).entry(index).or_insert_with(annotation);
            }
            // libtest-mimic takes the colours out where they are not wanted.
            let colour = self.options.format != Some(FormatSetting::Json);
            return Err(Failed::from(join(&output, &report::text::report(&verdict, colour))));
        }
        self.keep_aside(&verdict, &output);
        if !verdict.warnings.is_empty() {
            lock(&self.warnings).extend(report::text::warning(&verdict, self.options.coloured()));
        }
        Ok(Completion::Completed)
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

    fn keep_aside(&self, verdict: &Verdict, output: &str) {
        if !self.options.show_output && !self.options.report_time {
            return;
        }
        let left = report::text::aside(verdict).filter(|_| !verdict.failed()).unwrap_or_default();
        let shown = join(output, &left);
        let mut aside = lock(&self.aside);
        aside.push((verdict.name.clone(), verdict.facts.time, shown));
    }

    fn show_aside(&self) {
        let mut aside = lock(&self.aside);
        let mut out = io::stdout().lock();
        if self.options.show_output {
            for (name, _, shown) in aside.iter().filter(|(_, _, shown)| !shown.is_empty()) {
                let _ = writeln!(out, "---- {name} ----\n{shown}\n");
            }
        }
        if self.options.report_time {
            let _ = writeln!(out, "times:");
            for (name, time, _) in aside.iter() {
                let _ = writeln!(out, "    {name} <{:.3}s>", time.as_secs_f64());
            }
        }
        aside.clear();
        for warning in lock(&self.warnings).drain(..) {
            let _ = writeln!(out, "{warning}");
        }
    }

    fn show_annotations(&self) {
        let mut out = io::stdout().lock();
        for annotation in lock(&self.annotations).values() {
            let _ = writeln!(out, "{annotation}");
        }
    }
}

#[cfg(feature = "json")]
fn verdict_line(verdict: &Verdict) -> String {
    report::json::line(verdict)
}

#[cfg(feature = "json")]
fn ignored_line(name: &str) -> String {
    report::json::ignored(name)
}

// `check` has refused `--json` then.
#[cfg(not(feature = "json"))]
fn verdict_line(_: &Verdict) -> String {
    String::new()
}

#[cfg(not(feature = "json"))]
fn ignored_line(_: &str) -> String {
    String::new()
}

/// What JUnit's XML needs.
pub(crate) const NEEDS_JUNIT: &str = "that needs childproof's feature `junit`, which is off in this build";

/// Says that Bazel's variable is without effect, and why. Bazel sets it for every test: that is no error.
pub(crate) fn say_that_no_xml_is_written(why: &str) {
    let is_set = std::env::var_os("XML_OUTPUT_FILE").is_some_and(|path| !path.is_empty());
    if is_set {
        // Written and not printed: libtest catches what is printed.
        let _ = writeln!(
            io::stderr(),
            "childproof: `XML_OUTPUT_FILE` is set and nothing is written there: {why}"
        );
    }
}

/// There is none without the feature: `check` has refused `--junit` then.
#[cfg(not(feature = "junit"))]
enum Junit {}

#[cfg(not(feature = "junit"))]
impl Junit {
    fn create(_: &Path, _: &str) -> io::Result<Junit> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn ran(&mut self, _: &Verdict, _: &str, _: Option<&str>) {
        match *self {}
    }

    fn skipped(&mut self, _: &str, _: &str) {
        match *self {}
    }

    fn write(&mut self) -> io::Result<()> {
        match *self {}
    }
}

/// The body's own output first, then ours.
fn join(output: &str, ours: &str) -> String {
    match (output.trim_end_matches('\n'), ours) {
        ("", ours) => ours.to_owned(),
        (output, "") => output.to_owned(),
        (output, ours) => format!("{output}\n\n{ours}"),
    }
}

/// Runs one test under guard. Gives its verdict and its output, if that was caught.
pub(crate) fn guard(
    server: &ForkServer,
    job: &Job,
    no_capture: bool,
    captures: &Mutex<Vec<File>>,
) -> (Verdict, String) {
    let lost = |why: String| (judge(job, Facts::lost(why)), String::new());
    let turn = match job.settings.serial.as_deref().map(serial::wait).transpose() {
        Ok(turn) => turn,
        Err(error) => return lost(format!("cannot wait for the serial key: {error}")),
    };
    let slow = || println!("test {} has been running for over 60 seconds", job.name);
    #[cfg(feature = "sites")]
    let looking = || crate::symbols::get_ready(registered(job));
    #[cfg(not(feature = "sites"))]
    let looking = || ();
    let turn = turn.as_ref().map(AsFd::as_fd);
    if no_capture {
        let own = [sys::borrow(1), sys::borrow(2)];
        let fds: Vec<BorrowedFd<'_>> = own.into_iter().chain(turn).collect();
        let flags = own.map(|fd| fcntl(fd, FcntlArg::F_GETFL));
        let facts = server.run(job, &fds, slow, looking);
        // They are those of everybody who has the file: the harness, the next test, and a shell.
        for (fd, flags) in own.into_iter().zip(flags) {
            if let Ok(flags) = flags
                && fcntl(fd, FcntlArg::F_GETFL) != Ok(flags)
            {
                let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags)));
            }
        }
        return (judge(job, facts), String::new());
    }
    let kept = lock(captures).pop();
    let capture = match kept.map_or_else(capture, Ok) {
        Ok(capture) => capture,
        Err(error) => return lost(format!("cannot make a file for its output: {error}")),
    };
    let fds: Vec<BorrowedFd<'_>> = iter::once(capture.as_fd()).chain(turn).collect();
    let facts = server.run(job, &fds, slow, looking);
    let as_before = only_appends(&capture).is_ok();
    let verdict = judge(job, facts);
    let output = read(&capture).unwrap_or_else(|error| format!("[its output cannot be read: {error}]"));
    // Somebody may still write to it if something was left; and then it is not the next test's.
    if !verdict.failed() && as_before && (output.is_empty() || capture.set_len(0).is_ok()) {
        lock(captures).push(capture);
    }
    (verdict, output)
}

/// The registered test that a job is for.
#[cfg(feature = "sites")]
fn registered(job: &Job) -> Option<&'static Test> {
    let index = usize::try_from(job.index).ok()?;
    registry::find(&registry::registered(), index, registry::mark_of(&[&job.name]))
}

fn judge(job: &Job, facts: Facts) -> Verdict {
    #[cfg(feature = "sites")]
    let names = crate::symbols::names(&facts, || registered(job));
    #[cfg(not(feature = "sites"))]
    let names = diagnosis::Names::default();
    diagnosis::conclude(&job.name, &job.settings, facts, names)
}

/// Makes an unlinked file that every process of a test appends to, so that order is kept.
///
/// A file and no pipe: whoever holds it blocks nobody, and the test's fd table has no pipe of ours.
fn capture() -> io::Result<File> {
    let directory = std::env::temp_dir();
    let mut options = File::options();
    options.read(true).append(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE);
    if let Ok(file) = options.open(&directory) {
        return Ok(file);
    }
    // Not every file system has files without a name: make one, and take it away at once.
    let (fd, path) = nix::unistd::mkstemp(&directory.join("childproof-XXXXXX"))?;
    std::fs::remove_file(path)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let capture = fd.into();
    only_appends(&capture)?;
    Ok(capture)
}

/// Has whoever writes to a file append to it, and do nothing else: its flags are those of everybody who has
/// it, and a test may have changed them.
fn only_appends(capture: &File) -> io::Result<()> {
    fcntl(capture, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(())
}

fn read(capture: &File) -> io::Result<String> {
    /// More than anybody reads. An unoptimised printer of libtest-mimic's takes 0.2 s for each of these MiB.
    const MOST: u64 = 8 << 20;
    let length = capture.metadata()?.len();
    if length == 0 {
        return Ok(String::new());
    }
    let mut bytes = vec![0; usize::try_from(length.min(MOST)).unwrap_or(usize::MAX)];
    // The end says more than the beginning.
    let from = length.saturating_sub(MOST);
    capture.read_exact_at(&mut bytes, from)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(if from > 0 { format!("[the first {from} bytes are left out]\n{text}") } else { text.into_owned() })
}

fn now_in_nanoseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Fisher-Yates with SplitMix64 (Steele, Lea, Flood 2014): any order, the same for the same seed.
fn shuffle(order: &mut [usize], mut seed: u64) {
    let mut random = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    for last in (1..order.len()).rev() {
        order.swap(last, (random() % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_targets_name_where_that_is_asked_for() {
        let named = |path: &str| of_target(Path::new(path), "server").display().to_string();
        assert_eq!(named("out/{binary}.json"), "out/server.json");
        assert_eq!(named("{binary}/{binary}"), "server/server");
        assert_eq!(named("{name}/{}/{{binary}.xml"), "{name}/{}/{server.xml");
        let odd = OsString::from_vec(b"\xff{binary}\xfe".to_vec());
        assert_eq!(
            of_target(Path::new(&odd), "a").into_os_string(),
            OsString::from_vec(b"\xffa\xfe".to_vec())
        );
    }
}
