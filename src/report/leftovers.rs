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
            format!(" It was started {}.", escape::text(&sentence::at(&CodePlace::of(site))))
        });
        out += &format!("  pid {} `{name}` is still running.{at}\n", process.pid);
    }
    if left.len() > LISTED {
        out += &format!("  and {}\n", plural(left.len() - LISTED, "more process"));
    }
    out += "\n  fix: write `#[childproof::test]` in place of `#[test]`: then the test that leaves it fails, and it is killed.\n";
    out += "  allow: childproof::policy!(unguarded = \"allow\");\n";
    format!("\n{}\n", finish(&out, layout.width))
}
