//! A suite: all tests on threads of one guarded process, as libtest runs them.
//!
//! What it leaves is counted once, when the process ends; the recorder knows the test whose thread made it. How far
//! each test has come is in memory that harness and suite share, so that the harness knows it whatever happens to the
//! process.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::report_page::{Body, BodyPage, ReportPage};
use super::test_process::{TestProcess, end_returned_child, judge};
use crate::recorder::hooks;
use crate::sys::{self, Pid};

/// The index of a job that is a suite and not a test.
pub(crate) const JOB: u64 = u64::MAX;

const WAITING: u32 = 0;
const RUNNING: u32 = 1;
const ENDED: u32 = 2;

/// How far one test has come. All zeroes is a valid value: it waits.
#[repr(C)]
struct TestPage {
    /// The index of its body in the list of all, plus one; 0 behind the last test of the round.
    index: AtomicU32,
    /// One of `WAITING`, `RUNNING` and `ENDED`.
    state: AtomicU32,
    /// The thread that runs it.
    tid: AtomicI32,
    /// When it began, by the monotonic clock.
    begin_nanos: AtomicU64,
    body: BodyPage,
}

impl TestPage {
    fn begin(&self) -> Duration {
        Duration::from_nanos(self.begin_nanos.load(Ordering::Relaxed))
    }
}

/// The tests of one round, in the order in which they start.
#[derive(Clone, Copy)]
pub(crate) struct Table(&'static [TestPage]);

/// How far one test has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Waiting,
    Running {
        tid: Pid,
        since: Duration,
    },
    /// `at` is when the body returned, by the monotonic clock.
    Ended {
        body: Body,
        time: Duration,
        at: Duration,
    },
}

impl Table {
    /// Makes room for this many tests, in memory that every process forked from this one shares.
    pub(crate) fn new(tests: usize) -> io::Result<Table> {
        // One more, which ends the list.
        sys::shared_slice(tests + 1).map(Table)
    }

    /// Begins a round: none of these tests, which are given by the indices of their bodies, has begun.
    pub(crate) fn fill(&self, tests: &[usize]) {
        let indices = tests.iter().map(|index| *index as u32 + 1).chain([0]);
        for (page, index) in self.0.iter().zip(indices) {
            page.index.store(index, Ordering::Relaxed);
            page.body.reset();
            page.state.store(WAITING, Ordering::Release);
        }
    }

    /// The indices of the bodies of this round.
    pub(crate) fn tests(&self) -> Vec<usize> {
        let indices = self.0.iter().map(|page| page.index.load(Ordering::Relaxed));
        indices.map_while(|index| (index as usize).checked_sub(1)).collect()
    }

    /// How far a test has come, by its number in the round.
    pub(crate) fn progress(&self, number: usize) -> Progress {
        let Some(page) = self.0.get(number) else { return Progress::Waiting };
        match page.state.load(Ordering::Acquire) {
            WAITING => Progress::Waiting,
            ENDED => {
                let time = page.body.time().unwrap_or_default();
                Progress::Ended { body: page.body.get(), time, at: page.begin() + time }
            }
            _ => {
                let now = Duration::from_nanos(sys::monotonic_nanos());
                let since = now.saturating_sub(page.begin());
                Progress::Running { tid: page.tid.load(Ordering::Relaxed), since }
            }
        }
    }
}

/// One suite, in its process.
pub(crate) struct SuiteProcess<'a> {
    table: Table,
    page: &'a ReportPage,
}

impl SuiteProcess<'_> {
    /// The indices of the bodies to run, in this order. A test's number is its position.
    pub(crate) fn tests(&self) -> Vec<usize> {
        self.table.tests()
    }

    /// Runs one test on the calling thread; returns whether it passed.
    pub(crate) fn run_test(
        &self,
        number: usize,
        body: &dyn Fn() -> ExitCode,
        should_panic: Option<&str>,
    ) -> bool {
        let Some(page) = self.table.0.get(number) else { return false };
        page.tid.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
        let begin = sys::monotonic_nanos();
        page.begin_nanos.store(begin, Ordering::Relaxed);
        page.state.store(RUNNING, Ordering::Release);
        hooks::set_test(number as u32 + 1);
        let result = catch_unwind(AssertUnwindSafe(|| __rust_begin_short_backtrace(body)));
        let took = sys::monotonic_nanos() - begin;
        let body = judge(result, should_panic);
        if sys::marked_process().is_none() {
            end_returned_child(self.page, &body);
        }
        page.body.end(&body, took);
        page.state.store(ENDED, Ordering::Release);
        body.has_passed()
    }
}

/// std's backtraces end at a frame of this name (`library/std/src/sys/backtrace.rs`).
#[inline(never)]
fn __rust_begin_short_backtrace(body: &dyn Fn() -> ExitCode) -> ExitCode {
    let code = body();
    // As std does: prevents a tail call, which would leave no frame.
    std::hint::black_box(());
    code
}

impl TestProcess {
    /// Whether this process runs a suite and not a test.
    pub(crate) fn is_suite(&self) -> bool {
        self.order[0] == JOB
    }

    /// Runs a suite, and ends the process. `threads` starts the tests, and returns when all have ended.
    pub(crate) fn run_suite(&self, table: Table, threads: impl FnOnce(&SuiteProcess<'_>)) -> ! {
        self.begin();
        hooks::begin_suite();
        let begin = sys::monotonic_nanos();
        threads(&SuiteProcess { table, page: self.page });
        let took = sys::monotonic_nanos() - begin;
        hooks::end_body();
        self.page.end_body(&Body::Passed, took);
        self.end(&Body::Passed)
    }
}
