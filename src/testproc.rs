//! The test process: what happens between the fork and the body, and after the body.

use std::any::Any;
use std::fs;
use std::io::Write;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::libc;

use crate::outcome::{Body, Page, Phase, is_stray};
use crate::policy::Fds;
use crate::proc::tree::Tree;
use crate::sites;
use crate::sys::{self, FdIdentity, Pid, Shared};
use crate::threads;
use crate::wire::wire_struct;

wire_struct! {
    /// What a test process has to know of its job.
    pub(crate) struct Order {
        /// The place of its body in the list of all.
        pub(crate) index: u64,
        /// By which its name is known.
        pub(crate) mark: u64,
        pub(crate) fds: Fds,
        pub(crate) deny_threads: bool,
        pub(crate) grace: Duration,
    }
}

impl Order {
    /// How long it is on its way.
    pub(crate) const LENGTH: usize = 30;
}

/// A forked process that is about to run, or has run, one body.
pub(crate) struct TestProcess {
    order: Order,
    page: Shared<Page>,
    /// The fd table as the body finds it.
    before: Vec<(RawFd, FdIdentity)>,
    /// Its pipes are to be told as they come and go.
    traced: bool,
}

impl TestProcess {
    /// `before` is the fd table as the body finds it: what was there before the harness, and its output.
    pub(crate) fn new(
        order: Order,
        page: Shared<Page>,
        before: Vec<(RawFd, FdIdentity)>,
        traced: bool,
    ) -> TestProcess {
        TestProcess { order, page, before, traced }
    }

    /// The place of its body in the list of all.
    pub(crate) fn index(&self) -> usize {
        usize::try_from(self.order.index).unwrap_or(usize::MAX)
    }

    /// By which the name of its test is known.
    pub(crate) fn mark(&self) -> u64 {
        self.order.mark
    }

    /// Takes what is open and running now for what was there before the body: `main` has run since
    /// the fork.
    pub(crate) fn rebase(&mut self) {
        if sys::has_children() {
            let (tree, pid) = (Tree::read(), std::process::id() as Pid);
            self.page.set_foreign(tree.below(pid, &[]).into_iter().map(|stat| stat.pid));
        }
        self.before.clear();
        sys::each_open_fd(|fd| self.before.extend(sys::fd_identity(fd).map(|identity| (fd, identity))));
    }

    /// Runs the body, tells what came of it, and ends the process.
    pub(crate) fn run(&self, body: impl FnOnce() -> ExitCode, should_panic: Option<&str>) -> ! {
        let pid = std::process::id();
        self.page.set_phase(Phase::Running);
        if self.traced {
            sites::trace();
        }
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| __rust_begin_short_backtrace(body)));
        let took = begin.elapsed();
        sites::end_body();
        let body = judge(result, should_panic);
        if std::process::id() != pid {
            // A process that the body forked has come back through the body. It is a descendant,
            // not the test: it has no say in the outcome, and ends here.
            self.page.add_returned_child(std::process::id() as Pid);
            let _ = std::io::stdout().flush();
            sys::exit_now(if body.has_passed() { 0 } else { 101 });
        }
        self.page.end_body(&body, took);
        self.check();
        std::process::exit(if body.has_passed() { 0 } else { 101 })
    }

    /// Writes down what the body has left, and stops to be looked at if that is anything.
    fn check(&self) {
        let mut others = if self.order.deny_threads { threads::count_others() } else { 0 };
        let mut strays = self.strays();
        let mut has_stopped = false;
        if !strays.is_empty() && threads::count() > 1 {
            // A child that ends in what follows was there at the end of the body.
            has_stopped = sys::has_children();
            if has_stopped {
                self.stop();
                self.page.set_phase(Phase::BodyEnded);
            }
            strays = self.strays_after_threads();
            others = others.max(threads::count().saturating_sub(1));
        }
        for (fd, identity, target) in &strays {
            self.page.add_stray(*fd, target, identity, sys::is_cloexec(*fd).unwrap_or(false));
        }
        self.page.set_threads(others);
        if others > 0 {
            self.page.set_running(&threads::running(std::process::id() as Pid));
        }
        if !has_stopped && (!strays.is_empty() || sys::has_children()) {
            self.stop();
        } else {
            self.page.set_phase(Phase::Checked);
        }
    }

    /// Stops, once in a test: the supervisor looks at the tree, and continues it.
    fn stop(&self) {
        self.page.set_phase(Phase::Stopped);
        let _ = sys::kill(std::process::id() as Pid, libc::SIGSTOP);
    }

    /// The fds that the body has left open and that count, each with what it is.
    fn strays(&self) -> Vec<(RawFd, FdIdentity, String)> {
        let fds = self.order.fds;
        let mut strays = Vec::new();
        if fds == Fds::Off || self.fds_are_as_before() {
            return strays;
        }
        sys::each_open_fd(|fd| {
            let identity = sys::fd_identity(fd).filter(|found| is_stray(&self.before, fd, found, fds));
            let stray = identity.and_then(|identity| Some((fd, identity, target(fd, &identity, fds)?)));
            strays.extend(stray);
        });
        strays
    }

    /// Gives threads that nobody has joined the grace to close what is theirs, as descendants have it to end.
    fn strays_after_threads(&self) -> Vec<(RawFd, FdIdentity, String)> {
        let begin = Instant::now();
        // Nothing tells of an fd that is closed, nor of the end of a thread that somebody else has started.
        loop {
            // First: who ends meanwhile has closed what was theirs when it is looked at.
            let is_alone = threads::count() <= 1;
            let strays = self.strays();
            if strays.is_empty() || is_alone || begin.elapsed() >= self.order.grace {
                return strays;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether nothing is open but what was open before the body: then nothing has to be listed.
    fn fds_are_as_before(&self) -> bool {
        let all = self.order.fds == Fds::All;
        let changed = |(fd, old): &(RawFd, FdIdentity)| {
            // The ends of a pipe are one file, told apart by their access mode.
            sys::is_other_file(*fd, old, all || old.kind == libc::S_IFIFO)
        };
        !self.before.iter().any(changed) && sys::nothing_open_but(&self.before)
    }
}

/// Runs the body below a frame of this name: there std's backtraces end, unless all of them is
/// asked for, and the harness's own frames are not shown (`library/std/src/sys/backtrace.rs`).
#[inline(never)]
fn __rust_begin_short_backtrace(body: impl FnOnce() -> ExitCode) -> ExitCode {
    let here = 0_u8;
    sites::begin_body(&here);
    let code = body();
    // As std does it: no tail call, which would leave no frame.
    std::hint::black_box(());
    code
}

/// What an fd is, in the kernel's words; `None` if the policy has nothing to do with it.
fn target(fd: RawFd, identity: &FdIdentity, fds: Fds) -> Option<String> {
    match fs::read_link(format!("/proc/self/fd/{fd}")) {
        // A named FIFO is a file like others: it is `all` that asks for it.
        Ok(link) if fds == Fds::Pipes && !link.as_os_str().as_encoded_bytes().starts_with(b"pipe:[") => None,
        Ok(link) => Some(link.to_string_lossy().into_owned()),
        // The body has changed its root: there is no /proc.
        Err(_) if identity.kind == libc::S_IFIFO => Some(format!("pipe:[{}]", identity.ino)),
        Err(_) => Some("unreadable".to_owned()),
    }
}

/// What came of a body, where a panic is expected that says this.
pub(crate) fn judge(result: Result<ExitCode, Box<dyn Any + Send>>, should_panic: Option<&str>) -> Body {
    let payload = match (result, should_panic) {
        (Ok(_), Some(_)) => return Body::DidNotPanic,
        (Ok(code), None) if code == ExitCode::SUCCESS => return Body::Passed,
        (Ok(_), None) => return Body::Error,
        (Err(payload), None) => {
            // Dropping it could panic again, here where nobody catches it.
            std::mem::forget(payload);
            return Body::Panicked;
        }
        (Err(payload), Some("")) => {
            std::mem::forget(payload);
            return Body::PanickedAsExpected;
        }
        (Err(payload), Some(_)) => payload,
    };
    let message = match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(message), _) => message.clone(),
        (None, Some(message)) => (*message).to_owned(),
        (None, None) => {
            std::mem::forget(payload);
            return Body::PanickedOtherwise { message: "a panic whose payload is no string".to_owned() };
        }
    };
    if message.contains(should_panic.unwrap_or_default()) {
        Body::PanickedAsExpected
    } else {
        Body::PanickedOtherwise { message }
    }
}
