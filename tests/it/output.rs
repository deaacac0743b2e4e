//! What a user reads: the body's own output first, then a report that names what was left.
//!
//! `tests/it/expected` has whole reports, with the numbers that differ from run to run replaced.
//! After a change that was meant, `CHILDPROOF_BLESS=1 cargo test --test it` writes them anew.

use std::fs;

use crate::support::{Fixture, root};

fn output(shape: &str, arguments: &[&str]) -> String {
    let name = format!("shapes::{shape}");
    let arguments = [&["--exact", &name][..], arguments].concat();
    Fixture::build("leaky").run("harness", &arguments).stdout
}

/// The report of one test, from its head to the end of its last line, normalised.
pub(crate) fn report_in(target: &str, test: &str) -> String {
    let fixture = Fixture::build("leaky");
    let text = fixture.run(target, &["--exact", test, "--color=never"]).stdout;
    let heads = ["LEAK  ", "FAIL  ", "HUNG  "];
    let begin = heads.iter().filter_map(|head| text.find(head)).min();
    let begin = begin.unwrap_or_else(|| panic!("no report in\n{text}"));
    let end = text[begin..].find("\n\n\n").map_or(text.len(), |end| begin + end);
    // The kernel keeps 15 characters of a name, and cargo puts a hash into it.
    let name = fixture.binary(target).file_name().unwrap().to_string_lossy();
    let mut text = text[begin..end].replace(&std::env::temp_dir().display().to_string(), "TMP");
    // The run's own directory in it has six characters of chance.
    while let Some(at) = text.find("TMP/childproof-") {
        text.replace_range(at..at + "TMP/childproof-xxxxxx".len(), "SCRATCH");
    }
    normalise(&text.replace(&name[..name.len().min(15)], &format!("{target}-HASH")))
}

/// Compares reports with the stored ones.
pub(crate) fn assert_expected(directory: &str, reports: impl IntoIterator<Item = (&'static str, String)>) {
    let mut wrong = Vec::new();
    for (shape, seen) in reports {
        let path = root().join("tests/it/expected").join(directory).join(format!("{shape}.txt"));
        if std::env::var_os("CHILDPROOF_BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &seen).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if seen != expected {
            wrong.push(format!("--- {shape}, expected\n{expected}--- seen\n{seen}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Joins the lines of a sentence, which are broken where a pid has pushed a word over the edge.
fn unwrap(text: &str) -> String {
    let mut out = String::new();
    // Head, sentences, tree, .., separated by empty lines.
    let mut part = 0;
    for line in text.lines() {
        part += usize::from(line.is_empty());
        let continues = part == 1 && !out.ends_with("\n\n") && !out.ends_with(".\n") && !out.ends_with(")\n")
            || line.starts_with("       ")
                && out.lines().last().is_some_and(|last| last.starts_with("  fix: "));
        if continues && !line.is_empty() {
            out.pop();
            out.push(' ');
            out.push_str(line.trim_start());
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// Replaces what differs between two runs or two kernels: pids, inodes, times, wait channels.
pub(crate) fn normalise(text: &str) -> String {
    let mut out = String::new();
    for line in unwrap(text).lines() {
        // The name of the kernel's function, in a line about a wait.
        let (line, behind) = match line.find("  [").map(|at| (&line[..at], line[at..].find(']'), &line[at..]))
        {
            Some((line, Some(end), behind)) => (line, &behind[end + 1..]),
            _ => (line, ""),
        };
        let line = format!("{line}{behind}");
        let mut rest = line.as_str();
        while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
            let length =
                rest[at..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len() - at);
            let number = rest[at..at + length].trim_end_matches('.');
            let length = number.len();
            out.push_str(&rest[..at]);
            // Small numbers are fds and counts, those behind a colon lines of code, and some are
            // the fixtures' own: the same in every run. A pid has three digits or more.
            let fixed = out.ends_with(':') || ["200", "600", "86399"].contains(&number);
            let varies = number.contains('.') || number.len() > 2 && !fixed;
            out.push_str(if varies { "#" } else { number });
            rest = &rest[at + length..];
        }
        out.push_str(rest);
        out.push('\n');
    }
    out
}

#[childproof::test]
fn of_a_failing_test_is_a_report_that_names_what_was_left() {
    let shapes = [
        "child_dropped",
        "background_job_of_a_shell",
        "fork_without_exec",
        "daemon_forked_twice",
        "both_ends_left_open",
        "exits_in_the_middle_and_leaks",
        "waits_for_a_child_that_never_ends",
        "panics_and_leaks",
    ];
    assert_expected("shapes", shapes.map(|shape| (shape, report_in("harness", &format!("shapes::{shape}")))));
}

#[childproof::test]
fn of_a_failing_body_comes_before_the_report() {
    let text = output("panics_and_leaks", &[]);
    let (words, report) = (text.find("words of the panic").unwrap(), text.find("FAIL  shapes").unwrap());
    assert!(words < report, "{text}");
    let text = output("kills_itself", &[]);
    let (words, report) = (text.find("words without an end").unwrap(), text.find("FAIL  shapes").unwrap());
    assert!(words < report, "{text}");
}

#[childproof::test]
fn never_has_the_escape_sequences_of_a_name() {
    let text = output("child_with_a_nasty_name", &["--color=never"]);
    assert!(text.contains(r"a\u{1b}[2J\n) R 1 1"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

#[childproof::test]
fn has_colours_only_where_they_are_wanted() {
    assert!(!output("child_dropped", &[]).contains('\x1b'), "a pipe is no terminal");
    assert!(output("child_dropped", &["--color=always"]).contains("\x1b[1m"));
}
