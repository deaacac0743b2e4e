//! A tour: real programs under childproof, most of them leaking on purpose.
//!
//! `cargo run --example tour` runs this file twice. The first process is the guide: it starts the second,
//! [`suite`], which is an ordinary test suite. Then it checks that every verdict was the one in [`stops`],
//! and that no process is left. The tests themselves are the functions below [`stops`]; each is a leak from
//! real code.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use childproof::{Harness, Policy};
use nix::sys::wait::waitpid;
use nix::unistd::setsid;
use serde_json::Value;

/// Set for the suite, and inherited by every process that it starts: a process with it comes from this run.
const MARK: &str = "TOUR_MARK";

fn main() -> ExitCode {
    if env::var_os(MARK).is_some() {
        return suite();
    }
    match guide() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tour: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One test of the tour.
struct Stop {
    name: &'static str,
    /// The causes that the verdict must name; none if the test must pass.
    expected: &'static [&'static str],
    /// A program that the test needs; without it the test is skipped.
    needs: Option<&'static str>,
    policy: Policy,
    body: fn() -> io::Result<()>,
}

fn stops() -> Vec<Stop> {
    let stop = |name, expected, body| Stop { name, expected, needs: None, policy: Policy::new(), body };
    let second = Duration::from_secs(1);
    vec![
        stop("clean::pipeline", &[], pipeline),
        Stop {
            policy: Policy::new().grace(5 * second),
            ..stop("clean::straggler_within_the_grace", &[], straggler_within_the_grace)
        },
        Stop {
            policy: Policy::new().allow_process("sleep *"),
            ..stop("clean::background_sleep_that_is_allowed", &[], background_sleep)
        },
        Stop { needs: Some("python3"), ..stop("clean::http_server_stopped", &[], http_server_stopped) },
        Stop {
            needs: Some("python3"),
            ..stop("leak::http_server_forgotten", &["leaked_process"], http_server_forgotten)
        },
        stop("leak::background_sleep", &["leaked_process"], background_sleep),
        stop("leak::daemon", &["leaked_process"], daemon),
        stop("leak::child_of_a_panic", &["panicked", "leaked_process"], child_of_a_panic),
        stop("leak::pipe_end", &["stray_fd"], pipe_end),
        stop("leak::fork_while_a_thread_holds_a_lock", &["leaked_process"], fork_while_a_thread_holds_a_lock),
        Stop {
            policy: Policy::new().timeout(second),
            ..stop("hang::keeper_of_its_own_lifeline", &["timed_out"], keeper_of_its_own_lifeline)
        },
        stop("end::exit_in_the_middle", &["ended_early"], exit_in_the_middle),
    ]
}

/// The same as a user's test target, with a table instead of `#[childproof::test]`.
fn suite() -> ExitCode {
    let mut harness = Harness::new();
    for Stop { name, needs, policy, body, .. } in stops() {
        harness = match needs.filter(|program| !is_installed(program)) {
            Some(program) => harness.ignored(name, format!("{program} is not installed")),
            None => harness.test_with(name, policy, body),
        };
    }
    harness.run()
}

// ---- clean ----

fn pipeline() -> io::Result<()> {
    let output = shell("printf 'b\\na\\n' | sort | head -n 1").output()?;
    assert_eq!(output.stdout, b"a\n");
    Ok(())
}

/// Exits by itself soon after the test: reported with `--show-output`, and not a failure.
fn straggler_within_the_grace() -> io::Result<()> {
    shell("sleep 0.1 &").status()?;
    Ok(())
}

fn http_server_stopped() -> io::Result<()> {
    let (mut server, port) = http_server()?;
    let answer = get(port);
    server.kill()?;
    server.wait()?;
    assert!(answer?.starts_with("HTTP/1.0 200"));
    Ok(())
}

// ---- leaking ----

/// Dropping a `Child` neither kills nor waits.
fn http_server_forgotten() -> io::Result<()> {
    let (_server, port) = http_server()?;
    assert!(get(port)?.starts_with("HTTP/1.0 200"));
    Ok(())
}

/// The shell is waited for; the process that it left in the background is not.
fn background_sleep() -> io::Result<()> {
    shell("sleep 100 &").status()?;
    Ok(())
}

/// Forks twice and leaves session and process group, as daemons do, so a group kill does not reach it.
fn daemon() -> io::Result<()> {
    let middle = fork(|| {
        let _ = setsid();
        let _ = fork(|| drop(Command::new("sleep").arg("100").exec()));
    })?;
    waitpid(middle, None)?;
    Ok(())
}

/// The line that stops the child is never reached.
fn child_of_a_panic() -> io::Result<()> {
    let mut child = Command::new("sleep").arg("100").spawn()?;
    println!("started {}", child.id());
    assert!(child.try_wait()?.is_some(), "it should have ended by now");
    child.kill()
}

/// A reader of this pipe never gets EOF.
fn pipe_end() -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    std::mem::forget(writer);
    drop(reader);
    Ok(())
}

/// The child gets a copy of the locked lock and no copy of the thread that would unlock it.
fn fork_while_a_thread_holds_a_lock() -> io::Result<()> {
    static CACHE: Mutex<()> = Mutex::new(());
    let (locked, is_locked) = mpsc::channel();
    let (forked, is_forked) = mpsc::channel();
    let holder = thread::spawn(move || {
        let _guard = CACHE.lock();
        let _ = locked.send(());
        let _ = is_forked.recv();
    });
    let _ = is_locked.recv();
    fork(|| drop(CACHE.lock()))?;
    let _ = forked.send(());
    let _ = holder.join();
    Ok(())
}

/// The child should exit with its parent, at EOF. But it holds a write end itself.
fn keeper_of_its_own_lifeline() -> io::Result<()> {
    let (mut lifeline, parents_end) = io::pipe()?;
    let child = fork(|| drop(lifeline.read(&mut [0])))?;
    drop(parents_end);
    waitpid(child, None)?;
    Ok(())
}

/// Under libtest this ends the whole suite, with success.
fn exit_in_the_middle() -> io::Result<()> {
    std::process::exit(0)
}

// ---- tools ----

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// Starts Python's server on a free port, and waits until it serves.
fn http_server() -> io::Result<(Child, u16)> {
    let mut server = Command::new("python3")
        .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
        .current_dir(env::temp_dir())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    // "Serving HTTP on 127.0.0.1 port 43210 (http://127.0.0.1:43210/) ..."
    let port = line.split_whitespace().skip_while(|word| *word != "port").nth(1);
    let port = port.and_then(|port| port.parse().ok());
    Ok((server, port.ok_or_else(|| io::Error::other(format!("python3 said {line:?}")))?))
}

fn get(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether a program exists and starts: it may be only the shim of a version manager.
fn is_installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

use forking::fork;

/// The only unsafe code of the tour.
#[allow(unsafe_code)]
mod forking {
    use std::io;

    use nix::unistd::{ForkResult, Pid};

    /// Forks, and ends the new process once it has run `child`.
    pub(crate) fn fork(child: impl FnOnce()) -> io::Result<Pid> {
        // SAFETY: the copy of a process with one thread may do what the process might. The test
        // that forks with two is about what happens otherwise: its child touches nothing but a
        // lock that is held, and waits.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                child();
                // SAFETY: ends the process, without the exit handlers that are the test's.
                unsafe { nix::libc::_exit(0) }
            }
        }
    }
}

// ---- the guide ----

/// Runs the suite as `cargo test` would, and compares the verdicts with the expected ones.
fn guide() -> Result<ExitCode, Box<dyn Error>> {
    let report = tempfile::NamedTempFile::new()?;
    // The path differs in every run.
    let mark = report.path().as_os_str();
    writeln!(io::stdout(), "tour: tests that start processes, most with a bug. What childproof says:")?;
    let status = Command::new(env::current_exe()?)
        .arg("--json")
        .arg(report.path())
        .arg("--test-threads=2")
        .env(MARK, mark)
        // The reports are what this example shows.
        .env_remove("RUST_BACKTRACE")
        .status()?;
    let mut survivors = marked(mark.as_encoded_bytes());
    // A user may try `kill -9` on the suite. Its guards then need a moment to kill the rest.
    let until = Instant::now() + Duration::from_secs(5);
    while status.code().is_none() && !survivors.is_empty() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
        survivors = marked(mark.as_encoded_bytes());
    }
    let verdicts = fs::read_to_string(report.path())?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;

    let stops = stops();
    let wrong: Vec<String> = stops.iter().filter_map(|stop| unexpected(stop, &verdicts)).collect();
    let findings: usize = verdicts.iter().map(|verdict| causes(verdict).len()).sum();
    let skipped = verdicts.iter().filter(|verdict| verdict["outcome"] == "ignored").count();

    let skipped = if skipped > 0 { format!(" ({skipped} skipped)") } else { String::new() };
    let (judgement, code) = match (&wrong[..], &survivors[..]) {
        ([], []) if status.code() == Some(101) => ("every verdict as expected".into(), ExitCode::SUCCESS),
        ([], []) => (format!("but the suite ended with {status}"), ExitCode::FAILURE),
        ([], survivors) => (format!("still alive: {survivors:?}"), ExitCode::FAILURE),
        (wrong, _) => (format!("not as expected: {}", wrong.join("; ")), ExitCode::FAILURE),
    };
    writeln!(
        io::stdout(),
        "tour: {} tests{skipped}, {findings} findings, {} surviving processes, {judgement}",
        stops.len(),
        survivors.len()
    )?;
    Ok(code)
}

/// Describes what is wrong with the verdict of one test, if anything.
fn unexpected(stop: &Stop, verdicts: &[Value]) -> Option<String> {
    let Some(verdict) = verdicts.iter().find(|verdict| verdict["test"] == stop.name) else {
        return Some(format!("{} has no verdict", stop.name));
    };
    let skipped = stop.needs.is_some() && verdict["outcome"] == "ignored";
    let outcome = if stop.expected.is_empty() { "passed" } else { "failed" };
    let causes = causes(verdict);
    let right = verdict["outcome"] == outcome && causes == stop.expected;
    (!skipped && !right).then(|| {
        format!("{} {} {causes:?}, expected {outcome} {:?}", stop.name, verdict["outcome"], stop.expected)
    })
}

fn causes(verdict: &Value) -> Vec<&str> {
    verdict["causes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The processes with `MARK=value` in their environment: descendants of the suite, wherever in the tree they
/// are now. Zombies have no environment, and other users' processes are not from this run.
fn marked(value: &[u8]) -> Vec<u32> {
    let marker = [MARK.as_bytes(), b"=", value].concat();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == marker)
    })
    .collect()
}
