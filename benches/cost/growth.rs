//! What a test's cost grows with, and what it must not grow with.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

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
    Timed::new(fixture::clean(fixture.binary("dynamic")), tests).env("COST_FLOOR", tests)
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
    bench.table.group("more tests, one at a time, debug", "a test, the time of a run of one test taken off");
    let whole =
        interleaved(bench.rounds(7), [1, 10, 100, 1000, 10_000].map(|count| tests(&bench.debug, count, 1)));
    let samples: Vec<Vec<f64>> = (1..)
        .zip(COUNTS)
        .map(|(at, count)| {
            let count = count as f64;
            whole[at].iter().zip(&whole[0]).map(|(run, one)| (run * count - one) / (count - 1.0)).collect()
        })
        .collect();
    bench.table.row(&Row::time("a run of 1 test", &whole[0]));
    for (count, samples_of) in COUNTS.iter().zip(&samples) {
        let row = Row::time(format!("a test of {count}"), samples_of);
        bench.table.row(&match count {
            10_000 => row.over(&samples[1], "a test of 100").reach(1.1),
            _ => row,
        });
    }
}

/// More processes on the machine that have nothing to do with the run.
fn neighbours(bench: &mut Bench) {
    bench.table.group("idle processes on the machine, debug", "the whole command by 500; one test at a time");
    // They cannot be there and not be there in turns; the floor is measured beside each.
    let mut none = Vec::new();
    for count in [0, 500, 2000] {
        let crowd = Crowd::of(count).unwrap();
        let commands = [tests(&bench.debug, 500, 1), floor(&bench.debug, 500)];
        let [guarded, floor] = interleaved(bench.rounds(9), commands);
        drop(crowd);
        let row = Row::time(format!("{count} idle processes"), &guarded);
        let row = match count {
            0 => row,
            2000 => row.over(&none, "0 idle processes").reach(1.05),
            _ => row.over(&none, "0 idle processes"),
        };
        bench.table.row(&row);
        if count == 0 {
            none = guarded;
        }
        bench.table.row(&Row::time(format!("{count} idle processes, {FLOOR}"), &floor));
    }
}

/// Processes that do nothing, and end when this one does.
struct Crowd {
    lifeline: Option<Lifeline>,
    idle: Vec<Child>,
}

impl Crowd {
    fn of(count: usize) -> io::Result<Crowd> {
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

/// What a process has when the run begins.
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
    bench.table.row(&Row::time("200 fds open, two bare forks and waits", &many_floor));
    bench.table.row(&Row::time("64 MB touched", &large).over(&large_floor, FLOOR));
}

/// More tests at once than there are processors.
fn at_once(bench: &mut Bench) {
    bench.table.group("tests at once, debug", "the whole command by 1000");
    let [one, two, eight] =
        interleaved(bench.rounds(9), [1, 2, 8].map(|threads| tests(&bench.debug, 1000, threads)));
    bench.table.row(&Row::time("1 at once", &one));
    bench.table.row(&Row::time("2 at once", &two).over(&one, "1 at once"));
    bench.table.row(&Row::time("8 at once", &eight).over(&one, "1 at once"));
}

/// A binary of 200 MB, a quarter of it data and the rest as debug information is.
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
