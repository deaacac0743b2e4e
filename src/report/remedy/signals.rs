//! Remedies that are about signals, in words.

use nix::libc;

use crate::diagnosis::Remedy;
use crate::guard::facts::Facts;
use crate::report::words::{enumerate, signal_word};

/// How a process is ended that has a handler for SIGTERM, or that SIGTERM does not end.
pub(super) fn of(facts: &Facts, remedy: &Remedy) -> Option<String> {
    if let Remedy::TerminateFirst { pid } = remedy {
        return Some(format!(
            "It handles SIGTERM: send that first (`kill({pid}, SIGTERM)`) and wait, so that it ends what it has begun."
        ));
    }
    let Remedy::EndDeaf { pid, ignores, signals, inherited_from } = remedy else { return None };
    let signals: Vec<String> = signals.iter().map(|signal| signal_word(*signal)).collect();
    let signals = enumerate(&signals);
    let does = if *ignores { "ignores" } else { "blocks" };
    let again = match inherited_from {
        Some(parent) if *parent == facts.pid => {
            format!(", which it has inherited from the test: start it with {signals} as they are by default")
        }
        _ => String::new(),
    };
    Some(format!("Pid {pid} {does} {signals}: end it by SIGKILL, which `Child::kill` sends{again}."))
}

/// What usually sends a signal that has ended the test.
pub(super) fn that_ended(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => {
            "SIGKILL was sent by the body itself, another process, or the kernel when memory ran out (`dmesg`)."
        }
        libc::SIGABRT => {
            "the body aborted: a panic while panicking or where nothing may unwind (`extern \"C\"`), a stack \
             overflow, a failed check of the C library, or `abort`. What it printed last says which."
        }
        libc::SIGSEGV => {
            "invalid memory access: look at `unsafe` code and at C libraries. A \
             stack overflow of a Rust thread ends with SIGABRT."
        }
        libc::SIGBUS => {
            "memory that has no page behind it: behind the end of a mapped file, which may have been \
             truncated meanwhile, or of a full /dev/shm."
        }
        libc::SIGILL => {
            "an instruction that this processor does not have (`target-cpu`), or the trap that a compiler puts \
             where the code never comes."
        }
        libc::SIGFPE => "a division by zero outside of Rust, which would have panicked.",
        libc::SIGXFSZ => {
            "a file would have become larger than `RLIMIT_FSIZE` allows. The test's output is caught in a file and \
             counts: set the limit in a child process, or run with `--nocapture`."
        }
        libc::SIGALRM => "`alarm` or `setitimer` was called, and the signal is not handled.",
        libc::SIGPIPE => "the body set SIGPIPE to its default; Rust programs start with it ignored.",
        _ => "",
    }
}
