//! `childproof inspect` and `childproof kill`, from outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const TOOL: &str = env!("CARGO_BIN_EXE_childproof");
const NOBODY: u32 = 65534;

fn tool(arguments: &[&str]) -> Output {
    without_runner(TOOL).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A command without the variables of what runs these tests: its processes would seem to be of that run, as under
/// cargo-nextest.
fn without_runner(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NEXTEST") || text.starts_with("CARGO_") || text.starts_with("__CARGO") {
            command.env_remove(&name);
        }
    }
    command
}

/// What was written, with one space between words, wherever lines were broken.
fn words(written: &[u8]) -> String {
    String::from_utf8_lossy(written).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn program(source: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source)
}

/// The state and the voluntary switches of a process.
fn state(pid: &str) -> (char, String) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    (field("State:").chars().next().unwrap_or('-'), field("voluntary_ctxt_switches:"))
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0"))
}

/// A folder of cargo's, as it seems, and what is run in it: alone among processes, with a shell as the first.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join("target/debug");
        fs::create_dir_all(&programs).unwrap();
        fs::copy(TOOL, folder.path().join("childproof")).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition", "2024", "-g"])
            .arg(program("orphans.rs"))
            .arg("-o")
            .arg(programs.join("orphans"))
            .status();
        assert!(built.unwrap().success());
        fs::copy("/bin/sleep", programs.join("service")).unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("target"), programs.clone()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        Folder(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a script as the first process of a PID namespace, as this user or another one. `None` if the kernel does not
    /// let that be.
    fn script(&self, user: Option<u32>, script: &str) -> Option<Output> {
        let can = |command: &mut Command| command.arg("true").output().is_ok_and(|ran| ran.status.success());
        let command = || {
            let mut command = match user {
                Some(user) => {
                    let mut setpriv = without_runner("setpriv");
                    setpriv.args([
                        &format!("--reuid={user}"),
                        &format!("--regid={user}"),
                        "--clear-groups",
                        "unshare",
                    ]);
                    setpriv
                }
                None => without_runner("unshare"),
            };
            if user.is_some() || !is_root() {
                command.args(["--user", "--map-current-user"]);
            }
            command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
            command.current_dir(self.path()).stdin(Stdio::null());
            command
        };
        if !can(&mut command()) {
            println!("not checked for user {user:?}: there may be no PID namespace");
            return None;
        }
        // Waits for a file with as many lines, and for all of them to be asleep.
        let functions = r#"
            written() { until [ "$(cat "$1" 2>/dev/null | wc -l)" -ge "$2" ]; do sleep 0.01; done; }
            asleep() { until [ "$(cut -d' ' -f3 "/proc/$1/stat")" = S ]; do sleep 0.01; done; sleep 0.05; }
            there() { [ -d "/proc/$1" ] && [ "$(sed 's/.*) //; s/ .*//' "/proc/$1/stat")" != Z ]; }
            of_test() { env -i PATH="$PATH" CARGO_MANIFEST_DIR=/w/a "$@"; }
        "#;
        let output = command().args(["sh", "-c", &format!("{functions}{script}")]).output().unwrap();
        assert!(output.status.success(), "{}\n{}", words(&output.stdout), words(&output.stderr));
        Some(output)
    }

    /// The same as this user, and as an ordinary one if this is root.
    fn scripts(&self, script: &str) -> Vec<String> {
        let users = if is_root() { vec![None, Some(NOBODY)] } else { vec![None] };
        let run = |user: Option<u32>| {
            for file in fs::read_dir(self.path()).unwrap().flatten() {
                if file.file_type().unwrap().is_file() && file.file_name() != "childproof" {
                    fs::remove_file(file.path()).unwrap();
                }
            }
            let output = self.script(user, script)?;
            Some(words(&output.stdout) + " " + &words(&output.stderr))
        };
        users.into_iter().filter_map(run).collect()
    }
}

/// The line of a program that a mark stands in.
fn line_of(mark: &str) -> usize {
    let source = fs::read_to_string(program("orphans.rs")).unwrap();
    1 + source.lines().position(|line| line.ends_with(&format!("// MARK {mark}"))).unwrap()
}

/// Starts what tests and others leave: three orphans of a test, a daemon of a shell, a service with its program in a target
/// folder, and a child of a shell that goes on.
const LEAVE: &str = r#"
    of_test target/debug/orphans pids
    setsid sh -c 'sleep 3138 & echo $! > daemon'
    setsid target/debug/service 3139 & service=$!
    sh -c 'CARGO_MANIFEST_DIR=/w/b sleep 3140; true' & shell=$!
    written pids 3; written daemon 1
    set -- $(cat pids)
    for pid in "$@" $(cat daemon) $service; do asleep $pid; done
"#;

#[test]
fn what_a_run_has_left_is_found_and_what_others_run_is_not() {
    let folder = Folder::new();
    for report in folder.scripts(&format!("{LEAVE} ./childproof inspect --orphans")) {
        assert!(report.contains("SEEN inspect --orphans 4 processes in 3 trees"), "{report}");
        // Lineage, and why each is in the list.
        assert_eq!(report.matches("orphaned: its parent exited first below 1 `sh`").count(), 3, "{report}");
        assert!(report.contains("started with CARGO_MANIFEST_DIR=/w/a"), "{report}");
        let target = format!("its program lies in cargo's folder {}/target", folder.path().display());
        assert!(report.contains(&target), "{report}");
        // Stacks with lines.
        for mark in ["lock", "read", "wait"] {
            assert!(report.contains(&format!("orphans.rs:{}:", line_of(mark))), "{mark}: {report}");
        }
        // The cause, and both ends of the pipe.
        assert!(report.contains("waits for a lock (orphans::LEDGER)"), "{report}");
        assert!(
            report.contains("deadlocks on itself: it reads a pipe whose only writer is its own fd"),
            "{report}"
        );
        assert!(report.contains("waits for the end of pid"), "{report}");
        assert!(report.contains("<- the only one: the reader itself"), "{report}");
        for other in ["3138", "3139", "3140"] {
            assert!(!report.contains(other), "{other}: {report}");
        }
        assert!(!report.contains("may not be read") && !report.contains("the test"), "{report}");
    }
}

#[test]
fn an_orphan_is_found_by_a_pattern_and_any_process_by_its_number() {
    let folder = Folder::new();
    let script = format!(
        "{LEAVE} ./childproof inspect --orphans 'sleep 3138'; echo NEXT; ./childproof inspect $shell; echo NEXT; \
         ./childproof inspect 'sleep 314?'; echo NEXT; ./childproof inspect none-such; echo code $?"
    );
    for report in folder.scripts(&script) {
        let parts: Vec<&str> = report.split(" NEXT ").collect();
        let [by_orphan, by_number, by_glob, none] = parts[..] else { panic!("{report}") };
        assert!(by_orphan.contains("5 processes in 4 trees"), "{by_orphan}");
        assert!(by_orphan.contains("matches `sleep 3138`"), "{by_orphan}");
        assert!(by_number.contains("2 processes in 1 tree"), "{by_number}");
        assert!(by_number.contains("waits for the end of its child pid"), "{by_number}");
        assert!(by_number.contains("sleep 3140"), "{by_number}");
        assert!(by_glob.contains("SEEN inspect sleep 314? 1 process"), "{by_glob}");
        assert!(by_glob.contains("sleep 3140"), "{by_glob}");
        assert!(none.contains("0 processes") && none.contains("code 1"), "{none}");
    }
}

#[test]
fn the_json_has_what_the_text_says() {
    let folder = Folder::new();
    for report in folder.scripts(&format!("{LEAVE} ./childproof inspect --orphans --json")) {
        let target = format!("\"target_folder\":\"{}/target\"", folder.path().display());
        for part in [
            "\"outcome\":\"inspected\"",
            "\"test\":null",
            "\"causes\":[]",
            "\"kind\":\"deadlock\"",
            "\"class\":\"running\"",
            "\"ancestors\":[{\"comm\":\"sh\",\"pid\":1}]",
            "\"orphan\":true",
            "\"variable\":{\"name\":\"CARGO_MANIFEST_DIR\",\"value\":\"/w/a\"}",
            "\"on\":\"orphans::LEDGER\"",
            "\"proved\":true",
            "\"end\":\"write\"",
            &target,
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
        assert!(report.contains(&format!("orphans.rs:{}:", line_of("lock"))), "{report}");
    }
}

#[test]
fn what_a_run_that_goes_on_has_started_is_left_out() {
    let folder = Folder::new();
    // The test binary is there, and of the same package as its orphan.
    let script = r#"
        (of_test sh -c 'echo $$ > test; exec target/debug/service 3141'; true) &
        written test 1; test=$(cat test); asleep $test
        of_test setsid sh -c 'sleep 3142 & echo $! > orphan'
        written orphan 1
        ./childproof inspect --orphans; echo code $?
        ./childproof kill --orphans; ./childproof kill $(cat orphan); echo code $?
        there $(cat orphan) && echo ALIVE
        kill -9 $test; wait
        ./childproof kill --orphans
        there $(cat orphan) || echo GONE
    "#;
    for report in folder.scripts(script) {
        let (before, after) = report.split_once("ALIVE").unwrap_or_else(|| panic!("{report}"));
        assert!(before.contains("is left out: the run that it is of may still go on"), "{report}");
        assert!(before.contains("left alone") && before.matches("code 1").count() == 2, "{report}");
        assert!(after.contains("`sleep 3142`") && after.contains("GONE"), "{report}");
    }
}

#[test]
fn what_a_running_test_has_started_is_not_killed_whichever_its_runner_is() {
    let folder = Folder::new();
    // The last is of no run, so that something is killed.
    let script = r#"
        daemon() { setsid env -i PATH="$PATH" "$@" sh -c 'sleep 3150 & echo $! >> daemons'; }
        mkdir -p target/debug/deps; cp /bin/sleep target/debug/deps/a-1234; cp /bin/sleep target/debug/server
        cp /bin/sleep pytest-3; cp /bin/sleep editor
        (env -i BATS_RUN_TMPDIR=/tmp/1 sh -c 'echo $$ >> runners; exec sleep 3151'; true) &
        (sh -c 'echo $$ >> runners; exec ./pytest-3 3152'; true) &
        (sh -c 'echo $$ >> runners; exec target/debug/deps/a-1234 3153'; true) &
        written runners 3
        for runner in $(cat runners); do asleep $runner; done
        daemon BATS_TEST_NAME=a BATS_RUN_TMPDIR=/tmp/1
        daemon PYTEST_CURRENT_TEST=a
        setsid env -i PATH="$PATH" sh -c 'target/debug/server 3150 & echo $! >> daemons'
        daemon GTEST_FILTER=a TEST_TARGET=//a NEXTEST=1
        daemon BATS_TEST_NAME=a BATS_RUN_TMPDIR=/tmp/2
        written daemons 5
        for daemon in $(cat daemons); do asleep $daemon; done
        ./childproof kill --orphans; echo code $?
        for daemon in $(cat daemons); do there $daemon && echo ALIVE || echo GONE; done
        kill -9 $(cat runners); wait
        ./childproof kill --orphans; echo code $?
        for daemon in $(cat daemons); do there $daemon && echo ALIVE || echo GONE; done
    "#;
    for report in folder.scripts(script) {
        assert_eq!(
            report.matches("is left alone: the run that it is of may still go on").count(),
            3,
            "{report}"
        );
        assert!(report.contains("code 0 ALIVE ALIVE ALIVE ALIVE GONE"), "{report}");
        // The variables of a user show no test.
        assert!(report.contains("code 0 GONE GONE GONE ALIVE GONE"), "{report}");
    }
}

#[test]
fn what_is_not_shown_to_be_an_orphan_is_not_killed() {
    let folder = Folder::new();
    // A program that `cargo run` has become, and the child of a process that goes on, under the name of a service manager.
    let script = r#"
        env -i CARGO_MANIFEST_DIR=/w/a setsid target/debug/service 3160 & echo $! > direct
        cp /bin/sh systemd
        (./systemd -c 'env -i CARGO_MANIFEST_DIR=/w/b setsid sleep 3162 & echo $! > child; wait'; true) &
        written direct 1; written child 1
        asleep $(cat direct); asleep $(cat child)
        ./childproof kill --orphans; echo code $?
        for pid in $(cat direct child); do there $pid && echo ALIVE; done
    "#;
    for report in folder.scripts(script) {
        assert!(report.contains("is left alone: 1 `sh` may have started it"), "{report}");
        assert!(report.contains("code 0 ALIVE ALIVE"), "{report}");
        assert!(!report.contains("killed "), "{report}");
    }
}

/// What is in a PID namespace is of a container, also where its parent has ended.
#[test]
fn what_is_in_another_pid_namespace_is_not_killed() {
    let folder = Folder::new();
    let script = r#"
        setsid env -i PATH="$PATH" CARGO_MANIFEST_DIR=/w/a sh -c 'unshare --user --map-current-user --fork --pid sh -c "sleep 3161 & wait" & echo $! > outer'
        written outer 1
        until grep -qszx 3161 /proc/[0-9]*/cmdline; do sleep 0.01; done
        inner=$(cat /proc/$(cat outer)/task/*/children)
        kill -9 $(cat outer)
        while there $(cat outer); do sleep 0.01; done
        asleep ${inner% }
        ./childproof kill --orphans; ./childproof kill $inner; echo code $?
        there ${inner% } && echo ALIVE
    "#;
    for report in folder.scripts(script) {
        assert!(report.contains("is left alone: it is in another PID namespace"), "{report}");
        assert!(report.contains("code 1 ALIVE"), "{report}");
    }
}

#[test]
fn a_kill_shows_what_it_ends_and_leaves_nothing_of_it() {
    let folder = Folder::new();
    let script = format!(
        "{LEAVE} ./childproof kill $1; echo code $?; there $1 || echo FIRST GONE; ./childproof kill --orphans; echo code $?
         for pid in $2 $3; do there $pid || echo GONE; done
         grep -qszx '313[7]' /proc/[0-9]*/cmdline || echo CHILD GONE
         ./childproof kill --orphans; echo code $?
         for pid in $(cat daemon) $service $shell; do there $pid && echo ALIVE; done"
    );
    for report in folder.scripts(&script) {
        assert!(report.contains("code 0 FIRST GONE"), "{report}");
        let shown = report.find("started with CARGO_MANIFEST_DIR=/w/a").unwrap_or_else(|| panic!("{report}"));
        assert!(shown < report.find("killed ").unwrap(), "{report}");
        assert!(report.contains("and 1 process below it"), "{report}");
        assert!(report.contains("code 0 GONE GONE CHILD GONE no process was found"), "{report}");
        assert_eq!(report.matches("ALIVE").count(), 3, "{report}");
    }
}

#[test]
fn what_is_no_orphan_of_a_test_is_not_killed() {
    let folder = Folder::new();
    let script = format!(
        "{LEAVE} child=$(cat /proc/$shell/task/$shell/children 2>/dev/null); \
         ./childproof kill $shell $(cat daemon) $service 1 $$ 99999; echo code $?
         for pid in $(cat daemon) $service $shell; do there $pid && echo ALIVE; done"
    );
    for report in folder.scripts(&script) {
        assert!(
            report.contains("is left alone: it is this process, or one that this process was started by"),
            "{report}"
        );
        assert!(report.contains("pid 99999 is left alone: there is no process with this number"), "{report}");
        assert!(
            report.matches("is left alone: nothing shows that a test has started it").count() >= 2,
            "{report}"
        );
        assert!(report.contains("code 1 ALIVE ALIVE ALIVE"), "{report}");
        assert!(!report.contains("killed "), "{report}");
    }
    // Below a process that is not the first: it has its parent.
    let mut child = without_runner("sleep").arg("3137").env("CARGO_MANIFEST_DIR", "/w/a").spawn().unwrap();
    let output = tool(&["kill", &child.id().to_string()]);
    let said = words(&output.stderr);
    let is_alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_alive && output.status.code() == Some(1), "{said}");
    assert!(said.contains("it is no orphan: its parent is"), "{said}");
}

#[test]
fn a_tree_that_a_guard_has_kept_is_killed_whole() {
    let folder = Folder::new();
    let script = r#"
        ./childproof run -- sh -c 'echo $$ > running; exec sleep 3143' &
        written running 1
        ./childproof kill $(cat running); echo code $?
        ./childproof run --keep -- sh -c 'sleep 3144 & setsid sleep 3145 & exit 0' 2> report; echo code $?
        set -- $(sed -n 's/.*end: childproof kill //p' report)
        guard=$(cut -d' ' -f4 /proc/$1/stat)
        ./childproof inspect $1
        ./childproof kill $1; echo code $?
        for pid in "$@" $guard; do there $pid || echo GONE; done
    "#;
    for report in folder.scripts(script) {
        assert!(report.contains("its run goes on: it is guarded by"), "{report}");
        let name = "childproof's guard of sh -c sleep 3144";
        assert!(report.contains(&format!("kept, and stopped, by {name}")), "{report}");
        assert!(report.contains(&format!("`{name}")), "{report}");
        // What was asked for is named first.
        let behind = report.split("killed ").next().and_then(|before| before.rsplit("pid ").next());
        assert!(behind.is_some_and(|line| line.contains("`sleep 3144`")), "{report}");
        assert!(!report.contains("`()`") && !report.contains("childproof-kept"), "{report}");
        assert!(report.contains("code 123"), "{report}");
        assert!(report.contains("code 0 GONE GONE GONE"), "{report}");
    }
}

/// Compiles a program in C.
fn compile(directory: &TempDir, source: &str) -> PathBuf {
    let built = directory.path().join("built");
    let compiled =
        Command::new("cc").args(["-O1", "-g", "-w"]).arg(program(source)).arg("-o").arg(&built).status();
    assert!(compiled.unwrap().success());
    built
}

/// Processes that wait, each in another call.
struct Waiters {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    pids: HashMap<String, String>,
    _directory: TempDir,
}

impl Waiters {
    fn start() -> Waiters {
        let directory = tempfile::tempdir().unwrap();
        let built = compile(&directory, "waiters.c");
        let mut child = Command::new(built)
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut pids = HashMap::new();
        loop {
            let mut line = String::new();
            assert!(out.read_line(&mut line).unwrap() > 0, "it has ended early");
            match line.trim().split_once(' ') {
                Some((name, pid)) => drop(pids.insert(name.to_owned(), pid.to_owned())),
                None => break,
            }
        }
        for (name, pid) in &pids {
            let wanted = match name.as_str() {
                "stopped" => 'T',
                "runs" => 'R',
                _ => 'S',
            };
            until(name, || state(pid).0 == wanted);
        }
        Waiters { child, out, pids, _directory: directory }
    }

    /// Lets what they wait for come, and gives what each of them says, sorted.
    fn finish(mut self) -> Vec<String> {
        self.child.stdin.take().unwrap().write_all(b"x").unwrap();
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        self.child.wait().unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }
}

/// What each call returns when what it waits for comes.
const UNHARMED: [&str; 23] = [
    "epoll returned 1",
    "epoll_timed returned 0",
    "eventfd returned 8",
    "filtered returned 0",
    "flock returned 0",
    "futex returned 0",
    "msgrcv returned 1",
    "nanosleep returned 0",
    "poll returned 1",
    "poll_timed returned 0",
    "read returned 1",
    "recv returned 1",
    "recv_all returned 10",
    "recv_limited returned 1",
    "runs returned 0",
    "select returned 1",
    "semop returned 0",
    "send returned 1048576",
    "sigwait returned 10",
    "sigwait_timed returned -1 EAGAIN",
    "stopped returned 0",
    "wait returned 7",
    "write returned 1048576",
];

#[test]
fn what_is_looked_at_goes_on_unharmed() {
    let waiters = Waiters::start();
    let pid = waiters.child.id().to_string();
    let stopped = waiters.pids["stopped"].clone();
    for _ in 0..5 {
        let output = tool(&["inspect", &pid]);
        let report = words(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert!(report.contains("waiters.c:") && report.contains("epoll_wait("), "{report}");
        assert!(report.contains("is stopped by a signal"), "{report}");
        let note =
            "the stack of 1 thread was not read: to stop one that runs might cut short a call that it begins";
        assert!(report.contains(&format!("{note}: {}", waiters.pids["runs"])), "{report}");
        assert_eq!(state(&stopped).0, 'T');
    }
    assert_eq!(waiters.finish(), UNHARMED);
}

#[test]
fn no_signal_is_lost_and_no_call_interrupted_by_many_looks() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(compile(&directory, "interrupted.c"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    for _ in 0..60 {
        let output = tool(&["inspect", &child.id().to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", words(&output.stderr));
    }
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    out.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    let whole = ["1 received, 0 failed", "1 sent, 0 lost, 0 misplaced"].map(|line| [line; 4]).concat();
    let mut lines: Vec<&str> = text.lines().filter(|line| *line != "ready").collect();
    lines.sort_unstable();
    assert_eq!(lines, whole);
}

#[test]
fn no_end_of_a_pipe_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let filter = compile(&directory, "without_getfd.c");
    let mut shell = Command::new("sh");
    // Both ends of the first pipe are in the tree.
    shell.args(["-c", "cat | cat; exit"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = shell.spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    until("both", || fs::read_to_string(&children).unwrap().split_whitespace().count() == 2);
    let output = Command::new(filter).args([TOOL, "inspect", &child.id().to_string()]).output().unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    let report = words(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}: {report}", output.status);
    assert!(report.contains("pipe"), "{report}");
}

#[test]
fn without_stacks_no_thread_is_stopped_for_a_moment() {
    let waiters = Waiters::start();
    let pid = waiters.child.id().to_string();
    let blocked = ["read", "epoll", "futex", "semop", "wait"];
    let switches = || blocked.map(|name| state(&waiters.pids[name]).1);
    let before = switches();
    let report = words(&tool(&["inspect", "--no-stacks", &pid]).stdout);
    assert_eq!(switches(), before);
    assert!(!report.contains("waiters.c:") && report.contains("epoll_wait("), "{report}");
    // With them it would have been seen.
    tool(&["inspect", &pid]);
    assert_ne!(switches(), before);
    assert_eq!(waiters.finish(), UNHARMED);
}

#[test]
fn what_may_not_be_read_of_other_users_is_said() {
    if !is_root() {
        println!("not checked: it needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("childproof");
    fs::copy(TOOL, &copy).unwrap();
    chown(&copy, Some(NOBODY), None).unwrap();
    let mut child = without_runner("sleep").arg("3137").spawn().unwrap();
    let mut as_nobody = without_runner("setpriv");
    let user = NOBODY.to_string();
    as_nobody.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(&copy);
    let output = as_nobody.args(["inspect", &child.id().to_string()]).current_dir("/").output().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let report = words(&output.stdout);
    let note = format!(
        "note: what 1 process of other users wait in and have open may not be read as user {NOBODY}: {}. Root may",
        child.id()
    );
    assert!(report.contains(&note), "{report} {}", words(&output.stderr));
}
