//! A test can be run in a debugger: in the process that the debugger has started, or in its own with the debugger
//! attached (`tests/it/cut.rs` has the clock).
//!
//! `tests/fixtures/team` has the tests.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

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

/// A debug adapter, as VS Code talks to it: messages of JSON, each behind a header with its length.
struct Adapter {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    sent: u64,
    /// What it has said, for a failure.
    said: String,
}

impl Adapter {
    fn start(program: &str, like: &Command) -> Adapter {
        let mut command = Command::new(program);
        for (name, _) in like.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        command.env_remove("DEBUGINFOD_URLS").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (to, from) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Adapter { process, to, from, sent: 0, said: String::new() }
    }

    fn send(&mut self, command: &str, arguments: Value) {
        self.sent += 1;
        let message =
            json!({ "seq": self.sent, "type": "request", "command": command, "arguments": arguments });
        let message = message.to_string();
        write!(self.to, "Content-Length: {}\r\n\r\n{message}", message.len()).unwrap();
        self.to.flush().unwrap();
    }

    /// The next message that is the response to this command, or this event.
    fn wait_for(&mut self, name: &str) -> Value {
        loop {
            let mut length = 0;
            let mut line = String::new();
            while self.from.read_line(&mut line).unwrap() > 2 {
                length = line
                    .trim()
                    .strip_prefix("Content-Length: ")
                    .map_or(length, |length| length.parse().unwrap());
                line.clear();
            }
            assert!(length > 0, "no `{name}`\n{}", self.said);
            let mut message = vec![0; length];
            self.from.read_exact(&mut message).unwrap();
            self.said += &format!("{}\n", String::from_utf8_lossy(&message));
            let message: Value = serde_json::from_slice(&message).unwrap();
            if message["event"] == name || message["command"] == name {
                assert!(message["success"] != false, "{message}\n{}", self.said);
                return message["body"].clone();
            }
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.send(command, arguments);
        self.wait_for(command)
    }
}

/// The launch configuration of README, for a test of the fixture.
fn launch(target: &str) -> Value {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, file) = readme.split_once("```json\n// .vscode/launch.json\n").unwrap();
    let file: Value = serde_json::from_str(file.split("```").next().unwrap()).unwrap();
    let mut launch = file["configurations"][0].clone();
    assert_eq!((&launch["request"], &launch["args"][0]), (&json!("launch"), &launch["name"]));
    launch["program"] = json!(Fixture::build("team").binary(target));
    launch["args"][0] = json!("bodies::panics_first");
    launch["cwd"] = json!(root().join("tests/fixtures/team/crates/a"));
    launch
}

/// A breakpoint in the body, the stack there, and the end of the test, by README's launch configuration.
#[childproof::test(timeout = "180s")]
fn the_adapter_of_vs_code_stops_in_a_body() {
    let numbered = (14..=22)
        .rev()
        .flat_map(|version| ["lldb-dap", "lldb-vscode"].map(|name| format!("{name}-{version}")));
    let mut names = ["lldb-dap", "lldb-vscode"].map(str::to_owned).into_iter().chain(numbered);
    let is_there =
        |name: &String| Command::new(name).arg("--help").output().is_ok_and(|output| output.status.success());
    let Some(program) = names.find(is_there) else {
        println!("skipped: neither lldb-dap nor lldb-vscode is installed");
        return;
    };
    let place = marked("// PANIC");
    let (file, line) = place.rsplit_once(':').unwrap();
    let line: u64 = line.parse().unwrap();
    for target in ["whole", "stock"] {
        let mut adapter = Adapter::start(&program, &command(target, &[]));
        adapter.ask(
            "initialize",
            json!({ "adapterID": "lldb-dap", "pathFormat": "path", "linesStartAt1": true }),
        );
        adapter.send("launch", launch(target));
        adapter.wait_for("initialized");
        let source = json!({ "path": root().join("tests/fixtures/team").join(file) });
        let set =
            adapter.ask("setBreakpoints", json!({ "source": source, "breakpoints": [{ "line": line }] }));
        assert_eq!(set["breakpoints"][0]["verified"], true, "{target}\n{}", adapter.said);
        adapter.send("configurationDone", json!({}));
        let stopped = adapter.wait_for("stopped");
        let thread = json!({ "threadId": stopped["threadId"] });
        let stack = adapter.ask("stackTrace", thread.clone());
        let frames = stack["stackFrames"].as_array().unwrap();
        assert_eq!(frames[0]["line"], line, "{target} {stack:#}");
        let is_body =
            |frame: &Value| frame["name"].as_str().is_some_and(|name| name.contains("bodies::panics_first"));
        assert!(frames.iter().any(is_body), "{target} {stack:#}");
        adapter.ask("continue", thread);
        assert_eq!(adapter.wait_for("exited")["exitCode"], 101, "{target}\n{}", adapter.said);
        assert!(adapter.said.contains("runs in this process, unguarded"), "{target}\n{}", adapter.said);
        adapter.ask("disconnect", json!({}));
        drop(adapter.to);
        assert!(adapter.process.wait().unwrap().success(), "{target}\n{}", adapter.said);
    }
}
