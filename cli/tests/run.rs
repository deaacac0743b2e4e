//! Tests of `childproof run` as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn tool() -> Command {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
    tool.stdin(Stdio::null()).env_remove("LD_PRELOAD");
    tool
}

fn run(options: &[&str], command: &[&str]) -> Output {
    tool().arg("run").args(options).arg("--").args(command).output().unwrap()
}

/// The text on stderr, with one space between words, so that line breaks do not matter.
fn stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(signal: &str, target: &str) {
    let _ = Command::new("kill").args([signal, "--", target]).stderr(Stdio::null()).status();
}

/// The processes with this word in their command line.
fn with_word(word: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|own| own == word.as_bytes())
    })
    .collect()
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_exit_code_says_how_the_command_ended() {
    let script = |script: &'static str| ["sh", "-c", script];
    for (options, command, code) in [
        (&[][..], &["true"][..], 0),
        (&[], &script("exit 7"), 7),
        (&[], &script("kill -9 $$"), 137),
        (&[], &script("sleep 3137 >/dev/null 2>&1 & exit 0"), 123),
        (&["--leak-exit-code", "9"], &script("sleep 3137 >/dev/null 2>&1 & exit 0"), 9),
        (&[], &script("sleep 3137 >/dev/null 2>&1 & exit 7"), 7),
        (&["--allow-process", "sleep *"], &script("sleep 3137 >/dev/null 2>&1 & exit 0"), 0),
        (&["--timeout", "200ms"], &["sleep", "3137"], 124),
        (&["--json", "/nonexistent/a"], &["true"], 125),
        (&["--grace", "long"], &["true"], 125),
        (&[], &["/etc/passwd"], 126),
        (&[], &["/nonexistent"], 127),
    ] {
        let output = run(options, command);
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", stderr(&output));
        let is_silent = output.stderr.is_empty();
        assert_eq!(
            is_silent,
            matches!(command, ["true"]) && code == 0
                || code == 7 && command[2] == "exit 7"
                || code == 137
                || options.contains(&"--allow-process"),
            "{command:?}: {}",
            stderr(&output)
        );
    }
    assert!(run(&["--quiet"], &script("sleep 3137 & exit 0")).stderr.is_empty());
}

#[test]
fn a_leak_of_an_unchanged_test_binary_is_named_with_its_test_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/leaks.rs");
    let program = directory.path().join("leaks");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let built = rustc.args(["--edition", "2024", "--test", "-g"]).arg(&source).arg("-o").arg(&program);
    assert!(built.status().unwrap().success());
    let output = run(&[], &[program.to_str().unwrap(), "--test-threads=3"]);
    let report = stderr(&output);
    assert_eq!(output.status.code(), Some(123), "{report}");
    let source = fs::read_to_string(source).unwrap();
    for (mark, test) in [("spawned", "leaks_a_sleep"), ("forked", "forks_among_threads")] {
        let line = 1 + source.lines().position(|line| line.ends_with(&format!("// MARK {mark}"))).unwrap();
        assert!(report.contains(&format!("leaks.rs:{line}:")), "{line}: {report}");
        assert!(report.contains(&format!("by the test {test}")), "{test}: {report}");
    }
    assert!(!report.contains("leaves_nothing"), "{report}");
}

#[test]
fn debug_information_is_missed_only_in_what_the_user_builds() {
    let report = stderr(&run(&[], &["sh", "-c", "sleep 3137 & exit 0"]));
    assert!(report.contains("`sleep 3137`") && !report.contains("has no debug information"), "{report}");
    let directory = tempfile::tempdir().unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/leaks.rs");
    let program = directory.path().join("leaks");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--test", "-Cstrip=symbols"]).arg(&source).arg("-o").arg(&program);
    assert!(rustc.status().unwrap().success());
    let report = stderr(&run(&[], &[program.to_str().unwrap(), "--test-threads=3"]));
    assert!(report.contains("the program has no debug information"), "{report}");
}

#[test]
fn a_test_is_named_by_its_runner() {
    let script = "PYTEST_CURRENT_TEST='test_a.py::test_b (call)' sleep 3137 >/dev/null 2>&1 & exit 0";
    let report = stderr(&run(&[], &["sh", "-c", script]));
    assert!(report.contains("The test `test_a.py::test_b` started it."), "{report}");
}

/// Starts a script below the tool; returns once the script has written a line.
fn start(script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    // What runs the tests may ignore signals, as `nohup` and the background of a script do.
    let mut tool = Command::new("env");
    tool.stdin(Stdio::null()).env_remove("LD_PRELOAD");
    tool.args(["--default-signal=HUP,INT,QUIT", env!("CARGO_BIN_EXE_childproof")])
        // A script that gets no signal goes on for ever.
        .args(["run", "--timeout", "60s", "--", "bash", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = tool.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, lines)
}

#[test]
fn signals_are_passed_on() {
    for signal in ["INT", "TERM", "HUP", "USR1", "USR2", "WINCH"] {
        let script = format!("trap 'echo got; exit 5' {signal}; echo ready; while :; do sleep 0.02; done");
        let (mut child, mut lines) = start(&script);
        kill(&format!("-{signal}"), &child.id().to_string());
        let mut got = String::new();
        lines.read_to_string(&mut got).unwrap();
        assert_eq!((got.as_str(), child.wait().unwrap().code()), ("got\n", Some(5)), "{signal}");
    }
}

#[test]
fn a_command_that_a_signal_from_outside_ends_is_named_with_it() {
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let (mut child, _) = start("echo ready; exec sleep 3137");
        kill(&format!("-{signal}"), &child.id().to_string());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(number), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let begin = format!("childproof: `bash` was ended by SIG{signal} after ");
        assert!(said.starts_with(&begin) && said.ends_with(" s, and nothing was left\n"), "{said}");
    }
    // What ends by itself, and a command that goes on.
    for script in ["kill -TERM $$", "sh -c 'kill -INT $$'; exit 0"] {
        assert_eq!(stderr(&run(&[], &["bash", "-c", script])), "", "{script}");
    }
}

#[test]
fn the_command_begins_at_the_first_argument_that_is_no_option() {
    for arguments in [
        &["run", "echo", "--quiet", "--", "-x"][..],
        &["run", "--grace", "1s", "echo", "--quiet", "--", "-x"],
        &["run", "--", "echo", "--quiet", "--", "-x"],
    ] {
        let output = tool().args(arguments).output().unwrap();
        assert_eq!(output.stdout, b"--quiet -- -x\n", "{arguments:?}: {}", stderr(&output));
    }
    for (option, tip) in [("--tiemout", "'--timeout'"), ("--nonsense", "'-- --nonsense'")] {
        let output = tool().args(["run", option, "true"]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(&format!("'{option}'")) && said.contains(tip), "{said}");
    }
}

#[test]
fn a_quit_shows_what_runs_and_changes_nothing() {
    let (mut child, mut lines) =
        start("trap 'echo ended; exit 5' TERM; echo ready; while :; do sleep 0.02; done");
    kill("-QUIT", &child.id().to_string());
    let mut report = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    report.read_line(&mut line).unwrap();
    assert!(line.starts_with("RUNS  `bash -c"), "{line}");
    kill("-TERM", &child.id().to_string());
    let mut said = String::new();
    lines.read_to_string(&mut said).unwrap();
    assert_eq!((said.as_str(), child.wait().unwrap().code()), ("ended\n", Some(5)));
}

#[test]
fn a_second_int_ends_a_command_that_ignores_both() {
    let (mut child, _lines) = start("trap '' INT; echo ready; while :; do sleep 0.02; done");
    let tool = child.id().to_string();
    kill("-INT", &tool);
    // Two that are pending are one.
    until("the first is taken", || {
        let status = fs::read_to_string(format!("/proc/{tool}/status")).unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).unwrap();
        u64::from_str_radix(pending, 16).unwrap() & 2 == 0
    });
    kill("-INT", &tool);
    let mut report = String::new();
    child.stderr.take().unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    assert!(report.starts_with("CUT  `bash"), "{report}");
}

#[test]
fn options_have_variables() {
    let leak = ["sh", "-c", "sleep 3137 >/dev/null 2>&1 & exit 0"];
    for (name, value, code) in [
        ("CHILDPROOF_ALLOW_PROCESS", "cat; sleep *", 0),
        ("CHILDPROOF_PROCESSES", "allow", 0),
        ("CHILDPROOF_GRACE", "20ms", 123),
        // It is for one test, and this may be a whole suite.
        ("CHILDPROOF_TIMEOUT", "1us", 123),
        ("CHILDPROOF_GRACE", "long", 125),
        ("CHILDPROOF_GRACES", "1s", 125),
    ] {
        let output = tool().arg("run").arg("--").args(leak).env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}={value}: {}", stderr(&output));
        assert!(code != 125 || stderr(&output).contains(name), "{name}={value}: {}", stderr(&output));
    }
}

#[test]
fn a_junit_file_has_the_command_as_its_case() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.xml");
    for (script, failures) in [("exit 0", 0), ("sleep 3137 & exit 0", 1)] {
        run(&["--junit", path.to_str().unwrap()], &["sh", "-c", script]);
        let xml = fs::read_to_string(&path).unwrap();
        assert!(xml.contains("<testsuite name=\"sh\" tests=\"1\""), "{xml}");
        assert!(xml.contains(&format!("failures=\"{failures}\"")), "{xml}");
    }
    let output = run(&["--junit", "/proc/nonexistent/a"], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
}

#[test]
fn a_pipe_that_a_program_forgot_is_named_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("forgets.rs");
    fs::write(&source, "fn main() {\n    std::mem::forget(std::io::pipe().unwrap());\n}\n").unwrap();
    let program = directory.path().join("forgets");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let built = rustc.args(["--edition", "2024", "-g"]).arg(&source).arg("-o").arg(&program).status();
    assert!(built.unwrap().success());
    let program = program.to_str().unwrap();
    for (options, code) in [
        (&[][..], 0),
        (&["--fds=off"], 0),
        (&["--fds=pipes"], 123),
        (&["--fds=pipes", "--allow-created-by=forgets::main"], 0),
    ] {
        let output = run(options, &[program]);
        let report = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{options:?}: {report}");
        let is_named =
            report.contains("left 2 pipe ends open: fd 3, 4") && report.contains("forgets.rs:2:22");
        assert_eq!(is_named, code == 123, "{options:?}: {report}");
    }
}

#[test]
fn there_are_manual_pages_and_completions() {
    for (arguments, expected) in [
        (&["man"][..], ".TH childproof 1"),
        (&["man", "run"], "allow\\-process"),
        (&["man", "cargo-childproof"], ".TH cargo-childproof 1"),
        (&["completions", "bash"], "complete -F _childproof"),
        (&["completions", "fish"], "complete -c childproof"),
        (&["completions", "zsh"], "#compdef childproof"),
    ] {
        let output = tool().args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(expected), "{arguments:?}: {text}");
    }
    let output = tool().args(["man", "nonsense"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("expected one of `run`"), "{}", stderr(&output));
}

#[test]
fn a_command_that_does_not_end_is_cut_a_second_after_a_term() {
    let (mut child, _) = start("trap '' TERM; echo ready; while :; do sleep 0.02; done");
    let begin = Instant::now();
    kill("-TERM", &child.id().to_string());
    let mut report = String::new();
    child.stderr.take().unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    assert!(report.starts_with("CUT  `bash"), "{report}");
}

#[test]
fn a_runner_that_waits_for_eof_is_not_held_up() {
    let begin = Instant::now();
    let output = run(&[], &["sh", "-c", "sleep 3137 & echo done"]);
    assert_eq!(output.stdout, b"done\n");
    assert!(begin.elapsed() < Duration::from_secs(20));
    // What the command itself closes must not be held open by the guard.
    let (mut child, mut lines) = start("echo ready; exec >&-; read -r _ < <(sleep 3137)");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "it has ended with its output");
    kill("-KILL", &child.id().to_string());
    child.wait().unwrap();
}

/// Kills one of the processes at a random moment, and waits until nothing is left.
fn kill_one(what: &str, round: u64) {
    // A number that no other process has in its command line.
    let word = format!("31{}.{round}{}", std::process::id(), what.len());
    let script =
        format!("setsid sleep {word} & (trap '' HUP; sleep {word}; true) & echo ready; sleep {word}; true");
    let (mut child, _lines) = start(&script);
    until("the sleeps start", || with_word(&word).len() >= 3);
    std::thread::sleep(Duration::from_micros(round * 137 % 5000));
    let tool = child.id() as i32;
    let command = with_word(&script).into_iter().find(|pid| parent(parent(parent(*pid))) == tool).unwrap();
    let supervisor = parent(command);
    match what {
        "childproof" => kill("-KILL", &tool.to_string()),
        "net" => {
            kill("-KILL", &parent(supervisor).to_string());
            kill("-KILL", &tool.to_string());
        }
        "supervisor" => kill("-KILL", &supervisor.to_string()),
        _ => kill("-KILL", &format!("-{tool}")),
    }
    until(what, || with_word(&word).is_empty());
    child.wait().unwrap();
}

#[test]
fn whatever_is_killed_nothing_survives() {
    for what in ["childproof", "supervisor", "net", "group"] {
        kill_one(what, 3);
    }
}

#[test]
#[ignore = "takes a minute"]
fn whatever_is_killed_nothing_survives_100_times() {
    for round in 0..100 {
        for what in ["childproof", "supervisor", "net", "group"] {
            kill_one(what, round);
        }
    }
}

#[test]
fn a_guard_costs_little() {
    let take = |mut command: Command| {
        let mut best = Duration::MAX;
        for _ in 0..100 {
            let begin = Instant::now();
            assert!(command.status().unwrap().success());
            best = best.min(begin.elapsed());
        }
        best
    };
    let alone = take(Command::new("true"));
    let mut guarded = tool();
    guarded.args(["run", "--", "true"]);
    let guarded = take(guarded);
    println!("true: {alone:?} alone, {guarded:?} guarded");
    assert!(guarded - alone < Duration::from_millis(40), "{alone:?} alone, {guarded:?} guarded");
}

/// Ctrl-Z, `fg` and Ctrl-C, in a shell above the tool and in one below it.
#[test]
fn job_control_works_above_and_below() {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/terminal.py");
    let mut python = Command::new("env");
    let output = python
        .args(["--default-signal=HUP,INT,QUIT", "python3"])
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_childproof"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
}

/// Unmounts on drop what a broken guard has left.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for at in
            points.filter(|at| at.starts_with(self.0.to_str().unwrap())).collect::<Vec<_>>().iter().rev()
        {
            let _ = Command::new("umount").args(["-l", at]).status();
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A shell leads the process group, with another process in it. The command leaves a process in that group, and a user's
/// directory mounted over the tool's own directory for temporary files.
fn beside_strangers(rounds: u32) {
    let at = std::env::temp_dir().join(format!("strangers-{}-{rounds}", std::process::id()));
    let (precious, temporary) = (at.join("precious"), at.join("tmp"));
    fs::create_dir_all(&precious).unwrap();
    fs::create_dir_all(&temporary).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    let _mounted = Mounted(at);
    let probe = Command::new("unshare").args(["-m", "true"]).output();
    let may_mount = probe.is_ok_and(|output| output.status.success());
    for round in 0..rounds {
        let word = format!("{}{}", std::process::id(), 3_000 + round);
        let mounts = match may_mount {
            true => "set -- \"$TMPDIR\"/childproof-*; test -d \"$1\" && mount --bind \"$PRECIOUS\" \"$1\";",
            false => "",
        };
        let command = format!("sleep {word} > /dev/null 2>&1 & {mounts} exit 0");
        let job = "sleep 1000 & stranger=$!; \"$@\"; code=$?; kill -0 $stranger && echo lives; kill $stranger; exit $code";
        let mut shell = Command::new("sh");
        shell.args(["-c", job, "sh", env!("CARGO_BIN_EXE_childproof"), "run", "--", "sh", "-c", &command]);
        shell.env("TMPDIR", &temporary).env("PRECIOUS", &precious).env_remove("LD_PRELOAD");
        let output = shell.stdin(Stdio::null()).process_group(0).output().unwrap();
        let all = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        assert_eq!(output.status.code(), Some(123), "round {round}\n{all}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("lives"), "round {round}\n{all}");
        assert_eq!(with_word(&word), Vec::<i32>::new(), "round {round}\n{all}");
        assert_eq!(
            fs::read_to_string(precious.join("file")).ok().as_deref(),
            Some("kept"),
            "round {round}\n{all}"
        );
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "round {round}\n{all}");
    }
}

/// The state of a process: `T` if it is stopped.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

/// Ctrl-Z, and then a kill of the command alone: the tool must not stay stopped.
#[test]
fn a_stopped_command_that_is_killed_ends_the_tool() {
    let word = format!("{}{}", std::process::id(), 4_000);
    let mut tool = Killed(tool().args(["run", "--", "sleep", &word]).spawn().unwrap());
    // The tool itself has the word too.
    let command = || with_word(&word).into_iter().find(|pid| comm(*pid) == "sleep");
    until("the command", || command().is_some());
    let pid = command().unwrap().to_string();
    // In an orphaned process group, as below a daemon, Ctrl-Z has no effect.
    kill("-STOP", &pid);
    until("the tool's stop", || state(tool.0.id()) == 'T');
    kill("-KILL", &pid);
    let mut code = None;
    until("the tool's end", || {
        code = tool.0.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(137));
}

/// A child that is killed when its test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn a_job_and_what_is_mounted_are_not_harmed() {
    beside_strangers(3);
}

#[test]
#[ignore = "takes a minute"]
fn a_job_and_what_is_mounted_are_not_harmed_in_fifty_runs() {
    beside_strangers(50);
}
