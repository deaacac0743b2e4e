//! Measures what a guarded test costs, compared with alternatives: `cargo bench`.
//!
//! Prints one table. The rows of a group are measured in turns, round after round, so that their ratios hold
//! even on a busy machine; the times themselves do not.
//!
//! `cargo bench -- --quick` takes a minute once the fixtures are built. Words select groups: `cargo bench --
//! death memory`.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod a_test;
mod fixture;
mod footprint;
mod growth;
mod measure;
mod shared;
mod table;
mod trouble;

use fixture::{Fixture, Profile};
use table::Table;

/// The state that every group uses.
struct Bench {
    table: Table,
    /// The crate `cost`, with debug information and assertions.
    debug: Fixture,
    quick: bool,
}

impl Bench {
    /// The number of repetitions: `full`, or a few with `--quick`.
    fn rounds(&self, full: usize) -> usize {
        if self.quick { (full / 8).max(1) } else { full }
    }
}

type Group = fn(&mut Bench);

/// The groups, with the words that select them.
const GROUPS: [(&str, Group); 11] = [
    ("test", a_test::debug),
    ("release", a_test::release),
    ("shared", shared::shared),
    ("growth", growth::growth),
    ("size", growth::size),
    ("teardown", trouble::teardown),
    ("death", trouble::death),
    ("diagnosis", trouble::diagnosis),
    ("memory", footprint::memory),
    ("build", footprint::build),
    ("binary", footprint::binary),
];

/// Groups that need builds of their own and take minutes.
const SLOW: [&str; 5] = ["release", "size", "diagnosis", "build", "binary"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this too, only to check that it starts.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("to measure, run `cargo bench`");
        return;
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with("--")).collect();
    for word in &words {
        let known = GROUPS.iter().any(|(name, _)| name == word);
        assert!(known, "no group `{word}`: there are {:?}", GROUPS.map(|(name, _)| name));
    }
    let debug = Fixture::build("cost", Profile::Debug, &[]).unwrap().keep("debug");
    let mut bench = Bench { table: Table::new(), debug, quick };
    for (name, group) in GROUPS {
        let chosen = if words.is_empty() {
            !(quick && SLOW.contains(&name))
        } else {
            words.iter().any(|word| *word == name)
        };
        if chosen {
            group(&mut bench);
        }
    }
    bench.table.finish();
}
