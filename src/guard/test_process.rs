//! The test process: what happens between the fork and the body, and after the body.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use crate::config::policy::Fds;
use crate::guard::messages::BodyRequest;
use crate::guard::panics::{self, Name};
use crate::guard::report_page::{Body, Phase, ReportPage, StrayFd};
use crate::guard::strays;
use crate::proc::threads;
use crate::proc::tree::Tree;
use crate::recorder::hooks;
use crate::sys::{self, BaselineFds, Pid, Words};

/// A forked process that is about to run, or has run, one body.
///
/// A clean test calls as few functions here as possible, see [`crate::sys::entrance`].
pub(crate) struct TestProcess {
    pub(super) order: Words,
    pub(super) page: &'static ReportPage,
    /// The fd baseline: the fds from before the harness, and the output.
    pub(super) before: BaselineFds,
    /// Whether creation and close of its pipes are printed.
    pub(super) traced: bool,
}

impl TestProcess {
    /// The index of its body in the list of all.
    #[inline(always)]
    pub(crate) fn index(&self) -> usize {
        self.order[0] as usize
    }

    /// FNV-1a hash of the test's name.
    pub(crate) fn name_hash(&self) -> u64 {
        self.order[1]
    }

    /// Makes the fds and threads of this moment the baseline: `main` has run since the fork. It may also have
    /// set another panic hook.
    pub(crate) fn rebase(&mut self) {
        if sys::has_children() {
            let (tree, pid) = (Tree::read(), std::process::id() as Pid);
            self.page.set_preexisting(tree.below(pid, &[]).into_iter().map(|stat| stat.pid));
        }
        self.before = sys::baseline_fds(&[]);
        panics::note_panics();
        sys::watch_faults();
    }

    /// Runs the body, reports its outcome, and ends the process.
    pub(crate) fn run(&self, name: Name, body: impl FnOnce() -> ExitCode, should_panic: Option<&str>) -> ! {
        panics::set_name(name);
        self.begin();
        let begin = sys::monotonic_nanos();
        let result = catch_unwind(AssertUnwindSafe(|| __rust_begin_short_backtrace(body)));
        let took = sys::monotonic_nanos() - begin;
        hooks::end_body();
        let body = match (result, should_panic) {
            (Ok(ExitCode::SUCCESS), None) => Body::Passed,
            (result, should_panic) => judge(result, should_panic),
        };
        if sys::marked_process().is_none() {
            end_returned_child(self.page, &body);
        }
        self.page.end_body(&body, took);
        self.end(&body)
    }

    /// Reports that it is about to run its body, or its suite.
    #[inline(always)]
    pub(super) fn begin(&self) {
        sys::mark_process();
        sys::report_fault_to(self.page.fault_report());
        self.page.set_phase(Phase::Running);
        if self.traced {
            hooks::trace();
        }
    }

    /// Records what is left, and ends the process.
    #[inline(always)]
    pub(super) fn end(&self, body: &Body) -> ! {
        if self.leaves_nothing() {
            self.page.set_phase(Phase::Checked);
        } else {
            self.check();
        }
        self.page.set_over();
        std::process::exit(match body {
            Body::Passed | Body::PanickedAsExpected => 0,
            _ => 101,
        })
    }

    /// Whether there is nothing to record, as far as can be determined without listing anything.
    #[inline(always)]
    fn leaves_nothing(&self) -> bool {
        let fds = BodyRequest::fds(&self.order);
        let is_plain = match fds {
            Fds::Off => true,
            // A thread may have a private fd table.
            Fds::Pipes | Fds::All => sys::has_one_thread() && self.fds_are_as_before(),
        };
        is_plain && !BodyRequest::deny_threads(&self.order) && sys::has_no_child()
    }

    /// Records what the body has left, and stops for inspection if there is anything.
    fn check(&self) {
        let mut others = if BodyRequest::deny_threads(&self.order) { threads::count_others() } else { 0 };
        let mut strays = self.strays();
        let mut has_stopped = false;
        if !strays.is_empty() && threads::count() > 1 {
            // A child that exits during what follows was there at the end of the body.
            has_stopped = sys::has_children();
            if has_stopped {
                self.note_threads(threads::count().saturating_sub(1));
                self.stop();
                self.page.set_phase(Phase::BodyEnded);
            }
            strays = self.strays_after_threads();
            others = others.max(threads::count().saturating_sub(1));
        }
        strays.iter().for_each(|stray| self.page.add_stray(stray));
        self.note_threads(others);
        let is_left = !strays.is_empty() || others > 0 && BodyRequest::deny_threads(&self.order);
        if !has_stopped && (is_left || sys::has_children()) {
            self.stop();
        } else {
            self.page.set_phase(Phase::Checked);
        }
    }

    /// Records how many threads run besides this one, and some of them.
    fn note_threads(&self, others: u32) {
        self.page.set_threads(others);
        if others > 0 {
            self.page.set_running(&threads::running(std::process::id() as Pid));
        }
    }

    /// Stops this process, once per test: the supervisor reads the tree, and continues it.
    fn stop(&self) {
        // Descendants may be running, and this process must exit before they are inspected.
        sys::run_when_woken();
        self.page.set_phase(Phase::Stopped);
        let _ = sys::kill(std::process::id() as Pid, libc::SIGSTOP);
    }

    /// The fds that the body has left open and that count.
    fn strays(&self) -> Vec<StrayFd> {
        let fds = BodyRequest::fds(&self.order);
        if fds == Fds::Off {
            return Vec::new();
        }
        // Threads are listed only if there are any.
        let others = if sys::is_threaded() { strays::threads_with_own_table() } else { Vec::new() };
        if others.is_empty() && self.fds_are_as_before() {
            return Vec::new();
        }
        strays::find(self.before, fds, &others)
    }

    /// Gives running threads the grace to close their fds, as descendants have it to exit.
    fn strays_after_threads(&self) -> Vec<StrayFd> {
        let begin = Instant::now();
        // There is no event to wait for: neither for a closed fd, nor for the end of a thread that other code
        // started.
        loop {
            // Counted first: a thread that ends meanwhile has closed its fds before they are listed.
            let is_alone = threads::count() <= 1;
            let strays = self.strays();
            if strays.is_empty() || is_alone || begin.elapsed() >= BodyRequest::grace(&self.order) {
                return strays;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether only fds of the baseline are open: then nothing has to be listed.
    #[inline(always)]
    fn fds_are_as_before(&self) -> bool {
        match BodyRequest::fds(&self.order) {
            Fds::Off => true,
            Fds::Pipes => sys::fds_are_as(self.before, false),
            Fds::All => sys::fds_are_as(self.before, true) && self.none_is_only_a_path(),
        }
    }

    /// If all kinds count, so do fds with `O_PATH`, which only listing can find.
    fn none_is_only_a_path(&self) -> bool {
        let known = self.before.iter().filter(|known| sys::fstat(known.fd).is_some()).count();
        sys::count_open_fds() == Some(known)
    }
}

/// Ends a process that a body forked and that has returned through the body. It is a descendant and not the test: it
/// does not change the outcome.
#[cold]
pub(super) fn end_returned_child(page: &ReportPage, body: &Body) -> ! {
    page.add_returned_child(sys::own_pid());
    let _ = std::io::stdout().flush();
    sys::exit_now(if body.has_passed() { 0 } else { 101 })
}

/// Runs the body below a frame of this name: std's backtraces end there, unless a full one is requested, so
/// they hide the harness's own frames (`library/std/src/sys/backtrace.rs`).
#[inline(never)]
fn __rust_begin_short_backtrace(body: impl FnOnce() -> ExitCode) -> ExitCode {
    let here = 0_u8;
    hooks::begin_body(&here);
    // As on a new thread.
    Errno::clear();
    let code = body();
    // As std does: prevents a tail call, which would leave no frame.
    std::hint::black_box(());
    code
}

/// Judges the result of a body; `should_panic` is the text that an expected panic must contain.
pub(crate) fn judge(result: Result<ExitCode, Box<dyn Any + Send>>, should_panic: Option<&str>) -> Body {
    let payload = match (result, should_panic) {
        (Ok(_), Some(_)) => return Body::DidNotPanic,
        (Ok(code), None) if code == ExitCode::SUCCESS => return Body::Passed,
        (Ok(_), None) => return Body::Error,
        (Err(payload), None) => {
            let (file, line, column) = panics::take_place();
            let message = panics::message(&*payload).unwrap_or_default().to_owned();
            // Dropping it could panic again, where nothing catches it.
            std::mem::forget(payload);
            return Body::Panicked { message, file, line, column };
        }
        (Err(payload), Some("")) => {
            std::mem::forget(payload);
            return Body::PanickedAsExpected;
        }
        (Err(payload), Some(_)) => payload,
    };
    let Some(message) = panics::message(&*payload).map(str::to_owned) else {
        std::mem::forget(payload);
        return Body::PanickedOtherwise { message: String::new() };
    };
    if message.contains(should_panic.unwrap_or_default()) {
        Body::PanickedAsExpected
    } else {
        Body::PanickedOtherwise { message }
    }
}
