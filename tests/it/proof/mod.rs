//! The proof that nothing escapes and nothing is blamed wrongly. PLATFORM.md has the figures of the long versions.

mod alarms;

use crate::support::Fixture;

/// The fixture of all of these.
fn fixture() -> Fixture {
    Fixture::build("proof")
}

/// How many trials a long version makes: `PROOF_TRIALS`.
fn trials(otherwise: usize) -> usize {
    std::env::var("PROOF_TRIALS").map_or(otherwise, |count| count.parse().unwrap())
}
