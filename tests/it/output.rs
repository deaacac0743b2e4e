//! What a user reads: the output of the body first, then a report that names what was left.
//!
//! `tests/it/expected` has whole reports, with the numbers that differ from run to run replaced. After an
//! intended change, `CHILDPROOF_BLESS=1 cargo test --test it` updates them.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Fixture, Ran, root, scratch};

fn output(shape: &str, arguments: &[&str]) -> String {
    let name = format!("shapes::{shape}");
    let arguments = [&["--exact", &name][..], arguments].concat();
    Fixture::build("leaky").run("harness", &arguments).stdout
}

/// The report of one test, from its head to the end of its last line, normalised.
pub(crate) fn report_in(target: &str, test: &str) -> String {
    let fixture = Fixture::build("leaky");
    let text = fixture.run(target, &["--exact", test, "--color=never"]).stdout;
    let heads = ["LEAK  ", "FAIL  ", "HUNG  ", "ERROR  "];
    let begin = heads.iter().filter_map(|head| text.find(head)).min();
    let begin = begin.unwrap_or_else(|| panic!("no report in\n{text}"));
    let end = text[begin..].find("\n\n\n").map_or(text.len(), |end| begin + end);
    // The kernel keeps 15 characters of a name, and cargo adds a hash to it.
    let name = fixture.binary(target).file_name().unwrap().to_string_lossy();
    let text = text[begin..end].replace(&std::env::temp_dir().display().to_string(), "TMP");
    let mut text = text.replace(&root().display().to_string(), "ROOT");
    // The name of the run's directory ends in random letters.
    while let Some(at) = text.find("TMP/childproof-") {
        let rest = at + "TMP/".len();
        let end = text[rest..].find('/').map_or(text.len(), |length| rest + length);
        text.replace_range(at..end, "SCRATCH");
    }
    // The number of the terminal depends on how many there are.
    let mut parts = text.split("/dev/pts/");
    let first = parts.next().unwrap_or_default().to_owned();
    let digits = |part: &str| part.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
    let text = parts.fold(first, |text, part| text + "/dev/pts/N" + &digits(part));
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

/// Replaces what differs between runs or kernels: pids, inodes, times, wait channels.
pub(crate) fn normalise(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
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
            // Small numbers are fds and counts, those after a colon lines of code, and some belong to the
            // fixtures: they are the same in every run. A pid has three digits or more.
            let behind = &rest[at + length..];
            let is_port = out.ends_with("#:");
            let fixed = out.ends_with(':') && !is_port
                || number == "86399"
                || number == "200" && behind.starts_with(" ms")
                || number == "600" && behind.starts_with('s');
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
        "job_of_the_first_of_two_shells",
        "job_of_a_shell_with_a_group_of_its_own",
        "jobs_of_twelve_shells",
        "two_shells_with_a_child_each",
        "output_of_a_job_that_stays",
        "pipe_let_through_on_purpose",
        "second_number_for_its_output_in_a_shell",
        "exits_with_a_child_of_its_own",
        "exits_with_a_code_of_a_handlers",
        "pipeline_in_the_background",
        "end_of_a_child_that_ends_in_the_grace",
        "four_files_left_open_where_all_count",
        "fork_without_exec",
        "fork_of_a_fork_that_has_ended",
        "daemon_forked_twice",
        "group_of_its_own",
        "three_groups_of_their_own",
        "session_of_its_own",
        "child_that_leaves_the_session",
        "fork_that_leaves_the_session",
        "session_of_two",
        "both_ends_left_open",
        "one_allowed_and_one_not",
        "thread_that_keeps_a_pipe",
        "exits_in_the_middle_and_leaks",
        "waits_for_a_child_that_never_ends",
        "panics_and_leaks",
        "aborts",
        "fault_of_the_body",
        "fault_of_a_thread",
        "fault_behind_the_end_of_a_file",
        "thread_where_it_is_denied",
        "child_deaf_to_sigterm",
    ];
    assert_expected("shapes", shapes.map(|shape| (shape, report_in("harness", &format!("shapes::{shape}")))));
}

#[childproof::test]
fn has_the_numbers_of_group_and_session() {
    let path = scratch().join("report.json");
    for (shape, group, session) in [
        ("child_dropped", false, false),
        ("group_of_its_own", true, false),
        ("session_of_its_own", true, true),
        ("daemon_forked_twice", true, true),
    ] {
        let text = output(shape, &["--json", path.to_str().unwrap()]);
        let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let process = &json["processes"][0];
        let (pid, pgid, sid) = (&process["pid"], &process["pgid"], &process["sid"]);
        // The group and session of the test itself are not shown.
        assert_eq!(text.contains(&format!(", pgid {pgid}")), group, "{text}");
        assert_eq!(text.contains(&format!(", sid {sid}")), session, "{text}");
        assert_eq!(text.contains(" (its own)"), pgid == pid, "{text}");
        let test = process["lineage"].as_array().unwrap().last();
        assert_eq!(Some(pgid) != test, group, "{process}");
        assert_eq!(sid == pid, shape == "session_of_its_own", "{process}");
        assert_ne!(Some(sid), test, "{process}");
        assert!(process["age"].as_f64().is_some_and(|age| (0.1..10.0).contains(&age)), "{process}");
        assert_eq!(process["threads"], 1);
        assert_eq!(process["adopted"], shape == "daemon_forked_twice");
        assert_eq!(process["forked_without_exec"], shape == "daemon_forked_twice");
    }
}

#[childproof::test]
fn of_a_failing_body_comes_before_the_report() {
    let text = output("panics_and_leaks", &[]);
    let (words, report) = (text.find("words of the panic").unwrap(), text.find("FAIL  shapes").unwrap());
    assert!(words < report, "{text}");
    for target in ["harness", "stock"] {
        let ran = Fixture::build("leaky").run(target, &["shapes::kills_itself", "--exact"]);
        assert!(ran.stdout.contains("\nwords without an end\n\nFAIL  shapes"), "{target} {}", ran.all());
    }
}

#[childproof::test]
fn has_backtraces_that_end_at_the_body() {
    let fixture = Fixture::build("leaky");
    for (target, test) in [("harness", "shapes::panics"), ("stock", "shapes::panics"), ("reports", "panics")]
    {
        for (value, whole) in [("1", false), ("full", true)] {
            let ran = Ran::of(fixture.command(target, &[test, "--exact"]).env("RUST_BACKTRACE", value));
            let text = ran.all();
            // The full stack shows a hash after the name.
            let has_body = text.contains("::panics\n") || text.contains("::panics::h");
            assert!(text.contains("stack backtrace:") && has_body, "{text}");
            assert_eq!(text.contains(" childproof::"), whole, "{target} {value}\n{text}");
        }
    }
}

#[childproof::test]
fn never_has_the_escape_sequences_of_a_name() {
    // Without colours, the printer removes the escape sequences that it knows.
    let text = output("child_with_a_nasty_name", &["--color=always"]);
    assert!(text.contains(r"a\u{1b}[2J\n) R 1 1"), "{text}");
    assert!(!text.contains("\x1b[2J"), "{text}");

    let fixture = Fixture::build("leaky");
    for (test, names) in [
        // The names from the kernel and from the program, and the suggested argument.
        ("command_line", &[r#"`"\u{1b}[2J\r\n"#, r#""?[2J????????xxx"#][..]),
        ("fork", &[r"`\u{1b}[2J\r\n"]),
        ("zombie", &[r"`\u{1b}[2J\r\n"]),
        ("file", &[r"/\u{1b}[2J\r\n"]),
        ("message", &[r#""\u{1b}[2J\r\n"#]),
    ] {
        let name = format!("nasty::{test}");
        let mut command = fixture.command("reports", &["--exact", &name, "--color=always"]);
        let ran = Ran::of(command.env("COLUMNS", "100"));
        // The body's own output is not checked; it comes first.
        let begin = ran.stdout.find("LEAK\x1b").or(ran.stdout.find("FAIL\x1b"));
        let report = &ran.stdout[begin.unwrap_or_else(|| panic!("{}", ran.all()))..];
        for expected in names {
            assert!(report.contains(expected), "no {expected} in {report}");
        }
        // Each colour ends with the next `m`, and nothing else begins with an escape.
        let mut parts = report.split('\x1b');
        let first = parts.next().unwrap();
        let plain: String = parts.fold(first.to_owned(), |text, part| {
            let (colour, rest) = part.split_once('m').unwrap_or_else(|| panic!("{part:?}"));
            let known = |c: char| c.is_ascii_digit() || "[;".contains(c);
            assert!(colour.starts_with('[') && colour.chars().all(known), "{colour:?}");
            text + rest
        });
        let raw = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
        assert!(!plain.contains(raw), "{plain:?}");
        let longest = plain.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(longest < if test == "message" { 1400 } else { 250 }, "{longest} in {plain}");
    }
}

#[childproof::test]
fn has_no_names_and_reasons_that_rearrange_its_lines() {
    let fixture = Fixture::build("leaky");
    let invalid =
        |name: &str| format!("invalid test name `{name}`: expected text without control characters");
    for (name, expected) in [
        ("a\nb", invalid(r"a\nb")),
        ("a\x1b[2J", invalid(r"a\u{1b}[2J")),
        ("a\u{202e}b", invalid(r"a\u{202e}b")),
        ("", "a test that was added has an empty name: expected text".to_owned()),
    ] {
        let ran = Ran::of(fixture.command("harness", &["made"]).env("LEAKY_NAME", name));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{}", ran.all());
        assert_eq!(ran.stderr, format!("error: {expected}\n"));
    }
    let name = "made of naïve ☃ 👩\u{200d}🚀";
    let mut command = fixture.command("harness", &["made", "--color=always"]);
    let ran = Ran::of(command.env("LEAKY_NAME", name).env("LEAKY_REASON", "a\n\x1b[2J\u{202e}b"));
    assert!(ran.stdout.contains(name), "{}", ran.all());
    assert!(ran.stdout.contains(r"ignored (a\n\u{1b}[2J\u{202e}b)"), "{}", ran.all());
}

/// Runs a leaking test on a terminal; `redirection` is shell syntax. Returns what the terminal showed, and
/// the contents of a file `out`. `None` without script(1), which creates the terminal.
fn on_a_terminal(
    target: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    redirection: &str,
) -> Option<(String, String)> {
    let (script, out) = (scratch().join("run.sh"), scratch().join("out"));
    let command =
        Fixture::build("leaky").command(target, &[&["--exact", "shapes::child_dropped"], arguments].concat());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    fs::write(&script, format!("{} {redirection}\n", words.join(" "))).unwrap();
    fs::write(&out, "").unwrap();
    let mut terminal = Command::new("script");
    for (name, _) in command.get_envs() {
        terminal.env_remove(name);
    }
    terminal.args(["-qec", "sh \"$RUN\"", "/dev/null"]).env("RUN", &script).env("OUT", &out);
    // If CI is set, a dumb terminal counts as a capable one.
    terminal.env_remove("CI");
    terminal.env("SHELL", "/bin/sh").env("TERM", "xterm-256color").envs(environment.iter().copied());
    let Ok(output) = terminal.stdin(Stdio::null()).output() else {
        println!("skipped: script(1) is not installed");
        return None;
    };
    assert_eq!(output.status.code(), Some(101), "{output:?}");
    Some((String::from_utf8_lossy(&output.stdout).into_owned(), fs::read_to_string(out).unwrap()))
}

const COLOURED: &str = "\x1b[31mLEAK\x1b[0m";
const PLAIN: &str = "LEAK  shapes::child_dropped   body passed";

#[childproof::test]
fn has_colours_on_a_terminal_unless_they_are_not_wanted() {
    for target in ["harness", "stock"] {
        for (arguments, environment, expected) in [
            (&[][..], &[][..], COLOURED),
            (&[], &[("NO_COLOR", "1")], PLAIN),
            (&[], &[("NO_COLOR", "0")], PLAIN),
            (&[], &[("NO_COLOR", "")], COLOURED),
            (&[], &[("TERM", "dumb")], PLAIN),
            (&["--color=auto"], &[("NO_COLOR", "1")], PLAIN),
            (&["--color=never"], &[], PLAIN),
            (&["--color", "never"], &[], PLAIN),
            (&["--color", "always"], &[("NO_COLOR", "1")], COLOURED),
        ] {
            let Some((seen, _)) = on_a_terminal(target, arguments, environment, "") else { return };
            assert!(seen.contains(expected), "{target} {arguments:?} {environment:?}\n{seen}");
            // libtest does not support NO_COLOR.
            let plain = expected == PLAIN && (target == "harness" || arguments.len() > 1);
            assert!(!plain || !seen.contains('\x1b'), "{target} {arguments:?} {environment:?}\n{seen}");
        }
    }
}

#[childproof::test]
fn has_no_colours_in_a_file_unless_they_are_wanted() {
    for target in ["harness", "stock"] {
        for (arguments, expected) in
            [(&[][..], PLAIN), (&["--color=auto"], PLAIN), (&["--color=always"], COLOURED)]
        {
            // The other stream is still a terminal.
            let Some((_, written)) = on_a_terminal(target, arguments, &[], "> \"$OUT\"") else { return };
            assert!(written.contains(expected), "{target} {arguments:?}\n{written}");
            let plain = expected == PLAIN;
            assert!(!plain || !written.contains('\x1b'), "{target} {arguments:?}\n{written}");
        }
        let Some((seen, _)) = on_a_terminal(target, &[], &[], "2> \"$OUT\"") else { return };
        assert!(seen.contains(COLOURED), "{target}\n{seen}");
    }
    // libtest does not capture, so the report is where it was printed.
    let Some((_, written)) = on_a_terminal("stock", &["--nocapture"], &[], "2> \"$OUT\"") else { return };
    assert!(written.contains(PLAIN), "{written}");
    let Some((seen, _)) = on_a_terminal("stock", &["--nocapture"], &[], "> \"$OUT\"") else { return };
    assert!(seen.contains(COLOURED), "{seen}");
}

/// Each process would report the other's exit as if that were the cause.
#[childproof::test]
fn has_nothing_that_the_kill_itself_has_caused() {
    let fixture = Fixture::build("leaky");
    for _ in 0..12 {
        let ran = fixture.run("waits", &["--exact", "writer_that_complains", "--color=never"]);
        assert!(ran.stdout.contains("HUNG  writer_that_complains"), "{}", ran.all());
        assert!(!ran.all().contains("I/O error"), "{}", ran.all());
    }
}

// ---- in a terminal ----

/// What a test's run writes to a terminal of so many columns, without colours, line by line.
fn lines_in_a_terminal(columns: usize, test: &str) -> Vec<String> {
    let like = Fixture::build("leaky").command("harness", &["--exact", test]);
    let words = std::iter::once(like.get_program()).chain(like.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command"]).arg(format!("stty cols {columns}; exec {line}"));
    command.arg("/dev/null").stdin(Stdio::null());
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let text = Ran::of(command.env_remove("COLUMNS")).stdout;
    let mut plain = String::new();
    let mut parts = text.split("\x1b[");
    plain.extend(parts.next());
    plain.extend(parts.map(|part| part.split_once('m').map_or(part, |(_, rest)| rest)));
    plain.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[childproof::test(timeout = "180s")]
fn a_report_fits_the_terminal() {
    for (columns, test) in [(80, "shapes::chain_of_five"), (200, "shapes::chain_of_five")] {
        let lines = lines_in_a_terminal(columns, test);
        let begin = lines.iter().position(|line| line.starts_with("LEAK  "));
        let begin = begin.unwrap_or_else(|| panic!("no report in {lines:#?}"));
        let report = lines[begin + 1..].split(|line| line.starts_with("test result")).next().unwrap();
        let width = |line: &&String| line.chars().count();
        for line in report {
            // A word longer than the width stays whole, so that it can be copied.
            let is_one_word = line.split_whitespace().count() == 1;
            assert!(width(&line) <= columns || is_one_word, "{columns}: {line}");
        }
        let longest = report.iter().map(|line| width(&line)).max().unwrap();
        assert!(
            longest > columns * 2 / 3,
            "{columns} columns are there, and {longest} are used: {report:#?}"
        );
    }
}
