//! What the failures of a run have in common, at its end: as text, and as a table of Markdown for a CI's page.

use std::fmt::Write;

use super::escape;
use super::words::plural;
use crate::diagnosis::{At, Cause, Group, Groups, What};

/// The most lines of code that are listed in a text.
const LISTED: usize = 20;
/// The most rows of a table. GitHub shows 1 MiB a step.
const ROWS: usize = 200;
/// The most tests that are named at one line.
const NAMED: usize = 50;
/// The most characters of a command line or a message.
const QUOTED: usize = 60;

/// The failures by the line that made them. `None` if no line has failed several tests: then the reports say as much.
pub(crate) fn text(groups: &Groups) -> Option<String> {
    groups.have_a_common_line().then(|| list("failures", groups))
}

/// How often each test failed in these rounds, and at which line. `None` if none did.
pub(crate) fn rounds(groups: &Groups, rounds: u64) -> Option<String> {
    let all = groups.largest_first();
    let each = all.iter().flat_map(|group| {
        group.tests.iter().zip(&group.times).map(move |(test, times)| (*times, test, *group))
    });
    let mut each: Vec<(u64, &String, &Group)> = each.collect();
    each.sort_by_key(|(times, ..)| std::cmp::Reverse(*times));
    if each.is_empty() {
        return None;
    }
    let mut out = format!("failures in {}:\n", plural(rounds as usize, "round"));
    for (times, test, group) in each.iter().take(ROWS) {
        let at = if matches!(group.at, At::Test(_)) { String::new() } else { format!(": {}", at(group)) };
        let line = format!("{}  {test} {}{at}", plural(*times as usize, "time"), did_by(group, true));
        let _ = writeln!(out, "    {}", escape::text(&line));
    }
    if each.len() > ROWS {
        let _ = writeln!(out, "    and {}", plural(each.len() - ROWS, "more"));
    }
    Some(out)
}

/// The same for warnings. `all` if they were not shown before: then also if each is of one test.
pub(crate) fn warnings(groups: &Groups, all: bool) -> Option<String> {
    (groups.have_a_common_line() || all && !groups.largest_first().is_empty())
        .then(|| list("warnings", groups))
}

fn list(what: &str, groups: &Groups) -> String {
    let all = groups.largest_first();
    let mut out = format!("{what} by line:\n");
    for group in all.iter().take(LISTED) {
        let _ = writeln!(out, "    {}", line(group));
    }
    if all.len() > LISTED {
        let _ = writeln!(out, "    and {}", plural(all.len() - LISTED, "more line"));
    }
    out
}

/// ``47 tests left `sleep 100`: tests/common/mod.rs:8:20``.
pub(crate) fn line(group: &Group) -> String {
    let tests = plural(group.tests.len(), "test");
    escape::text(&format!("{tests} {}: {}", did(group), at(group)))
}

/// The failures as a table of Markdown, below the name of the target; `None` if there are none. `is_single` if each
/// test has a run of its own, as under cargo-nextest: items of a list, which those of the other runs continue.
pub(crate) fn markdown(groups: &Groups, target: &str, is_single: bool) -> Option<String> {
    let all = groups.largest_first();
    if all.is_empty() {
        return None;
    }
    let mut out = String::new();
    if is_single {
        for group in all.iter().take(ROWS) {
            let _ = writeln!(
                out,
                "* {}",
                marked(&format!("{} {}: {}", group.tests.concat(), did(group), at(group)))
            );
        }
        return Some(out);
    }
    let _ = writeln!(out, "### Failures by line: {}\n", marked(target));
    out += "| tests | what each did | line | names |\n| ---: | --- | --- | --- |\n";
    for group in all.iter().take(ROWS) {
        let at = if matches!(group.at, At::Test(_)) { String::new() } else { at(group) };
        let row = [did(group), at, names(&group.tests)].map(|cell| marked(&cell)).join(" | ");
        let _ = writeln!(out, "| {} | {row} |", group.tests.len());
    }
    if all.len() > ROWS {
        let _ = writeln!(out, "\nand {}", plural(all.len() - ROWS, "more line"));
    }
    out.push('\n');
    Some(out)
}

/// The names of tests, as many as a reader can use.
pub(super) fn names(tests: &[String]) -> String {
    let named = tests.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match tests.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{named} and {more} more"),
        _ => named,
    }
}

/// What each test of a group did: ``left `sleep 100` ``.
pub(super) fn did(group: &Group) -> String {
    did_by(group, group.tests.len() == 1)
}

fn did_by(group: &Group, is_one: bool) -> String {
    let varies = group.varies;
    match &group.what {
        What::Process { command_line, comm } => {
            let name = if command_line.is_empty() { comm.clone() } else { escape::words(command_line) };
            let such = if varies { "processes such as " } else { "" };
            return format!("left {such}`{}`", shortened(&name));
        }
        What::Fork if varies => return "left processes, such as a fork of itself".to_owned(),
        What::Fork => return "left a fork of itself".to_owned(),
        What::Pipe if !varies => return "left a pipe open".to_owned(),
        What::Pipe | What::Fd => return "left an fd open".to_owned(),
        What::NoPanic => return "did not panic".to_owned(),
        What::Panic { message } => {
            let first = message.lines().next().unwrap_or_default();
            if first.is_empty() || varies {
                return "panicked".to_owned();
            }
            return format!("panicked with \"{}\"", shortened(first));
        }
        What::Other => {}
    }
    let was = if is_one { "was" } else { "were" };
    match group.cause {
        Cause::Panicked => "panicked".to_owned(),
        Cause::Error => "returned an error".to_owned(),
        Cause::TimedOut => "timed out".to_owned(),
        Cause::Cut => format!("{was} cut with the run"),
        Cause::EndedEarly => "ended early".to_owned(),
        Cause::Signal => format!("{was} ended by a signal"),
        Cause::LeakedProcess => "left a process".to_owned(),
        Cause::StrayFd => "left an fd open".to_owned(),
        Cause::Unwaited => "left a zombie".to_owned(),
        Cause::ThreadedFork => "forked among threads".to_owned(),
        Cause::Threads => "left a thread running".to_owned(),
        Cause::LeftMount => "left a mount".to_owned(),
        Cause::UnusedAllowance => "allowed what was not left".to_owned(),
        Cause::Unkillable => "left a process that cannot be killed".to_owned(),
        Cause::Unguarded => "could not be guarded".to_owned(),
    }
}

/// The line of code, or what is known in its place.
fn at(group: &Group) -> String {
    match &group.at {
        At::Line(place) => place.to_string(),
        At::Function(function) => format!("in {function}"),
        At::Test(name) => name.clone(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// A text that Markdown shows as it is, in a cell of a table too.
fn marked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escape::text(text).chars() {
        if "\\`*_{}[]<>()#+!|~&@".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::marked;

    #[test]
    fn no_text_is_markup() {
        assert_eq!(marked("`a|b` <c> *d*\n@e"), r"\`a\|b\` \<c\> \*d\*\\n\@e");
        assert_eq!(marked("tests/a.rs:8:20"), "tests/a.rs:8:20");
    }
}
