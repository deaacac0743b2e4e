//! On a GitHub runner, each failed test is annotated at the line that created the leak or that it hangs in,
//! or else at the test's own line.
//!
//! `tests/fixtures/leaky/tests/reports.rs` has the tests.

use std::fs;
use std::process::Command;

use crate::support::{Fixture, Ran, root};

/// A command as a runner starts it: in a crate that is not at the root of the repository.
fn command(target: &str, arguments: &[&str]) -> Command {
    let mut command = Fixture::build("leaky").command(target, arguments);
    command.current_dir(root().join("tests/fixtures/leaky"));
    command.env("GITHUB_ACTIONS", "true").env("GITHUB_WORKSPACE", root());
    command
}

/// The lines of stdout that the runner would take as commands.
fn commands(ran: &Ran) -> Vec<&str> {
    ran.stdout.lines().filter(|line| line.trim_start().starts_with("::")).collect()
}

/// `file=..,line=..,` of the only line in a file of the fixture that has this text.
fn line_with(file: &str, text: &str) -> String {
    let path = format!("tests/fixtures/leaky/tests/{file}");
    let source = fs::read_to_string(root().join(&path)).unwrap();
    let mut lines = source.lines().enumerate().filter(|(_, line)| line.contains(text));
    let (number, _) = lines.next().unwrap();
    assert_eq!(lines.next(), None, "{text}");
    format!("file={path},line={},", number + 1)
}

/// `file=..,line=..,` of the line behind the one with this text.
fn line_behind(file: &str, text: &str) -> String {
    let line = line_with(file, text);
    let (begin, number) = line.trim_end_matches(',').rsplit_once('=').unwrap();
    format!("{begin}={},", number.parse::<u32>().unwrap() + 1)
}

/// `file=..,line=..,` of the line in a test of `reports.rs` that creates the leak.
fn leak(test: &str) -> String {
    let path = "tests/fixtures/leaky/tests/reports.rs";
    let source = fs::read_to_string(root().join(path)).unwrap();
    let mut lines = source.lines().enumerate().skip_while(|(_, line)| *line != format!("fn {test}() {{"));
    let (number, _) = lines.find(|(_, line)| line.ends_with("// LEAK")).unwrap();
    format!("file={path},line={},", number + 1)
}

#[childproof::test]
fn name_the_line_that_made_the_leak() {
    let sleep = "pid N `sleep 86399` was still running 200 ms after the test ended. It ";
    for (test, title, message) in [
        ("leaks", "leaked a process", sleep),
        ("leaks_what_a_shell_started", "leaked a process", sleep),
        (
            "leaks_a_pipe",
            "left a pipe open",
            "the body left 2 pipe ends open: fd 3, 4, created at tests/reports.rs:",
        ),
        ("leaks_and_panics", "leaked a process", sleep),
        (
            "leaks_what_is_allowed_and_what_is_not",
            "leaked a process",
            "pid N `tail -f /dev/null` was still running 200 ms after the test ended. It was spawned at tests/reports.rs:",
        ),
    ] {
        let ran = Ran::of(&mut command("reports", &[test, "--exact"]));
        let commands = commands(&ran);
        assert_eq!(commands.len(), 1, "{}", ran.all());
        let (place, rest) = commands[0].split_once("col=").unwrap_or_else(|| panic!("{}", ran.all()));
        assert_eq!(place, format!("::error {}", leak(test)));
        let (column, rest) = rest.split_once(',').unwrap();
        assert!(column.parse::<u32>().is_ok(), "{}", commands[0]);
        let (seen_title, seen_message) = rest.split_once("::").unwrap();
        assert_eq!(seen_title, format!("title={test} {title}"));
        assert!(without_pid(seen_message).starts_with(message), "{}", ran.all());
        assert_eq!(seen_message.contains("%0Apanicked at "), test == "leaks_and_panics", "{}", ran.all());
        // Not between the results.
        assert!(ran.stdout.find("test result: ") < ran.stdout.find("::error"), "{}", ran.all());
    }
}

/// Replaces the number after `pid `.
fn without_pid(message: &str) -> String {
    match message.strip_prefix("pid ").and_then(|rest| rest.split_once(' ')) {
        Some((_, rest)) => format!("pid N {rest}"),
        None => message.to_owned(),
    }
}

#[childproof::test]
fn name_the_line_that_panicked() {
    let expect = |mut command: Command, place: &str, title: &str| {
        let ran = Ran::of(&mut command);
        let [seen] = commands(&ran)[..] else { panic!("{}", ran.all()) };
        let (begin, message) = seen.split_once("::panicked at ").unwrap_or_else(|| panic!("{}", ran.all()));
        let (begin, title_seen) = begin.split_once(",title=").unwrap();
        let (begin, column) = begin.rsplit_once("col=").unwrap_or_else(|| panic!("{}", ran.all()));
        assert!(column.parse::<u32>().is_ok_and(|column| column > 0), "{seen}");
        assert_eq!((begin, title_seen), (format!("::error {place}").as_str(), title), "{seen}");
        assert!(message.ends_with(": words of the panic"), "{seen}");
    };
    let place = line_behind("reports.rs", "fn panics() {");
    expect(command("reports", &["panics", "--exact"]), &place, "panics panicked");
    let place = line_behind("shapes/mod.rs", "fn panics() {");
    expect(command("stock", &["shapes::panics", "--exact"]), &place, "shapes%3A%3Apanics panicked");
    let mut made = command("harness", &["made::panics", "--exact"]);
    made.env("LEAKY_PANIC", "1");
    expect(made, &line_with("harness.rs", "\"made::panics\""), "made%3A%3Apanics panicked");
}

#[childproof::test]
fn name_the_test_where_no_other_line_is_known() {
    for (target, place) in [
        ("stock", line_with("shapes/mod.rs", "fn does_not_panic_as_it_should() {}")),
        ("harness", line_with("shapes/mod.rs", "fn does_not_panic_as_it_should() {}")),
    ] {
        let ran = Ran::of(&mut command(target, &["shapes::does_not_panic_as_it_should", "--exact"]));
        let title = "title=shapes%3A%3Adoes_not_panic_as_it_should did not panic";
        let expected = format!(
            "::error {place}{title}::the body did not panic, although `#[should_panic]` expects it to."
        );
        assert_eq!(commands(&ran), [expected], "{}", ran.all());
    }
}

#[childproof::test]
fn name_paths_from_the_root_of_the_repository() {
    // Without a runner the repository is found by its `.git`; the tests may run outside of any repository.
    let prefix = if root().join(".git").exists() { "tests/fixtures/leaky/" } else { "" };
    for test in ["leaks", "panics"] {
        for workspace in [None, Some("/nowhere")] {
            let mut command = command("reports", &[test, "--exact"]);
            command.env_remove("GITHUB_WORKSPACE").envs(workspace.map(|path| ("GITHUB_WORKSPACE", path)));
            let ran = Ran::of(&mut command);
            let expected = format!("::error file={prefix}tests/reports.rs,line=");
            assert!(commands(&ran)[0].starts_with(&expected), "{workspace:?} {}", ran.all());
        }
    }
}

#[childproof::test]
fn begin_with_what_explains_the_failure() {
    let ran = Ran::of(&mut command("waits", &["keeper_of_its_own_lifeline", "--exact"]));
    let commands = commands(&ran);
    // The line that the test hangs in.
    let place = line_with("waits.rs", "libc::waitpid(pid, std::ptr::null_mut(), 0)");
    let expected = format!("::error {place}col=14,title=keeper_of_its_own_lifeline timed out");
    let (begin, message) = commands[0].split_once("::pid ").unwrap_or_else(|| panic!("{}", ran.all()));
    assert_eq!(begin, expected, "{}", ran.all());
    let message = without_pid(&format!("pid {message}"));
    assert!(message.starts_with("pid N deadlocks on itself: it reads a pipe "), "{message}");
    assert!(message.contains("%0Athe test did not return within its timeout of "), "{message}");
}

#[childproof::test]
fn are_one_line_whatever_the_names() {
    let ran = Ran::of(&mut command("reports", &["leaks_a_nasty_name"]));
    let commands = commands(&ran);
    assert_eq!(commands.len(), 1, "{}", ran.all());
    let expected = r"50%250A,a:b\n::error::no\u{202e}";
    assert!(commands[0].contains(expected), "{}", commands[0]);
}

#[childproof::test]
fn are_one_for_each_test_that_failed() {
    let tests = ["leaks", "panics", "passes", "ignored", "--exact", "--repeat=2"];
    let ran = Ran::of(&mut command("reports", &tests));
    assert_eq!(commands(&ran).len(), 2, "{}", ran.all());
}

#[childproof::test]
fn are_for_runners_and_readers_only() {
    let test = ["panics", "--exact"];
    for value in ["", "false"] {
        let ran = Ran::of(command("reports", &test).env("GITHUB_ACTIONS", value));
        assert_eq!(commands(&ran), [""; 0], "{}", ran.all());
    }
    let ran = Ran::of(&mut command("reports", &[&test[..], &["--format=json"]].concat()));
    assert!(ran.stdout.lines().all(|line| line.starts_with('{')), "{}", ran.all());
    for format in [&["--format=json"][..], &["--format", "json"]] {
        let arguments = [&["shapes::panics", "--exact", "-Zunstable-options"], format].concat();
        let ran = Ran::of(command("stock", &arguments).env("RUSTC_BOOTSTRAP", "1"));
        assert_eq!(ran.code, Some(101), "{}", ran.all());
        assert!(!ran.stdout.contains("::error"), "{}", ran.all());
    }
}

#[childproof::test]
fn come_with_the_report_in_a_stock_target() {
    let tests = ["shapes::child_dropped", "shapes::child_waited_for", "--exact"];
    let ran = Ran::of(&mut command("stock", &tests));
    let seen = commands(&ran);
    assert_eq!(seen.len(), 1, "{}", ran.all());
    assert!(
        seen[0].starts_with("::error file=tests/fixtures/leaky/tests/shapes/mod.rs,line="),
        "{}",
        ran.all()
    );
    assert!(seen[0].contains("title=shapes%3A%3Achild_dropped leaked a process::pid "), "{}", ran.all());

    // Neither the body's last line nor libtest's ends with a newline.
    let arguments = ["shapes::kills_itself", "--exact", "--nocapture", "--test-threads=1"];
    let ran = Ran::of(&mut command("stock", &arguments));
    assert!(ran.stdout.contains("words without an end"), "{}", ran.all());
    let expected = format!(
        "::error {}title=shapes%3A%3Akills_itself was ended by a signal::the test process was ended by SIGKILL (9).",
        line_with("shapes/mod.rs", "fn kills_itself() {")
    );
    assert_eq!(commands(&ran), [expected], "{}", ran.all());
}
