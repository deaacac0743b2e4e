//! The signature of the bug that childproof is for: runs that are cut by `pkill -9 -f` leave processes. Here the tour's
//! suite and an unchanged test binary under `childproof run` are cut at random moments.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::proof::{Held, each, fixture, tool, trials};
use crate::support::{root, scratch};

const LIMIT: Duration = Duration::from_secs(30);
/// The suite of the tour takes as long.
const LENGTH: u64 = 1500;

/// The tour, built.
fn tour() -> std::path::PathBuf {
    let target = root().join("target/fixtures");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--example", "tour", "--features", "json"]);
    cargo.current_dir(root()).env("CARGO_TARGET_DIR", &target).env_remove("RUSTFLAGS");
    assert!(cargo.status().unwrap().success());
    target.join("debug/examples/tour")
}

/// Random numbers, from a seed that is printed.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    std::env::var("PROOF_SEED").map_or(now, |seed| seed.parse().unwrap())
}

/// Cuts this many runs of a copy of a program by the path of the copy.
fn cut(
    what: &str,
    count: usize,
    start: impl Fn(&std::path::Path) -> Command + Sync,
    program: &std::path::Path,
) {
    let seed = seed();
    println!("{what}: seed {seed}");
    let moments: Vec<(usize, u64)> = (0..count)
        .map(|trial| {
            // SplitMix64 (Steele, Lea, Flood 2014).
            let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(trial as u64 + 1));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (trial, (z ^ (z >> 31)) % LENGTH)
        })
        .collect();
    let left: usize = each(moments, |(trial, moment)| {
        let copy = scratch().join(format!("signature-{}-{what}-{trial}", std::process::id()));
        fs::copy(program, &copy).unwrap();
        let held = Held::start(&start(&copy));
        thread::sleep(Duration::from_millis(moment));
        // It matches harness, tests and forks of tests, and for a command also the tool and its supervisor.
        let pattern = copy.to_str().unwrap();
        let _ = Command::new("pkill").args(["-9", "-f", "--", pattern]).status();
        if held.are_gone(LIMIT) { 0 } else { held.run.marked().len().max(1) }
    })
    .into_iter()
    .sum();
    println!("{what}: {count} runs cut, {left} processes left over all");
    assert_eq!(left, 0);
}

fn check(count: usize) {
    let tour = tour();
    let of_tour = |copy: &std::path::Path| {
        let mut command = Command::new(copy);
        command.env("TOUR_MARK", "signature");
        command
    };
    cut("tour", count, of_tour, &tour);
    let (tool, fixture) = (tool().join("childproof"), fixture());
    let of_tool = |copy: &std::path::Path| {
        let mut command = Command::new(&tool);
        command.args(["run", "--"]).arg(copy);
        command
    };
    cut("run", count, of_tool, fixture.binary("plain"));
}

#[childproof::test(timeout = "600s")]
fn of_cut_runs_is_zero_processes() {
    check(4);
}

#[childproof::test(timeout = "30m")]
#[ignore = "takes a minute: `cargo test --test it -- --ignored --nocapture proof::signature`"]
fn of_twenty_cut_runs_is_zero_processes() {
    check(trials(20));
}
