//! Finds the line of a test of libtest's that a call was made below.

use std::path::Path;

use super::{Frame, is_users, place};
use crate::recorder::call_site::{RUNS_TEST, SourceLocation};

/// The innermost line of the test's own function, or of a closure in it.
pub(super) fn line(frames: &[Frame], here: &Path) -> Option<SourceLocation> {
    let name = |frame: &Frame| frame.line.function.clone().unwrap_or_default();
    let runs = frames.iter().position(|frame| name(frame).starts_with(RUNS_TEST))?;
    let above = frames.get(..runs)?;
    let outermost = name(above.iter().rev().find(|frame| is_users(frame))?);
    let test = path(&outermost);
    place(above.iter().find(|frame| is_users(frame) && path(&name(frame)) == test)?, here)
}

/// The functions of a stack, if it is below libtest.
pub(super) fn functions(frames: &[Frame]) -> Option<Vec<String>> {
    let functions: Vec<String> = frames.iter().filter_map(|frame| frame.line.function.clone()).collect();
    functions.iter().any(|name| name.starts_with("test::")).then_some(functions)
}

/// The path of a function, or of that which a closure is in.
fn path(function: &str) -> &str {
    function.split("::{").next().unwrap_or(function)
}
