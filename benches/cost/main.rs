//! What a guarded test costs, beside what else there is: `cargo bench`.
//!
//! Prints one table. What stands in one group was run in turns, round after round, so that the
//! ratios hold on a machine that is disturbed; the times themselves do not.
//!
//! `cargo bench -- --quick` takes a minute where the fixtures are built. Words select groups:
//! `cargo bench -- death memory`.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod a_test;
mod fixture;
mod footprint;
mod growth;
mod measure;
mod table;
mod trouble;

use fixture::{Fixture, Profile};
use table::Table;

/// What every group needs.
struct Bench {
    table: Table,
    /// The crate `cost`, with debug information and assertions.
    debug: Fixture,
    quick: bool,
}

impl Bench {
    /// How often something is done: `full` times, or a few.
    fn rounds(&self, full: usize) -> usize {
        if self.quick { (full / 8).max(1) } else { full }
    }
}

type Group = fn(&mut Bench);

/// The groups by the words that select them.
const GROUPS: [(&str, Group); 9] = [
    ("test", a_test::debug),
    ("release", a_test::release),
    ("growth", growth::growth),
    ("size", growth::size),
    ("teardown", trouble::teardown),
    ("death", trouble::death),
    ("diagnosis", trouble::diagnosis),
    ("memory", footprint::memory),
    ("build", footprint::build),
];

/// What needs builds of its own, and takes minutes.
const SLOW: [&str; 4] = ["release", "size", "diagnosis", "build"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this too, and means: see that it starts.
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
