//! Random trees of processes: a test is clean if and only if nothing of its tree is alive.

use std::fs;
use std::ops::Range;

use serde_json::Value;

use crate::proof::{fixture, trials};
use crate::support::{Run, scratch};

/// Runs these trees, and compares each verdict with what the tree itself has read.
fn check(seeds: Range<u64>) {
    let fixture = fixture();
    let json = scratch().join("trees.json");
    let arguments = ["tree_", "--test-threads=4", "--json", json.to_str().unwrap()];
    let mut command = fixture.command("harness", &arguments);
    command.env("PROOF_TREES", format!("{}..{}", seeds.start, seeds.end));
    let mut run = Run::spawn(command);
    let text = run.finish_within(std::time::Duration::from_secs(7200));
    let (mut clean, mut left, mut processes, mut wrong) = (0, 0, 0, Vec::new());
    for line in fs::read_to_string(&json).unwrap_or_else(|_| panic!("{text}")).lines() {
        let verdict: Value = serde_json::from_str(line).unwrap();
        let seed = verdict["test"].as_str().unwrap().trim_start_matches("tree_").to_owned();
        let Some(alive) = run.told(&format!("tree-{seed}")) else {
            wrong.push(format!("{seed}: not finished: {}", verdict["findings"]));
            continue;
        };
        let mut alive: Vec<i64> = serde_json::from_str(&alive).unwrap();
        alive.sort_unstable();
        let leaked = verdict["processes"].as_array().unwrap().iter();
        let leaked = leaked.filter(|process| process["class"] == "leaked");
        let mut leaked: Vec<i64> = leaked.map(|process| process["pid"].as_i64().unwrap()).collect();
        leaked.sort_unstable();
        let is_clean = verdict["outcome"] == "passed";
        if is_clean != alive.is_empty() || leaked != alive {
            wrong.push(format!("{seed}: {alive:?} alive, {leaked:?} reported, passed: {is_clean}"));
        }
        processes += alive.len();
        *if is_clean { &mut clean } else { &mut left } += 1;
    }
    println!("{seeds:?}: {clean} clean, {left} with {processes} processes left, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}\n{text}", wrong.join("\n"));
    assert_eq!((clean + left) as u64, seeds.end - seeds.start, "{text}");
    assert!(clean > 0 && left > 0, "{clean} clean, {left} not: the trees are too tame");
}

#[childproof::test(timeout = "180s")]
fn are_clean_if_and_only_if_nothing_is_alive() {
    check(0..100);
}

#[childproof::test(timeout = "130m")]
#[ignore = "takes minutes: `PROOF_TRIALS=10000 cargo test --test it -- --ignored --nocapture proof::trees`"]
fn are_clean_if_and_only_if_nothing_is_alive_in_thousands() {
    let first = std::env::var("PROOF_SEED").map_or(1000, |seed| seed.parse().unwrap());
    check(first..first + trials(10_000) as u64);
}
