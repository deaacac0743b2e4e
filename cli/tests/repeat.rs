//! `--repeat` and `--repeat-until-failure`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn run(options: &[&str], command: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
    tool.stdin(Stdio::null()).env_remove("LD_PRELOAD").env("ROUNDS", directory.path().join("rounds"));
    tool.arg("run").args(options).arg("--").args(command).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Counts its calls, and writes the count.
const COUNT: &str = "echo x >> \"$ROUNDS\"; n=$(wc -l < \"$ROUNDS\"); echo \"round $n\"; ";

#[test]
fn how_often_what_was_left_is_counted() {
    let script =
        format!("{COUNT} [ $n = 2 ] || sleep 3137 & [ $n = 2 ] || setsid sleep 3138 & sleep 0.05; exit 0");
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("json");
    let output = run(&["--repeat", "3", "--json", json.to_str().unwrap()], &["bash", "-c", &script]);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(123), "{report}");
    // Each round has the streams of the first.
    assert_eq!(text(&output.stdout), "round 1\nround 2\nround 3\n");
    assert!(report.contains("childproof: 3 rounds, 2 failed or left something\n"), "{report}");
    assert!(report.contains("`sleep 3137` (2 of 3 rounds)\n"), "{report}");
    assert!(report.contains("`sleep 3138` (2 of 3 rounds)\n"), "{report}");
    assert_eq!(fs::read_to_string(json).unwrap().lines().count(), 3);
}

#[test]
fn a_round_that_says_the_same_as_another_one_has_three_lines() {
    let script = format!("{COUNT} if [ $n = 3 ]; then sleep 3138 & else sleep 3137 & fi; exit 0");
    let report = text(&run(&["--repeat=4"], &["bash", "-c", &script]).stderr);
    let round = |number: u32| {
        let begin = format!("round {number} of 4\nLEAK  ");
        let behind = report.split(&begin).nth(1).unwrap_or_else(|| panic!("{report}"));
        behind.split(" of 4\n").next().unwrap().to_owned()
    };
    for number in [1, 3] {
        let (full, word) = (round(number), format!("`sleep {}`", 3137 + number / 2));
        assert!(full.contains(&word) && full.contains("  fix: ") && !full.contains("As in"), "{report}");
    }
    for number in [2, 4] {
        let folded = round(number);
        assert!(folded.contains("`sleep 3137`") && !folded.contains("  fix: "), "{report}");
        assert!(folded.contains("\n  As in the report of round 1 above.\n"), "{report}");
    }
}

#[test]
fn a_test_is_counted_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/leaks.rs");
    let program = directory.path().join("leaks");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let built = rustc.args(["--edition", "2024", "--test", "-g"]).arg(&source).arg("-o").arg(&program);
    assert!(built.status().unwrap().success());
    let report = text(&run(&["--repeat=2"], &[program.to_str().unwrap(), "--test-threads=3"]).stderr);
    let source = fs::read_to_string(source).unwrap();
    let line = 1 + source.lines().position(|line| line.ends_with("// MARK spawned")).unwrap();
    let summary = report.split("childproof: 2 rounds").nth(1).unwrap_or_else(|| panic!("{report}"));
    let found = summary.lines().find(|found| found.contains(&format!("leaks.rs:{line}:")));
    let found = found.unwrap_or_else(|| panic!("{line}: {summary}"));
    assert!(found.ends_with("(2 of 2 rounds), test leaks_a_sleep"), "{found}");
}

#[test]
fn the_first_failure_ends_it_where_that_was_asked_for() {
    let script = format!("{COUNT} [ $n -lt 3 ] || exit 7");
    let output = run(&["--repeat-until-failure"], &["bash", "-c", &script]);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{report}");
    assert_eq!(text(&output.stdout), "round 1\nround 2\nround 3\n", "{report}");
    let output = run(&["--repeat-until-failure", "--repeat", "2"], &["bash", "-c", &script]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "childproof: 2 rounds, none failed or left anything\n");
}

#[test]
fn a_signal_from_outside_ends_all_rounds() {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
    tool.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).env_remove("LD_PRELOAD");
    tool.args(["run", "--repeat=9", "--", "bash", "-c", "echo ready; exec sleep 3137"]);
    let mut child = tool.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}
