//! The invariants of ARCHITECTURE.md, each with the test that fails when it is broken.
//!
//! Longer than 600 lines: one list, in the order of the page that it tests.
//!
//! `tests/fixtures/victim` has the bodies. They run in its three targets, one for each way in which a test
//! process is created; each invariant must hold in all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Fixture, PATIENCE, Run, alive, as_nobody, scratch, through_shell, until};

pub(crate) const TARGETS: [&str; 3] = ["harness", "stock", "threaded"];

pub(crate) fn victim() -> Fixture {
    Fixture::build("victim")
}

/// Runs one body of every target to its end, and checks the result.
fn in_every_target(body: &str, look: impl Fn(&str, &Run, &str)) {
    let fixture = victim();
    let runs = TARGETS.map(|target| (target, Run::of(&fixture, target, &[&format!("bodies::{body}")])));
    for (target, mut run) in runs {
        let text = run.finish();
        look(target, &run, &text);
    }
}

/// Whether libtest or libtest-mimic says that this body failed, and nothing else.
fn failed(text: &str, body: &str) -> bool {
    let is = |word: &str| {
        text.lines().any(|line| {
            line.strip_prefix(&format!("test bodies::{body} ")).is_some_and(|rest| rest.ends_with(word))
        })
    };
    assert!(is("FAILED") != is("ok"), "no verdict on {body}:\n{text}");
    is("FAILED")
}

#[track_caller]
fn assert_fails(target: &str, run: &Run, text: &str, body: &str, why: &str) {
    assert!(failed(text, body), "{target} lets {body} pass:\n{text}");
    assert_eq!(run.code(), Some(101), "{target} {body}\n{text}");
    assert!(text.contains(why), "{target} {body}: no {why:?} in\n{text}");
    run.assert_nothing_left(Duration::from_secs(2));
}

#[track_caller]
fn assert_passes(target: &str, run: &Run, text: &str, body: &str) {
    assert!(!failed(text, body), "{target} fails {body}:\n{text}");
    assert_eq!(run.code(), Some(0), "{target} {body}\n{text}");
    run.assert_nothing_left(Duration::from_secs(2));
}

fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} of {pid}")).trim().to_owned()
}

/// A signal set of `/proc/PID/status`, as numbers, without the two that glibc reserves.
fn signals(hexadecimal: &str) -> BTreeSet<i32> {
    let bits = u64::from_str_radix(hexadecimal, 16).unwrap();
    (1..=64).filter(|signal| ![32, 33].contains(signal) && bits & (1 << (signal - 1)) != 0).collect()
}

fn set(signals: &[Signal]) -> BTreeSet<i32> {
    signals.iter().map(|signal| *signal as i32).collect()
}

fn pids(text: &str) -> Vec<i32> {
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub(crate) fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        println!("not checked: {program} is not installed");
    }
    found
}

// ---- 1. only the harness ever holds a lifeline's write end ----

/// Eight tests spawn processes continuously, with and without exec, while every fd table of the run is read
/// repeatedly: no other process has a write end of a pipe that the harness writes to.
#[childproof::test(timeout = "120s")]
fn only_the_harness_holds_a_write_end_of_its_pipes() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["bodies::spawns::", "--test-threads=8"]);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            run.wait_for(&format!("spawns-{name}"));
        }
        let harness = run.pid();
        let mut processes = BTreeSet::new();
        let mut lifelines = BTreeSet::new();
        let begin = Instant::now();
        // Until some processes of the tests were seen too, besides harness, server, supervisors, tests.
        while begin.elapsed() < Duration::from_millis(1500) || processes.len() <= 18 {
            assert!(begin.elapsed() < PATIENCE, "{target}: only {processes:?} were seen");
            let mut watched: BTreeMap<u64, BTreeSet<i32>> = BTreeMap::new();
            let mut written: BTreeMap<u64, Vec<i32>> = BTreeMap::new();
            for pid in run.marked() {
                processes.insert(pid);
                for (inode, writes) in pipes(pid) {
                    if writes {
                        written.entry(inode).or_default().push(pid);
                    } else {
                        watched.entry(inode).or_default().insert(pid);
                    }
                }
            }
            for (inode, writers) in written.iter().filter(|(inode, _)| {
                // The fork server and eight supervisors at least read it.
                watched.get(inode).is_some_and(|readers| readers.len() >= 9)
            }) {
                assert_eq!(*writers, [harness], "{target}: writers of lifeline {inode}");
                lifelines.insert(*inode);
            }
        }
        assert_eq!(lifelines.len(), 1, "{target}: the lifeline of the run");
        run.tell("go");
        let text = run.finish();
        assert_eq!(run.code(), Some(0), "{target}\n{text}");
    }
}

/// The pipes of a process: inode, and whether this end writes.
fn pipes(pid: i32) -> Vec<(u64, bool)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let ends = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()?;
        let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_str()?);
        let info = fs::read_to_string(info).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        Some((inode, flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY))
    });
    ends.collect()
}

// ---- 2. a supervisor runs no user code ----

#[childproof::test]
fn a_supervisor_is_one_deaf_thread_in_a_session_of_its_own_under_a_name_of_its_own() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::sits_and_leaks"]);
        let [test, supervisor] = pids(&run.wait_for("sits"))[..] else { panic!() };
        let server: i32 = status(supervisor, "PPid").parse().unwrap();
        let net: i32 = status(server, "PPid").parse().unwrap();
        // In other targets its parent is the process that was taken over; that is the child of a keeper,
        // unless only one test runs.
        let mut above = net;
        for _ in
            0..[("harness", 1), ("stock", 2), ("threaded", 3)].iter().find(|of| of.0 == target).unwrap().1
        {
            above = status(above, "PPid").parse().unwrap();
        }
        assert_eq!(above, run.pid(), "{target}");
        // The processes that kill when others were killed have no word in their title that a pattern could
        // match.
        let titles = [
            (supervisor, "childproof", "childproof: bodies::sits_and_leaks"),
            (server, "childproof", "()"),
            (net, "()", "()"),
        ];
        for (pid, name, title) in titles {
            let case = format!("{target}: {title}");
            assert_eq!(status(pid, "Threads"), "1", "{case}");
            assert_eq!(status(pid, "NSsid"), status(pid, "NSpid"), "{case} has no session");
            let deaf = signals(&status(pid, "SigBlk"));
            // glibc itself uses two for threads.
            let heard: Vec<i32> = (1..=64).filter(|signal| !deaf.contains(signal)).collect();
            assert_eq!(
                heard,
                [Signal::SIGKILL as i32, Signal::SIGSTOP as i32, 32, 33],
                "{case} hears signals"
            );
            let usual = set(&[Signal::SIGCHLD]);
            assert!(signals(&status(pid, "SigIgn")).is_disjoint(&usual), "{case} ignores SIGCHLD");
            assert!(signals(&status(pid, "SigCgt")).is_disjoint(&usual), "{case} catches SIGCHLD");
            assert_eq!(status(pid, "Name"), name, "{case}");
            let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert_eq!(command_line.trim_end_matches('\0'), title, "{target}");
        }
        // It is a subreaper: an orphan that leads a session is its child now.
        let [orphan, parent] = pids(&run.wait_for("orphan"))[..] else { panic!() };
        assert_eq!(parent, supervisor, "{target}: the parent of {orphan}");
        // Such signals come from a careless group leader, the end of a terminal's session, and a child that
        // reports that it is ready.
        for pid in [net, server, supervisor] {
            for signal in
                Signal::iterator().filter(|signal| ![Signal::SIGKILL, Signal::SIGSTOP].contains(signal))
            {
                kill(Pid::from_raw(pid), signal).unwrap();
            }
        }
        assert!(alive(test), "{target}");
        run.tell("go");
        let text = run.finish();
        assert_fails(target, &run, &text, "sits_and_leaks", "left 1 process");
        assert!(text.contains(&format!("killed: {orphan}")), "{target}\n{text}");
    }
}

#[childproof::test]
fn a_supervisor_is_not_ended_by_an_orphan_that_signals_its_parent() {
    in_every_target("tells_its_parent_that_it_is_ready", |target, run, text| {
        assert_passes(target, run, text, "tells_its_parent_that_it_is_ready");
    });
}

/// With `PR_SET_PDEATHSIG` a supervisor would die with its parent, and clean up nothing.
#[childproof::test]
fn a_supervisor_outlives_the_fork_server_and_still_judges() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::sits_and_leaks"]);
        let [test, supervisor] = pids(&run.wait_for("sits"))[..] else { panic!() };
        let server: i32 = status(supervisor, "PPid").parse().unwrap();
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        until("the fork server's death", || !alive(server));
        thread::sleep(Duration::from_millis(100));
        assert!(alive(supervisor) && alive(test), "{target}: the guard died with its parent");
        run.tell("go");
        let text = run.finish();
        assert_fails(target, &run, &text, "sits_and_leaks", "left 1 process");
    }
}

/// The environment of a body is what the harness inherited, in every target, in the first test of a
/// supervisor and in the next ones, also after a leak.
#[childproof::test]
fn a_test_sees_the_arguments_name_signals_and_fds_that_the_harness_was_given() {
    let fixture = victim();
    let given = scratch().join("given");
    fs::write(&given, "").unwrap();
    for target in TARGETS {
        let arguments = ["bodies::world", "--test-threads=1"];
        // A shell passes an fd, and `env` an ignored and a blocked signal. A process cannot be started so
        // directly without unsafe code.
        let script =
            format!("exec env --ignore-signal=HUP --block-signal=USR1 \"$@\" 7< '{}'", given.display());
        let like = fixture.command(target, &[]);
        // What another program finds when it is started in this way.
        let plain = |program: &str, arguments: &[&str]| {
            let mut run = Run::spawn(through_shell(&like, &script, Path::new(program), arguments));
            run.finish()
        };
        let ignored = plain("grep", &["SigIgn", "/proc/self/status"]);
        let ignored = signals(ignored.trim().strip_prefix("SigIgn:").unwrap().trim());
        assert!(ignored.contains(&(Signal::SIGHUP as i32)));
        let inherited = plain("ls", &["-l", "/proc/self/fd"]);
        let mut inherited: Vec<String> = inherited
            .lines()
            .filter_map(|line| {
                let (left, target) = line.split_once(" -> ")?;
                Some(format!("{} {target}", left.rsplit(' ').next()?))
            })
            .filter(|fd| !fd.ends_with("/fd") && !["0 ", "1 ", "2 "].iter().any(|own| fd.starts_with(own)))
            .collect();
        inherited.sort_by_key(|fd| fd.split(' ').next().unwrap().parse::<i32>().unwrap());
        assert!(inherited.contains(&format!("7 {}", given.display())), "{inherited:?}");
        let mut run = Run::spawn(through_shell(&like, &script, fixture.binary(target), &arguments));
        let text = run.finish();
        // Of the three tests in `worlds` only the second leaks.
        assert_eq!(run.code(), Some(101), "{target}\n{text}");
        for (file, body) in [("world", "world"), ("a", "worlds::a"), ("b", "worlds::b"), ("c", "worlds::c")] {
            let case = format!("{target} {body}");
            assert_eq!(failed(&text, body), body == "worlds::b", "{case}\n{text}");
            let world = World::read(&run, file);
            let mut expected = vec![fixture.binary(target).display().to_string()];
            expected.extend(arguments.map(str::to_owned));
            assert_eq!(world.line("args"), format!("{expected:?}"), "{case}");
            let mut cmdline = expected.join("\0");
            cmdline.push('\0');
            assert_eq!(world.line("cmdline"), format!("{cmdline:?}"), "{case}");
            let name = fixture.binary(target).file_name().unwrap().to_str().unwrap();
            assert_eq!(world.line("comm"), &name[..name.len().min(15)], "{case}");
            assert_eq!(world.line("leads"), "true", "{case} is not the leader of its group");
            assert_eq!(world.line("ours"), "[]", "{case} sees our variables");
            assert_eq!(signals(world.line("SigBlk")), set(&[Signal::SIGUSR1]), "{case}");
            // The signals that a program started like this one inherits as ignored, and SIGPIPE by Rust.
            let ignored = &set(&[Signal::SIGPIPE]) | &ignored;
            assert_eq!(signals(world.line("SigIgn")), ignored, "{case}");
            // Rust's own handlers, for stack overflows.
            assert_eq!(signals(world.line("SigCgt")), set(&[Signal::SIGSEGV, Signal::SIGBUS]), "{case}");
            let fds = world.lines("fd");
            assert_eq!(fds[0], "0 /dev/null", "{case}");
            assert!(fds[1].contains("(deleted)") && fds[2].contains("(deleted)"), "{case}: {fds:?}");
            assert_eq!(fds[3..], inherited, "{case}");
            // In `threaded`, `main` has started a thread of its own.
            let threads = if target == "threaded" { "2" } else { "1" };
            assert_eq!(world.line("threads"), threads, "{case}");
        }
    }
}

struct World(String);

impl World {
    fn read(run: &Run, file: &str) -> World {
        World(run.told(file).unwrap_or_else(|| panic!("no {file}\n{}", run.text())))
    }

    fn lines(&self, key: &str) -> Vec<&str> {
        self.0.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).collect()
    }

    fn line(&self, key: &str) -> &str {
        self.lines(key)[0]
    }
}

// ---- 3. the harness adds nothing to the test's fd table ----

// The test above also checks that a body sees 0, 1, 2 and the fds that were open before.

#[childproof::test]
fn a_body_that_closes_every_fd_is_still_judged() {
    for body in ["closes_from_3", "closes_everything"] {
        in_every_target(body, |target, run, text| assert_passes(target, run, text, body));
    }
    for body in ["closes_from_3_and_leaves_a_sleep", "closes_everything_and_leaves_a_sleep"] {
        in_every_target(body, |target, run, text| {
            assert_fails(target, run, text, body, "left 1 process");
        });
    }
}

// ---- 4. "clean" is the kernel's word ----

#[childproof::test]
fn a_child_with_another_exit_signal_is_seen_while_its_parent_lives() {
    in_every_target("leaves_a_clone_without_a_signal", |target, run, text| {
        let body = "leaves_a_clone_without_a_signal";
        assert_fails(target, run, text, body, "left 1 process");
        let [child, test] = pids(&run.told("leak").unwrap())[..] else { panic!() };
        assert!(text.contains(&format!("killed: {child}")), "{target}\n{text}");
        // After its parent has exited, the kernel makes it an ordinary child of the supervisor. Whether it
        // was seen before that shows in its lineage: it must not be reported as an orphan.
        if let Some(json) = run.json() {
            assert_eq!(json["processes"][0]["lineage"], serde_json::json!([test]), "{json}");
        }
        assert!(!text.contains("orphaned"), "{target}: not seen before its parent had exited\n{text}");
    });
}

#[childproof::test]
fn a_descendant_cannot_hide_behind_a_subreaper() {
    in_every_target("leaves_a_subreaper", |target, run, text| {
        assert_fails(target, run, text, "leaves_a_subreaper", "left 2 processes");
    });
}

#[childproof::test]
fn a_descendant_cannot_hide_in_a_pid_namespace() {
    let usable = |how: &&str| {
        Command::new("unshare").args([how, "true"]).output().is_ok_and(|output| output.status.success())
    };
    let Some(how) = ["-fp", "-Ufp"].iter().find(|how| usable(how)) else {
        println!("not checked: no new pid namespace to be had here");
        return;
    };
    let fixture = victim();
    for target in TARGETS {
        let body = "leaves_a_namespace";
        let mut command = fixture.command(target, &["--exact", &format!("bodies::{body}")]);
        command.env("VICTIM_UNSHARE", how);
        let mut run = Run::spawn(command);
        let text = run.finish();
        assert_fails(target, &run, &text, body, "left ");
    }
}

// ---- 5. what had to be killed failed ----

#[childproof::test]
fn what_had_to_be_killed_failed() {
    let bodies =
        ["leaves_a_sleep", "panics_as_expected_and_leaves_a_sleep", "leaves_what_is_allowed_and_one_more"];
    for body in bodies {
        in_every_target(body, |target, run, text| {
            assert_fails(target, run, text, body, "after the test ended");
            if let Some(json) = run.json() {
                assert_eq!(json["outcome"], "failed");
                assert_eq!(json["causes"], serde_json::json!(["leaked_process"]), "{target} {body}\n{text}");
            }
        });
    }
}

#[childproof::test]
fn what_is_allowed_is_killed_and_passes() {
    in_every_target("leaves_what_is_allowed", |target, run, text| {
        assert_passes(target, run, text, "leaves_what_is_allowed");
    });
}

// ---- 6. every kill is pinned ----

/// Only descendants are killed, even if another process looks exactly like one.
#[childproof::test]
fn a_stranger_of_the_same_user_and_command_is_left_alone() {
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    in_every_target("leaves_a_sleep", |target, run, text| {
        assert_fails(target, run, text, "leaves_a_sleep", "`sleep 1000`");
    });
    let lives = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(lives, "the stranger was killed");
}

/// The supervisor's own group is not killed, although a descendant moves others into it.
#[childproof::test]
fn a_supervisor_does_not_shoot_its_own_group() {
    in_every_target("joins_its_supervisors_group", |target, run, text| {
        let [group, supervisor] = pids(&run.told("joined").unwrap())[..] else { panic!() };
        assert_eq!(group, supervisor);
        assert_fails(target, run, text, "joins_its_supervisors_group", "left 2 processes");
        assert!(!text.contains("ERROR  "), "{target}\n{text}");
    });
}

/// A test's `kill(0, ..)` reaches its own group: neither the supervisor nor the harness.
#[childproof::test]
fn a_test_that_shoots_its_group_shoots_only_itself() {
    in_every_target("shoots_its_own_group", |target, run, text| {
        assert_fails(target, run, text, "shoots_its_own_group", "SIGKILL (9)");
    });
}

/// A process is signalled through a pidfd, and its identity is checked after the pidfd was opened. A number
/// is only signalled as the group of a zombie that is reaped afterwards.
#[childproof::test(timeout = "120s")]
fn a_kill_goes_through_a_pidfd_that_was_rechecked() {
    if !is_installed("strace") {
        return;
    }
    let fixture = victim();
    for target in TARGETS {
        let calls = "trace=pidfd_open,openat,pidfd_send_signal,kill,waitid,close";
        let (text, trace) = traced(&fixture, target, &["--exact", "bodies::leaves_a_subreaper"], calls);
        let mut kills = 0;
        for (pid, calls) in by_process(&trace) {
            // The process of each pidfd, and whether its identity was checked again.
            let mut pidfds: BTreeMap<&str, (String, bool)> = BTreeMap::new();
            let mut zombie = None;
            for call in calls {
                let (name, rest) = call.split_once('(').unwrap_or((call, ""));
                let first = rest.split([',', ')']).next().unwrap_or_default();
                let result = call.rsplit("= ").next().unwrap_or_default();
                match name {
                    "pidfd_open" => drop(pidfds.insert(result, (first.to_owned(), false))),
                    "openat" => {
                        for (of, again) in pidfds.values_mut() {
                            *again |= rest.contains(&format!("\"/proc/{of}/stat\""));
                        }
                    }
                    "close" => drop(pidfds.remove(first)),
                    "waitid" if rest.contains("WNOWAIT") && rest.contains("si_pid=") => {
                        zombie = Some(());
                    }
                    "waitid" if !rest.contains("WNOWAIT") => zombie = None,
                    "pidfd_send_signal" if rest.contains("SIGKILL") => {
                        let (_, again) = &pidfds[first];
                        assert!(again, "{target}: {pid} did not look again before {call}");
                        kills += 1;
                    }
                    "kill" if rest.contains("SIGKILL") => {
                        assert!(first.starts_with('-') && first.len() > 2, "{target} {pid}: {call}");
                        assert!(zombie.is_some(), "{target}: no zombie pins {call} of {pid}");
                    }
                    _ => {}
                }
            }
        }
        assert!(kills >= 2, "{target}: {kills} kills were seen\n{text}");
    }
}

/// Runs a target under strace; returns its output and the trace.
///
/// strace exits, and the run continues without it, when a stopped process is killed at the wrong moment
/// (`ptrace(PTRACE_LISTEN, ..): Input/output error`, seen with 6.1). It prints that, and is started again.
pub(crate) fn traced(fixture: &Fixture, target: &str, arguments: &[&str], calls: &str) -> (String, String) {
    traced_with(&[], fixture, target, arguments, calls)
}

/// The same, with additional environment variables.
fn traced_with(
    environment: &[(&str, &str)],
    fixture: &Fixture,
    target: &str,
    arguments: &[&str],
    calls: &str,
) -> (String, String) {
    let mut like = fixture.command(target, &[]);
    like.envs(environment.iter().copied());
    let trace = scratch().join(format!("trace-{target}"));
    let script =
        format!("exec strace -f -qq -s 200 -e signal=none -e {calls} -o '{}' \"$@\"", trace.display());
    for _ in 0..20 {
        let mut run = Run::spawn(through_shell(&like, &script, fixture.binary(target), arguments));
        let text = run.finish();
        if !text.contains("strace: ptrace(PTRACE_LISTEN") {
            return (text, fs::read_to_string(trace).unwrap());
        }
    }
    panic!("strace has gone before the end of twenty runs of {target}");
}

/// The calls of each process in order. Lines that other processes' calls interrupted in the trace are joined
/// again.
pub(crate) fn by_process(trace: &str) -> BTreeMap<&str, Vec<&'static str>> {
    let mut calls: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim();
        let call = if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, begin.to_owned());
            continue;
        } else if let Some(end) = call.strip_prefix("<... ") {
            let end = end.split_once("resumed>").map_or("", |(_, end)| end);
            begun.remove(pid).unwrap_or_default() + end
        } else {
            call.to_owned()
        };
        calls.entry(pid).or_default().push(Box::leak(call.into_boxed_str()));
    }
    calls
}

// ---- 7. nothing waits without a deadline ----

#[childproof::test]
fn a_test_that_never_ends_is_ended() {
    for body in ["hangs", "stops_itself"] {
        in_every_target(body, |target, run, text| {
            assert_fails(target, run, text, body, "HUNG");
            let took = run.took();
            assert!(took < Duration::from_secs(15), "{target} {body} took {took:?}");
        });
    }
}

/// A body may stop its supervisor: the fork server continues it, and it ends the test at its timeout.
#[childproof::test(timeout = "120s")]
fn a_supervisor_that_its_test_stops_goes_on() {
    let fixture = victim();
    let arguments = ["bodies::stops_its_supervisor", "bodies::well_behaved", "--exact", "--test-threads=1"];
    let runs = TARGETS.map(|target| (target, Run::start(&fixture, target, &arguments)));
    for (target, mut run) in runs {
        let text = run.finish();
        assert!(text.contains("HUNG  bodies::stops_its_supervisor"), "{target}\n{text}");
        assert!(!failed(&text, "well_behaved"), "{target}\n{text}");
        assert!(run.took() < Duration::from_secs(5), "{target} took {:?}", run.took());
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// A setuid child belongs to another user, so an ordinary user cannot kill it. The report names it with the
/// reason, its test fails, and the next one runs.
#[childproof::test(timeout = "120s")]
fn what_cannot_be_killed_is_named_and_the_run_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        println!("not checked: only root can make a setuid program");
        return;
    }
    if !is_installed("setpriv") {
        return;
    }
    let fixture = victim();
    let runs = TARGETS.map(|target| {
        let arguments =
            ["bodies::leaves_a_process_of_root", "bodies::well_behaved", "--exact", "--test-threads=1"];
        let mut command = as_nobody(&fixture, target, &arguments);
        command.env("VICTIM_SETPRIV", setuid_setpriv());
        (target, Run::spawn(command))
    });
    for (target, mut run) in runs {
        let text = run.finish();
        let leak: i32 = run.told("leak").unwrap_or_else(|| panic!("{target}\n{text}")).parse().unwrap();
        let lived = alive(leak);
        let _ = kill(Pid::from_raw(leak), Signal::SIGKILL);
        assert!(lived, "{target}: it was killed after all\n{text}");
        assert!(failed(&text, "leaves_a_process_of_root"), "{target}\n{text}");
        assert!(!failed(&text, "well_behaved"), "{target}\n{text}");
        let named = format!("pid {leak} `sleep` could not be killed: it runs as user 0");
        assert!(text.contains(&named), "{target}\n{text}");
        assert!(run.took() < Duration::from_secs(40), "{target} took {:?}", run.took());
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// The path of a setuid-root `setpriv`, in the scratch directory.
fn setuid_setpriv() -> PathBuf {
    let setuid = scratch().join("setuid-setpriv");
    if !setuid.exists() {
        let from = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|directory| directory.join("setpriv"))
            .find(|path| path.exists());
        fs::copy(from.unwrap(), &setuid).unwrap();
        fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    }
    setuid
}

/// Killing only the supervisor's own children would make others of their children its children, until the guard gives up
/// and says so.
#[childproof::test(timeout = "180s")]
fn daemons_with_heirs_are_killed_within_the_limit() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::leaves_daemons_with_heirs"]);
        let text = run.finish();
        assert_fails(target, &run, &text, "leaves_daemons_with_heirs", "after the test ended");
        assert!(!text.contains("could not be killed"), "{target}\n{text}");
        println!("{target}: run with heirs took {:?}", run.took());
        assert!(run.took() < Duration::from_secs(10), "{target} took {:?}", run.took());
    }
}

/// The processes of a bomb replace each other while they are killed. Only a signal to their whole group stops
/// that.
#[childproof::test(timeout = "180s")]
fn a_refilling_fork_bomb_is_killed_within_its_limit() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::leaves_a_fork_bomb"]);
        let text = run.finish();
        assert_fails(target, &run, &text, "leaves_a_fork_bomb", "left 20");
        assert!(!text.contains("could not be killed"), "{target}\n{text}");
        let took = run.took();
        println!("{target}: run with a bomb took {took:?}, 0.2 s of which are the grace");
        assert!(took < Duration::from_secs(15), "{target} took {took:?}");
    }
}

// ---- 8. the clean path reads no /proc ----

/// Sixteen clean tests against eight: the difference is eight times the cost of a clean test, in accessed
/// paths.
#[childproof::test(timeout = "120s")]
fn a_clean_test_reads_nothing_of_proc() {
    if !is_installed("strace") {
        return;
    }
    let fixture = victim();
    // Also with more fds than the smallest tables hold.
    for (target, open) in [("harness", "0"), ("stock", "0"), ("harness", "600")] {
        let looked_at = |filter: &str| {
            let (arguments, environment) = ([filter, "--test-threads=1"], [("VICTIM_OPEN", open)]);
            let (text, trace) = traced_with(&environment, &fixture, target, &arguments, "trace=%file");
            assert!(text.contains("test result: ok"), "{target}\n{text}");
            let mut paths: BTreeMap<String, u32> = BTreeMap::new();
            for call in by_process(&trace).values().flatten() {
                let path = call.split('"').nth(1).unwrap_or_default();
                // What is mounted there is compared once a test, and nothing is read for that.
                let is_compared = path == "/proc" && call.starts_with("statx(");
                if path.starts_with("/proc") && !is_compared {
                    *paths.entry(normal(path)).or_default() += 1;
                }
            }
            paths
        };
        let (eight, sixteen) = (looked_at("bodies::nothing::"), looked_at("bodies::nothing"));
        let more: BTreeMap<&str, u32> = sixteen
            .iter()
            .map(|(path, count)| (path.as_str(), count - eight.get(path).unwrap_or(&0).min(count)))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert!(more.is_empty(), "{target}, {open}: {more:?} is what 8 clean tests look at");
    }
}

/// A path without its pids.
fn normal(path: &str) -> String {
    let is_pid = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = path.split('/').map(|part| if is_pid(&part) { "PID" } else { part }).collect();
    parts.join("/")
}

// ---- 9. a failing body's own output is always shown, and first ----

#[childproof::test]
fn the_output_of_a_failing_body_is_shown_before_the_report() {
    let bodies = [
        ("says_a_lot_and_panics", "FAIL  "),
        ("says_a_lot_and_leaks", "LEAK  "),
        ("says_a_lot_and_exits", "FAIL  "),
        ("says_a_lot_and_is_killed", "FAIL  "),
        ("says_a_lot_and_hangs", "HUNG  "),
    ];
    for (body, head) in bodies {
        in_every_target(body, |target, run, text| {
            let report = format!("{head}bodies::{body}");
            assert_fails(target, run, text, body, &report);
            // Output without a newline at its end stays in Rust's `stdout` buffer until the process exits.
            let said = match body.ends_with("panics") {
                true => {
                    ["stdout", "stderr", "from a child", "the last word", "no newline at the end", &report]
                }
                false => {
                    ["stdout", "stderr", "from a child", "from a child", "no newline at the end", &report]
                }
            };
            let places: Vec<Option<usize>> = said.iter().map(|line| text.find(line)).collect();
            let shown = places.iter().all(Option::is_some) && places.is_sorted();
            assert!(shown, "{target} {body}: {said:?} at {places:?} in\n{text}");
        });
    }
}

// ---- 10. a test that ends without returning failed ----

#[childproof::test]
fn a_test_that_ends_without_returning_failed() {
    let bodies = [
        ("ends::exit_0", "exited with code 0 before its body returned: it called `exit` "),
        ("ends::underscore_exit_0", "exited with code 0 before its body returned: it called `_exit` "),
        ("ends::exit_0_of_a_thread", "exited with code 0 before its body returned: it called `exit` "),
        ("ends::exec", "exited with code 0 before its body returned: it called `exec` "),
        ("ends::sigkill", "SIGKILL (9)"),
        ("ends::sigterm", "SIGTERM (15)"),
        ("ends::abort", "SIGABRT (6)"),
        ("ends::exit_where_a_panic_was_expected", "exited with code 101 before its body returned"),
    ];
    for (body, why) in bodies {
        in_every_target(body, |target, run, text| assert_fails(target, run, text, body, why));
    }
}

/// In `threaded` another thread stays, so only the timeout would end the test: not run there.
#[childproof::test]
fn a_test_whose_last_thread_ends_failed() {
    let fixture = victim();
    for target in ["harness", "stock"] {
        let mut run = Run::of(&fixture, target, &["bodies::ends::thread_exit_0"]);
        let text = run.finish();
        assert_fails(target, &run, &text, "ends::thread_exit_0", "before its body returned");
    }
}

#[childproof::test]
fn a_forked_child_that_comes_back_from_the_body_has_no_say() {
    in_every_target("forks_and_the_child_returns", |target, run, text| {
        assert_fails(target, run, text, "forks_and_the_child_returns", "the parent's word counts");
        assert_eq!(text.matches("test result: ").count(), 1, "{target}\n{text}");
    });
    in_every_target("forks_and_the_child_panics", |target, run, text| {
        // Parts of a sentence that is wrapped.
        for why in [", which the body forked at ", "bodies/mod.rs:", "returned from the body"] {
            assert_fails(target, run, text, "forks_and_the_child_panics", why);
        }
        assert!(!text.contains("body panicked after"), "{target}: the child's word counted\n{text}");
        assert_eq!(text.matches("test result: ").count(), 1, "{target}\n{text}");
    });
}

// ---- teardown ----

/// Killing a supervisor ends its test, by `PR_SET_PDEATHSIG`; the fork server kills the rest; the test is
/// reported, and the others are not affected.
#[childproof::test]
fn a_killed_supervisor_takes_its_test_along_and_the_run_goes_on() {
    let fixture = victim();
    for target in TARGETS {
        // The other test keeps the run going until everything was seen: the end of the run would clean up
        // too.
        let arguments = ["bodies::sits_and_leaks", "bodies::spawns::a", "--exact", "--test-threads=2"];
        let mut run = Run::start(&fixture, target, &arguments);
        let [test, supervisor] = pids(&run.wait_for("sits"))[..] else { panic!() };
        let [orphan, _] = pids(&run.wait_for("orphan"))[..] else { panic!() };
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        let begin = Instant::now();
        until("the test process's death", || !alive(test));
        let by_pdeathsig = begin.elapsed();
        until("the orphan's death", || !alive(orphan));
        println!("{target}: test dead after {by_pdeathsig:?}, orphan after {:?}", begin.elapsed());
        run.tell("go");
        let text = run.finish();
        assert!(failed(&text, "sits_and_leaks"), "{target}\n{text}");
        assert!(text.contains("ERROR  bodies::sits_and_leaks"), "{target}\n{text}");
        assert!(!failed(&text, "spawns::a"), "{target}\n{text}");
        assert_eq!(run.code(), Some(101));
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// A supervisor preforks its next test process, and one supervisor is idle: killing either of them must not
/// affect a test.
#[childproof::test]
fn a_killed_process_without_a_test_is_replaced() {
    let fixture = victim();
    for target in TARGETS {
        for module in ["kills_the_next", "kills_the_other"] {
            let mut run = Run::start(&fixture, target, &[&format!("bodies::{module}"), "--test-threads=1"]);
            let text = run.finish();
            assert!(run.told("met").is_some(), "{target}: nothing was forked ahead\n{text}");
            assert_eq!(run.told("runs").as_deref(), Some("abcdefgh"), "{target}\n{text}");
            assert_eq!(run.code(), Some(0), "{target} {module}\n{text}");
            run.assert_nothing_left(Duration::from_secs(2));
        }
    }
}

/// It is killed after its job was sent and before it has received it: the next process must not receive that
/// job.
#[childproof::test]
fn a_test_whose_process_was_killed_on_its_way_is_not_run_by_the_next() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["bodies::stops_the_next", "--test-threads=1"]);
        let met = run.wait_for("met");
        let (next, by) = met.split_once(' ').unwrap();
        let next: i32 = next.parse().unwrap();
        let supervisor: i32 = status(next, "PPid").parse().unwrap();
        until("the test that hangs", || {
            // The supervisor shows the test, sends the job, and sleeps.
            let title = fs::read_to_string(format!("/proc/{supervisor}/cmdline")).unwrap();
            let test = title.trim_end_matches('\0').strip_prefix("childproof: bodies::stops_the_next::");
            test.is_some_and(|test| test > by) && status(supervisor, "State").starts_with('S')
        });
        kill(Pid::from_raw(next), Signal::SIGKILL).unwrap();
        let text = run.finish();
        let lost = text.matches("the test process was ended by SIGKILL (9)").count();
        let runs = run.told("runs").unwrap();
        assert_eq!(runs.len(), 7, "{target}: {runs} ran\n{text}");
        assert!(runs.as_bytes().is_sorted_by(|one, next| one < next), "{target}: {runs} ran\n{text}");
        assert_eq!(lost, 1, "{target}\n{text}");
        assert_eq!(run.code(), Some(101), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// It was forked before its test began, but its age is counted from the beginning of the test.
#[childproof::test]
fn a_process_that_has_waited_is_as_old_as_its_test() {
    let fixture = victim();
    let arguments = ["bodies::waits_long", "--test-threads=1"];
    for (target, mut run) in TARGETS.map(|target| (target, Run::start(&fixture, target, &arguments))) {
        let text = run.finish();
        let ages = text.split(", age ").skip(1).filter_map(|rest| rest.split(' ').next());
        let ages: Vec<f64> = ages.map(|age| age.parse().unwrap()).collect();
        assert!(ages.len() == 1 && (0.3..5.0).contains(&ages[0]), "{target}: {ages:?} s\n{text}");
    }
}

/// The kernel kills a test process when its supervisor dies; no other process would if the server were gone
/// too.
#[childproof::test]
fn a_test_process_dies_with_its_supervisor_even_without_a_fork_server() {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &["--exact", "bodies::sits_and_leaks"]);
        let [test, supervisor] = pids(&run.wait_for("sits"))[..] else { panic!() };
        let server: i32 = status(supervisor, "PPid").parse().unwrap();
        // The harness is stopped first, so that it cannot clean up behind them.
        kill(Pid::from_raw(run.pid()), Signal::SIGSTOP).unwrap();
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        until("the test process's death", || !alive(test));
        kill(Pid::from_raw(run.pid()), Signal::SIGCONT).unwrap();
        let text = run.finish();
        assert!(failed(&text, "sits_and_leaks"), "{target}\n{text}");
        assert!(text.contains("ERROR  "), "{target}\n{text}");
        // The orphan has become the child of the harness, which is a subreaper too and kills it at its end.
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// Each test has a directory of its own that cannot be listed from outside, is empty at the beginning, and is
/// removed at the end of the run, whatever the test did to it.
#[childproof::test]
fn scratch_is_private_empty_and_removed() {
    let fixture = victim();
    let precious = |run: &Run| fs::write(run.out().join("precious"), "kept").unwrap();
    for target in TARGETS {
        for threads in ["--test-threads=1", "--test-threads=3"] {
            let arguments = [
                "bodies::scratch::a",
                "bodies::scratch::b",
                "bodies::scratch::removes_its_own",
                "bodies::well_behaved",
                "--exact",
                threads,
            ];
            let command = if nix::unistd::geteuid().is_root() && is_installed("setpriv") {
                // Permissions do not apply to root.
                as_nobody(&fixture, target, &arguments)
            } else {
                fixture.command(target, &arguments)
            };
            let mut run = Run::spawn(command);
            precious(&run);
            let text = run.finish();
            assert_eq!(run.code(), Some(0), "{target} {threads}\n{text}");
            for body in ["a", "b"] {
                let told = run.told(body).unwrap();
                let (above, path) = told.split_once(' ').unwrap();
                assert_eq!(above, "711", "{target}: the directory above {path}");
                assert!(path.contains("/childproof-"), "{target}: {path}");
                assert!(!fs::exists(path).unwrap(), "{target} {threads}: {path} is still there");
            }
            run.assert_nothing_left(Duration::from_secs(2));
            assert_eq!(run.told("precious").as_deref(), Some("kept"), "{target}: a link was followed");
        }
    }
}

#[childproof::test]
fn scratch_is_new_whatever_the_test_before_changed_of_it() {
    all_eight_pass("finds_its_scratch_new", "--show-output");
}

#[childproof::test]
fn scratch_is_empty_also_after_one_that_cannot_be_emptied() {
    let fixture = victim();
    for target in TARGETS {
        let arguments = ["bodies::finds_its_scratch_empty", "--test-threads=1"];
        let mut run = Run::start(&fixture, target, &arguments);
        let text = run.finish();
        let pinned: Vec<String> = ["pinned-a", "pinned-c"].iter().filter_map(|name| run.told(name)).collect();
        for file in &pinned {
            assert!(std::process::Command::new("chattr").args(["-i", file]).status().unwrap().success());
        }
        assert!(text.contains("8 passed; 0 failed"), "{target}, {} pinned\n{text}", pinned.len());
    }
}

#[childproof::test]
fn stdin_and_output_are_new_whatever_the_test_before_changed_of_them() {
    all_eight_pass("finds_its_files_flags_new", "--show-output");
}

#[childproof::test]
fn an_output_that_is_not_caught_is_as_it_was_after_each_test() {
    all_eight_pass("finds_an_output_that_waits", "--nocapture");
}

fn all_eight_pass(module: &str, more: &str) {
    let fixture = victim();
    for target in TARGETS {
        let mut run = Run::start(&fixture, target, &[&format!("bodies::{module}"), "--test-threads=1", more]);
        let text = run.finish();
        assert!(text.contains("8 passed; 0 failed"), "{target}\n{text}");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

#[childproof::test]
fn scratch_is_removed_however_deep_it_is() {
    let fixture = victim();
    for target in TARGETS {
        let like = fixture.command(target, &[]);
        let arguments = ["--exact", "bodies::nests_directories"];
        let script = "ulimit -n 256; exec \"$@\"";
        let mut run = Run::spawn(through_shell(&like, script, fixture.binary(target), &arguments));
        let text = run.finish();
        assert_passes(target, &run, &text, "nests_directories");
        run.assert_nothing_left(Duration::from_secs(2));
    }
}

/// Each process of the guard is killed in turn while a test has filled its directory, as a user to which
/// permissions apply.
#[childproof::test(timeout = "120s")]
fn scratch_is_removed_whatever_was_killed() {
    let fixture = victim();
    for target in TARGETS {
        for killed in ["harness", "supervisor", "fork server", "all but the harness"] {
            let arguments = ["bodies::scratch::c", "bodies::sits", "--exact", "--test-threads=2"];
            let command = if nix::unistd::geteuid().is_root() && is_installed("setpriv") {
                as_nobody(&fixture, target, &arguments)
            } else {
                fixture.command(target, &arguments)
            };
            let mut run = Run::spawn(command);
            run.wait_for("c");
            let [_, other] = pids(&run.wait_for("sits"))[..] else { panic!() };
            let server: i32 = status(other, "PPid").parse().unwrap();
            let named = |pid: &i32| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.starts_with("childproof: bodies::scratch::c")
            };
            let supervisor = run.marked().into_iter().find(named).unwrap();
            println!("{target}: {killed} dies");
            let dies = match killed {
                "harness" => vec![run.pid()],
                "supervisor" => vec![supervisor],
                "fork server" => vec![server],
                _ => vec![server, supervisor, other],
            };
            for pid in dies {
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            }
            if killed == "fork server" {
                // Then the harness, which keeps the run alive until now.
                until("its death", || !alive(server));
                kill(Pid::from_raw(run.pid()), Signal::SIGKILL).unwrap();
            }
            run.tell("go");
            run.finish();
            run.assert_nothing_left(Duration::from_secs(10));
        }
    }
}
