//! `--keep`: what leaked or hangs stays, stopped, and everything else ends with the run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn tool() -> Command {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
    tool.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tool.env_remove("LD_PRELOAD").env_remove("CHILDPROOF_KEEP");
    tool
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes with this in their environment or on their command line, in any word.
fn marked(mark: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: i32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains(mark)
    };
    pids.filter(|pid| has(*pid, "environ") || has(*pid, "cmdline")).collect()
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A mark of one test, in the environment of everything that it starts. What has it is killed at the end.
struct Mark(String);

impl Mark {
    fn new(test: &str) -> Mark {
        Mark(format!("KEEP_MARK={test}.{}", std::process::id()))
    }

    fn on(&self, command: &mut Command) {
        let (name, value) = self.0.split_once('=').unwrap();
        command.env(name, value);
    }

    fn processes(&self) -> Vec<i32> {
        marked(&self.0)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

/// Runs a command to its end and to that of its pipes; returns its exit code and what it wrote.
fn end(mut child: Child) -> (Option<i32>, String) {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (sender, texts) = std::sync::mpsc::channel();
    let threads = [
        std::thread::spawn({
            let sender = sender.clone();
            move || {
                let mut text = String::new();
                let _ = out.read_to_string(&mut text);
                let _ = sender.send(text);
            }
        }),
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            let _ = sender.send(text);
        }),
    ];
    let mut all = String::new();
    for _ in &threads {
        // The run has ended, and so must its pipes have: an error here means that one is still open.
        all += &texts.recv_timeout(PATIENCE).unwrap();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    (child.wait().unwrap().code(), all)
}

/// The pids after a label of the report.
fn after(report: &str, label: &str) -> Vec<i32> {
    let line = report.lines().find_map(|line| line.trim_start().strip_prefix(label));
    let line = line.unwrap_or_else(|| panic!("no `{label}`: {report}"));
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

/// Ends what is kept, and checks that nothing is left of the guard.
fn end_kept(mark: &Mark, pids: &[i32]) {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    let killed = tool().arg("kill").args(&pids).output().unwrap();
    let text = String::from_utf8_lossy(&killed.stdout).into_owned();
    assert_eq!(killed.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&killed.stderr));
    assert!(text.contains("`sleep 3137`") || text.contains("`sh"), "{text}");
    assert!(
        text.contains(": kept, and stopped, by childproof's guard of sh -c ") && !text.contains("()"),
        "{text}"
    );
    until("nothing is left", || mark.processes().is_empty());
}

#[test]
fn what_a_command_leaves_is_kept_and_the_run_ends() {
    let mark = Mark::new("leaks");
    let mut run = tool();
    let script = "echo out; echo err >&2; sleep 3137 & (sleep 3137 & setsid sleep 3137 & wait) & exit 0";
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("json");
    run.args(["run", "--keep", "--json"]).arg(&json).args(["--", "sh", "-c", script]);
    mark.on(&mut run);
    let (code, report) = end(run.spawn().unwrap());
    assert_eq!(code, Some(123), "{report}");
    assert!(report.contains("out\n") && report.contains("err\n"), "{report}");
    let kept = after(&report, "kept:");
    assert_eq!(kept.len(), 4, "{report}");
    assert!(kept.iter().all(|pid| state(*pid) == Some('T')), "{report}");
    assert_eq!(after(&report, "look: gdb -p"), kept[..1], "{report}");
    assert_eq!(after(&report, "end: childproof kill"), kept, "{report}");
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(json["kept"], serde_json::json!(kept));
    // They, the supervisor and the net.
    assert_eq!(mark.processes().len(), kept.len() + 2, "{report}");
    end_kept(&mark, &kept[..1]);
}

/// A shell with job control gives each pipeline a process group of its own, which is orphaned once its last process with a
/// parent outside has ended. The kernel ends and continues a stopped process in such a group.
#[test]
fn what_is_kept_stays_when_its_shell_and_its_pipeline_have_ended() {
    let mark = Mark::new("jobs");
    let mut run = Command::new("setsid");
    run.args([
        "-w",
        "bash",
        "-c",
        "set -m; \"$0\" run --keep -- sh -c 'sleep 3137 & exit 0' 2>&1 | cat; exit 7",
    ]);
    run.arg(env!("CARGO_BIN_EXE_childproof")).env_remove("LD_PRELOAD");
    run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    mark.on(&mut run);
    let (code, report) = end(run.spawn().unwrap());
    assert_eq!(code, Some(7), "{report}");
    let kept = after(&report, "kept:");
    assert!(kept.iter().all(|pid| state(*pid) == Some('T')), "{kept:?}: {report}");
    end_kept(&mark, &kept);
}

#[test]
fn a_command_that_hangs_is_kept_with_its_descendants() {
    let mark = Mark::new("hangs");
    let mut run = tool();
    run.args(["run", "--timeout", "300ms", "--", "sh", "-c", "sleep 3137 & wait"])
        .env("CHILDPROOF_KEEP", "1");
    mark.on(&mut run);
    let (code, report) = end(run.spawn().unwrap());
    assert_eq!(code, Some(124), "{report}");
    let kept = after(&report, "kept:");
    assert_eq!(kept.len(), 2, "{report}");
    assert!(kept.iter().all(|pid| state(*pid) == Some('T')), "{report}");
    // Nothing else traces them, so a debugger can.
    for pid in &kept {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
    // Where they end by themselves, the guard goes too.
    for pid in &kept {
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    }
    until("nothing is left", || mark.processes().is_empty());
}

#[test]
fn what_fails_nothing_is_killed_all_the_same() {
    let mark = Mark::new("allowed");
    let mut run = tool();
    run.args(["run", "--keep", "--allow-process", "sleep *", "--", "sh", "-c", "sleep 3137 & exit 0"]);
    mark.on(&mut run);
    let (code, report) = end(run.spawn().unwrap());
    assert_eq!((code, report.as_str()), (Some(0), ""));
    until("nothing is left", || mark.processes().is_empty());
}

#[test]
fn a_run_that_is_killed_before_it_keeps_anything_leaves_nothing() {
    let mark = Mark::new("killed");
    let mut run = tool();
    run.args(["run", "--keep", "--", "sh", "-c", "sleep 3137 & echo ready; wait"]).process_group(0);
    mark.on(&mut run);
    let mut child = run.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child.kill().unwrap();
    child.wait().unwrap();
    until("nothing is left", || mark.processes().is_empty());
}

#[test]
fn an_output_that_is_not_read_any_more_ends_a_command_that_writes_to_it() {
    let mut run = tool();
    run.args(["run", "--keep", "--", "yes"]);
    let mut child = run.spawn().unwrap();
    let mut line = [0; 2];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut line).unwrap();
    drop(out);
    until("it ends", || child.try_wait().unwrap().is_some());
    // By SIGPIPE, as without a guard.
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}
