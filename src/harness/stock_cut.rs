//! Reports a stock target that is cut. libtest shows captured output only at its normal end, so the reports
//! of failed guarded tests are kept, and printed together with those of the tests that were running.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Instant;

use super::entries::Entries;
use super::libtest::end_failures;
use super::signals;
use crate::config::options::Options;
use crate::config::registry;
use crate::guard::client::ForkServer;
use crate::report::words::plural;
use crate::sys;
use crate::sys::lock::lock;

/// libtest's exit code if a test failed.
const FAILED: i32 = 101;

/// The guarded tests so far.
struct Tests {
    begun: usize,
    running: usize,
    /// The reports of failed tests that were not shown yet.
    reports: Vec<String>,
}

static TESTS: Mutex<Tests> = Mutex::new(Tests { begun: 0, running: 0, reports: Vec::new() });
/// A test has ended.
static ENDED: Condvar = Condvar::new();

/// Notes that a guarded test starts. If the run was cut, it does not return: the process is about to end.
pub(super) fn begin() {
    let mut tests = lock(&TESTS);
    if signals::cut_by().is_some() {
        drop(tests);
        wait_for_the_end();
    }
    tests.begun += 1;
    tests.running += 1;
}

/// Notes that a guarded test was cut before its turn.
pub(super) fn not_begun() -> ! {
    let mut tests = lock(&TESTS);
    tests.begun -= 1;
    tests.running -= 1;
    drop(tests);
    ENDED.notify_all();
    wait_for_the_end()
}

/// Notes that a guarded test has ended, with its report unless that was shown. Does not return if the run was
/// cut.
pub(super) fn end(report: Option<String>) {
    let mut tests = lock(&TESTS);
    tests.reports.extend(report);
    tests.running -= 1;
    drop(tests);
    ENDED.notify_all();
    if signals::cut_by().is_some() {
        wait_for_the_end();
    }
}

/// Blocks, since the process is about to end: libtest must not start another test.
fn wait_for_the_end() -> ! {
    loop {
        thread::park();
    }
}

/// Has the running guarded tests inspected and killed, prints the reports, and ends the process by the
/// signal.
pub(super) fn cut(server: &ForkServer, signal: i32) {
    server.cut();
    let until = Instant::now() + signals::LIMIT;
    let mut tests = lock(&TESTS);
    while tests.running > 0 && Instant::now() < until {
        sys::interrupt_waits();
        tests = match ENDED.wait_timeout(tests, signals::AGAIN) {
            Ok((tests, _)) => tests,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    print(&tests.reports);
    let mut out = io::stderr().lock();
    let not_begun = match not_begun_count(tests.begun) {
        0 => String::new(),
        count => format!("; {} had not begun", plural(count, "guarded test")),
    };
    let _ = writeln!(out, "{}", signals::last_line(signal, &not_begun));
    if tests.running == 0 {
        server.shut_down();
    } else {
        let (count, limit) = (plural(tests.running, "test"), signals::LIMIT.as_secs());
        let _ = writeln!(out, "childproof: {count} did not end within {limit} s, killed without a report");
    }
    sys::end_by_signal(signal);
}

/// Ends the process after a test of which processes are kept, with its report: libtest would start another
/// test.
pub(super) fn keep(server: &ForkServer, report: String) -> ! {
    static IS_ENDING: AtomicBool = AtomicBool::new(false);
    let mut tests = lock(&TESTS);
    tests.reports.push(report);
    if IS_ENDING.swap(true, Ordering::Relaxed) {
        drop(tests);
        wait_for_the_end();
    }
    print(&tests.reports);
    server.shut_down();
    sys::exit_now(FAILED)
}

/// Prints the reports, and what they have in common.
fn print(reports: &[String]) {
    // Written directly: libtest may capture `eprint!`.
    let mut out = io::stderr().lock();
    let _ = writeln!(out);
    for report in reports {
        let _ = writeln!(out, "{report}");
    }
    drop(out);
    end_failures();
}

/// How many guarded tests libtest would still have started. Parses the same command line.
fn not_begun_count(begun: usize) -> usize {
    let Ok(options) = Options::read(std::env::args_os(), |name| std::env::var_os(name)) else { return 0 };
    let entries = Entries { registered: registry::registered(), added: Vec::new() };
    entries.iter().filter(|entry| entry.runs(&options)).count().saturating_sub(begun)
}
