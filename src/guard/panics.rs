//! Panics of a body: where it panicked, and the message, which names the test.
//!
//! A body runs on the main thread of its process, which std calls `main`, or `<unnamed>` where Rust's start-up has not
//! run. Under libtest the thread, and so the message, has the name of the test.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt::Write;
use std::panic::PanicHookInfo;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::registry::Test;
use crate::sys;

/// The test whose body runs on a thread.
#[derive(Clone, Copy)]
pub(crate) enum Name {
    Registered(&'static Test),
    Added(&'static str),
}

thread_local! {
    /// The location of this thread's last panic: file, line and column.
    static PLACE: Cell<Option<(String, u32, u32)>> = const { Cell::new(None) };
    static NAME: Cell<Option<Name>> = const { Cell::new(None) };
}

/// Whether the process has printed the message of a panic.
static HAS_PRINTED: AtomicBool = AtomicBool::new(false);

/// Installs a panic hook that records the location, and prints the message in place of std's own hook. It calls every
/// other hook. Only a hook gets the location.
///
/// Called before a test process is forked, or after `main` has run in it: setting a hook costs some page faults.
pub(super) fn note_panics() {
    let hook = std::panic::take_hook();
    // Now it is std's own.
    let of_std = std::panic::take_hook();
    #[allow(ambiguous_wide_pointer_comparisons, reason = "if they seem to differ, std prints the message")]
    let is_of_std = ptr::eq(&raw const *hook, &raw const *of_std);
    std::panic::set_hook(Box::new(move |info| {
        PLACE.set(info.location().map(|at| (at.file().to_owned(), at.line(), at.column())));
        // The panics of core itself, such as one in a destructor while another one unwinds, end the process: std says more.
        let is_last = info.location().is_some_and(|at| at.file().ends_with("core/src/panicking.rs"));
        match NAME.get() {
            Some(name) if is_of_std && !is_last => print(info, name),
            _ => {
                HAS_PRINTED.store(true, Ordering::Relaxed);
                hook(info);
            }
        }
    }));
}

/// Gives this thread's panics the name of a test.
#[inline(always)]
pub(super) fn set_name(name: Name) {
    NAME.set(Some(name));
}

/// The location of this thread's last panic.
pub(super) fn take_place() -> (String, u32, u32) {
    PLACE.take().unwrap_or_default()
}

/// The message of a panic, if it is a string.
pub(super) fn message(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Prints what std's hook prints (`default_hook` of `library/std/src/panicking.rs`).
fn print(info: &PanicHookInfo<'_>, name: Name) {
    let name = match name {
        Name::Registered(test) => test.full_name(),
        Name::Added(name) => name.to_owned(),
    };
    let pid = std::process::id();
    let message = message(info.payload()).unwrap_or("Box<dyn Any>");
    let mut text = format!("\nthread '{name}' ({pid}) panicked");
    if let Some(place) = info.location() {
        let _ = write!(text, " at {place}");
    }
    let _ = writeln!(text, ":\n{message}");
    let wanted = std::env::var_os("RUST_BACKTRACE").filter(|style| style != "0");
    match wanted {
        Some(style) if style == "full" => {
            let _ = write!(text, "stack backtrace:\n{:#}", Backtrace::force_capture());
        }
        Some(_) => {
            let backtrace = short(&Backtrace::force_capture().to_string());
            let _ = write!(text, "stack backtrace:\n{backtrace}{}", COULD_PRINT_ALL_OF_IT);
        }
        None if !HAS_PRINTED.swap(true, Ordering::Relaxed) => text.push_str(COULD_PRINT_A_BACKTRACE),
        None => {}
    }
    // In one call, so that another process's output does not part it.
    sys::print_to(2, &text);
}

/// How std says what else it could print.
const COULD_PRINT_A_BACKTRACE: &str =
    "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
const COULD_PRINT_ALL_OF_IT: &str =
    "note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.\n";

/// Shortens a backtrace as std does for a panic: its own frames and those that called the body are left out.
fn short(backtrace: &str) -> String {
    let mut frames: Vec<String> = Vec::new();
    for line in backtrace.lines() {
        let begins =
            line.trim_start().split_once(": ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        if begins {
            frames.push(String::new());
        }
        if let Some(frame) = frames.last_mut() {
            frame.push_str(line);
            frame.push('\n');
        }
    }
    let has = |frame: &String, marker: &str| frame.contains(marker);
    let begin =
        frames.iter().position(|frame| has(frame, "__rust_end_short_backtrace")).map_or(0, |at| at + 1);
    let shown = frames.iter().skip(begin).take_while(|frame| !has(frame, "__rust_begin_short_backtrace"));
    let numbered = shown.enumerate().map(|(at, frame)| {
        let rest = frame.split_once(": ").map_or(frame.as_str(), |(_, rest)| rest);
        format!("{at:4}: {rest}")
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn a_short_backtrace_shows_what_the_body_called() {
        let full = "   0: std::backtrace::Backtrace::force_capture\n   1: __rust_end_short_backtrace\n\
                    \x20  2: core::panicking::panic_fmt\n             at lib.rs:1:2\n      inlined\n\
                    \x20  3: a::body\n             at ./src/a.rs:3:4\n\
                    \x20  4: childproof::guard::test_process::__rust_begin_short_backtrace\n   5: main\n";
        let shown = "   0: core::panicking::panic_fmt\n             at lib.rs:1:2\n      inlined\n   1: a::body\n\
                     \x20            at ./src/a.rs:3:4\n";
        assert_eq!(short(full), shown);
    }
}
