//! The kill matrix: whichever process gets whichever signal, nothing that a test started stays alive.
//!
//! Each test leaves a plain child, a daemon that is deaf and has closed its fds, another subreaper with an orphan, a
//! stopped process with a child, a fork without exec, and a deaf shell. Survivors are counted by what they hold: a FIFO
//! that must reach EOF.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::isolation::may_make_namespaces;
use crate::proof::{Held, each, fixture, tool, trials};
use crate::support::{Fixture, parent, root};

/// Sufficient for a busy machine. The longest time is printed.
const LIMIT: Duration = Duration::from_secs(30);

/// The kinds of targets: guarded tests with and without a harness of their own, and an unchanged one under the tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Harness,
    Stock,
    Run,
}
use Kind::{Harness, Run, Stock};

/// What gets the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    /// The harness, or the tool.
    Top,
    Net,
    /// The fork server; the guard of a command has none.
    Server,
    Supervisor,
    Test,
    Cargo,
    Nextest,
    /// Every process of the session.
    Session,
    /// Every process with the path of the test binary in its command line, as `pkill -f` finds them.
    Pattern,
    /// All processes of the guard at once, each by its pid: there is no process left that could kill.
    Guard,
    /// The same with `isolation = "pidns"`: the kernel kills everything in the namespace of the supervisor.
    GuardOfNamespace,
}

const VICTIMS: [Victim; 9] = [
    Victim::Top,
    Victim::Net,
    Victim::Server,
    Victim::Supervisor,
    Victim::Test,
    Victim::Cargo,
    Victim::Nextest,
    Victim::Session,
    Victim::Pattern,
];

/// The signals; the last is preceded by SIGSTOP.
const SIGNALS: [(&str, Signal, bool); 5] = [
    ("KILL", Signal::SIGKILL, false),
    ("TERM", Signal::SIGTERM, false),
    ("INT", Signal::SIGINT, false),
    ("HUP", Signal::SIGHUP, false),
    ("STOP, KILL", Signal::SIGKILL, true),
];

type Cell = (Kind, Victim, usize);

struct Matrix {
    fixture: Fixture,
    tool: std::path::PathBuf,
}

impl Matrix {
    fn new() -> Matrix {
        Matrix { fixture: fixture(), tool: tool() }
    }

    /// The run of a cell.
    fn command(&self, kind: Kind, victim: Victim) -> Command {
        let (target, test) = match kind {
            Harness if victim == Victim::GuardOfNamespace => ("harness", "guarded::isolated_tree"),
            Stock if victim == Victim::GuardOfNamespace => ("stock", "guarded::isolated_tree"),
            Harness => ("harness", "guarded::tree"),
            Stock => ("stock", "guarded::tree"),
            Run => ("plain", "tree"),
        };
        let like = self.fixture.command(target, &["--exact", test]);
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        let tool = |name: &str| self.tool.join(name).into_os_string();
        let filter = format!("test(={test})");
        match (victim, kind) {
            (Victim::Cargo | Victim::Nextest, Run) => {
                words.extend([tool("cargo-childproof"), "childproof".into()])
            }
            (Victim::Cargo | Victim::Nextest, _) => words.push(env!("CARGO").into()),
            (Victim::GuardOfNamespace, Run) => {
                words.extend([tool("childproof"), "run".into(), "--isolation=pidns".into(), "--".into()]);
            }
            (_, Run) => words.extend([tool("childproof"), "run".into(), "--".into()]),
            _ => {}
        }
        match victim {
            Victim::Cargo => words.extend(
                ["test", "--offline", "--quiet", "--test", target, "--", "--exact", test].map(Into::into),
            ),
            Victim::Nextest => {
                words.extend(["nextest", "run", "--offline", "--test", target, "-E", &filter].map(Into::into))
            }
            _ => words.extend(like.get_args().skip(1).map(ToOwned::to_owned)),
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(root().join("tests/fixtures/proof"));
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("CARGO_TARGET_DIR", root().join("target/fixtures")).env_remove("RUSTFLAGS");
        command
    }

    /// One trial: how many processes are left, and how long it took.
    fn trial(&self, (kind, victim, signal): Cell) -> (usize, Duration) {
        let (_, signal, stops_first) = SIGNALS[signal];
        let mut held = Held::start(&self.command(kind, victim));
        let told = held.run.wait_for("tree");
        let (test, supervisor) = told.split_once(' ').unwrap();
        let (test, mut supervisor): (i32, i32) = (test.parse().unwrap(), supervisor.parse().unwrap());
        if victim == Victim::GuardOfNamespace {
            assert_eq!(supervisor, 1, "the first process of its namespace");
            supervisor = held.run.marked().into_iter().find(|pid| is_first_of_namespace(*pid)).unwrap();
        }
        let victims = self.victims(&held, kind, victim, test, supervisor);
        // `kill` would take others for groups.
        let are_processes = victims.iter().all(|pid| *pid > 1) && !victims.is_empty();
        assert!(are_processes, "{kind:?} {victim:?}: {victims:?} of {told}\n{}", held.run.text());
        if stops_first {
            victims.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
            // As long as it takes; the guard continues what was stopped of it.
            thread::sleep(Duration::from_millis(20));
        }
        let begin = Instant::now();
        victims.iter().for_each(|pid| send(*pid, signal));
        // Then the run goes on, and ends as it would have.
        if matches!(victim, Victim::Net | Victim::Server | Victim::Supervisor | Victim::Test) {
            held.run.tell("go");
        }
        let limit = if victim == Victim::Guard { Duration::from_secs(2) } else { LIMIT };
        if held.are_gone(limit) {
            return (0, begin.elapsed());
        }
        let left = held.run.marked();
        for pid in &left {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            println!("{kind:?} {victim:?} {signal}: {pid} `{}`", line.replace('\0', " "));
        }
        (left.len().max(1), begin.elapsed())
    }

    fn victims(&self, held: &Held, kind: Kind, victim: Victim, test: i32, supervisor: i32) -> Vec<i32> {
        let top = held.run.pid();
        let above = parent(supervisor);
        let net = if kind == Run { above } else { parent(above) };
        match victim {
            Victim::Top | Victim::Cargo | Victim::Nextest => vec![top],
            Victim::Net => vec![net],
            Victim::Server => vec![above],
            Victim::Supervisor => vec![supervisor],
            Victim::Test => vec![test],
            Victim::Guard | Victim::GuardOfNamespace => vec![top, net, above, supervisor],
            Victim::Session => {
                held.run.marked().into_iter().filter(|pid| session(*pid) == Some(top)).collect()
            }
            Victim::Pattern => {
                let target = match kind {
                    Harness => "harness",
                    Stock => "stock",
                    Run => "plain",
                };
                let binary = self.fixture.binary(target).to_str().unwrap().to_owned();
                held.run.marked().into_iter().filter(|pid| has_in_line(*pid, &binary)).collect()
            }
        }
    }
}

fn send(pid: i32, signal: Signal) {
    // One may have ended because of another's end.
    let _ = kill(Pid::from_raw(pid), signal);
}

fn session(pid: i32) -> Option<i32> {
    nix::unistd::getsid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}

/// Whether a process is the first one of a PID namespace below this one.
fn is_first_of_namespace(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = line.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

fn has_in_line(pid: i32, text: &str) -> bool {
    let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(text)
}

fn is_there(kind: Kind, victim: Victim) -> bool {
    match victim {
        Victim::Server => kind != Run,
        Victim::Nextest => {
            let version = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
            version.is_ok_and(|output| output.status.success())
        }
        _ => true,
    }
}

/// Runs each cell some times; prints the matrix, and fails if anything is left.
fn check(cells: Vec<Cell>, count: usize) {
    let matrix = Matrix::new();
    let trials: Vec<Cell> = cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, count)).collect();
    let results = each(trials.clone(), |cell| matrix.trial(cell));
    let mut left: BTreeMap<Cell, usize> = BTreeMap::new();
    for (cell, (survivors, _)) in trials.iter().zip(&results) {
        *left.entry(*cell).or_default() += survivors;
    }
    let longest = results.iter().map(|(_, took)| *took).max().unwrap_or_default();
    for kind in [Harness, Stock, Run] {
        let names: Vec<&str> = SIGNALS.iter().map(|(name, ..)| *name).collect();
        println!("| {kind:?} | {} |", names.join(" | "));
        for victim in VICTIMS {
            let row = (0..SIGNALS.len()).map(|signal| match left.get(&(kind, victim, signal)) {
                Some(left) => format!("{left} of {count}"),
                None => String::new(),
            });
            println!("| {victim:?} | {} |", row.collect::<Vec<_>>().join(" | "));
        }
    }
    println!("{} trials, nothing left after {longest:.2?} at most", results.len());
    assert!(left.values().all(|left| *left == 0), "{left:?}");
}

/// The rows of the matrix.
fn rows() -> impl Iterator<Item = (Kind, Victim)> {
    let kinds = [Harness, Stock, Run].into_iter();
    let rows = kinds.flat_map(|kind| VICTIMS.map(|victim| (kind, victim)));
    rows.filter(|(kind, victim)| is_there(*kind, *victim))
}

/// Each row with one of the signals.
#[childproof::test(timeout = "300s")]
fn leave_nothing() {
    let cells = rows().enumerate().map(|(row, (kind, victim))| (kind, victim, row % SIGNALS.len()));
    check(cells.collect(), 1);
}

/// The whole guard at once cannot be survived: what is left then is shown.
#[childproof::test(timeout = "300s")]
#[ignore = "shows what is left: `cargo test --test it -- --ignored --nocapture proof::kills`"]
fn of_the_whole_guard_leave_what_only_a_namespace_would_kill() {
    let matrix = Matrix::new();
    for kind in [Harness, Stock, Run] {
        let (left, _) = matrix.trial((kind, Victim::Guard, 0));
        println!("{kind:?}: {left} processes are left when all of the guard is killed at once");
    }
}

/// Nor can it in a namespace, but then the kernel kills the rest.
#[childproof::test(timeout = "300s")]
fn of_the_whole_guard_leave_nothing_in_a_namespace() {
    if !may_make_namespaces() {
        return;
    }
    let matrix = Matrix::new();
    let cells = [Harness, Stock, Run].map(|kind| (kind, Victim::GuardOfNamespace, 0));
    let trials: Vec<Cell> = cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, trials(1))).collect();
    for (cell, (left, took)) in trials.iter().zip(each(trials.clone(), |cell| matrix.trial(cell))) {
        println!("{cell:?}: {left} processes are left, after {took:.2?}");
        assert_eq!(left, 0, "{cell:?}");
    }
}

#[childproof::test(timeout = "120m")]
#[ignore = "takes a quarter of an hour: `cargo test --test it -- --ignored --nocapture in_any_cell`"]
fn leave_nothing_in_any_cell() {
    let signals = |(kind, victim)| (0..SIGNALS.len()).map(move |signal| (kind, victim, signal));
    check(rows().flat_map(signals).collect(), trials(20));
}
