//! With `isolation = "pidns"` a supervisor is the first process of a PID namespace: the kernel kills everything with it. The
//! verdicts are the same, and nothing is claimed about processes outside, which cannot be seen.
//!
//! `tests/it/proof/kills.rs` kills the whole guard.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::proof::tool;
use crate::support::{Fixture, Ran, Run, as_nobody, scratch, through_shell, until};

/// Whether this user may make PID namespaces.
pub(crate) fn may_make_namespaces() -> bool {
    let user = if nix::unistd::geteuid().is_root() { "-pf" } else { "-Urpf" };
    let made = Command::new("unshare").args([user, "--mount-proc", "true"]).output();
    let may = made.is_ok_and(|output| output.status.success());
    if !may {
        println!("not checked: no PID namespace is to be had here");
    }
    may
}

fn can_be_nobody() -> bool {
    let can = nix::unistd::geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok();
    if !can {
        println!("not checked: it needs root and `setpriv`");
    }
    can
}

/// Why there is no namespace, in each message.
const NO_EFFECT: &str = "`isolation = \"pidns\"` has no effect: ";
/// In each report from a namespace.
const NUMBERS: &str = "note: pids are those of the test's PID namespace (`isolation`)";

/// The JSON of each test of a run, by its name.
fn verdicts(mut command: Command) -> (Ran, BTreeMap<String, Value>) {
    let path = scratch().join("isolated.json");
    let ran = Ran::of(command.arg("--json").arg(&path));
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    (ran, lines.map(|line| (line["test"].as_str().unwrap().to_owned(), line)).collect())
}

fn isolated(fixture: &Fixture, target: &str, arguments: &[&str]) -> Command {
    let mut command = fixture.command(target, arguments);
    command.env("CHILDPROOF_ISOLATION", "pidns");
    command
}

/// What a verdict is about: outcome, causes, and how many processes and fds of which class.
fn essence(verdict: &Value) -> String {
    let classes = |key: &str, field: &str| {
        let mut all: Vec<String> =
            verdict[key].as_array().unwrap().iter().map(|one| one[field].to_string()).collect();
        all.sort();
        all.join(" ")
    };
    let places = classes("processes", "spawned_at");
    format!(
        "{} {} [{}] [{places}] [{}]",
        verdict["outcome"],
        verdict["causes"],
        classes("processes", "class"),
        classes("fds", "kind")
    )
}

#[childproof::test(timeout = "120s")]
fn changes_no_verdict() {
    if !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("leaky");
    let arguments = ["child", "shell", "exits", "pipe", "job", "--skip", "hundred", "--color=never"];
    let (_, plain) = verdicts(fixture.command("harness", &arguments));
    let (ran, inside) = verdicts(isolated(&fixture, "harness", &arguments));
    assert!(plain.len() > 20, "{}", plain.len());
    assert!(inside.values().any(|verdict| verdict["notes"].to_string().contains("PID namespace")));
    for (name, verdict) in &plain {
        assert_eq!(essence(&inside[name]), essence(verdict), "{name}\n{}", ran.all());
    }
}

#[childproof::test]
fn a_leak_has_its_line_and_the_numbers_are_explained() {
    if !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("leaky");
    for target in ["harness", "stock"] {
        let arguments = ["--exact", "shapes::child_dropped", "shapes::child_waited_for", "--color=never"];
        let ran = Ran::of(&mut isolated(&fixture, target, &arguments));
        let text = ran.all();
        let place = "tests/shapes/mod.rs:";
        assert!(text.contains("was still running 200 ms after the test ended"), "{target}\n{text}");
        assert!(
            text.contains("fix: ") && text.contains(place) && text.contains("killed: "),
            "{target}\n{text}"
        );
        assert_eq!(text.matches(NUMBERS).count(), 1, "{target}\n{text}");
        assert!(!text.contains(NO_EFFECT), "{target}\n{text}");
        assert_eq!(ran.code, Some(101), "{target}\n{text}");
    }
}

/// Waits for locks, threads and children are within the namespace. A pipe, socket or file may be open outside.
#[childproof::test(timeout = "120s")]
fn only_what_is_within_a_namespace_is_proved() {
    if !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("leaky");
    let names = [
        "mutex_locked_twice",
        "join_of_a_thread_that_takes_a_lock_twice",
        "fork_while_a_thread_holds_a_mutex",
    ];
    let fds = [
        "keeper_of_its_own_lifeline",
        "two_crossed_over_two_pipes",
        "lock_of_a_file_that_a_stuck_child_holds",
    ];
    let arguments = [&["--exact"], &names[..], &fds[..], &["--color=never"]].concat();
    let (ran, verdicts) = verdicts(isolated(&fixture, "waits", &arguments));
    let proved = |name: &str| {
        let waits = verdicts[name]["waits"].as_array().unwrap();
        waits
            .iter()
            .filter(|wait| wait["proved"] == true)
            .map(|wait| wait["because"].clone())
            .collect::<Vec<_>>()
    };
    for name in names {
        assert!(!proved(name).is_empty(), "{name}\n{}", ran.all());
    }
    for name in fds {
        assert!(proved(name).is_empty(), "{name}: {:?}\n{}", proved(name), ran.all());
        let sentence = verdicts[name]["findings"].to_string();
        assert!(
            sentence.contains("processes outside of the test's PID namespace are not seen"),
            "{sentence}"
        );
    }
}

/// Opens the write end of a pipe that a process of the run reads and has open itself, if there is one.
fn open_outside(run: &Run) -> Option<File> {
    run.marked().into_iter().find_map(|pid| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let ends: Vec<(PathBuf, PathBuf)> =
            entries.filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?))).collect();
        let is_pipe = |target: &Path| target.to_string_lossy().starts_with("pipe:");
        let own = ends.iter().find(|(_, target)| {
            is_pipe(target) && ends.iter().filter(|(_, other)| other == target).count() == 2
        });
        File::options().write(true).open(&own?.0).ok()
    })
}

#[childproof::test]
fn what_a_process_outside_has_open_is_not_said_to_be_stuck() {
    if !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("leaky");
    let name = "test_that_reads_what_only_it_can_write";
    let mut command = isolated(&fixture, "waits", &["--exact", name, "--color=never", "--json"]);
    let path = scratch().join("outside.json");
    command.arg(&path).env("CHILDPROOF_TIMEOUT", "5s");
    let mut run = Run::spawn(command);
    let mut held = None;
    until("a process that reads its own pipe", || {
        held = open_outside(&run);
        held.is_some()
    });
    let text = run.finish();
    drop(held);
    let verdict: Value = serde_json::from_str(fs::read_to_string(path).unwrap().trim()).unwrap();
    let waits = verdict["waits"].as_array().unwrap();
    assert!(!waits.is_empty() && waits.iter().all(|wait| wait["proved"] == false), "{text}");
    for claim in ["only ", "can never", "deadlocks on itself", "no process"] {
        assert!(!text.contains(claim), "{claim}: {text}");
    }
}

/// Says that there is no namespace once a run and in the JSON of one test, and goes on.
fn assert_falls_back(command: Command, why: &str) {
    let (ran, verdicts) = verdicts(command);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert_eq!(ran.stderr.matches(NO_EFFECT).count(), 1, "{}", ran.all());
    assert!(ran.stderr.contains(why), "{}", ran.all());
    let notes: Vec<String> = verdicts.values().map(|verdict| verdict["notes"].to_string()).collect();
    let with: Vec<&String> = notes.iter().filter(|notes| notes.contains("has no effect: ")).collect();
    assert!(verdicts.len() > 1 && with.len() == 1, "{notes:?}");
    assert!(with[0].contains(why), "{notes:?}");
}

/// Runs a command as an ordinary user that may make no user namespace.
const WITHOUT_NAMESPACES: &str = "exec unshare -Ur sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; \
     exec setpriv --inh-caps=-all --bounding-set=-all \"$@\"' sh \"$@\"";

#[childproof::test]
fn where_there_is_no_namespace_a_run_says_so_once() {
    if !can_be_nobody() || !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("leaky");
    let arguments = ["--exact", "passes", "prints_any_byte"];
    let mut command = through_shell(
        &fixture.command("reports", &[]),
        WITHOUT_NAMESPACES,
        fixture.binary("reports"),
        &arguments,
    );
    command.env("CHILDPROOF_ISOLATION", "pidns");
    assert_falls_back(command, "cannot make a PID namespace (unshare): No space left on device");
    let mut kept = isolated(&fixture, "reports", &arguments);
    kept.arg("--keep");
    assert_falls_back(kept, "must have its number on the machine");
    let path = tool().join("childproof");
    let arguments = ["run", "--isolation=pidns", "--", "true"];
    let run = through_shell(&fixture.command("reports", &[]), WITHOUT_NAMESPACES, &path, &arguments);
    let ran = Ran::of(&mut { run });
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert_eq!(ran.stderr.matches(NO_EFFECT).count(), 1, "{}", ran.all());
}

/// In a user namespace of its own, without capabilities there: a file without permissions stays unreadable.
#[childproof::test]
fn an_ordinary_user_gets_a_namespace_and_no_capability() {
    if !can_be_nobody() || !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("leaky");
    let arguments = ["--exact", "shapes::child_dropped", "shapes::child_waited_for", "--color=never"];
    let mut command = as_nobody(&fixture, "harness", &arguments);
    command.env("CHILDPROOF_ISOLATION", "pidns");
    let ran = Ran::of(&mut command);
    let text = ran.all();
    assert!(text.contains(NUMBERS) && !text.contains(NO_EFFECT), "{text}");
    assert!(text.contains("tests/shapes/mod.rs:"), "{text}");
    let script = "exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let copy = scratch().join("childproof");
    fs::copy(tool().join("childproof"), &copy).unwrap();
    let look = "echo $$ $PPID $(id -u) $(sed -n 's/^CapEff:\t//p' /proc/self/status)";
    let arguments = ["run", "--isolation=pidns", "--", "sh", "-c", look];
    let ran =
        Ran::of(through_shell(&fixture.command("harness", &[]), script, &copy, &arguments).current_dir("/"));
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "2 1 65534 0000000000000000"), "{}", ran.all());
}

/// What a test unmounts, its guard and the next test still have.
#[childproof::test]
fn a_test_that_unmounts_proc_harms_itself_alone() {
    if !can_be_nobody() || !may_make_namespaces() {
        return;
    }
    let fixture = Fixture::build("proof");
    let tests = ["guarded::unmounts_proc", "guarded::leaks_isolated", "--exact", "--test-threads=1"];
    let mut repeated = fixture.command("harness", &[&tests[..], &["--repeat=3", "--color=never"]].concat());
    let ran = Ran::of(repeated.env("VICTIM_OUT", scratch()));
    let text = ran.all();
    assert_eq!(text.matches("LEAK  guarded::leaks_isolated").count(), 3, "{text}");
    assert!(!text.contains("LEAK  guarded::unmounts_proc") && !text.contains("mount was over"), "{text}");
    let script = "umount -l /proc; sleep 86399 > /dev/null 2>&1 &";
    let mut run = Command::new(tool().join("childproof"));
    let ran = Ran::of(run.args(["run", "--isolation=pidns", "--", "sh", "-c", script]));
    assert_eq!(ran.code, Some(123), "{}", ran.all());
    assert!(ran.stderr.contains("`sleep 86399` was still running"), "{}", ran.all());
}

/// strace delays or stops a step on the way into the namespace. Either way the command runs once.
#[childproof::test(timeout = "600s")]
fn a_namespace_that_takes_too_long_is_given_up_and_one_that_is_stopped_is_continued() {
    if !can_be_nobody() || !may_make_namespaces() || Command::new("strace").arg("--version").output().is_err()
    {
        println!("not checked: it needs strace too");
        return;
    }
    for (inject, effect) in [
        ("mount:delay_enter=12000000:when=1", Some("within 5 s")),
        ("unshare:signal=SIGSTOP:when=1", None),
        ("mount:signal=SIGSTOP:when=2", None),
    ] {
        let out = scratch().join("ran");
        let mut run = Command::new("strace");
        run.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=mount,unshare", "-e"]);
        run.arg(format!("inject={inject}")).arg(tool().join("childproof"));
        run.args(["run", "--isolation=pidns", "--record=off", "--", "sh", "-c", "echo ran >> \"$0\""])
            .arg(&out);
        let ran = Ran::of(&mut run);
        assert_eq!(ran.code, Some(0), "{inject}\n{}", ran.all());
        assert_eq!(fs::read_to_string(&out).unwrap(), "ran\n", "{inject}\n{}", ran.all());
        fs::remove_file(out).unwrap();
        assert_eq!(ran.stderr.contains(NO_EFFECT), effect.is_some(), "{inject}\n{}", ran.all());
        assert!(ran.stderr.contains(effect.unwrap_or_default()), "{inject}\n{}", ran.all());
    }
}
