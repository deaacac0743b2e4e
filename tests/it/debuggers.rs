//! A test can be run in a debugger: in the process that the debugger has started, or in its own with the debugger
//! attached (`tests/it/cut.rs` has the clock).
//!
//! `tests/fixtures/team` has the tests.

use std::fs;
use std::process::Command;

use crate::support::{Fixture, Ran, root};

fn command(target: &str, arguments: &[&str]) -> Command {
    let mut command = Fixture::build("team").command(target, arguments);
    command.current_dir(root().join("tests/fixtures/team/crates/a"));
    command
}

/// The line of a breakpoint in the common helper.
fn marked(mark: &str) -> String {
    let source = fs::read_to_string(root().join("tests/fixtures/team/crates/b/src/lib.rs")).unwrap();
    let (number, _) = source.lines().enumerate().find(|(_, line)| line.ends_with(mark)).unwrap();
    format!("crates/b/src/lib.rs:{}", number + 1)
}

#[childproof::test]
fn a_body_runs_in_the_process_itself_when_asked_to() {
    for target in ["whole", "stock"] {
        for (test, code, result) in [
            ("bodies::passes", 0, "ok"),
            ("bodies::panics_first", 101, "FAILED"),
            ("bodies::returns_an_error", 101, "FAILED"),
        ] {
            let mut command = command(target, &[test, "--exact", "--nocapture"]);
            let ran = Ran::of(command.env("CHILDPROOF_DEBUG", "1"));
            assert_eq!(ran.code, Some(code), "{}", ran.all());
            let said =
                "`CHILDPROOF_DEBUG` is set: the test runs in this process, unguarded and without a timeout";
            assert_eq!(ran.stderr.matches(said).count(), 1, "{}", ran.all());
            assert!(ran.stdout.contains(result), "{}", ran.all());
        }
        let ran = Ran::of(command(target, &["bodies::panics_first", "--exact"]).env("CHILDPROOF_DEBUG", "0"));
        assert!(!ran.all().contains("unguarded"), "{}", ran.all());
    }
    let ran = Ran::of(command("whole", &["panics_"]).env("CHILDPROOF_DEBUG", "1"));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{}", ran.all());
    assert!(ran.stderr.contains("and 2 tests selected: select one by `--exact NAME`"), "{}", ran.all());
}

/// What README says, with the debugger's own commands.
#[childproof::test(timeout = "120s")]
fn gdb_stops_in_a_body() {
    if !Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: gdb is not installed");
        return;
    }
    let of_guard = ["set follow-fork-mode child", "set detach-on-fork on", "set breakpoint pending on"];
    for target in ["whole", "stock"] {
        for (variable, settings) in [(Some("1"), &of_guard[2..]), (None, &of_guard[..])] {
            if variable.is_none() && target == "stock" {
                // Its server is started by exec: README names the variable for it.
                continue;
            }
            let like = command(target, &[]);
            let mut gdb = Command::new("gdb");
            gdb.args(["--batch", "--nx"]);
            for setting in settings {
                gdb.args(["-ex", setting]);
            }
            let at = format!("break {}", marked("// PANIC"));
            gdb.args(["-ex", &at, "-ex", "run", "-ex", "backtrace", "-ex", "kill"]);
            gdb.arg("--args").arg(Fixture::build("team").binary(target));
            gdb.args(["bodies::panics_first", "--exact", "--nocapture", "--test-threads=1"]);
            gdb.current_dir(root().join("tests/fixtures/team/crates/a"));
            for (name, _) in like.get_envs().filter(|(_, value)| value.is_none()) {
                gdb.env_remove(name);
            }
            gdb.envs(variable.map(|value| ("CHILDPROOF_DEBUG", value))).env_remove("DEBUGINFOD_URLS");
            let ran = Ran::of(&mut gdb);
            let stopped = ran.stdout.lines().find(|line| line.starts_with("#0") && line.contains("b::fails"));
            let body = ran.stdout.lines().find(|line| line.contains("bodies::panics_first ("));
            assert!(stopped.is_some() && body.is_some(), "{target} {variable:?}\n{}", ran.all());
        }
    }
}

/// The same with lldb.
#[childproof::test(timeout = "180s")]
fn lldb_stops_in_a_body() {
    if !Command::new("lldb").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: lldb is not installed");
        return;
    }
    for target in ["whole", "stock"] {
        let like = command(target, &[]);
        let (file, line) = marked("// PANIC")
            .rsplit_once(':')
            .map(|(file, line)| (file.to_owned(), line.to_owned()))
            .unwrap();
        let mut lldb = Command::new("lldb");
        lldb.args(["--batch", "--no-lldbinit", "-o", &format!("breakpoint set --file {file} --line {line}")]);
        lldb.args(["-o", "run", "-o", "bt", "-o", "kill", "--"]).arg(Fixture::build("team").binary(target));
        lldb.args(["bodies::panics_first", "--exact", "--nocapture"]);
        lldb.current_dir(root().join("tests/fixtures/team/crates/a"));
        for (name, _) in like.get_envs().filter(|(_, value)| value.is_none()) {
            lldb.env_remove(name);
        }
        let ran = Ran::of(lldb.env("CHILDPROOF_DEBUG", "1").env_remove("DEBUGINFOD_URLS"));
        let stopped = ran.stdout.lines().find(|line| line.contains("frame #0") && line.contains("b::fails"));
        let body = ran.stdout.lines().find(|line| line.contains("bodies::panics_first"));
        assert!(stopped.is_some() && body.is_some(), "{target}\n{}", ran.all());
    }
}
