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

/// The report, from its head to the end of its last line.
fn report(shape: &str) -> String {
    let text = output(shape, &["--color=never"]);
    let heads = ["LEAK  ", "FAIL  ", "HUNG  "];
    let begin = heads.iter().filter_map(|head| text.find(head)).min();
    let begin = begin.unwrap_or_else(|| panic!("no report in\n{text}"));
    let end = text[begin..].find("\n\n\n").map_or(text.len(), |end| begin + end);
    // The kernel keeps 15 characters of a name, and cargo puts a hash into it.
    let fixture = Fixture::build("leaky");
    let name = fixture.binary("harness").file_name().unwrap().to_string_lossy();
    normalise(&text[begin..end].replace(&name[..15], "harness-HASH"))
}

/// Replaces what differs between two runs or two kernels: pids, inodes, times, wait channels.
fn normalise(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        // The name of the kernel's function, at the end of a line about a wait.
        let line = match line.rfind("  [") {
            Some(at) if line.ends_with(']') => &line[..at],
            _ => line,
        };
        let mut rest = line;
        while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
            let length =
                rest[at..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len() - at);
            let number = rest[at..at + length].trim_end_matches('.');
            let length = number.len();
            out.push_str(&rest[..at]);
            // Small numbers are fds, counts and limits, and the same in every run.
            let varies = number.contains('.') || number.len() > 3 && number != "86399";
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
    let mut wrong = Vec::new();
    for shape in [
        "child_dropped",
        "background_job_of_a_shell",
        "fork_without_exec",
        "daemon_forked_twice",
        "both_ends_left_open",
        "exits_in_the_middle_and_leaks",
        "waits_for_a_child_that_never_ends",
        "panics_and_leaks",
    ] {
        let path = root().join(format!("tests/it/expected/{shape}.txt"));
        let seen = report(shape);
        if std::env::var_os("CHILDPROOF_BLESS").is_some() {
            fs::write(&path, &seen).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if seen != expected {
            wrong.push(format!("--- {shape}, expected\n{expected}--- seen\n{seen}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
