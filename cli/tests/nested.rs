//! Guards within guards: each leak is charged once, to the innermost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const TOOL: &str = env!("CARGO_BIN_EXE_childproof");

/// A test binary of guarded tests, from the fixture of the crate's own tests.
fn guarded_target(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json", "--test", target]);
    cargo
        .current_dir(root.join("tests/fixtures/leaky"))
        .env("CARGO_TARGET_DIR", root.join("target/fixtures"));
    let output = cargo.env_remove("RUSTFLAGS").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    // The program of the crate is built too.
    let mut targets = messages.filter(|message| message["target"]["name"] == target);
    PathBuf::from(targets.find_map(|target| Some(target["executable"].as_str()?.to_owned())).unwrap())
}

/// Runs a command. Returns only when no process has its stdout or stderr any more.
fn output(command: &mut Command) -> Output {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NEXTEST") || text.starts_with("CHILDPROOF_") || text == "LD_PRELOAD" {
            command.env_remove(&name);
        }
    }
    // No test of the suite may hang.
    command.stdin(Stdio::null()).env("NESTED_TOOL", TOOL).env("CHILDPROOF_TIMEOUT", "60s").output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// How many reports there are.
fn reports(output: &Output) -> usize {
    text(output).lines().filter(|line| line.starts_with("LEAK  ")).count()
}

#[test]
fn a_guarded_command_in_a_guarded_command_is_charged_once() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("outer.json");
    let script = "sleep 3137 >/dev/null 2>&1 & exit 0";
    let mut tool = Command::new(TOOL);
    tool.args(["run", "--timeout=60s", "--json"])
        .arg(&json)
        .args(["--", TOOL, "run", "--", "sh", "-c", script]);
    let ran = output(&mut tool);
    assert_eq!((ran.status.code(), reports(&ran)), (Some(123), 1), "{}", text(&ran));
    assert!(text(&ran).starts_with("LEAK  `sh -c \"sleep 3137"), "{}", text(&ran));
    let outer: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((&outer["outcome"], &outer["causes"]), (&"passed".into(), &Value::Array(vec![])), "{outer:#}");
}

#[test]
fn what_the_outer_command_leaves_is_its_own() {
    let script = format!("{TOOL} run -- true; sleep 3137 >/dev/null 2>&1 & exit 0");
    let ran = output(Command::new(TOOL).args(["run", "--timeout=60s", "--", "sh", "-c", &script]));
    assert_eq!((ran.status.code(), reports(&ran)), (Some(123), 1), "{}", text(&ran));
    assert!(text(&ran).starts_with(&format!("LEAK  `sh -c \"{TOOL}")), "{}", text(&ran));
}

#[test]
fn a_guarded_suite_in_a_guarded_command_is_charged_once() {
    let suite = guarded_target("shared");
    for more in [&[][..], &["--shared"]] {
        let mut tool = Command::new(TOOL);
        tool.args(["run", "--timeout=60s", "--"])
            .arg(&suite)
            .args(["--exact", "leaks_a_sleep", "is_clean"])
            .args(more);
        let ran = output(&mut tool);
        assert_eq!((ran.status.code(), reports(&ran)), (Some(101), 1), "{}", text(&ran));
        assert!(text(&ran).contains("LEAK  leaks_a_sleep "), "{}", text(&ran));
        assert!(text(&ran).contains("leaky/tests/shared.rs:"), "{}", text(&ran));
    }
}

/// The guard's own pipes, which are open until the test binary ends.
#[test]
fn a_clean_guarded_test_leaves_no_pipe_of_its_guard() {
    for (target, test) in [("stock", "shapes::child_waited_for"), ("shared", "is_clean")] {
        let binary = guarded_target(target);
        for fds in ["pipes", "all"] {
            let mut tool = Command::new(TOOL);
            tool.args(["run", "--timeout=60s", "--fds", fds, "--"]).arg(&binary).args(["--exact", test]);
            let ran = output(&mut tool);
            assert_eq!((ran.status.code(), reports(&ran)), (Some(0), 0), "{target} {fds}\n{}", text(&ran));
        }
    }
}

#[test]
fn a_guarded_command_in_a_guarded_test_is_charged_once() {
    let suite = guarded_target("shared");
    for more in [&[][..], &["--shared"]] {
        let mut run = Command::new(&suite);
        let ran = output(run.args(["--ignored", "nested::", "--test-threads=2"]).args(more));
        assert_eq!(ran.status.code(), Some(101), "{}", text(&ran));
        // The tool's own reports are in the tests' output.
        let heads: Vec<String> =
            text(&ran).lines().filter(|line| line.starts_with("LEAK  ")).map(str::to_owned).collect();
        let of_tests: Vec<&String> =
            heads.iter().filter(|line| !line.contains("sh -c \"sleep 3138")).collect();
        assert_eq!(of_tests.len(), 1, "{}", text(&ran));
        assert!(
            of_tests[0].starts_with("LEAK  nested::guards_a_command_and_leaks_itself "),
            "{}",
            text(&ran)
        );
        assert!(of_tests[0].ends_with("; left 1 process"), "{}", text(&ran));
    }
}

/// As below cargo: its variables are no sign that the target's parent was cargo and is gone. In a stock target a thread
/// of libtest's asks, which does not inherit what the first one does.
#[test]
fn a_guarded_target_under_the_tool_below_cargo_is_not_taken_for_an_orphan() {
    let directory = tempfile::tempdir().unwrap();
    for (target, test) in [("shared", "is_clean"), ("stock", "shapes::child_waited_for")] {
        let mut tool = Command::new(TOOL);
        tool.args(["run", "--timeout=60s", "--"]).arg(guarded_target(target)).args(["--exact", test]);
        tool.current_dir(directory.path()).env("CARGO", "cargo").env("CARGO_MANIFEST_DIR", directory.path());
        let ran = output(&mut tool);
        assert_eq!(ran.status.code(), Some(0), "{target}: {}", text(&ran));
        assert!(text(&ran).contains("test result: ok. 1 passed"), "{target}: {}", text(&ran));
    }
}
