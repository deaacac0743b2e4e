//! Whenever the tool is killed with its whole process group, as `timeout -s KILL` does it, nothing that it started survives.
//! If its guard is killed too, its directory is removed by the next run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// How long the end of all processes may take after the kill, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stock crate, built.
struct Project(TempDir);

impl Project {
    fn build() -> Project {
        let directory = tempfile::tempdir().unwrap();
        let stock = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs/stock");
        for (name, to) in
            [("src/lib.rs", "src/lib.rs"), ("src/main.rs", "src/main.rs"), ("Cargo.toml.in", "Cargo.toml")]
        {
            let to = directory.path().join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(stock.join(name), to).unwrap();
        }
        let project = Project(directory);
        let built = project.command("cargo test --lib --no-run", "0").stderr(Stdio::inherit()).status();
        assert!(built.unwrap().success());
        project
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A shell command in there that is killed after some seconds, or never after 0. Everything that it starts inherits its
    /// stdout as fd 9 too, which no program of it closes.
    fn command(&self, command: &str, seconds: &str) -> Command {
        let own = Path::new(env!("CARGO_BIN_EXE_cargo-childproof")).parent().unwrap();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(own.into()).chain(std::env::split_paths(&others)));
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec timeout -s KILL {seconds} {command} 9>&1")]);
        shell.current_dir(self.path()).env("PATH", path.unwrap()).env("STOCK_STARTED", self.started());
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let of_cargo = ["CARGO_TARGET_", "CARGO_BUILD_", "NEXTEST", "RUSTFLAGS", "LD_PRELOAD"];
            if of_cargo.iter().any(|begin| text.starts_with(begin)) {
                shell.env_remove(&name);
            }
        }
        shell
    }

    /// A file that exists once the helpers run.
    fn started(&self) -> PathBuf {
        self.path().join("started")
    }

    /// Kills a command after a time; waits until no process has its stdout or a copy of it, and fails if one keeps it.
    /// Returns whether its helpers had been started.
    fn kill_after(&self, command: &str, time: Duration) -> bool {
        let _ = fs::remove_file(self.started());
        let mut killed = self.command(command, &format!("{:.3}", time.as_secs_f64())).spawn().unwrap();
        let mut pipe = killed.stdout.take().unwrap();
        let (ended, at_end) = mpsc::channel();
        let reader = thread::spawn(move || {
            let _ = pipe.read_to_end(&mut Vec::new());
            let _ = ended.send(());
        });
        killed.wait().unwrap();
        let result = at_end.recv_timeout(PATIENCE);
        assert!(
            result.is_ok(),
            "`{command}` was killed after {time:?}, and {PATIENCE:?} later a process has its stdout"
        );
        reader.join().unwrap();
        self.started().exists()
    }

    /// The same at random moments up to `most`.
    fn kill_at_random(&self, command: &str, rounds: u32, most: Duration) {
        let mut state = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
        let mut begun = 0;
        for _ in 0..rounds {
            // xorshift64 (Marsaglia 2003)
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // `timeout 0` would never kill.
            let time = Duration::from_millis(1) + most.mul_f64((state >> 11) as f64 / (1_u64 << 53) as f64);
            begun += u32::from(self.kill_after(command, time));
        }
        println!("{command}: killed {rounds} times, {begun} of them with helpers running: nothing was left");
    }
}

const HELPERS: &str = "(sleep 3137 & setsid sleep 3137 & : > \"$STOCK_STARTED\"; wait) & setsid sleep 3137";

fn run(rounds: u32) {
    let project = Project::build();
    fs::write(project.path().join("helpers.sh"), HELPERS).unwrap();
    project.kill_at_random("childproof run -- sh helpers.sh", rounds, Duration::from_millis(300));
}

fn cargo(command: &str, rounds: u32) {
    let project = Project::build();
    // It has to run at least once until its helpers do, or the moments prove nothing.
    let most = [2, 4, 8, 16, 32].into_iter().map(Duration::from_secs);
    let most = most.into_iter().find(|most| project.kill_after(command, *most)).unwrap();
    project.kill_at_random(command, rounds, most);
}

const TEST: &str = "cargo childproof test --lib -- --ignored runs_on";
const NEXTEST: &str = "cargo childproof nextest run --lib --run-ignored only runs_on";

fn is_installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

#[test]
fn a_killed_run_leaves_nothing() {
    run(5);
}

#[test]
fn a_killed_cargo_childproof_test_leaves_nothing() {
    cargo(TEST, 3);
}

#[test]
#[ignore = "takes minutes"]
fn a_killed_run_leaves_nothing_100_times() {
    run(100);
}

#[test]
#[ignore = "takes minutes"]
fn a_killed_cargo_childproof_test_leaves_nothing_100_times() {
    cargo(TEST, 100);
}

#[test]
#[ignore = "takes minutes"]
fn a_killed_cargo_childproof_nextest_leaves_nothing_100_times() {
    if !is_installed("cargo-nextest") {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    cargo(NEXTEST, 100);
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The parent of a process, the parent of that, and so on.
fn ancestors(pid: i32) -> Vec<i32> {
    std::iter::successors(Some(parent(pid)), |pid| Some(parent(*pid))).take_while(|pid| *pid > 1).collect()
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, pid: i32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Stops and kills processes of a guard, the topmost last.
fn kill_all(processes: &[i32]) {
    processes.iter().rev().for_each(|pid| signal("STOP", *pid));
    processes.iter().for_each(|pid| signal("KILL", *pid));
    until("the end of the guard", || processes.iter().all(|pid| !is_alive(*pid)));
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Runs a command guarded, with this directory for temporary files.
fn run_another(temporary: &Path) {
    let mut other = Command::new(env!("CARGO_BIN_EXE_childproof"));
    other.args(["run", "--", "true"]).env("TMPDIR", temporary).env_remove("LD_PRELOAD");
    assert!(other.status().unwrap().success());
}

#[test]
fn the_directory_of_a_killed_guard_goes_with_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    let (temporary, told) = (directory.path().join("tmp"), directory.path().join("told"));
    fs::create_dir(&temporary).unwrap();
    let mut tool = Command::new(env!("CARGO_BIN_EXE_childproof"));
    let script = "echo $PPID > \"$TOLD.new\"; mv \"$TOLD.new\" \"$TOLD\"; exec sleep 3137";
    tool.args(["run", "--", "sh", "-c", script]).env("TMPDIR", &temporary).env("TOLD", &told);
    let mut tool = tool.env_remove("LD_PRELOAD").stderr(Stdio::null()).spawn().unwrap();
    until("the command", || told.exists());
    let own = names(&temporary);
    assert_eq!(own.len(), 1, "{own:?}");
    run_another(&temporary);
    assert_eq!(names(&temporary), own, "of a guard that lives");
    let supervisor: i32 = fs::read_to_string(&told).unwrap().trim().parse().unwrap();
    let net = parent(supervisor);
    assert_eq!(parent(net), tool.id() as i32);
    let all = [supervisor, net, tool.id() as i32];
    all.iter().rev().for_each(|pid| signal("STOP", *pid));
    [net, tool.id() as i32].iter().for_each(|pid| signal("KILL", *pid));
    tool.wait().unwrap();
    run_another(&temporary);
    assert_eq!(names(&temporary), own, "of a guard of which the supervisor lives");
    signal("KILL", supervisor);
    until("the end of the supervisor", || !is_alive(supervisor));
    assert_eq!(names(&temporary), own);
    run_another(&temporary);
    assert_eq!(names(&temporary), Vec::<String>::new());
}

/// Cargo ends with the guard of the call, and what it has started as its runner does not.
#[test]
fn the_directory_of_a_call_stays_as_long_as_a_runner_uses_it() {
    let project = Project::build();
    let temporary = project.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut call = project.command(TEST, "0").env("TMPDIR", &temporary).spawn().unwrap();
    until("the helpers", || project.started().exists());
    let runner = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let is_runner = line.contains(&*temporary.to_string_lossy()) && line.contains("\0__runner\0");
        entry.file_name().to_str()?.parse::<i32>().ok().filter(|_| is_runner)
    });
    let runner = runner.unwrap();
    let own = names(&temporary);
    assert_eq!(own.len(), 1, "{own:?}");
    // Cargo, and then the guard of the call.
    kill_all(&ancestors(runner)[1..4]);
    call.wait().unwrap();
    run_another(&temporary);
    assert_eq!(names(&temporary), own);
    signal("KILL", runner);
    until("a run that removes it, once the runner's guard has ended", || {
        run_another(&temporary);
        names(&temporary).is_empty()
    });
}
