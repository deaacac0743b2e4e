//! Whenever the tool is killed with its whole process group, as `timeout -s KILL` does it, nothing that it started survives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
