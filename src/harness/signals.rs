//! Handles the signals that end a run, and the one that asks for its state.
//!
//! SIGINT, SIGTERM and SIGHUP cut the run: the results so far are reported, and the process ends by the
//! signal. SIGQUIT inspects the running tests, and the run continues.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc;

use super::run::layout;
use crate::diagnosis::Verdict;
use crate::guard::client::ForkServer;
use crate::guard::isolation::NotIsolated;
use crate::report::words::signal_name;
use crate::report::{escape, failure, text};
use crate::sys;

/// How long a cut run may take to report. Tools that send the signal usually send SIGKILL 10 s later.
pub(super) const LIMIT: Duration = Duration::from_secs(8);
/// How often threads that wait for a serial lock are interrupted after a cut.
pub(super) const AGAIN: Duration = Duration::from_millis(20);

/// The signal that cut the run; 0 before.
static CUT: AtomicI32 = AtomicI32::new(0);

/// The signal that cut the run.
pub(super) fn cut_by() -> Option<i32> {
    Some(CUT.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// Calls `cut` once, when a signal cuts the run, and `inspect` each time a signal asks for its state, on a
/// thread of its own. [`cut_by`] returns the signal before `cut` is called.
///
/// Must be called after the fork server has been started: its forks must not inherit the handlers.
pub(super) fn receive(cut: impl FnOnce(i32) + Send + 'static, inspect: impl Fn() + Send + 'static) {
    let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
    let started = sys::watch_signals(&signals).and_then(|pipe| {
        let work = move || follow(pipe.into(), cut, &inspect);
        thread::Builder::new().name("childproof-signals".to_owned()).spawn(work)
    });
    if let Err(error) = started {
        // The signals then keep their default effect, and the guard ends the running tests.
        signals.into_iter().for_each(sys::unwatch_signal);
        let _ = writeln!(io::stderr(), "childproof: a signal will end the run without a report: {error}");
    }
}

fn follow(mut pipe: File, cut: impl FnOnce(i32), inspect: &dyn Fn()) {
    let mut byte = [0];
    // Until the process ends.
    while pipe.read_exact(&mut byte).is_ok() {
        let signal = i32::from(byte[0]);
        if signal == libc::SIGQUIT {
            inspect();
            continue;
        }
        CUT.store(signal, Ordering::SeqCst);
        cut(signal);
        return;
    }
}

/// Has the running tests inspected. The thread that waits for a test shows the result.
pub(super) fn inspect(server: &ForkServer) {
    if server.inspect() == 0 {
        let _ = writeln!(io::stderr(), "childproof: no test runs");
    }
}

/// Prints the state of a running test to stderr directly: libtest captures `eprint!`.
pub(super) fn show(verdict: &Verdict) {
    let layout = layout(io::stderr().is_terminal(), 2);
    let _ = io::stderr().lock().write_all(format!("\n{}", text::inspection(verdict, layout)).as_bytes());
}

pub(super) fn say_that_it_is_traced(name: &str) {
    let name = escape::text(name);
    let _ = writeln!(io::stderr(), "childproof: test {name} is stopped by a debugger; its timeout waits");
}

/// Says once a run that there is no PID namespace.
pub(super) fn say_that_it_is_not_isolated(why: &NotIsolated) {
    let _ = writeln!(io::stderr(), "childproof: {}", failure::not_isolated(why));
}

/// The last line of a cut run. `not_begun` is empty or says how many tests had not started.
pub(super) fn last_line(signal: i32, not_begun: &str) -> String {
    format!("childproof: the run was cut by {}{not_begun}", signal_name(signal))
}
