//! Real daemons under guard: redis and nginx, as their packages install them.
//!
//! A daemon leaves process group, session and parent, and closes its output: neither a shell nor a group kill
//! finds it again. The target runs itself a second time as a suite that forgets its daemons ([`careless`]),
//! and checks what that suite reported and what is left of it. A daemon that is not installed is reported as
//! ignored.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may panic.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use childproof::Harness;
use serde_json::Value;

/// Set when the target runs as the careless suite.
const CARELESS: &str = "DAEMONS_CARELESS";

/// Longer than a daemon takes to start or to stop on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    if env::var_os(CARELESS).is_some() { careless().run() } else { suite().run() }
}

/// The properties of a daemon.
#[derive(Clone, Copy)]
struct Daemon {
    name: &'static str,
    programs: &'static [&'static str],
    /// The title of its processes: they overwrite their arguments.
    title: &'static str,
    /// The least number of its processes.
    processes: usize,
    /// Builds the command that starts it, with its state in this directory, listening on this address.
    start: fn(&Path, SocketAddr) -> Command,
    stop: fn(&Path, SocketAddr) -> Command,
}

const DAEMONS: [Daemon; 2] = [
    Daemon {
        name: "redis",
        programs: &["redis-server", "redis-cli"],
        title: "redis-server",
        processes: 1,
        start: start_redis,
        stop: stop_redis,
    },
    Daemon {
        name: "nginx",
        programs: &["nginx"],
        title: "nginx: master process",
        processes: 2,
        start: start_nginx,
        stop: stop_nginx,
    },
];

type Test = fn(Daemon);

/// The tests that check the careless suite.
fn suite() -> Harness {
    let mut harness = Harness::new();
    for daemon in DAEMONS {
        let tests: [(&str, Test); 3] = [
            ("stopped_is_clean", stopped_is_clean),
            ("forgotten_is_caught_named_and_gone", forgotten_is_caught_named_and_gone),
            ("ends_with_a_killed_suite", ends_with_a_killed_suite),
        ];
        let missing = daemon.programs.iter().find(|program| find(program).is_none());
        for (name, test) in tests {
            let name = format!("{}::{name}", daemon.name);
            harness = match missing {
                Some(program) => harness.ignored(name, format!("{program} is not installed")),
                None if cfg!(not(feature = "json")) => harness.ignored(name, "needs the feature `json`"),
                None => harness.test(name, move || test(daemon)),
            };
        }
    }
    harness
}

/// The careless suite: it starts daemons and forgets them.
fn careless() -> Harness {
    DAEMONS.into_iter().fold(Harness::new(), |harness, daemon| {
        harness.test(format!("{}::forgotten", daemon.name), move || drop(Running::start(daemon))).test(
            format!("{}::waits_for_ever", daemon.name),
            move || {
                let _daemon = Running::start(daemon);
                thread::sleep(Duration::from_secs(3600));
            },
        )
    })
}

// ---- the tests ----

/// This test is under guard itself: it passes only if nothing is left.
fn stopped_is_clean(daemon: Daemon) {
    let running = Running::start(daemon);
    running.assert_serves();
    succeed(&mut (daemon.stop)(&running.state, running.address));
    running.assert_ends();
}

fn forgotten_is_caught_named_and_gone(daemon: Daemon) {
    let report = env::temp_dir().join("report.json");
    let mut command = rerun(&format!("{}::forgotten", daemon.name));
    let output = command.arg("--json").arg(&report).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(101), "{text}");

    // The leak is detected.
    let line = fs::read_to_string(&report).unwrap();
    let verdict: Value = serde_json::from_str(&line).expect(&line);
    assert_eq!(verdict["outcome"], "failed", "{verdict}");
    assert_eq!(verdict["causes"], serde_json::json!(["leaked_process"]), "{verdict}");
    assert_eq!(verdict["body"]["outcome"], "passed", "{verdict}");
    assert_eq!(verdict["survivors"], serde_json::json!([]), "{verdict}");

    // The report names the daemon.
    let running = Running::announced(text.lines()).expect(&text);
    let processes = verdict["processes"].as_array().unwrap();
    assert!(processes.len() >= daemon.processes, "{verdict}");
    let master = processes.iter().find(|process| process["pid"] == running.pid).expect("the daemon's pid");
    assert_eq!((&master["class"], &master["killed"]), (&"leaked".into(), &true.into()), "{verdict}");
    let cmdline: Vec<&str> =
        master["cmdline"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
    assert!(cmdline.join(" ").contains(daemon.title), "{verdict}");
    let sentence = format!("pid {} ", running.pid);
    let named = text.lines().any(|line| line.contains(&sentence) && line.contains(daemon.title));
    assert!(named, "no line has the daemon's pid and title:\n{text}");

    // All its processes, its port and its files are gone.
    for process in processes {
        let pid = u32::try_from(process["pid"].as_u64().unwrap()).unwrap();
        assert!(!is_alive(pid), "pid {pid} is alive: {verdict}");
    }
    running.assert_gone();
    assert!(!running.state.exists(), "{} is still there", running.state.display());
}

/// No process is left to report anything then; the daemon must be killed all the same.
fn ends_with_a_killed_suite(daemon: Daemon) {
    let mut suite = rerun(&format!("{}::waits_for_ever", daemon.name))
        .arg("--nocapture")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(suite.stdout.take().unwrap());
    let running = Running::announced(stdout.lines().map_while(Result::ok)).expect("an announcement");
    running.assert_serves();
    suite.kill().unwrap();
    suite.wait().unwrap();
    running.assert_ends();
    until("its files to be removed", || !running.state.exists());
}

// ---- a daemon that runs ----

struct Running {
    pid: u32,
    address: SocketAddr,
    /// The directory of its configuration, its logs and its pid file.
    state: PathBuf,
}

/// The prefix of the line with which a careless test announces its daemon.
const ANNOUNCEMENT: &str = "daemon runs:";

impl Running {
    /// Starts a daemon with all its state in the scratch directory of the test, and waits until
    /// it serves.
    fn start(daemon: Daemon) -> Running {
        let state = env::temp_dir();
        let address = free_address();
        succeed(&mut (daemon.start)(&state, address));
        let mut pid = None;
        until("its pid file, and an open port", || {
            pid = fs::read_to_string(state.join("pid")).ok().and_then(|text| text.trim().parse().ok());
            pid.is_some() && TcpStream::connect(address).is_ok()
        });
        let running = Running { pid: pid.unwrap(), address, state };
        println!("{ANNOUNCEMENT} {} {address} {}", running.pid, running.state.display());
        running
    }

    /// Reads the announcement of [`Running::start`] from a suite's output.
    fn announced(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Option<Running> {
        lines.into_iter().find_map(|line| {
            let (_, told) = line.as_ref().split_once(ANNOUNCEMENT)?;
            let mut told = told.trim().splitn(3, ' ');
            Some(Running {
                pid: told.next()?.parse().ok()?,
                address: told.next()?.parse().ok()?,
                state: told.next()?.into(),
            })
        })
    }

    fn assert_serves(&self) {
        assert!(is_alive(self.pid));
        TcpStream::connect(self.address).unwrap();
    }

    /// A worker may keep the port open for a moment after the master has exited.
    fn assert_ends(&self) {
        until("its end", || !is_alive(self.pid) && TcpStream::connect(self.address).is_err());
    }

    fn assert_gone(&self) {
        assert!(!is_alive(self.pid), "pid {} is alive", self.pid);
        let connected = TcpStream::connect(self.address);
        assert!(connected.is_err(), "a process still listens on {}", self.address);
    }
}

fn start_redis(state: &Path, address: SocketAddr) -> Command {
    let mut command = program("redis-server");
    command
        .args(["--daemonize", "yes", "--save", "", "--protected-mode", "no"])
        .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
        .arg("--dir")
        .arg(state)
        .arg("--pidfile")
        .arg(state.join("pid"))
        .arg("--logfile")
        .arg(state.join("log"));
    command
}

fn stop_redis(_: &Path, address: SocketAddr) -> Command {
    let mut command = program("redis-cli");
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(["shutdown", "nosave"]);
    command
}

fn start_nginx(state: &Path, address: SocketAddr) -> Command {
    let directory = state.display();
    // Only root may run workers as another user, so nginx is configured with one only for root.
    let user = match text_of("id", &["-u"]).as_str() {
        "0" => format!("user nobody {};", text_of("id", &["-gn", "nobody"])),
        _ => String::new(),
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {directory}/{kind};\n"))
        .concat();
    let configuration = format!(
        "{user}\nworker_processes 1;\npid {directory}/pid;\nerror_log {directory}/log;\n\
         events {{}}\n\
         http {{\n    access_log off;\n{temporary}    server {{ listen {address}; return 200 ok; }}\n}}\n"
    );
    fs::write(state.join("nginx.conf"), configuration).unwrap();
    nginx(state)
}

fn stop_nginx(state: &Path, _: SocketAddr) -> Command {
    let mut command = nginx(state);
    command.args(["-s", "quit"]);
    command
}

fn nginx(state: &Path) -> Command {
    let mut command = program("nginx");
    // Until it has read its configuration, it logs to a path that only root can write.
    command.arg("-e").arg(state.join("log")).arg("-c").arg(state.join("nginx.conf"));
    command
}

// ---- tools ----

/// A command that runs one test of the careless suite, without the settings of this run.
fn rerun(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test]).env(CARELESS, "1").stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        let own = ["CHILDPROOF_", "RUST_TEST_", "NEXTEST"];
        if own.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

fn program(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| panic!("{name} is not installed")))
}

/// Also searches where daemons are installed: an ordinary user's `PATH` often lacks `/usr/sbin`.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} ended with {output:?}");
}

fn text_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An address that no other process takes before the daemon does: all of 127.0.0.0/8 is this machine, and
/// each test has a part of its own.
fn free_address() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, high, middle, low.clamp(1, 254));
    TcpListener::bind((own, 0)).and_then(|listener| listener.local_addr()).unwrap()
}

/// Whether a process exists and is no zombie.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|fields| fields.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
