//! The memory that a run takes, the size of a binary, and the time of a build.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Instant, SystemTime};

use crate::Bench;
use crate::fixture::{self, Fixture, Profile};
use crate::measure::side_by_side;
use crate::table::Row;
use crate::trouble::Out;

/// Eight tests that wait, at the same time.
pub(crate) fn memory(bench: &mut Bench) {
    bench.table.group("memory, eight tests at once, debug", "PSS: a page that n processes share counts 1/n");
    let out = Out::new();
    let mut command = out.command(&bench.debug, "waits::");
    command.args(["--test-threads=8"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut harness = command.spawn().unwrap();
    let pid = harness.id();
    let names = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    let tests: Vec<u32> = names.iter().map(|name| out.wait_for(name) as u32).collect();
    let supervisors: Vec<u32> = tests.iter().map(|test| parent(*test)).collect();
    let server = parent(supervisors[0]);
    let of = |pids: &[u32]| -> Vec<f64> { pids.iter().map(|pid| pss(*pid)).collect() };
    bench.table.row(&Row::memory("the harness", &of(&[pid])));
    bench.table.row(&Row::memory("the fork server", &of(&[server])));
    bench.table.row(&Row::memory("a supervisor", &of(&supervisors)).at_most(1024.0 * 1024.0));
    bench.table.row(&Row::memory("a test process", &of(&tests)));
    harness.kill().unwrap();
    harness.wait().unwrap();
}

fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(1).unwrap().parse().unwrap()
}

fn pss(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024.0
}

pub(crate) fn build(bench: &mut Bench) {
    bench.table.group(
        "a clean build with one dev-dependency, debug",
        "`cargo test --no-run` with nothing built before",
    );
    let crates = ["bare-mimic", "bare-childproof"];
    // Run once first, so that downloads are not timed.
    for name in crates {
        clean_build(name);
    }
    let samples = side_by_side(bench.rounds(3), 2, |at| clean_build(crates[at]));
    bench.table.row(&Row::time("libtest-mimic", &samples[0]));
    let row = Row::time("childproof", &samples[1]);
    bench.table.row(&row.over(&samples[0], "libtest-mimic").reach(1.6));

    bench
        .table
        .group("a thousand attributes", "`cargo check` of a target of a thousand tests, all else built");
    let targets = ["libtest", "stock"];
    for target in targets {
        check(target);
    }
    let samples = side_by_side(bench.rounds(5), 2, |at| check(targets[at]));
    bench.table.row(&Row::time("#[test]", &samples[0]));
    bench.table.row(&Row::time("#[childproof::test]", &samples[1]).over(&samples[0], "#[test]"));
}

/// The size of a test binary.
pub(crate) fn binary(bench: &mut Bench) {
    bench.table.group(
        "a test binary with one dev-dependency and one test",
        "the file, most of which is debug information in a debug build; and what of it is mapped when it runs",
    );
    for (profile, built) in [(Profile::Debug, "debug"), (Profile::Release, "release")] {
        let sizes = ["bare-mimic", "bare-childproof"].map(|name| {
            let fixture = Fixture::build(name, profile, &[]);
            fixture.map(|fixture| fs::read(fixture.binary("one")).unwrap())
        });
        let [Ok(mimic), Ok(childproof)] = &sizes else {
            bench.table.skip(&format!("a test binary, {built}"), "a fixture cannot be built");
            continue;
        };
        for (what, size) in [("file", <[u8]>::len as fn(&[u8]) -> usize), ("mapped", mapped)] {
            let [mimic, childproof] = [mimic, childproof].map(|binary| [size(binary) as f64]);
            let of = |name: &str| format!("{name}, {built}, {what}");
            bench.table.row(&Row::memory(of("libtest-mimic"), &mimic));
            bench.table.row(&Row::memory(of("childproof"), &childproof).over(&mimic, "libtest-mimic"));
        }
    }
}

/// How many bytes of an ELF file (64-bit, elf(5)) are mapped when it runs.
fn mapped(file: &[u8]) -> usize {
    const LOAD: u64 = 1;
    let number = |at: usize, length: usize| {
        file[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let (first, size, count) = (number(32, 8) as usize, number(54, 2) as usize, number(56, 2) as usize);
    let headers = (0..count).map(|header| first + header * size);
    headers.filter(|at| number(*at, 4) == LOAD).map(|at| number(at + 32, 8) as usize).sum()
}

/// The time of a build from an empty target directory, in seconds.
fn clean_build(name: &str) -> f64 {
    let target = fixture::target().join("clean");
    let _ = fs::remove_dir_all(&target);
    let mut command = fixture::cargo(name, "test");
    // A crate from a registry is never built incrementally; by path it would be, and take a quarter longer.
    command.args(["--no-run", "--quiet"]).env("CARGO_TARGET_DIR", &target).env("CARGO_INCREMENTAL", "0");
    let begin = Instant::now();
    assert!(command.status().unwrap().success());
    begin.elapsed().as_secs_f64()
}

/// The time of a `cargo check` of one target of the fixture, in seconds.
fn check(target: &str) -> f64 {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = source.join("benches/fixtures/cost/tests").join(target).with_extension("rs");
    File::options().append(true).open(source).unwrap().set_modified(SystemTime::now()).unwrap();
    let mut command = fixture::cargo("cost", "check");
    command.args(["--quiet", &format!("--test={target}")]).env("CARGO_INCREMENTAL", "0");
    let begin = Instant::now();
    assert!(command.status().unwrap().success());
    begin.elapsed().as_secs_f64()
}
