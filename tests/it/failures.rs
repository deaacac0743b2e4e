//! What the failures of a run have in common is reported once: at its end by line of code, in one annotation, and in a
//! table of a CI's page.
//!
//! `tests/fixtures/team` has the tests.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::output::normalise;
use crate::support::{Fixture, Ran, root, scratch};

const TARGETS: [&str; 2] = ["whole", "stock"];

/// A command as cargo runs it: in the directory of the package.
fn command(target: &str, arguments: &[&str]) -> Command {
    let mut command = Fixture::build("team").command(target, arguments);
    command.arg("--test-threads=1").current_dir(root().join("tests/fixtures/team/crates/a"));
    command
}

/// The lines of the output from the heading of the summary on.
fn summary(text: &str) -> Vec<&str> {
    let mut lines = text.lines().skip_while(|line| *line != "failures by line:").skip(1);
    lines.by_ref().take_while(|line| line.starts_with("    ")).map(str::trim_start).collect()
}

/// `src/lib.rs:5` of the line with this mark.
fn marked(file: &str, mark: &str) -> String {
    let source = fs::read_to_string(root().join("tests/fixtures/team").join(file)).unwrap();
    let mut lines = source.lines().enumerate().filter(|(_, line)| line.ends_with(mark));
    let (number, _) = lines.next().unwrap();
    format!("{file}:{}", number + 1)
}

/// Without the column.
fn in_line(line: &str) -> String {
    let (begin, column) = line.rsplit_once(':').unwrap();
    assert!(column.parse::<u32>().is_ok(), "{line}");
    begin.to_owned()
}

#[childproof::test]
fn are_listed_by_line_at_the_end() {
    for target in TARGETS {
        let ran = Ran::of(&mut command(target, &["leaks_", "--skip=other", "panics_", "hangs_"]));
        assert_eq!(ran.code, Some(101), "{}", ran.all());
        let seen: Vec<String> = summary(&ran.stdout).into_iter().map(in_line).collect();
        let lib = "crates/b/src/lib.rs";
        let expected = [
            format!("3 tests left `sleep 86399`: {}", marked(lib, "// LEAK")),
            format!("2 tests timed out: {}", marked(lib, "// HANG")),
            format!("2 tests panicked with \"there is no server\": {}", marked(lib, "// PANIC")),
            format!(
                "1 test left `tail -f /dev/null`: {}",
                marked("crates/a/tests/bodies/mod.rs", "// ALONE")
            ),
        ];
        assert_eq!(seen, expected, "{}", ran.all());
        assert!(ran.stdout.find("test result: ") < ran.stdout.find("failures by line:"), "{}", ran.all());
    }
}

#[childproof::test]
fn of_one_test_are_in_its_report_alone() {
    for target in TARGETS {
        for tests in [&["leaks_first"][..], &["leaks_first", "leaks_alone"], &["passes"]] {
            let ran = Ran::of(&mut command(target, tests));
            assert!(!ran.all().contains("failures by line"), "{}", ran.all());
        }
    }
}

/// A server's port may be another in each test.
#[childproof::test]
fn of_one_line_may_leave_different_processes() {
    for target in TARGETS {
        let ran = Ran::of(&mut command(target, &["other_leaks_"]));
        let seen: Vec<String> = summary(&ran.stdout).into_iter().map(in_line).collect();
        let line = marked("crates/b/src/lib.rs", "// LEAK");
        assert_eq!(seen, [format!("2 tests left processes such as `sleep 86397`: {line}")], "{}", ran.all());
    }
}

#[childproof::test]
fn of_a_line_that_was_reported_are_three_lines() {
    for target in TARGETS {
        let ran = Ran::of(&mut command(target, &["leaks_", "--skip=other", "hangs_"]));
        let text = normalise(&ran.stdout);
        assert_eq!(text.matches("  fix: ").count(), 2, "{}", ran.all());
        for (test, first) in [("leaks_second", "leaks_first"), ("leaks_third", "leaks_first")] {
            let report = text.split(&format!("LEAK  bodies::{test}")).nth(1).unwrap();
            let report = report.split("\n\n\n").next().unwrap();
            let lines: Vec<&str> = report.trim_end().lines().collect();
            assert_eq!(lines.len(), 3, "{report}");
            assert!(
                lines[1].contains("`sleep 86399` was still running 200 ms after the test ended."),
                "{report}"
            );
            let as_in = format!("  As in the report of test bodies::{first} above: the same lines of code.");
            assert_eq!(lines[2], as_in, "{report}");
        }
        let hung = text.split("HUNG  bodies::hangs_second").nth(1).unwrap();
        assert!(hung.contains("As in the report of test bodies::hangs_first above"), "{}", ran.all());
        let alone = text.split("LEAK  bodies::leaks_alone").nth(1).unwrap();
        assert!(alone.split("LEAK  ").next().unwrap().contains("  fix: "), "{}", ran.all());
    }
}

#[childproof::test]
fn are_one_annotation_a_line_with_the_tests_in_it() {
    for target in TARGETS {
        let mut command = command(target, &["leaks_", "--skip=other", "panics_"]);
        let ran = Ran::of(command.env("GITHUB_ACTIONS", "true").env("GITHUB_WORKSPACE", root()));
        let lines: Vec<&str> =
            ran.stdout.lines().filter(|line| line.trim_start().starts_with("::")).collect();
        assert_eq!(lines.len(), 3, "{}", ran.all());
        let of = |words: &str| {
            *lines.iter().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{lines:#?}"))
        };
        let leak = of("3 tests leaked a process");
        let line = marked("crates/b/src/lib.rs", "// LEAK").replace(':', ",line=");
        assert!(leak.starts_with(&format!("::error file=tests/fixtures/team/{line},col=")), "{leak}");
        let names = "%0A3 tests: bodies::leaks_first, bodies::leaks_second, bodies::leaks_third";
        assert!(leak.ends_with(names), "{leak}");
        let panic = of("2 tests panicked");
        let line = marked("crates/b/src/lib.rs", "// PANIC").replace(':', ",line=");
        assert!(panic.starts_with(&format!("::error file=tests/fixtures/team/{line},col=")), "{panic}");
        assert!(panic.contains("::panicked at crates/b/src/lib.rs:"), "{panic}");
        assert!(of("leaks_alone leaked a process").contains("col="), "{}", ran.all());
    }
}

#[childproof::test]
fn are_a_table_of_a_ci_s_page() {
    let path = scratch().join("summary.md");
    fs::write(&path, "before\n").unwrap();
    for target in TARGETS {
        let mut command = command(target, &["leaks_", "--skip=other", "panics_"]);
        let ran = Ran::of(command.env("GITHUB_STEP_SUMMARY", &path).env("CARGO_PKG_NAME", "a"));
        let text = fs::read_to_string(&path).unwrap();
        let table = text.split(&format!("### Failures by line: a {target}\n\n")).nth(1);
        let table: Vec<&str> = table.unwrap_or_else(|| panic!("{text}\n{}", ran.all())).lines().collect();
        assert_eq!(
            table[..2],
            ["| tests | what each did | line | names |", "| ---: | --- | --- | --- |"],
            "{text}"
        );
        let leak = marked("crates/b/src/lib.rs", "// LEAK");
        let begin = format!(r"| 3 | left \`sleep 86399\` | {leak}:");
        assert!(table[2].starts_with(&begin), "{text}");
        assert!(
            table[2].ends_with(r" | bodies::leaks\_first, bodies::leaks\_second, bodies::leaks\_third |"),
            "{text}"
        );
        assert!(
            table[3].starts_with("| 2 | panicked with \"there is no server\" | crates/b/src/lib.rs:"),
            "{text}"
        );
        assert!(
            table[4].starts_with(r"| 1 | left \`tail -f /dev/null\` | crates/a/tests/bodies/mod.rs:"),
            "{text}"
        );
        assert_eq!(table[5..], ["".to_owned(); 1], "{text}");
        assert!(text.starts_with("before\n"), "{text}");
    }
    // Nothing has failed.
    let before = fs::read_to_string(&path).unwrap();
    let ran = Ran::of(command("whole", &["passes"]).env("GITHUB_STEP_SUMMARY", &path));
    assert_eq!((ran.code, fs::read_to_string(&path).unwrap()), (Some(0), before), "{}", ran.all());
    let ran = Ran::of(command("whole", &["leaks_first"]).env("GITHUB_STEP_SUMMARY", "/proc/none"));
    assert!(ran.stderr.contains("cannot write `GITHUB_STEP_SUMMARY=/proc/none`: "), "{}", ran.all());
    assert_eq!(ran.code, Some(101), "{}", ran.all());
}

#[childproof::test]
fn are_in_the_junit_xml_of_each_test_and_of_the_suite() {
    let path = scratch().join("junit.xml");
    let arguments = ["leaks_", "--skip=other", "--junit", path.to_str().unwrap()];
    let ran = Ran::of(&mut command("whole", &arguments));
    let xml = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{error}\n{}", ran.all()));
    let line = "3 tests left `sleep 86399`: crates/b/src/lib.rs:";
    // Each test has the whole report: a viewer shows one at a time.
    assert_eq!(xml.matches("  fix: ").count(), 4, "{xml}");
    assert_eq!(xml.matches(line).count(), 4, "{xml}");
    let suite = xml.split("</testcase>").last().unwrap();
    assert!(suite.contains("<system-out>failures by line:\n"), "{xml}");
    assert!(suite.contains(line) && suite.contains("1 test left `tail -f /dev/null`: "), "{xml}");
}

#[childproof::test]
fn of_a_returned_error_say_it() {
    let (json, junit) = (scratch().join("run.json"), scratch().join("junit.xml"));
    let paths = [json.to_str().unwrap(), junit.to_str().unwrap()];
    let ran = Ran::of(&mut command("whole", &["returns_an_error", "--json", paths[0], "--junit", paths[1]]));
    let message = "the body returned an error: ParseIntError { kind: InvalidDigit }";
    let line: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(line["findings"][0]["sentence"], message, "{}", ran.all());
    assert_eq!(line["findings"][0]["fields"]["message"], "ParseIntError { kind: InvalidDigit }");
    let output = "words before the error\nError: ParseIntError { kind: InvalidDigit }\n";
    assert_eq!(line["output"], output, "{}", ran.all());
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains(&format!("message=\"{message}\"")), "{xml}");
    for target in TARGETS {
        let mut command = command(target, &["returns_an_error"]);
        let ran = Ran::of(command.env("GITHUB_ACTIONS", "true"));
        assert!(ran.stdout.contains(&format!("returns_an_error failed::{message}\n")), "{}", ran.all());
    }
    // What was not caught is not in the files.
    Ran::of(&mut command("whole", &["returns_an_error", "--nocapture", "--json", paths[0]]));
    let line: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&line["output"], &line["findings"][0]["fields"]["message"]), (&Value::Null, &Value::Null));
}

/// cargo-nextest takes a message from what a test prints to stderr.
#[childproof::test(timeout = "600s")]
fn have_a_message_in_the_junit_xml_of_nextest() {
    let installed = Command::new("cargo").args(["nextest", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    let like = command("whole", &[]);
    let target = root().join("target/fixtures");
    let (summary, junit, config) =
        (scratch().join("summary.md"), scratch().join("junit.xml"), scratch().join("nextest.toml"));
    fs::write(&config, format!("[profile.default]\nfail-fast = false\njunit = {{ path = {junit:?} }}\n"))
        .unwrap();
    let mut nextest = Command::new("cargo");
    for (name, value) in like.get_envs().filter(|(_, value)| value.is_none()) {
        assert!(value.is_none());
        nextest.env_remove(name);
    }
    nextest.args(["nextest", "run", "--color=never", "--config-file", config.to_str().unwrap(), "-E"]);
    nextest.arg("test(/_first$/) + test(returns_an_error) + test(passes)");
    nextest.current_dir(root().join("tests/fixtures/team")).env("CARGO_TARGET_DIR", &target);
    let ran = Ran::of(nextest.env("GITHUB_STEP_SUMMARY", &summary).env("COLUMNS", "100000"));
    let xml = fs::read_to_string(&junit).unwrap_or_else(|error| panic!("{error}\n{}", ran.all()));
    for suite in ["a::whole", "a::stock"] {
        let suite = xml
            .split(&format!("<testsuite name=\"{suite}\""))
            .nth(1)
            .unwrap_or_else(|| panic!("{xml}\n{}", ran.all()));
        let suite = suite.split("</testsuite>").next().unwrap();
        for (test, message) in [
            (
                "leaks_first",
                "`sleep 86399` was still running 200 ms after the test ended. It was spawned at crates/b/src/lib.rs:",
            ),
            ("hangs_first", "Error: the test waits for the end of pid "),
            ("panics_first", "panicked at crates/b/src/lib.rs:"),
            ("returns_an_error", "Error: ParseIntError { kind: InvalidDigit }"),
        ] {
            let case = suite.split(&format!("<testcase name=\"bodies::{test}\"")).nth(1).unwrap();
            let seen = case.split("<failure message=\"").nth(1).unwrap_or_else(|| panic!("{case}"));
            let seen = seen.split("\" type=").next().unwrap();
            assert!(seen.contains(message), "{test}: {seen}\n{case}");
        }
    }
    // Each test has a process of its own, and an item of one list.
    let list = fs::read_to_string(&summary).unwrap();
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 8, "{list}");
    assert!(lines.iter().all(|line| line.starts_with("* bodies::")), "{list}");
    assert!(list.contains(r"* bodies::leaks\_first left \`sleep 86399\`: crates/b/src/lib.rs:"), "{list}");
}
