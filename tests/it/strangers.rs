//! The guard does no harm outside of its tests: to processes of constructors, of `main` and of plain tests,
//! to the process group and the parent of the harness, and to unrelated processes.
//!
//! `tests/fixtures/strangers` has the targets. Each run is the child of a shell that leads the process group,
//! like the script of a CI job, with another process beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Fixture, Ran, Run, alive, root, scratch, through_shell, until};

/// The job's script: leads a group, has another process in it, and reports at the end whether that is alive.
const JOB: &str = "sleep 1000 & stranger=$!; \"$@\"; code=$?; \
                   if kill -0 $stranger; then echo 'the stranger lives'; fi; \
                   kill $stranger; wait $stranger 2>/dev/null; exit $code";

fn strangers() -> Fixture {
    Fixture::build("strangers")
}

/// A target in a job.
fn job(fixture: &Fixture, target: &str, arguments: &[&str]) -> Command {
    let like = fixture.command(target, &[]);
    let mut command = through_shell(&like, JOB, fixture.binary(target), arguments);
    command.process_group(0);
    command
}

/// Runs a target in a job to its end, with this exit code. Whatever the run did, the job must not have been
/// harmed.
#[track_caller]
fn run(mut run: Run, code: i32) -> (Run, String) {
    let text = run.finish();
    assert_eq!(run.code(), Some(code), "the job ended otherwise\n{text}");
    assert!(text.contains("the stranger lives"), "{text}");
    (run, text)
}

/// Checks that the process that a body has reported is alive. Kills it.
#[track_caller]
fn assert_lives(run: &Run, name: &str, text: &str) {
    let pid: i32 = run.told(name).unwrap_or_else(|| panic!("no {name}\n{text}")).parse().unwrap();
    assert!(alive(pid), "{name} was killed\n{text}");
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    until("its end", || !alive(pid));
}

/// Kills the `sleep 1000` processes of a run and returns how many there were.
fn end_sleepers(run: &Run) -> usize {
    let is_sleeper = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x001000\0"))
    };
    let sleepers: Vec<i32> = run.marked().into_iter().filter(is_sleeper).collect();
    for pid in &sleepers {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    run.assert_nothing_left(Duration::from_secs(2));
    sleepers.len()
}

// ---- what is killed ----

/// Once in the harness and once in the process that is taken over, both in the job's group.
#[childproof::test(timeout = "180s")]
fn a_constructors_process_is_left_alone() {
    let fixture = strangers();
    let tests = ["guarded", "--skip", "b_kills", "--skip", "d_leaks"];
    let (of, text) = run(Run::spawn(job(&fixture, "constructor", &tests)), 0);
    assert_eq!(end_sleepers(&of), 2, "{text}");
    // Also if a fork server was killed and a test has left a process.
    let (of, text) = run(Run::spawn(job(&fixture, "constructor", &["guarded"])), 101);
    assert_eq!(end_sleepers(&of), 2, "{text}");
}

#[childproof::test(timeout = "180s")]
fn what_a_plain_test_leaves_is_left_alone() {
    let fixture = strangers();
    let begin = Instant::now();
    let (of, text) = run(Run::spawn(job(&fixture, "stock", &["--skip", "b_kills", "--skip", "d_leaks"])), 0);
    assert!(begin.elapsed() < Duration::from_secs(5), "it took {:?}\n{text}", begin.elapsed());
    for name in ["fork", "child"] {
        assert_lives(&of, name, &text);
    }
    of.assert_nothing_left(Duration::from_secs(2));
    let (of, text) = run(Run::spawn(job(&fixture, "stock", &[])), 101);
    for name in ["fork", "child"] {
        assert_lives(&of, name, &text);
    }
    of.assert_nothing_left(Duration::from_secs(2));
}

#[childproof::test(timeout = "180s")]
fn mains_child_is_left_alone() {
    let fixture = strangers();
    for target in ["harness", "threaded"] {
        let (of, text) = run(Run::spawn(job(&fixture, target, &[])), 101);
        assert!(text.contains("main's child lives"), "{target}\n{text}");
        of.assert_nothing_left(Duration::from_secs(2));
    }
}

/// Without a fork server, every guarded test reports why.
#[childproof::test(timeout = "180s")]
fn without_a_directory_for_temporary_files_nothing_is_harmed() {
    let fixture = strangers();
    let missing = scratch().join("missing");
    let missing = missing.to_str().unwrap();
    let setting = format!("TMPDIR={missing}");
    for (target, how, what) in [
        ("stock", "--show-output", ""),
        ("stock", "--nocapture", "cannot use the directory for temporary files"),
        ("harness", "--nocapture", "cannot use the directory for temporary files"),
        ("threaded", "--nocapture", "cannot use the directory for temporary files"),
    ] {
        let binary = fixture.binary(target).to_str().unwrap();
        let tests = ["a_passes", "c_passes", "leaves::a_zombie", "--test-threads=1", how];
        let arguments = [&[&setting, binary][..], &tests].concat();
        let mut command = through_shell(&fixture.command(target, &[]), JOB, Path::new("env"), &arguments);
        command.process_group(0);
        let (of, text) = run(Run::spawn(command), 101);
        let unbroken = text.replace("\n  ", " ").replace('\n', " ");
        let why = format!("{what} `{missing}`");
        // Each of the two, in both runs of `threaded`.
        let times = if target == "threaded" { 4 } else { 2 };
        assert_eq!(text.matches("ERROR  ").count(), times, "{target}\n{text}");
        assert_eq!(unbroken.matches(&why).count(), times, "{target}: {why}\n{text}");
        of.assert_nothing_left(Duration::from_secs(2));
    }
}

/// All of it, repeatedly.
fn all_of_it(times: usize) {
    let fixture = strangers();
    for turn in 0..times {
        for target in ["harness", "threaded", "stock", "constructor"] {
            let (of, text) = run(Run::spawn(job(&fixture, target, &[])), 101);
            assert!(text.contains("ERROR  bodies::guarded::b_kills_its_guard"), "{target} {turn}\n{text}");
            assert!(text.contains("LEAK  bodies::guarded::d_leaks"), "{target} {turn}\n{text}");
            let orphan: i32 = of.told("orphan").unwrap().parse().unwrap();
            assert!(!alive(orphan), "{target} {turn}: the test's own process lives\n{text}");
            if target == "stock" {
                assert_lives(&of, "fork", &text);
                assert_lives(&of, "child", &text);
            }
            let sleepers = end_sleepers(&of);
            assert_eq!(sleepers, if target == "constructor" { 2 } else { 0 }, "{target} {turn}\n{text}");
        }
    }
}

#[childproof::test(timeout = "120s")]
fn a_job_is_not_harmed() {
    all_of_it(5);
}

#[childproof::test(timeout = "900s")]
#[ignore = "some minutes: the same fifty times"]
fn a_job_is_not_harmed_in_fifty_runs() {
    all_of_it(50);
}

/// As the entry point of a container the harness is pid 1, and so is the child of a plain test in a PID namespace of its own.
#[childproof::test]
fn a_child_with_the_pid_of_the_harness_does_not_end_its_fork_server() {
    let fixture = strangers();
    let script = "exec unshare --pid --fork --mount-proc \"$@\"";
    let tests = ["beforehand::starts_the_server", "namespace::"];
    let options = ["--include-ignored", "--test-threads=1"];
    let like = fixture.command("stock", &[]);
    let arguments = [&tests[..], &options[..]].concat();
    let ran = Ran::of(&mut through_shell(&like, script, fixture.binary("stock"), &arguments));
    if ran.stderr.contains("unshare failed") {
        println!("not checked: it needs a PID namespace");
        return;
    }
    assert!(ran.stdout.contains("3 passed; 0 failed"), "{}", ran.all());
}

/// A test has mounted the `/proc` of its own PID namespace, where another process has the stranger's number.
#[childproof::test(timeout = "120s")]
fn a_process_with_the_number_of_one_in_a_mounted_proc_is_left_alone() {
    let fixture = Fixture::build("victim");
    for target in ["harness", "stock", "threaded"] {
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut like = fixture.command(target, &[]);
        like.env("VICTIM_STRANGER", stranger.id().to_string());
        // The mount must be seen by this run alone.
        let script = "exec unshare --mount \"$@\"";
        let arguments = ["--exact", "bodies::bombs::covers_proc"];
        let mut run = Run::spawn(through_shell(&like, script, fixture.binary(target), &arguments));
        let text = run.finish();
        let lives = stranger.try_wait().unwrap().is_none();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        if let Some(why) = run.told("refused") {
            println!("not checked: {why}");
            return;
        }
        assert!(run.told("covered").is_some(), "{text}");
        assert!(lives, "{target}: the stranger was killed\n{text}");
        let unbroken = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in [
            "covers_proc ... FAILED",
            "left 3 processes",
            "a mount was over `/proc` when the test ended. It was detached",
        ] {
            assert!(unbroken.contains(words), "{target}: no {words:?} in\n{text}");
        }
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

// ---- what plain tests see ----

/// `wait` for all children ends, a pipe reaches EOF, orphans get the same parent as without a guard, and the
/// process is unchanged.
#[childproof::test(timeout = "180s")]
fn plain_tests_beside_guarded_ones_find_their_process_as_it_was() {
    let fixture = strangers();
    let tests = ["before", "beside", "a_passes", "c_passes", "--test-threads=1"];
    let (of, text) = run(Run::spawn(job(&fixture, "stock", &tests)), 0);
    assert!(text.contains("8 passed; 0 failed"), "{text}");
    of.assert_nothing_left(Duration::from_secs(2));
    // The kernel would reap the guard too, if that were an ordinary child.
    let like = fixture.command("stock", &[]);
    let binary = fixture.binary("stock").to_str().unwrap();
    let arguments = [&["--ignore-signal=CHLD", "STRANGERS_SIGCHLD=ignored", binary][..], &tests].concat();
    let mut command = through_shell(&like, JOB, Path::new("env"), &arguments);
    command.process_group(0);
    let (of, text) = run(Run::spawn(command), 0);
    assert!(text.contains("8 passed; 0 failed"), "{text}");
    of.assert_nothing_left(Duration::from_secs(2));
}

// ---- threads of constructors ----

#[childproof::test(timeout = "120s")]
fn a_constructors_thread_takes_no_lock_along() {
    let fixture = strangers();
    for _ in 0..3 {
        let (of, text) = run(Run::spawn(job(&fixture, "threads", &[])), 0);
        assert!(text.contains("20 passed; 0 failed"), "{text}");
        of.assert_nothing_left(Duration::from_secs(2));
    }
}

// ---- a cargo that is killed at once ----

/// A shell named cargo starts the harness, as the real one does, and is killed at a random moment after that.
#[childproof::test(timeout = "120s")]
fn a_harness_whose_cargo_was_killed_at_once_ends() {
    let victim = Fixture::build("victim");
    let cargo = scratch().join("cargo");
    fs::copy("/bin/sh", &cargo).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut longest = Duration::ZERO;
    for target in ["harness", "stock", "threaded"] {
        for step in 0..24 {
            let like = victim.command(target, &[]);
            let mut command = Command::new("setsid");
            // In the directory and with the variables that cargo sets.
            command.arg(&cargo).args(["-c", "\"$@\" & echo > \"$VICTIM_OUT/begun\"; wait", "sh"]);
            command.arg(victim.binary(target)).args(["--exact", "bodies::crowd::a", "bodies::crowd::b"]);
            let package: &Path = &root();
            command.current_dir(package).env("CARGO", &cargo).env("CARGO_MANIFEST_DIR", package);
            for (name, value) in like.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            command.stdin(Stdio::null());
            let mut of = Run::spawn(command);
            of.wait_for("begun");
            thread::sleep(Duration::from_micros(500) * step);
            kill(Pid::from_raw(of.pid()), Signal::SIGKILL).unwrap();
            // Mostly half a second. On a busy machine it is several.
            longest = longest.max(of.assert_nothing_left(Duration::from_secs(20)));
            of.finish();
        }
    }
    println!("nothing left after {longest:?} at most");
}

// ---- a fork server that was killed, and a harness that comes second ----

#[childproof::test(timeout = "180s")]
fn another_fork_server_comes_after_one_that_was_killed() {
    let fixture = strangers();
    for target in ["harness", "threaded", "stock"] {
        let (of, text) = run(Run::spawn(job(&fixture, target, &["guarded", "--test-threads=1"])), 101);
        let verdict = |test: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("test bodies::guarded::{test} ")));
            line.unwrap_or_else(|| panic!("{target}: no {test}\n{text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(verdict("a_passes"), "ok", "{target}\n{text}");
        assert_eq!(verdict("b_kills_its_guard"), "FAILED", "{target}\n{text}");
        assert_eq!(verdict("c_passes"), "ok", "{target}\n{text}");
        assert_eq!(verdict("d_leaks"), "FAILED", "{target}\n{text}");
        assert_eq!(verdict("e_passes"), "ok", "{target}\n{text}");
        of.assert_nothing_left(Duration::from_secs(2));
    }
}

#[childproof::test(timeout = "180s")]
fn a_second_harness_of_a_threaded_main_runs_its_tests() {
    let fixture = strangers();
    let (of, text) = run(Run::spawn(job(&fixture, "threaded", &["passes"])), 0);
    let second = text.split("test result: ").nth(2).unwrap_or_default();
    assert!(second.starts_with("ok. 4 passed; 0 failed"), "{text}");
    assert!(text.contains("test second::passes") && text.contains("ok"), "{text}");
    of.assert_nothing_left(Duration::from_secs(2));
}
