//! The cost of one trivial test: a thousand of them, divided.

use std::path::Path;
use std::process::Command;

use crate::Bench;
use crate::fixture::{self, Fixture, Profile};
use crate::measure::{Timed, side_by_side};
use crate::table::Row;

const TESTS: usize = 1000;

pub(crate) fn debug(bench: &mut Bench) {
    let fixture = Fixture::build("cost", Profile::Debug, &[]).unwrap().keep("debug");
    compare(bench, &fixture, Profile::Debug);
}

pub(crate) fn release(bench: &mut Bench) {
    match Fixture::build("cost", Profile::Release, &[]) {
        Ok(fixture) => compare(bench, &fixture.keep("release"), Profile::Release),
        Err(error) => bench.table.skip("the same in release", &error),
    }
}

const FLOOR: &str = "two forks and waits, in C";
const FORKS: &str = "two forks and waits, in the test binary";
const ALONE: &str = "childproof, `harness = false`";
const STOCK: &str = "childproof, stock target";
const NEXTEST: &str = "cargo nextest run";
const FORK: &str = "test-fork";
const LIBTEST: &str = "libtest, threads of one process";

fn compare(bench: &mut Bench, fixture: &Fixture, profile: Profile) {
    let built = if profile == Profile::Debug { "debug" } else { "release" };
    let program = fixture::build_floor();
    let fork = Fixture::build("test-fork", profile, &[]);
    let nextest = Nextest::find(profile);
    for threads in [1, 2] {
        let how = if threads == 1 { "one at a time" } else { "two at once" };
        bench.table.group(
            &format!("a trivial test, {how}, {built}"),
            &format!(
                "the whole command, start-up and end included, by {TESTS}. nextest has its list of \
                 binaries and cargo's metadata given, so that nothing is built or looked for"
            ),
        );
        let harness = |binary: &Path| {
            let mut command = fixture::clean(binary);
            command.args(["-q", &format!("--test-threads={threads}")]);
            Timed::new(command, TESTS)
        };
        let mut floor = fixture::clean(&program);
        floor.args([TESTS, threads].map(|number| number.to_string()));
        let forks = Timed::new(fixture::clean(fixture.binary("harness")), TESTS)
            .env("COST_FLOOR", TESTS)
            .env("COST_THREADS", threads);
        let mut names = vec![FLOOR, ALONE, FORKS, STOCK, LIBTEST];
        let mut commands = vec![
            Timed::new(floor, TESTS),
            harness(fixture.binary("harness")),
            forks,
            harness(fixture.binary("stock")),
            harness(fixture.binary("libtest")),
        ];
        match &fork {
            Ok(fork) => {
                names.push(FORK);
                commands.push(harness(fork.binary("fork")));
            }
            Err(error) => bench.table.skip(FORK, error),
        }
        match &nextest {
            Ok(nextest) => {
                names.push(NEXTEST);
                commands.push(nextest.run(threads));
            }
            Err(error) => bench.table.skip(NEXTEST, error),
        }
        let samples = side_by_side(bench.rounds(9), commands.len(), |at| commands[at].run());
        let of = |name| names.iter().position(|known| *known == name).map(|at| &samples[at]);
        let (floor, alone) = (&samples[0], &samples[1]);
        for (name, samples) in names.iter().zip(&samples) {
            let row = Row::time(*name, samples);
            bench.table.row(&match *name {
                FLOOR => row,
                ALONE if threads == 1 => row.over(floor, FLOOR).reach(1.4),
                STOCK => row.over(alone, ALONE).reach(1.3),
                _ => row.over(floor, FLOOR),
            });
        }
        if let Some(nextest) = of(NEXTEST) {
            bench.table.row(&Row::time(ALONE, alone).over(nextest, NEXTEST).reach(0.12));
        }
    }
}

/// nextest with a list of binaries that is made before, so that neither a build nor the check for one is
/// timed.
struct Nextest {
    profile: Profile,
}

impl Nextest {
    fn find(profile: Profile) -> Result<Nextest, String> {
        let nextest = Nextest { profile };
        let say = |output: std::process::Output| {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(output.stdout) } else { Err(text) }
        };
        let mut list = fixture::cargo("cost", "nextest");
        list.args(["list", "--test=libtest", "--list-type=binaries-only", "--message-format=json"]);
        if profile == Profile::Release {
            list.arg("--release");
        }
        let mut metadata = fixture::cargo("cost", "metadata");
        metadata.arg("--format-version=1");
        for (what, mut command) in [("binaries", list), ("metadata", metadata)] {
            let json = command.output().map_err(|error| error.to_string()).and_then(say)?;
            std::fs::write(nextest.path(what), json).unwrap();
        }
        Ok(nextest)
    }

    fn path(&self, what: &str) -> std::path::PathBuf {
        let built = if self.profile == Profile::Debug { "debug" } else { "release" };
        fixture::target().join(format!("nextest-{built}-{what}.json"))
    }

    fn run(&self, threads: usize) -> Timed {
        let mut command: Command = fixture::cargo("cost", "nextest");
        command.arg("run").arg("--binaries-metadata").arg(self.path("binaries"));
        command.arg("--cargo-metadata").arg(self.path("metadata"));
        command.arg(format!("--test-threads={threads}"));
        command.args(["--status-level=none", "--final-status-level=none", "--show-progress=none"]);
        Timed::new(command, TESTS)
    }
}
