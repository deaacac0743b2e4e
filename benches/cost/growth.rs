//! How the cost of a test grows, and with what it must not grow.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use childproof::Lifeline;

use crate::Bench;
use crate::fixture::{self, Fixture, Profile};
use crate::measure::{Timed, interleaved};
use crate::table::Row;

const FLOOR: &str = "two bare forks and waits";

fn tests(fixture: &Fixture, tests: usize, threads: usize) -> Timed {
    let mut command = fixture::clean(fixture.binary("dynamic"));
    command.args(["-q", &format!("--test-threads={threads}")]);
    Timed::new(command, tests).env("COST_TESTS", tests)
}

fn floor(fixture: &Fixture, tests: usize) -> Timed {
    let command = fixture::clean(fixture.binary("dynamic"));
    Timed::new(command, tests).env("COST_FLOOR", tests).env("COST_TESTS", tests)
}

pub(crate) fn growth(bench: &mut Bench) {
    count(bench);
    neighbours(bench);
    found(bench);
    at_once(bench);
}

/// More tests.
fn count(bench: &mut Bench) {
    const COUNTS: [usize; 4] = [10, 100, 1000, 10_000];
    bench.table.group(
        "more tests, debug",
        "the whole command without that of a run of one test; one test at a time, made by hand",
    );
    let (run, bare) = (|count| tests(&bench.debug, count, 1), |count| floor(&bench.debug, count));
    let [one, ten, hundred, thousand, many, few_bare, many_bare] = interleaved(
        bench.rounds(9),
        [run(1), run(10), run(100), run(1000), run(10_000), bare(100), bare(10_000)],
    );
    let without_start = |(count, run): (usize, Vec<f64>)| -> Vec<f64> {
        let count = count as f64;
        run.iter().zip(&one).map(|(run, one)| (run * count - one) / (count - 1.0)).collect()
    };
    let runs: Vec<Vec<f64>> =
        COUNTS.into_iter().zip([ten, hundred, thousand, many]).map(without_start).collect();
    bench.table.row(&Row::time("a run of 1 test", &one));
    for (count, run) in COUNTS.iter().zip(&runs) {
        let row = Row::time(format!("a test of {count}"), run);
        bench.table.row(&match count {
            10_000 => row.over(&runs[1], "a test of 100").reach(1.1),
            _ => row,
        });
    }
    let row = Row::time(format!("{FLOOR}, 10000 tests"), &many_bare);
    bench.table.row(&row.over(&few_bare, "the same with 100"));
}

/// More unrelated processes on the machine.
fn neighbours(bench: &mut Bench) {
    bench.table.group("idle processes on the machine, debug", "the whole command by 500; one test at a time");
    const COUNTS: [usize; 3] = [0, 500, 2000];
    let mut guarded = [const { Vec::new() }; COUNTS.len()];
    let mut bare = guarded.clone();
    for _ in 0..bench.rounds(7) {
        for (at, count) in COUNTS.into_iter().enumerate() {
            let crowd = Crowd::of(count).unwrap();
            // They are idle once each has begun to read.
            thread::sleep(Duration::from_millis(300));
            let commands = [tests(&bench.debug, 500, 1), floor(&bench.debug, 500)];
            let samples = interleaved(2, commands);
            guarded[at].extend_from_slice(&samples[0]);
            bare[at].extend_from_slice(&samples[1]);
            drop(crowd);
        }
    }
    let none = "0 idle processes";
    bench.table.row(&Row::time(none, &guarded[0]));
    bench.table.row(&Row::time("500 idle processes", &guarded[1]).over(&guarded[0], none));
    let row = Row::time("2000 idle processes", &guarded[2]);
    bench.table.row(&row.over(&guarded[0], none).reach(1.05));
    bench.table.row(&Row::time(format!("{FLOOR}, 2000 idle"), &bare[2]).over(&bare[0], "the same with 0"));
}

/// Idle processes that exit when this one does.
pub(crate) struct Crowd {
    lifeline: Option<Lifeline>,
    idle: Vec<Child>,
}

impl Crowd {
    pub(crate) fn of(count: usize) -> io::Result<Crowd> {
        let (lifeline, watch) = Lifeline::new()?;
        let watch = OwnedFd::from(watch);
        let idle = (0..count).map(|_| Command::new("cat").stdin(Stdio::from(watch.try_clone()?)).spawn());
        Ok(Crowd { idle: idle.collect::<io::Result<_>>()?, lifeline: Some(lifeline) })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.lifeline = None;
        for child in &mut self.idle {
            child.wait().unwrap();
        }
    }
}

/// More fds and memory in the process before the run.
fn found(bench: &mut Bench) {
    bench
        .table
        .group("open and touched before the run, debug", "the whole command by 500; one test at a time");
    let with = |fds: usize| tests(&bench.debug, 500, 1).env("COST_FDS", fds);
    let touched = |megabytes: usize| tests(&bench.debug, 500, 1).env("COST_TOUCH", megabytes);
    let [three, twenty, many, many_floor, large, large_floor] = interleaved(
        bench.rounds(9),
        [
            with(3),
            with(20),
            with(200),
            floor(&bench.debug, 500).env("COST_FDS", 200),
            touched(64),
            floor(&bench.debug, 500).env("COST_TOUCH", 64),
        ],
    );
    bench.table.row(&Row::time("3 fds open", &three));
    bench.table.row(&Row::time("20 fds open", &twenty).over(&three, "3 fds open"));
    bench.table.row(&Row::time("200 fds open", &many).over(&three, "3 fds open").reach(1.5));
    bench.table.row(&Row::time(format!("{FLOOR}, 200 fds open"), &many_floor));
    bench.table.row(&Row::time("64 MB touched", &large).over(&large_floor, FLOOR));
}

/// More parallel tests than processors.
fn at_once(bench: &mut Bench) {
    bench.table.group("tests at once, debug", "the whole command by 1000");
    let [one, two, eight] =
        interleaved(bench.rounds(9), [1, 2, 8].map(|threads| tests(&bench.debug, 1000, threads)));
    bench.table.row(&Row::time("1 at once", &one));
    bench.table.row(&Row::time("2 at once", &two).over(&one, "1 at once"));
    bench.table.row(&Row::time("8 at once", &eight).over(&one, "1 at once"));
}

/// A binary of 200 MB, a quarter of it mapped data and the rest unmapped, like debug information.
pub(crate) fn size(bench: &mut Bench) {
    bench.table.group("size of the binary", "the whole command by 500; one test at a time");
    fixture::make_bulk();
    let large = Fixture::build("cost", Profile::Debug, &["--test=dynamic", "--features=bulk"]);
    let large = match large {
        Ok(large) => large.keep("bulk"),
        Err(error) => return bench.table.skip("a binary of 200 MB", &error),
    };
    let name = |fixture: &Fixture| {
        let bytes = std::fs::metadata(fixture.binary("dynamic")).map_or(0, |found| found.len());
        format!("a binary of {} MB", bytes >> 20)
    };
    let commands =
        [tests(&bench.debug, 500, 1), tests(&large, 500, 1), floor(&bench.debug, 500), floor(&large, 500)];
    let [small_run, large_run, small_floor, large_floor] = interleaved(bench.rounds(9), commands);
    bench.table.row(&Row::time(name(&bench.debug), &small_run).over(&small_floor, FLOOR));
    bench.table.row(&Row::time(name(&large), &large_run).over(&small_run, "the small one"));
    bench.table.row(
        &Row::time(format!("{}, {FLOOR}", name(&large)), &large_floor).over(&small_floor, "the small one's"),
    );
}
