//! What a test leaves in its directory for temporary files is removed, and nothing else: no file that only
//! seems to be in it because of a mount, a symlink or a race.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::invariants::{TARGETS, is_installed, victim};
use crate::support::{Fixture, Ran, Run, as_nobody, scratch, through_shell, until};

/// The names of the files in a directory that does not belong to the test.
const PRECIOUS: [&str; 8] = ["f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7"];

/// Unmounts on drop what is mounted below the directory of the running test: a broken guard must not leave it
/// to the guard of this test.
pub(crate) struct Detached;

impl Drop for Detached {
    fn drop(&mut self) {
        for at in mounted_below(&scratch()).iter().rev() {
            let _ = Command::new("mount").arg("--make-private").arg(at).status();
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

/// The mount points at or below a directory, in the order of mounting.
pub(crate) fn mounted_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).filter(|at| at.starts_with(directory)).collect()
}

/// Whether this process may mount; prints a note if not.
pub(crate) fn may_mount() -> bool {
    let at = scratch().join("may-mount");
    fs::create_dir_all(&at).unwrap();
    let may = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&at).output();
    let may = may.is_ok_and(|output| output.status.success());
    if may {
        assert!(Command::new("umount").arg(&at).status().unwrap().success());
    } else {
        println!("not checked: this user may not mount here");
    }
    fs::remove_dir(&at).unwrap();
    may
}

fn make_precious(run: &Run) {
    let folder = run.out().join("precious");
    fs::create_dir(&folder).unwrap();
    for name in PRECIOUS {
        fs::write(folder.join(name), name).unwrap();
    }
}

#[track_caller]
fn assert_precious_is_whole(run: &Run, what: &str) {
    let folder = run.out().join("precious");
    for name in PRECIOUS {
        let found = fs::read_to_string(folder.join(name)).unwrap_or_else(|error| error.to_string());
        assert_eq!(found, name, "{what}: {}\n{}", folder.join(name).display(), run.text());
    }
}

/// Starts bodies one after the other; the first one waits for the directory.
fn start(fixture: &Fixture, target: &str, bodies: &[&str]) -> Run {
    let names: Vec<String> = bodies.iter().map(|body| format!("bodies::mounts::{body}")).collect();
    let mut arguments: Vec<&str> = names.iter().map(String::as_str).collect();
    arguments.extend(["--exact", "--test-threads=1"]);
    let script = "while ! test -e \"$VICTIM_OUT/ready\"; do sleep 0.01; done; exec \"$0\" \"$@\"";
    let like = fixture.command(target, &[]);
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(fixture.binary(target)).args(&arguments);
    if target != "stock" {
        command.args(["--json", "report.json"]);
    }
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // The path in the report is relative to it.
    let at = scratch().join("at");
    fs::create_dir_all(&at).unwrap();
    command.current_dir(at);
    let run = Run::spawn(command);
    make_precious(&run);
    run
}

fn finish(run: &mut Run) -> String {
    run.tell("ready");
    run.finish()
}

/// The causes in the JSON for the test of this name.
fn causes(target: &str, body: &str) -> Option<Vec<String>> {
    if target == "stock" {
        return None;
    }
    let text = fs::read_to_string(scratch().join("at/report.json")).unwrap();
    let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let line = text.lines().map(of).find(|line| line["test"] == format!("bodies::mounts::{body}")).unwrap();
    Some(line["causes"].as_array().unwrap().iter().map(|cause| cause.as_str().unwrap().to_owned()).collect())
}

#[track_caller]
fn assert_word(text: &str, body: &str, word: &str) {
    let line = format!("test bodies::mounts::{body} ");
    let has = |found: &str| found.starts_with(&line) && found.ends_with(word);
    assert!(text.lines().any(has), "no `{word}` for {body}:\n{text}");
}

/// Runs a body that leaves a mount, and then one that checks that its directory is empty.
fn leaves_a_mount(body: &str, names: &[&str]) {
    if !may_mount() {
        return;
    }
    let _detached = Detached;
    let fixture = victim();
    for target in TARGETS {
        let mut run = start(&fixture, target, &[body, "zz_finds_its_own"]);
        let text = finish(&mut run);
        assert_precious_is_whole(&run, &format!("{target} {body}"));
        assert_word(&text, body, "FAILED");
        assert_word(&text, "zz_finds_its_own", "ok");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for name in [&["in its `TMPDIR`: `"], names].concat() {
            assert!(text.contains(name), "{target} {body}: no {name:?} in\n{text}");
        }
        if let Some(causes) = causes(target, body) {
            assert_eq!(causes, ["left_mount"], "{target} {body}");
        }
        assert_eq!(mounted_below(&scratch()), Vec::<PathBuf>::new(), "{target} {body}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

#[childproof::test]
fn a_bind_mount_is_detached_and_what_is_behind_it_stays() {
    leaves_a_mount("binds", &["/x`", "/precious`", "umount"]);
}

#[childproof::test]
fn so_is_one_over_the_directory_itself() {
    leaves_a_mount("covers_its_directory", &["/precious`"]);
}

/// A bind mount of the directory itself has the same device, inode and times.
#[childproof::test]
fn so_is_one_of_the_directory_over_itself() {
    leaves_a_mount("covers_its_directory_with_itself", &[]);
}

#[childproof::test]
fn so_is_one_over_the_directory_above() {
    leaves_a_mount("covers_the_directory_above", &["/precious`"]);
}

#[childproof::test]
fn so_are_several_over_each_other() {
    leaves_a_mount("stacks", &["3 mounts"]);
}

#[childproof::test]
fn so_is_one_of_a_file() {
    leaves_a_mount("binds_a_file", &["/file`", "/precious/f0`"]);
}

#[childproof::test]
fn so_is_one_deep_inside() {
    leaves_a_mount("binds_deep_inside", &["/a/b/c/d/e`"]);
    leaves_a_mount("binds_deeper_than_is_held_open", &["/d/d/"]);
}

#[childproof::test]
fn so_is_one_that_is_read_only() {
    leaves_a_mount("binds_read_only", &["/x`"]);
}

#[childproof::test]
fn so_is_a_tmpfs() {
    leaves_a_mount("mounts_a_tmpfs", &["/x`", "tmpfs"]);
}

/// Unmounting below a shared mount would also unmount in its source.
#[childproof::test]
fn what_is_mounted_in_the_source_of_a_shared_one_stays_mounted() {
    if !may_mount() {
        return;
    }
    let _detached = Detached;
    let fixture = victim();
    for target in TARGETS {
        let mut run = start(&fixture, target, &["binds_with_all_below"]);
        let shared = run.out().join("shared");
        fs::create_dir(&shared).unwrap();
        let mount = |arguments: &[&str], at: &Path| {
            assert!(Command::new("mount").args(arguments).arg(at).status().unwrap().success());
        };
        mount(&["-t", "tmpfs", "tmpfs"], &shared);
        mount(&["--make-shared"], &shared);
        let inner = shared.join("inner");
        fs::create_dir(&inner).unwrap();
        mount(&["--bind", run.out().join("precious").to_str().unwrap()], &inner);
        let text = finish(&mut run);
        assert_precious_is_whole(&run, target);
        assert_word(&text, "binds_with_all_below", "FAILED");
        assert_eq!(mounted_below(&scratch()), [shared.clone(), inner], "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
        drop(Detached);
    }
}

fn passes_and_keeps(body: &str, what: &str) {
    let fixture = victim();
    for target in TARGETS {
        let mut run = start(&fixture, target, &[body, "zz_finds_its_own"]);
        let text = finish(&mut run);
        assert_precious_is_whole(&run, &format!("{target} {body}"));
        assert_word(&text, body, "ok");
        assert_word(&text, "zz_finds_its_own", "ok");
        assert!(what.is_empty() || run.out().join(what).exists(), "{target} {body}: no {what}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

#[childproof::test]
fn a_mount_of_a_namespace_of_the_tests_own_is_none_of_ours() {
    if may_mount() {
        let _detached = Detached;
        passes_and_keeps("binds_in_a_namespace_of_its_own", "");
        passes_and_keeps("unmounts_what_it_has_mounted", "");
    }
}

#[childproof::test]
fn a_link_is_removed_and_not_followed() {
    passes_and_keeps("links_to_it", "");
    passes_and_keeps("puts_a_link_in_place_of_its_directory", "");
}

#[childproof::test]
fn what_is_moved_elsewhere_stays_there() {
    passes_and_keeps("moves_its_directory_elsewhere", "moved/file");
}

/// The run's own directory is not followed either if it is replaced by a symlink; it stays where the test has
/// moved it.
#[childproof::test]
fn a_link_in_place_of_the_runs_directory_is_not_followed() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = start(&fixture, target, &["puts_a_link_in_place_of_the_directory_above"]);
        let text = finish(&mut run);
        assert_precious_is_whole(&run, target);
        let link = run.told("link").unwrap();
        assert!(
            fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()),
            "{target}: {link}\n{text}"
        );
        assert!(run.out().join("precious/1/file").exists(), "{target}");
        fs::remove_file(link).unwrap();
    }
}

/// Runs all kinds of target over mounted directories.
fn rounds(count: usize) {
    if !may_mount() {
        return;
    }
    let _detached = Detached;
    let fixture = victim();
    let bodies =
        ["binds", "binds_a_file", "binds_deep_inside", "covers_its_directory", "stacks", "zz_finds_its_own"];
    for (round, target) in (0..count).flat_map(|round| TARGETS.map(|target| (round, target))) {
        let mut run = start(&fixture, target, &bodies);
        let text = finish(&mut run);
        assert_precious_is_whole(&run, &format!("{target} in round {round}"));
        assert!(text.contains("1 passed; 5 failed"), "{target}\n{text}");
        assert_eq!(mounted_below(&scratch()), Vec::<PathBuf>::new(), "{target}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

#[childproof::test]
fn no_mounted_folder_is_touched_in_2_runs_of_each_target() {
    rounds(2);
}

#[childproof::test(timeout = "300s")]
#[ignore = "takes long"]
fn no_mounted_folder_is_touched_in_50_runs_of_each_target() {
    rounds(50);
}

/// A user that may not unmount leaves the mount and its contents unchanged, and reports it.
#[childproof::test]
fn what_cannot_be_detached_stays() {
    if !may_mount() || !is_installed("setpriv") {
        return;
    }
    let _detached = Detached;
    let fixture = victim();
    for target in TARGETS {
        let arguments = ["bodies::mounts::waits_for_a_mount", "bodies::mounts::zz_finds_its_own", "--exact"];
        let mut command = as_nobody(&fixture, target, &arguments);
        command.arg("--test-threads=1");
        let mut run = Run::spawn(command);
        make_precious(&run);
        let precious = run.out().join("precious");
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o777)).unwrap();
        let place = run.wait_for("place");
        let mounted = Command::new("mount").arg("--bind").arg(&precious).arg(&place).status().unwrap();
        assert!(mounted.success());
        run.tell("mounted");
        let text = run.finish();
        assert_precious_is_whole(&run, target);
        assert_word(&text, "waits_for_a_mount", "FAILED");
        assert_word(&text, "zz_finds_its_own", "ok");
        for words in ["it cannot be detached: ", "note: cannot empty the scratch directory", &place] {
            assert!(text.contains(words), "{target}: no {words:?} in\n{text}");
        }
        assert_eq!(mounted_below(&scratch()), [PathBuf::from(&place)], "{target}\n{text}");
        drop(Detached);
    }
}

/// The net has created the directory, and starts another fork server.
#[childproof::test]
fn no_empty_directory_is_left_by_a_fork_server_that_is_killed_early() {
    let fixture = victim();
    // The harness of a stock target starts the fork server with its first test.
    for target in ["harness", "threaded"] {
        let like = fixture.command(target, &[]);
        // Opening it blocks until it is read.
        let script = "mkfifo \"$VICTIM_OUT/fifo\"; exec \"$@\" --json \"$VICTIM_OUT/fifo\"";
        let arguments = ["bodies::mounts::prints", "--exact"];
        let mut run = Run::spawn(through_shell(&like, script, fixture.binary(target), &arguments));
        until("the run's directory", || !run.scratches().is_empty());
        let mut server = None;
        // The directory is created before the fork server is forked.
        until("the fork server", || {
            server = run.marked().into_iter().filter(|pid| *pid != run.pid()).find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "childproof\n")
            });
            server.is_some()
        });
        kill(Pid::from_raw(server.unwrap()), Signal::SIGKILL).unwrap();
        let _reader = File::open(run.out().join("fifo")).unwrap();
        let text = run.finish();
        assert!(text.contains("1 passed; 0 failed"), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

#[childproof::test]
fn a_directory_for_temporary_files_that_cannot_be_used_is_named() {
    let fixture = victim();
    let run = |command: &mut Command, at: &Path| {
        let ran = Ran::of(command.env("TMPDIR", at));
        assert_ne!(ran.code, Some(0), "{}", ran.all());
        let all = ran.all();
        assert!(all.contains(&format!("`{}", at.display())), "no {} in\n{all}", at.display());
        assert!(all.contains("os error"), "no reason in\n{all}");
    };
    let file = scratch().join("file");
    fs::write(&file, "").unwrap();
    let closed = scratch().join("closed");
    fs::create_dir(&closed).unwrap();
    for target in TARGETS {
        let arguments = ["bodies::mounts::prints", "--exact"];
        for at in [&scratch().join("nonexistent"), &file] {
            run(&mut fixture.command(target, &arguments), at);
        }
        if nix::unistd::geteuid().is_root() && is_installed("setpriv") {
            run(&mut as_nobody(&fixture, target, &arguments), &closed);
        }
    }
}

fn output_of(target: &str, body: &str, before: &str) -> Ran {
    let fixture = victim();
    let name = format!("bodies::mounts::{body}");
    let script = format!("{before} exec \"$@\"");
    let like = fixture.command(target, &[]);
    Ran::of(&mut through_shell(&like, &script, fixture.binary(target), &[&name, "--exact"]))
}

#[track_caller]
fn assert_shows(ran: &Ran, words: &[&str]) {
    let all = ran.all();
    for word in words {
        assert!(all.contains(word), "no {word:?} in\n{all}");
    }
}

#[childproof::test]
fn a_limit_on_the_size_of_files_takes_no_output_from_a_test() {
    for target in TARGETS {
        let ran = output_of(target, "prints", "ulimit -f 0;");
        assert_eq!(ran.code, Some(0), "{target}: {}", ran.all());
        let ran = output_of(target, "prints_and_fails", "ulimit -f 0;");
        assert_shows(&ran, &["a word", "the last word", "panicked at "]);
    }
}

#[childproof::test]
fn a_limit_that_a_test_has_set_itself_is_named() {
    for target in TARGETS {
        let ran = output_of(target, "limits_itself_and_prints", "");
        assert_shows(
            &ran,
            &["a word", "SIGXFSZ (25)", "larger than `RLIMIT_FSIZE`", "the test has set its own"],
        );
        let ran = output_of(target, "limits_itself_ignores_the_signal_and_prints", "");
        assert_shows(&ran, &["panicked at ", "it has set `RLIMIT_FSIZE`"]);
    }
}

#[childproof::test]
fn a_full_file_system_takes_no_output_from_a_test() {
    if !may_mount() {
        return;
    }
    let _detached = Detached;
    let small = scratch().join("small");
    fs::create_dir(&small).unwrap();
    let mount = |size: &str| {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(&small).status().unwrap();
        assert!(mounted.success());
    };
    for target in TARGETS {
        let before = format!("export TMPDIR={};", small.display());
        mount("size=1m");
        let ran = output_of(target, "fills_its_file_system_and_fails", &before);
        assert_shows(&ran, &["a word", "the last word", "panicked at "]);
        let full = format!("{before} cat /dev/zero > $TMPDIR/full 2>/dev/null;");
        let ran = output_of(target, "prints", &full);
        assert_eq!(ran.code, Some(0), "{target}: {}", ran.all());
        let ran = output_of(target, "prints_and_fails", &full);
        assert_shows(&ran, &["a word", "the last word", "panicked at "]);
        drop(Detached);
    }
}

/// Another user has created the directory for locks.
#[childproof::test]
fn a_place_for_locks_that_another_user_has_taken_is_named_and_passed_over() {
    if !nix::unistd::geteuid().is_root() || !is_installed("setpriv") {
        println!("not checked: this user cannot make another's directory");
        return;
    }
    let fixture = victim();
    let shared = scratch().join("shared");
    let taken = shared.join("childproof-serial-65534");
    fs::create_dir_all(&taken).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(&taken, fs::Permissions::from_mode(0o777)).unwrap();
    let runtime = scratch().join("runtime");
    fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(65534), Some(65534)).unwrap();
    for target in TARGETS {
        let mut command = as_nobody(&fixture, target, &["bodies::mounts::has_a_turn", "--exact"]);
        command.env("TMPDIR", &shared).env_remove("XDG_RUNTIME_DIR").env("HOME", "/nonexistent");
        let ran = Ran::of(&mut command);
        assert_ne!(ran.code, Some(0), "{target}: {}", ran.all());
        let words = ran.all().split_whitespace().collect::<Vec<_>>().join(" ");
        for word in [&format!("`{}`", taken.display()), "belongs to user 0"] {
            assert!(words.contains(word), "no {word:?} in\n{words}");
        }
        let ran = Ran::of(command.env("XDG_RUNTIME_DIR", &runtime));
        assert_eq!(ran.code, Some(0), "{target}: {}", ran.all());
        assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0, "{target}");
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 1, "{target}");
    }
}

/// Only JSON is on stdout, also when a test takes longer than a minute.
#[childproof::test(timeout = "200s")]
#[ignore = "takes a minute"]
fn that_a_test_takes_long_is_said_in_json() {
    let fixture = victim();
    let arguments = ["bodies::mounts::takes_61_seconds", "--exact", "--format", "json", "-Zunstable-options"];
    for mut run in [fixture.command("harness", &arguments)].iter_mut().map(Ran::of) {
        let lines: Vec<serde_json::Value> =
            run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let slow = lines.iter().filter(|line| line["event"] == "timeout").collect::<Vec<_>>();
        assert_eq!(slow.len(), 1, "{}", run.stdout);
        assert_eq!(slow[0]["type"], "test");
        assert_eq!(slow[0]["name"], "bodies::mounts::takes_61_seconds");
        run.stdout.clear();
    }
}
