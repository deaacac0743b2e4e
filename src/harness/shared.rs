//! `--shared`: all selected tests on threads of one guarded process, as libtest runs them.
//!
//! The process is a fork of a supervisor, like that of a test. What it leaves is counted when it ends, so no result is
//! final before that: every trial waits for the end of the suite.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Completion, Failed, Trial};

use super::capture;
use super::entries::{Entries, Entry};
use super::run::{FAILED_BEFORE, Run, layout, names, observe, slow_line};
use super::serial;
use crate::config::options::Options;
use crate::config::policy::{Fds, Isolation, Policy, Settings, ThreadedFork};
use crate::config::registry;
use crate::diagnosis::suite::{NotJudged, SuiteTest, conclude};
use crate::diagnosis::{self, Verdict};
use crate::guard::client::{ForkServer, SLOW};
use crate::guard::facts::Facts;
use crate::guard::failure::GuardFailure;
use crate::guard::messages::Job;
use crate::guard::report_page::Body;
use crate::guard::suite::{self, Progress, SuiteProcess, Table};
use crate::guard::test_process::TestProcess;
use crate::proc::process::Stat;
use crate::recorder::call_site::Names;
use crate::report::text;
use crate::sys;
use crate::sys::lock::lock;

/// The name of the suite in reports: what no test is charged with is charged to it.
pub(super) const NAME: &str = "(suite)";

/// Printed once if a test denies threads.
const HOW_THREADS_ARE_JUDGED: &str = "childproof: with --shared, `threads = \"deny\"` finds the threads that still run at \
                                      the end of the suite, and charges those that have the name of their test to it";

/// What harness and suite agree on before anything is forked.
pub(super) struct Shared {
    table: Table,
    threads: usize,
    fail_fast: bool,
    /// Whether it was said how threads are judged.
    has_said: Once,
}

impl Shared {
    /// Prepares a suite of at most these tests; the error is a message.
    pub(super) fn new(entries: &Entries, options: &Options) -> Result<Shared, String> {
        // The suite is a fork of this process, which must not have a lock that another thread holds.
        if Stat::of_self().is_none_or(|stat| stat.threads > 1) {
            return Err("`--shared` needs a process with one thread: call `Harness::run` before any thread is started"
                .to_owned());
        }
        let tests = entries.registered.len() + entries.added.len();
        let table = Table::new(tests).map_err(|error| format!("`--shared` has no memory: {error}"))?;
        let threads = options.threads.or_else(|| thread::available_parallelism().ok().map(Into::into));
        Ok(Shared {
            table,
            threads: threads.unwrap_or(1),
            fail_fast: options.fail_fast,
            has_said: Once::new(),
        })
    }

    /// Runs the suite that this process was forked for.
    pub(super) fn run(&self, process: &TestProcess, entries: &Entries) -> ! {
        process.run_suite(self.table, |suite| self.run_tests(suite, entries))
    }

    /// Runs each test on a thread of its name, as many at once as was asked for.
    fn run_tests(&self, suite: &SuiteProcess<'_>, entries: &Entries) {
        let tests: Vec<(usize, Entry<'_>)> =
            suite.tests().into_iter().filter_map(|index| entries.get(index)).enumerate().collect();
        let keys = tests.iter().filter_map(|(_, entry)| entry.policy().serial);
        let keys: HashMap<String, Mutex<()>> = keys.map(|key| (key, Mutex::new(()))).collect();
        let has_failed = AtomicBool::new(false);
        let (ended, ends) = mpsc::channel();
        let one = |number: usize, entry: Entry<'_>| {
            let key = entry.policy().serial;
            let _turn = key.as_ref().and_then(|key| keys.get(key)).map(lock);
            if !suite.run_test(number, &|| entry.run(), entry.should_panic()) {
                has_failed.store(true, Ordering::Release);
            }
        };
        thread::scope(|scope| {
            let mut running = 0;
            for (number, entry) in tests {
                if running == self.threads {
                    // As long as a test runs; the harness has the clocks.
                    let _ = ends.recv();
                    running -= 1;
                }
                if self.fail_fast && has_failed.load(Ordering::Acquire) {
                    break;
                }
                let ended = ended.clone();
                let one = &one;
                let body = move || {
                    one(number, entry);
                    let _ = ended.send(());
                };
                match thread::Builder::new().name(entry.name()).spawn_scoped(scope, body) {
                    Ok(_) => running += 1,
                    // As libtest does where no thread can be started.
                    Err(_) => one(number, entry),
                }
            }
        });
    }
}

/// The result of one test.
#[derive(Clone)]
pub(super) enum TestResult {
    Judged(Box<Verdict>),
    /// The run was cut before the test began.
    NotBegunBeforeCut,
    /// It did not run to its end, or that cannot be judged; this is why.
    NotJudged(String),
}

/// One round of a suite.
pub(super) struct Round {
    /// The tests that run, by the indices of their bodies, in their order.
    tests: Vec<usize>,
    ended: OnceLock<Ended>,
}

/// A suite that has ended.
struct Ended {
    /// By the index of the body.
    tests: HashMap<usize, TestResult>,
    /// The error says why it cannot be judged.
    suite: Result<Verdict, String>,
    output: String,
}

impl Round {
    /// Selects the tests of a round with this order.
    pub(super) fn new(run: &Run, order: &[usize]) -> Round {
        let runs = |index: &usize| run.entries.get(*index).is_some_and(|entry| entry.runs(&run.options));
        Round { tests: order.iter().copied().filter(runs).collect(), ended: OnceLock::new() }
    }

    /// The result of a test. The first call runs the suite, and all others wait for its end.
    pub(super) fn result_of(&self, run: &Run, index: usize) -> TestResult {
        let result = self.ended(run).tests.get(&index).cloned();
        result.unwrap_or_else(|| TestResult::NotJudged("it is no test of the suite".to_owned()))
    }

    /// Prints what the tests have printed, if it was captured.
    pub(super) fn show_output(&self) {
        let Some(ended) = self.ended.get().filter(|ended| !ended.output.is_empty()) else { return };
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "---- output of the suite ----\n{}\n", ended.output.trim_end_matches('\n'));
    }

    fn ended(&self, run: &Run) -> &Ended {
        self.ended.get_or_init(|| self.run(run))
    }

    /// Runs the suite to its end, and judges it.
    fn run(&self, run: &Run) -> Ended {
        let Some(shared) = &run.suite else { return Ended::unguarded(GuardFailure::FindForkServer {}) };
        let tests: Vec<Planned> = self.tests.iter().filter_map(|index| Planned::new(run, *index)).collect();
        let turns = match turns(&tests) {
            Ok(turns) => turns,
            Err(error) => {
                return Ended::unguarded(GuardFailure::WaitForSerialKey { error: error.into() });
            }
        };
        if tests.iter().any(|test| test.settings.deny_threads) {
            shared.has_said.call_once(|| {
                let _ = writeln!(io::stderr(), "{HOW_THREADS_ARE_JUDGED}");
            });
        }
        shared.table.fill(&self.tests);
        let base = run.policy_with(&Policy::new()).settle();
        let job = Job { index: suite::JOB, name: NAME.to_owned(), settings: settings(base.clone(), &tests) };
        let clocks = Clocks::default();
        let requested = Duration::from_nanos(sys::monotonic_nanos());
        let (facts, output) = thread::scope(|scope| {
            scope.spawn(|| clocks.watch(&run.server, shared.table, &tests, run));
            let observed = observe(&run.server, &job, None, run.options.no_capture, &run.captures, &|| ());
            clocks.stop();
            observed
        });
        drop(turns);
        let timed_out = *lock(&clocks.timed_out);
        let (supervisor, is_held) = (facts.session, !facts.kept.is_empty());
        let tests: Vec<SuiteTest> =
            (0..).zip(tests).map(|(number, test)| test.with(shared.table.progress(number))).collect();
        let names = names(&job, &facts);
        let mut ended = judge(&base, &self.tests, &tests, timed_out, requested, (facts, names), output);
        if is_held && !ended.keeps() {
            run.server.kill_held(supervisor);
            if let Ok(suite) = &mut ended.suite {
                suite.facts.set_killed();
            }
        }
        ended
    }
}

/// Judges a suite, and each of its tests.
fn judge(
    base: &Settings,
    indices: &[usize],
    tests: &[SuiteTest],
    timed_out: Option<usize>,
    requested: Duration,
    (facts, names): (Facts, Names),
    output: String,
) -> Ended {
    let is_cut = facts.cut;
    let has_ended_itself = facts.body == Body::Passed;
    let mut verdict = conclude(NAME, base, tests, timed_out, requested, (facts, names));
    let by =
        verdict.ended_by.and_then(|number| tests.get(number)).map(|test| format!(", by `{}`", test.name));
    let by = by.unwrap_or_default();
    let why = |why: NotJudged, progress: Option<&Progress>| match (why, progress) {
        (NotJudged::WithinGrace, _) => {
            format!("the suite was ended{by} before the grace of what it has left was over")
        }
        (NotJudged::FdsNotCounted, _) => {
            format!("the suite was ended{by} before the fds that it has left were counted")
        }
        (NotJudged::MayBeNeeded, _) => {
            format!("the suite was ended{by}, and a test that ran may have needed what was left")
        }
        (NotJudged::NotEnded, Some(Progress::Waiting)) if has_ended_itself => FAILED_BEFORE.to_owned(),
        (NotJudged::NotEnded, Some(Progress::Waiting)) => format!("the suite was ended before it began{by}"),
        (NotJudged::NotEnded, _) => format!("the suite was ended while it ran{by}"),
    };
    let result = |verdict: Result<Verdict, NotJudged>, test: &SuiteTest| match (verdict, &test.progress) {
        (Ok(verdict), _) => TestResult::Judged(Box::new(verdict)),
        (Err(_), Progress::Waiting) if is_cut => TestResult::NotBegunBeforeCut,
        (Err(reason), progress) => TestResult::NotJudged(why(reason, Some(progress))),
    };
    if let Ok(suite) = &mut verdict.suite {
        suite.syntax = registry::target_syntax();
    }
    let mut verdicts = verdict.tests;
    let mut errors: Vec<&mut Verdict> =
        verdicts.iter_mut().flatten().filter(|verdict| verdict.facts.body == Body::Error).collect();
    // The output does not show which test wrote which error.
    if let [only] = &mut errors[..] {
        only.add_output(&output, capture::limit());
    }
    let results = verdicts.into_iter().zip(tests).map(|(verdict, test)| result(verdict, test));
    let tests = indices.iter().copied().zip(results).collect();
    Ended { tests, suite: verdict.suite.map_err(|reason| why(reason, None)), output }
}

impl Ended {
    /// Whether what was stopped fails a test or the suite itself.
    fn keeps(&self) -> bool {
        let keeps = |result: &TestResult| matches!(result, TestResult::Judged(verdict) if verdict.keeps());
        self.suite.as_ref().is_ok_and(Verdict::keeps) || self.tests.values().any(keeps)
    }

    /// The suite could not be run.
    fn unguarded(failure: GuardFailure) -> Ended {
        let settings = Policy::new().settle();
        let suite = diagnosis::conclude(NAME, &settings, Facts::unguarded(failure), Default::default());
        Ended { tests: HashMap::new(), suite: Ok(suite), output: String::new() }
    }
}

/// The trial of the suite itself; `None` if it has no test.
pub(super) fn trial(run: &Arc<Run>, suite: &Arc<Round>, round: u64) -> Option<Trial> {
    if suite.tests.is_empty() {
        return None;
    }
    let (run, suite) = (Arc::clone(run), Arc::clone(suite));
    Some(Trial::ignorable_test(NAME, move || run.suite_itself(&suite, round)))
}

impl Run {
    /// The result of the suite itself.
    fn suite_itself(&self, suite: &Round, round: u64) -> Result<Completion, Failed> {
        let Ended { suite: verdict, output, .. } = suite.ended(self);
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(reason) => return Ok(self.pass_over(NAME, reason)),
        };
        self.record(verdict, output, round);
        if verdict.failed() {
            self.failed.store(true, Ordering::Release);
            self.note_kept(verdict);
            return Err(Failed::from(text::report(verdict, layout(self.options.coloured(), 1))));
        }
        Ok(Completion::Completed)
    }
}

/// One test that will run.
struct Planned {
    name: String,
    path: Option<String>,
    settings: Settings,
}

impl Planned {
    fn new(run: &Run, index: usize) -> Option<Planned> {
        let entry = run.entries.get(index)?;
        let settings = run.policy_with(&entry.policy()).settle();
        Some(Planned { name: entry.name(), path: entry.path(), settings })
    }

    fn with(self, progress: Progress) -> SuiteTest {
        let Planned { name, path, settings } = self;
        SuiteTest { name, path, settings, progress }
    }
}

/// Waits until no other process runs a test with a key of one of these, and keeps it so.
fn turns(tests: &[Planned]) -> io::Result<Vec<serial::Turn>> {
    let mut keys: Vec<&str> = tests.iter().filter_map(|test| test.settings.serial.as_deref()).collect();
    // In one order in all processes, so that none waits for another in a ring.
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|key| sys::interruptible(|| serial::wait(key))).collect()
}

/// The policy of the process: whatever one of the tests needs. Each test is judged by its own.
fn settings(base: Settings, tests: &[Planned]) -> Settings {
    let all = || tests.iter().map(|test| &test.settings).chain([&base]);
    let counts = |fds: Fds| all().any(|settings| settings.fds == fds);
    // Each test has its own timeout, and there cannot be more time than all of them together.
    let timeouts: Option<Vec<Duration>> = tests.iter().map(|test| test.settings.timeout).collect();
    Settings {
        timeout: timeouts.map(|all| all.into_iter().fold(Duration::ZERO, Duration::saturating_add)),
        grace: all().map(|settings| settings.grace).max().unwrap_or(base.grace),
        fds: match (counts(Fds::All), counts(Fds::Pipes)) {
            (true, _) => Fds::All,
            (_, true) => Fds::Pipes,
            _ => Fds::Off,
        },
        threaded_fork: match all().all(|settings| settings.threaded_fork == ThreadedFork::Allow) {
            true => ThreadedFork::Allow,
            false if base.threaded_fork == ThreadedFork::Allow => ThreadedFork::Warn,
            false => base.threaded_fork,
        },
        isolation: match all().any(|settings| settings.isolation == Isolation::Pidns) {
            true => Isolation::Pidns,
            false => Isolation::Off,
        },
        deny_unwaited: all().any(|settings| settings.deny_unwaited),
        deny_threads: all().any(|settings| settings.deny_threads),
        serial: None,
        ..base.clone()
    }
}

/// The clocks of the running tests.
#[derive(Default)]
struct Clocks {
    is_over: Mutex<bool>,
    stopped: Condvar,
    /// The first test that exceeded its timeout.
    timed_out: Mutex<Option<usize>>,
}

impl Clocks {
    /// Follows the tests until the suite is over.
    fn watch(&self, server: &ForkServer, table: Table, tests: &[Planned], run: &Run) {
        let mut said = vec![false; tests.len()];
        let mut is_over = lock(&self.is_over);
        while !*is_over {
            let mut next = SLOW;
            for ((number, test), said) in tests.iter().enumerate().zip(&mut said) {
                let limit = test.settings.timeout.unwrap_or(Duration::MAX);
                match table.progress(number) {
                    // It cannot exceed its timeout before that.
                    Progress::Waiting => next = next.min(limit),
                    Progress::Ended { .. } => {}
                    Progress::Running { since, .. } => {
                        if since >= SLOW && !std::mem::replace(said, true) {
                            println!("{}", slow_line(&test.name, run.options.format));
                        }
                        let left = limit.saturating_sub(since);
                        if left.is_zero() && lock(&self.timed_out).is_none() {
                            *lock(&self.timed_out) = Some(number);
                            server.time_out();
                        }
                        let until_slow = SLOW.saturating_sub(since);
                        let times = [left, until_slow].into_iter().filter(|time| !time.is_zero());
                        next = times.fold(next, Duration::min);
                    }
                }
            }
            // Rounded up; otherwise the last part would be a busy loop.
            let wait = self.stopped.wait_timeout(is_over, next + Duration::from_millis(1));
            is_over = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    fn stop(&self) {
        *lock(&self.is_over) = true;
        self.stopped.notify_all();
    }
}
