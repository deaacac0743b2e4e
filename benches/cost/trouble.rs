//! The cost of a test that leaks, fails or is killed.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Bench;
use crate::fixture::{self, Fixture, Profile};
use crate::growth::Crowd;
use crate::measure::side_by_side;
use crate::table::{Row, quantile};

/// The grace of the fixture's tests.
const GRACE: f64 = 0.05;

/// A directory in which the bodies report numbers.
pub(crate) struct Out(PathBuf);

impl Out {
    pub(crate) fn new() -> Out {
        let directory = fixture::target().join("out");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Out(directory)
    }

    /// A command that runs one of the fixture's tests.
    pub(crate) fn command(&self, fixture: &Fixture, test: &str) -> Command {
        let mut command = fixture::clean(fixture.binary("trouble"));
        command.args([test, "--test-threads=1"]).env("COST_OUT", &self.0);
        command
    }

    /// The number that a body has reported under a name.
    pub(crate) fn told(&self, name: &str) -> Option<f64> {
        fs::read_to_string(self.0.join(name)).ok()?.parse().ok()
    }

    /// Waits until a body reports a number under a name.
    pub(crate) fn wait_for(&self, name: &str) -> f64 {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(told) = self.told(name) {
                return told;
            }
            assert!(Instant::now() < end, "no body told `{name}`");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The seconds from the end of a body that leaves `leaks` processes to the word FAILED, minus the grace.
fn time_to_teardown(fixture: &Fixture, leaks: usize) -> f64 {
    time_to_verdict(fixture, "leaks", leaks) - GRACE
}

/// The seconds from the end of a body, or from its timeout, to the word FAILED.
fn time_to_verdict(fixture: &Fixture, test: &str, leaks: usize) -> f64 {
    let out = Out::new();
    let mut command = out.command(fixture, test);
    let mut child = command
        .env("COST_LEAKS", leaks.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let mut verdict = None;
    loop {
        let length = stdout.read(&mut chunk).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        if length == 0 {
            break;
        }
        text.extend_from_slice(&chunk[..length]);
        if verdict.is_none() && text.windows(6).any(|word| word == b"FAILED") {
            verdict = Some(now as f64);
        }
    }
    child.wait().unwrap();
    let text = String::from_utf8_lossy(&text);
    let verdict = verdict.unwrap_or_else(|| panic!("no verdict:\n{text}"));
    (verdict - out.told("ended").unwrap()) / 1e9
}

pub(crate) fn teardown(bench: &mut Bench) {
    const LEAKS: [usize; 3] = [1, 10, 200];
    bench.table.group("teardown, debug", "from the end of the body to the word FAILED, the grace taken off");
    let samples = side_by_side(bench.rounds(16), LEAKS.len(), |at| time_to_teardown(&bench.debug, LEAKS[at]));
    bench.table.row(&Row::time("1 leaked process", &samples[0]));
    bench.table.row(&Row::time("10 leaked processes", &samples[1]).over(&samples[0], "1 leaked process"));
    let row = Row::time("200 leaked processes", &samples[2]);
    bench.table.row(&row.over(&samples[0], "1 leaked process").reach(20.0));
}

/// The seconds from SIGKILL of a harness to the exit of the last process of its run: fork server, supervisor,
/// test and three descendants.
fn time_to_nothing_left(fixture: &Fixture) -> f64 {
    let out = Out::new();
    // Not close-on-exec: every process of the run inherits the write end, and the read end is at EOF when the
    // last of them has exited.
    let (read, write) = nix::unistd::pipe().unwrap();
    let mut command = out.command(fixture, "is_killed");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    drop(write);
    out.wait_for("ready");
    let begin = Instant::now();
    child.kill().unwrap();
    let mut fds = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
    let ended = poll(&mut fds, PollTimeout::from(60_000u16)).unwrap();
    let took = begin.elapsed();
    assert_eq!(ended, 1, "something was left after 60 s");
    child.wait().unwrap();
    took.as_secs_f64()
}

pub(crate) fn death(bench: &mut Bench) {
    bench.table.group(
        "death of the harness, debug",
        "from its SIGKILL to the end of the last process of the run: fork server, supervisor, test, three descendants",
    );
    for (loaded, full) in [(false, 400), (true, 100)] {
        let load = if loaded { Load::of(4) } else { Load::of(0) };
        let samples: Vec<f64> = (0..bench.rounds(full)).map(|_| time_to_nothing_left(&bench.debug)).collect();
        drop(load);
        let when = if loaded { "4 busy loops" } else { "idle" };
        let count = samples.len();
        bench.table.row(&Row::time(format!("p50 of {count}, {when}"), &samples));
        let tail = Row::time(format!("p99 of {count}, {when}"), &[quantile(&samples, 0.99)]);
        bench.table.row(&if loaded { tail } else { tail.at_most(0.025) });
    }
}

/// Busy processes.
struct Load(Vec<Child>);

impl Load {
    fn of(count: usize) -> Load {
        // They watch the bench, and exit if it is killed.
        let script = "while kill -0 $PPID; do :; done";
        let busy = || Command::new("sh").args(["-c", script]).stderr(Stdio::null()).spawn().unwrap();
        Load((0..count).map(|_| busy()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

const OFF: &str = "without the feature `sites`";

pub(crate) fn diagnosis(bench: &mut Bench) {
    bench.table.group(
        "a failing test's diagnosis, debug, 500 idle processes on the machine",
        "from the end of the body, or of its time, to the word FAILED, the grace taken off; the first failing test of \
         its run",
    );
    let features = ["--test=trouble", "--no-default-features"];
    let off = match Fixture::build("cost", Profile::Debug, &features) {
        Ok(fixture) => fixture.keep("no-sites"),
        Err(error) => return bench.table.skip("without the feature `sites`", &error),
    };
    let on = Fixture::build("cost", Profile::Debug, &["--test=trouble"]).unwrap().keep("sites");
    let crowd = Crowd::of(500).unwrap();
    thread::sleep(Duration::from_millis(300));
    for (test, what, grace) in [
        ("leaves_a_pipe", "one end of a pipe left", 0.0),
        ("leaks", "one process left", GRACE),
        ("hangs", "a lock taken twice, two looks 50 ms apart", 0.0),
    ] {
        let samples =
            side_by_side(bench.rounds(16), 2, |at| time_to_verdict([&off, &on][at], test, 1) - grace);
        bench.table.row(&Row::time(format!("{what}, without `sites`"), &samples[0]));
        bench.table.row(&Row::time(what, &samples[1]).over(&samples[0], OFF).at_most(0.1));
    }
    drop(crowd);
    for (test, what) in
        [("makes_pipes", "a pipe, made and closed"), ("spawns", "a spawn and wait of /bin/true")]
    {
        bench.table.group(&format!("the recorder: {what}"), "measured by the test itself; debug");
        let samples = side_by_side(bench.rounds(16), 2, |at| {
            let out = Out::new();
            let mut command = out.command([&off, &on][at], test);
            assert!(command.stdout(Stdio::null()).status().unwrap().success());
            out.told("took").unwrap() / 1e9
        });
        bench.table.row(&Row::time(OFF, &samples[0]));
        bench.table.row(&Row::time("with `sites`", &samples[1]).over(&samples[0], OFF));
    }
}
