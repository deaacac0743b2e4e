//! What tests without a guard have left, in words.

use anstyle::{AnsiColor, Style};

use super::text::{Layout, finish};
use super::words::plural;
use super::{escape, sentence};
use crate::diagnosis::CodePlace;
use crate::recorder::call_site::ResolvedCallSite;

/// A process that was left.
pub(crate) struct Leftover<'a> {
    pub(crate) pid: i32,
    pub(crate) comm: &'a str,
    pub(crate) command_line: &'a [String],
    /// The call that started it.
    pub(crate) site: Option<&'a ResolvedCallSite>,
    /// The test that made the call.
    pub(crate) test: Option<String>,
    /// Which of the run's outputs it has open, of those that are pipes: "stdout" and "stderr".
    pub(crate) outputs: Vec<&'static str>,
}

/// The most processes that are listed.
const LISTED: usize = 24;

/// The report, with an empty line before it.
pub(crate) fn text(left: &[Leftover<'_>], is_denied: bool, layout: Layout) -> String {
    let (label, colour) = if is_denied { ("LEAK", AnsiColor::Red) } else { ("WARN", AnsiColor::Yellow) };
    let style = Style::new().bold().fg_color(Some(colour.into()));
    let label = if layout.colour { format!("{style}{label}{style:#}") } else { label.to_owned() };
    let mut out = format!("{label}  tests without a guard left {}\n\n", plural(left.len(), "process"));
    for process in left.iter().take(LISTED) {
        let name = match process.command_line {
            [] => escape::text(process.comm),
            words => escape::words(words),
        };
        let at = process.site.map_or_else(String::new, |site| {
            let at = format!("{}{}", sentence::at(&CodePlace::of(site)), by(site, process.test.as_deref()));
            format!(" It was started {}.", escape::text(&at))
        });
        let kept = match process.outputs[..] {
            [] => String::new(),
            _ => format!(
                " It has this run's {} open: who reads that to its end (`| tee`, a CI job) waits for this process.",
                process.outputs.join(" and ")
            ),
        };
        out += &format!("  pid {} `{name}` is still running.{at}{kept}\n", process.pid);
    }
    if left.len() > LISTED {
        out += &format!("  and {}\n", plural(left.len() - LISTED, "more process"));
    }
    out += "\n  fix: write `#[childproof::test]` in place of `#[test]`: then the test that leaves it fails, and it is killed.\n";
    out += "  allow: childproof::policy!(unguarded = \"allow\");\n";
    format!("\n{}\n", finish(&out, layout.width))
}

/// The test that made the call, with its line, after a comma; or the callers, where no test is known. Nothing if the
/// place of the call is in the test.
fn by(site: &ResolvedCallSite, test: Option<&str>) -> String {
    match (test, &site.in_test) {
        (Some(_), line) if line.is_some() && *line == site.place => String::new(),
        (Some(test), Some(line)) => format!(", by the test `{test}` at {line}"),
        (test, _) => {
            let callers: String = site.callers.iter().map(|caller| format!(" < {caller}")).collect();
            callers + &test.map_or_else(String::new, |test| format!(", by the test `{test}`"))
        }
    }
}
