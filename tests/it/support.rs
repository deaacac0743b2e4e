//! Builds the fixture crates once, runs their binaries, and reads their output.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longer than anything takes on a busy machine; a test that uses it up is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The test binaries of a fixture crate, by target name (`harness`, `stock`, ..; the unit tests
/// by the crate's name).
pub(crate) struct Fixture {
    binaries: Vec<(String, PathBuf)>,
}

impl Fixture {
    /// Builds `tests/fixtures/NAME`, or finds it built: a test process does not know what earlier ones have
    /// built, but cargo does.
    pub(crate) fn build(name: &str) -> Fixture {
        let directory = root().join("tests/fixtures").join(name);
        let target = root().join("target/fixtures");
        fs::create_dir_all(&target).unwrap();
        // One build at a time, without cargo's message "Blocking waiting for file lock".
        let lock = File::create(target.join(format!("{name}.lock"))).unwrap();
        let _lock = nix_lock(&lock);
        let output = Command::new(env!("CARGO"))
            .args(["test", "--no-run", "--quiet", "--message-format=json"])
            .current_dir(&directory)
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap();
        assert!(output.status.success(), "fixture {name}:\n{}", String::from_utf8_lossy(&output.stderr));
        let binaries = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| {
                let binary = message["executable"].as_str()?.into();
                Some((message["target"]["name"].as_str()?.to_owned(), binary))
            })
            .collect();
        Fixture { binaries }
    }

    /// The path of one target's test binary.
    pub(crate) fn binary(&self, target: &str) -> &Path {
        let found = self.binaries.iter().find(|(name, _)| name == target);
        &found.unwrap_or_else(|| panic!("no target `{target}` in {:?}", self.binaries)).1
    }

    /// A command that runs one target with these arguments, without the environment of the harness that runs
    /// this test, and without the fds that were open before it: reports contain fd numbers.
    pub(crate) fn command(&self, target: &str, arguments: &[&str]) -> Command {
        close_given_fds();
        // Under `nohup` and in a background job of a shell these are ignored, and would be in every process that is
        // started here.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP,INT,QUIT").arg(self.binary(target));
        command.args(arguments).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
        // No line is wrapped, so the length of a pid does not matter.
        command.env("COLUMNS", "100000");
        let foreign = [
            "CHILDPROOF_",
            "RUST_TEST_",
            "NEXTEST",
            "GITHUB_",
            "XML_OUTPUT_FILE",
            "TEST_",
            "TESTBRIDGE_",
            "NO_COLOR",
            "CLICOLOR",
        ];
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if foreign.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Runs one target to its end.
    pub(crate) fn run(&self, target: &str, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.command(target, arguments))
    }
}

/// A finished run.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Ran {
        let Output { status, stdout, stderr } = command.output().unwrap();
        Ran {
            code: status.code(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    pub(crate) fn all(&self) -> String {
        format!("exit {:?}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The scratch directory of the running test.
pub(crate) fn scratch() -> PathBuf {
    std::env::temp_dir()
}

/// Waits until `condition` holds; fails with `what` if it never does.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The pids of live processes (no zombies) with `NAME=VALUE` in their environment.
///
/// Every process that a fixture starts inherits the variable, whatever its name and its position in the tree.
pub(crate) fn marked(name: &str, value: &str) -> Vec<i32> {
    let marker = format!("{name}={value}").into_bytes();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == marker)
    })
    .filter(|pid| alive(*pid))
    .collect()
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X') | None)
}

/// The parent of a process; 0 if it is gone.
pub(crate) fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.map_or(0, |pid| pid.trim().parse().unwrap())
}

/// The processes of the guard above a supervisor, nearest first, up to the child of this harness.
pub(crate) fn guard_above(supervisor: i32, harness: i32) -> Vec<i32> {
    let line = std::iter::successors(Some(parent(supervisor)), |pid| Some(parent(*pid)));
    let above: Vec<i32> = line.take_while(|pid| *pid > 1 && *pid != harness).collect();
    assert!(!above.is_empty(), "{supervisor} is not below {harness}");
    above
}

/// Stops the processes of the guard above a supervisor, the topmost first, so that none continues another. Returns them.
pub(crate) fn stop_guard_above(supervisor: i32, harness: i32) -> Vec<i32> {
    let above = guard_above(supervisor, harness);
    above.iter().rev().for_each(|pid| send(*pid, Signal::SIGSTOP));
    above
}

pub(crate) fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A command that runs `program` through a shell script, with the environment of `like`.
pub(crate) fn through_shell(like: &Command, script: &str, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(program).args(arguments);
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Runs a copy of a target as an unprivileged user (uid 65534) that can access nothing here except `/tmp`.
pub(crate) fn as_nobody(fixture: &Fixture, target: &str, arguments: &[&str]) -> Command {
    as_user(65534, fixture, target, arguments)
}

/// The same as any user.
pub(crate) fn as_user(user: u32, fixture: &Fixture, target: &str, arguments: &[&str]) -> Command {
    let binary = scratch().join(format!("user-{user}-{target}"));
    fs::copy(fixture.binary(target), &binary).unwrap();
    let like = fixture.command(target, &[]);
    let script = format!("exec setpriv --reuid={user} --regid={user} --clear-groups \"$@\"");
    let mut command = through_shell(&like, &script, &binary, arguments);
    command.current_dir("/");
    command
}

/// Closes the inherited fds of 3 and above. What this process opened itself is close-on-exec, and stays.
fn close_given_fds() {
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap() {
        let Ok(fd) = entry.unwrap().file_name().to_string_lossy().parse::<i32>() else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        if fd > 2 && flags.is_some_and(|flags| flags & nix::libc::O_CLOEXEC == 0) {
            let _ = nix::unistd::close(fd);
        }
    }
}

fn nix_lock(file: &File) -> nix::fcntl::Flock<File> {
    let file = file.try_clone().unwrap();
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap()
}

/// A run of a fixture that is watched while it goes on. All its processes have a mark in their environment;
/// its output goes to a file, so that a process that is left does not block the reader.
pub(crate) struct Run {
    child: Child,
    mark: String,
    directory: PathBuf,
    begin: Instant,
    ended: Option<(ExitStatus, Duration)>,
}

impl Run {
    const MARK: &str = "VICTIM_MARK";

    /// Starts a command; its scratch directories and the files of its bodies are in a directory of its own.
    pub(crate) fn spawn(mut command: Command) -> Run {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let directory = scratch().join(format!("run-{number}"));
        for part in ["out", "tmp"] {
            fs::create_dir_all(directory.join(part)).unwrap();
            // The run may belong to another user.
            let mode = fs::Permissions::from_mode(0o1777);
            fs::set_permissions(directory.join(part), mode).unwrap();
        }
        let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let mark = directory.display().to_string();
        let child = command
            .env(Run::MARK, &mark)
            .env("VICTIM_OUT", directory.join("out"))
            .env("TMPDIR", directory.join("tmp"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Run { child, mark, directory, begin: Instant::now(), ended: None }
    }

    /// Starts one target of a fixture; a `harness = false` one also writes JSON.
    pub(crate) fn start(fixture: &Fixture, target: &str, arguments: &[&str]) -> Run {
        let mut command = fixture.command(target, arguments);
        if target != "stock" {
            let script = "exec \"$0\" \"$@\" --json \"$VICTIM_OUT/report.json\"";
            let mut through = Command::new("sh");
            through.args(["-c", script]).arg(command.get_program()).args(command.get_args());
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => through.env(name, value),
                    None => through.env_remove(name),
                };
            }
            command = through;
        }
        Run::spawn(command)
    }

    /// Starts only these tests of one target.
    pub(crate) fn of(fixture: &Fixture, target: &str, tests: &[&str]) -> Run {
        Run::start(fixture, target, &[tests, &["--exact"]].concat())
    }

    /// Starts a command beside the run, with its directories, its log and its mark.
    pub(crate) fn beside(&self, mut command: Command) -> Child {
        let log = File::options().append(true).open(self.directory.join("log")).unwrap();
        command
            .env(Run::MARK, &self.mark)
            .env("VICTIM_OUT", self.directory.join("out"))
            .env("TMPDIR", self.directory.join("tmp"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// The process that was started: the harness, or the cargo above it.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.directory.join("out")
    }

    /// What a body has reported under this name.
    pub(crate) fn told(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.out().join(name)).ok()
    }

    /// Waits until a body reports something under this name.
    pub(crate) fn wait_for(&mut self, name: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(told) = self.told(name) {
                return told;
            }
            let gone = self.child.try_wait().unwrap().is_some();
            assert!(!gone && Instant::now() < end, "no `{name}` from\n{}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends the bodies a message.
    pub(crate) fn tell(&self, name: &str) {
        fs::write(self.out().join(name), "").unwrap();
    }

    /// Waits for the end and returns the output.
    pub(crate) fn finish(&mut self) -> String {
        self.finish_within(PATIENCE)
    }

    /// The same for a run that takes long.
    pub(crate) fn finish_within(&mut self, limit: Duration) -> String {
        let end = Instant::now() + limit;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "waited {limit:?} for the end of the run");
            thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().unwrap();
        self.ended.get_or_insert((status, self.begin.elapsed()));
        self.text()
    }

    /// The output so far.
    pub(crate) fn text(&self) -> String {
        let bytes = fs::read(self.directory.join("log")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exit code of a finished run; `None` if a signal killed it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.ended.unwrap().0.code()
    }

    /// The signal that killed a finished run.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.ended.unwrap().0.signal()
    }

    /// Whether the process that was started is still running.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// How long a finished run took.
    pub(crate) fn took(&self) -> Duration {
        self.ended.unwrap().1
    }

    /// The JSON of a finished run's only test, if the target writes JSON.
    pub(crate) fn json(&self) -> Option<Value> {
        let line = self.told("report.json")?;
        Some(serde_json::from_str(line.trim()).unwrap())
    }

    /// The live processes of the run.
    pub(crate) fn marked(&self) -> Vec<i32> {
        marked(Run::MARK, &self.mark)
    }

    /// The scratch directories of the run.
    pub(crate) fn scratches(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.join("tmp")).unwrap().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Waits until neither a process nor a scratch directory is left; fails after `limit`, naming both.
    /// Returns the time that it took.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self, limit: Duration) -> Duration {
        let begin = Instant::now();
        loop {
            let (processes, scratches) = (self.marked(), self.scratches());
            if processes.is_empty() && scratches.is_empty() {
                return begin.elapsed();
            }
            if begin.elapsed() > limit {
                let processes: Vec<String> = processes
                    .iter()
                    .map(|pid| {
                        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                        format!("{pid} `{}`", line.unwrap_or_default().replace('\0', " "))
                    })
                    .collect();
                panic!(
                    "left after {limit:?}: processes {processes:?}, scratch {scratches:?}\n{}",
                    self.text()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Run {
    /// A failing test leaves nothing either, so that its failure is the only one.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.marked();
            if left.is_empty() || Instant::now() > end {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
