//! Prints the message of a run that ends before its tests.

use std::io::{self, Write};
use std::process::ExitCode;

/// Prints a message and returns the exit code.
pub(super) fn say(message: &str, code: u8) -> ExitCode {
    if code == 0 {
        let _ = io::stdout().write_all(message.as_bytes());
    } else {
        let _ = io::stderr().write_all(message.as_bytes());
    }
    ExitCode::from(code)
}
