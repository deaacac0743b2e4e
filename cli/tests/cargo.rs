//! `cargo childproof`, on a crate that knows nothing of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A copy of `programs/stock`, in a directory of its own.
struct Project(TempDir);

impl Project {
    fn new() -> Project {
        let directory = tempfile::tempdir().unwrap();
        let stock = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/stock");
        for name in ["src/lib.rs", "src/main.rs", "tests/tour.rs"] {
            let to = directory.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(stock.join(name), to).unwrap();
        }
        // Under its own name it would be no part of the tool's package.
        fs::copy(stock.join("Cargo.toml.in"), directory.path().join("Cargo.toml")).unwrap();
        Project(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A command of cargo's in there, with the tool where cargo finds it.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let own = Path::new(env!("CARGO_BIN_EXE_cargo-childproof")).parent().unwrap();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(own.into()).chain(std::env::split_paths(&others)));
        cargo.current_dir(self.path()).stdin(Stdio::null()).env("PATH", path.unwrap()).args(arguments);
        // What this run of cargo has set for its own tests.
        for name in
            ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "LD_PRELOAD"]
        {
            cargo.env_remove(name);
        }
        for (name, _) in std::env::vars_os() {
            let of_cargo = name.to_string_lossy();
            if of_cargo.starts_with("CARGO_TARGET_") || of_cargo.starts_with("NEXTEST") {
                cargo.env_remove(name);
            }
        }
        cargo
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.cargo(arguments).output().unwrap()
    }

    /// The test and the `FILE:LINE:` of each marked line.
    fn marks(&self) -> Vec<(String, String)> {
        let mut marks = Vec::new();
        for file in ["src/lib.rs", "tests/tour.rs"] {
            let source = fs::read_to_string(self.path().join(file)).unwrap();
            for (number, line) in (1..).zip(source.lines()) {
                let tests = line.split_once("// MARK ").into_iter().flat_map(|(_, tests)| tests.split(", "));
                marks.extend(tests.map(|test| (test.to_owned(), format!("{file}:{number}:"))));
            }
        }
        marks
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is said at the end, of all programs.
fn summary(output: &Output) -> String {
    let all = stderr(output);
    let at = all.find("childproof: ").unwrap_or_else(|| panic!("no summary: {all}"));
    all[at..].to_owned()
}

fn is_installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// The processes that have a variable in their environment, wherever they are now.
fn with_variable(variable: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let has = |entry: &fs::DirEntry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|own| own == variable.as_bytes())
    };
    let name = |entry: &fs::DirEntry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        format!("{} {}", entry.file_name().display(), String::from_utf8_lossy(&words).replace('\0', " "))
    };
    processes.filter(has).map(|entry| name(&entry)).collect()
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what}: not within 120 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_leak_of_an_unchanged_crate_is_named_with_its_test_and_line() {
    let project = Project::new();
    let json = project.path().join("report.json");
    let arguments =
        ["childproof", "--fds=pipes", "--json", json.to_str().unwrap(), "test", "--lib", "--test", "tour"];
    let output = project.run(&arguments);
    // Each binary has run, whatever the one before has left.
    assert_eq!(output.status.code(), Some(123), "{}", stderr(&output));
    let summary = summary(&output);
    assert!(summary.starts_with("childproof: 2 programs ran guarded, 2 left something\n"), "{summary}");
    let marks = project.marks();
    assert_eq!(marks.len(), 7);
    for (test, place) in marks {
        if test == "http_server_forgotten" && !is_installed("python3") {
            continue;
        }
        let is_named =
            |line: &str| line.trim_start().starts_with(&place) && line.ends_with(&format!(", test {test}"));
        assert!(summary.lines().any(is_named), "{test} at {place}: {summary}");
        let report = stderr(&output);
        assert!(report.contains(&format!("by the test {test}\n")), "{test}: {report}");
    }
    assert!(!summary.contains("pipeline") && !summary.contains("unit_is_clean"), "{summary}");
    let lines = fs::read_to_string(json).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"outcome\":\"failed\"")).count(), 2, "{lines}");
}

/// libtest's own thread, whose line is that of the generated `main`, only waits for it.
#[test]
fn a_test_that_hangs_is_named_with_its_line() {
    let project = Project::new();
    let source = fs::read_to_string(project.path().join("src/lib.rs")).unwrap();
    let line = 1 + source.lines().position(|line| line.contains("thread::sleep")).unwrap();
    for threads in ["1", "2"] {
        let output = project.run(&[
            "childproof",
            "--timeout=2s",
            "test",
            "--lib",
            "--",
            "--ignored",
            "--test-threads",
            threads,
        ]);
        let report = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        let place = format!("at src/lib.rs:{line}:");
        let words = format!(
            "test `tests::runs_on` did not return within the command's timeout of 2 s: it is {place}"
        );
        assert!(report.contains(&words), "{report}");
        assert!(!report.contains("waits for a message"), "{report}");
        let named = format!("timed out: test tests::runs_on {place}");
        assert!(summary(&output).contains(&named), "{}", summary(&output));
    }
}

/// The guard of cargo would kill what a binary's guard has kept.
#[test]
fn nothing_can_be_kept_under_cargo() {
    let project = Project::new();
    let output = project.cargo(&["childproof", "test"]).env("CHILDPROOF_KEEP", "1").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("run that binary by `childproof run --keep`"), "{stderr}");
}

#[test]
fn documentation_tests_are_guarded() {
    let project = Project::new();
    let output = project.run(&["childproof", "test", "--doc"]);
    assert_eq!(output.status.code(), Some(101), "{}", stderr(&output));
    let said = summary(&output);
    assert!(said.contains("documentation tests (stock)\n") && said.contains("src/lib.rs:9:"), "{said}");
}

#[test]
fn the_exit_code_is_that_of_cargo() {
    let project = Project::new();
    for (arguments, code, said) in [
        (&["run", "--", "0"][..], 0, "childproof: 1 program ran guarded, nothing was left\n"),
        (&["run", "--", "7"], 7, "childproof: 1 program ran guarded, nothing was left\n"),
        (&["run"], 123, "childproof: 1 program ran guarded, 1 left something\n"),
        (&["--leak-exit-code=9", "run"], 9, "1 left something"),
        (&["--allow-process=sleep *", "run"], 0, "nothing was left"),
        (&["bench", "--lib"], 0, "childproof: 1 program ran guarded, nothing was left\n"),
        (&["test", "--test", "missing"], 101, "childproof: cargo ran no program\n"),
        (&["--grace=long", "test"], 125, "expected a duration"),
        (&["--tiemout", "5s", "test"], 125, "`--tiemout` before cargo's command: did you mean `--timeout`?"),
        (&["--keep", "test"], 125, "`--keep` before cargo's command: it is an option of `childproof run`"),
        (&["--offline", "--color=never", "run", "--", "0"], 0, "nothing was left"),
        (&["run", "--config", "target.x86_64-unknown-linux-gnu.runner='env'"], 125, "sets a runner"),
        (&["run", "--", "kill-its-guard"], 125, "stock: its guard was killed before it could report\n"),
    ] {
        let output = project.run(&[&["childproof"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_runner_that_is_there_is_kept_and_called_behind_ours() {
    let project = Project::new();
    fs::create_dir(project.path().join(".cargo")).unwrap();
    let config = project.path().join(".cargo/config.toml");
    let wrapper = "['sh', '-c', 'WRAPPED=\"by the file\" exec \"$0\" \"$@\"']";
    for table in ["cfg(all(unix, not(target_os = \"macos\")))", "cfg(windows)"] {
        fs::write(&config, format!("[target.'{table}']\nrunner = {wrapper}\n")).unwrap();
        let output = project.run(&["childproof", "run", "--quiet", "--", "variables"]);
        // The program finds nothing of our variable.
        let expected = if table == "cfg(windows)" { "" } else { "WRAPPED=by the file\n" };
        assert_eq!(stdout(&output), expected, "{table}: {}", stderr(&output));
    }
    let host = Command::new("rustc").arg("-vV").output().unwrap();
    let host = stdout(&host).lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)).unwrap();
    fs::write(&config, format!("[target.{host}]\nrunner = {wrapper}\n")).unwrap();
    let variable = format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"));
    let mut cargo = project.cargo(&["childproof", "run", "--quiet", "--target", &host, "--", "variables"]);
    // That of the environment wins, as it does with cargo.
    let output = cargo.env(&variable, "env WRAPPED=by-the-environment").output().unwrap();
    let expected = format!("{variable}=env WRAPPED=by-the-environment\nWRAPPED=by-the-environment\n");
    let mut lines: Vec<String> = stdout(&output).lines().map(|line| format!("{line}\n")).collect();
    lines.sort();
    assert_eq!(lines.concat(), expected, "{}", stderr(&output));
}

#[test]
fn a_test_that_leaks_fails_under_nextest() {
    if !is_installed("cargo-nextest") {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    let project = Project::new();
    let output = project.run(&["childproof", "nextest", "run", "--no-fail-fast", "--lib"]);
    assert_eq!(output.status.code(), Some(100), "{}", stderr(&output));
    let said = summary(&output);
    // Listing the tests starts the binary as well.
    assert!(said.starts_with("childproof: 2 programs ran guarded, 1 left something\n"), "{said}");
    assert!(stderr(&output).contains("1 passed, 1 failed"), "{}", stderr(&output));
}

#[test]
fn a_call_that_a_signal_ends_says_so() {
    let project = Project::new();
    assert!(project.run(&["test", "--lib", "--no-run"]).status.success());
    let variable = format!("CHILDPROOF_CUT={}", std::process::id());
    let (name, value) = variable.split_once('=').unwrap();
    let cargo = project.cargo(&["childproof", "test", "--lib", "--", "--ignored", "runs_on"]);
    // A script's background ignores SIGINT.
    let mut below = Command::new("env");
    below.arg("--default-signal=INT").arg(cargo.get_program()).args(cargo.get_args());
    below.current_dir(project.path()).env(name, value).process_group(0).stdin(Stdio::null());
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => below.env(name, value),
            None => below.env_remove(name),
        };
    }
    let child = below.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the helpers start", || {
        with_variable(&variable).iter().filter(|line| line.contains("sleep 3137")).count() >= 2
    });
    Command::new("kill").args(["-INT", "--", &format!("-{}", child.id())]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert!(said.contains("childproof: 1 program ran guarded; it was ended by SIGINT, and "), "{said}");
    assert_eq!(said.matches("SIGINT, and").count(), 1, "{said}");
    until("all of it ends", || with_variable(&variable).is_empty());
}

/// The block of the README that begins with the name of this file, written to it.
fn write_block(project: &Project, file: &str) {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let mut blocks = readme.split("```toml\n").filter_map(|block| block.split("```").next());
    let is_ours =
        |block: &&str| block.starts_with(&format!("# {file}\n")) && block.contains("childproof\", \"run");
    let block = blocks.find(is_ours).unwrap_or_else(|| panic!("no block for {file} in the README"));
    let to = project.path().join(file);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::write(to, block).unwrap();
}

#[test]
fn a_runner_in_the_configuration_of_a_project_guards_every_call() {
    let project = Project::new();
    write_block(&project, ".cargo/config.toml");
    let output = project.run(&["test", "--lib"]);
    let report = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!output.status.success(), "{report}");
    assert!(report.contains("The test `tests::unit_leaks` started it."), "{report}");
}

#[test]
fn a_wrapper_script_of_nextest_guards_each_test() {
    if !is_installed("cargo-nextest") {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    let project = Project::new();
    write_block(&project, ".config/nextest.toml");
    let output = project.run(&["nextest", "run", "--no-fail-fast", "--lib"]);
    let report = stderr(&output);
    let ended = |how: &str, test: &str| {
        report.lines().any(|line| line.trim_start().starts_with(how) && line.ends_with(test))
    };
    assert!(ended("FAIL", "tests::unit_leaks"), "{report}");
    assert!(ended("PASS", "tests::unit_is_clean"), "{report}");
}

#[test]
fn the_same_without_it_is_as_before() {
    let project = Project::new();
    let output = project.run(&["childproof", "run", "--", "0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut names: Vec<_> =
        fs::read_dir(project.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["Cargo.lock", "Cargo.toml", "src", "target", "tests"]);
    let output = project.run(&["run", "--quiet", "--", "variables"]);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", ""));
}

/// Kills a call at a moment, half of the `rounds` while cargo still works, and waits until nothing is left.
fn kill_at_any_moment(rounds: u64) {
    let project = Project::new();
    assert!(project.run(&["test", "--lib", "--no-run"]).status.success());
    let scratch = project.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    for round in 0..rounds {
        let variable = format!("CHILDPROOF_KILLED={}.{round}", std::process::id());
        let (name, value) = variable.split_once('=').unwrap();
        let arguments = ["childproof", "test", "--lib", "--", "--ignored", "runs_on"];
        let mut cargo = project.cargo(&arguments);
        cargo.env(name, value).env("TMPDIR", &scratch).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = cargo.spawn().unwrap();
        if round % 2 == 0 {
            until("the helpers start", || {
                with_variable(&variable).iter().filter(|line| line.contains("sleep 3137")).count() >= 2
            });
        }
        std::thread::sleep(Duration::from_micros(round * 7919 % 300_000));
        child.kill().unwrap();
        child.wait().unwrap();
        until("all of it ends", || with_variable(&variable).is_empty());
        // Between its creation and the start of the guard nothing would remove it.
        if round % 2 == 0 {
            until("its directory is removed", || fs::read_dir(&scratch).unwrap().next().is_none());
        }
    }
}

#[test]
fn whenever_it_is_killed_nothing_survives() {
    kill_at_any_moment(4);
}

#[test]
#[ignore = "takes a minute"]
fn whenever_it_is_killed_nothing_survives_100_times() {
    kill_at_any_moment(100);
}
