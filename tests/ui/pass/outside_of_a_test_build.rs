//! Without `--cfg test` a test vanishes with everything it mentions, as `#[test]` does.
#![forbid(unsafe_code)]
#![deny(warnings, missing_docs)]

/// Stands beside the test of the same name.
pub mod restarts {}

#[childproof::test(timeout = "5s")]
fn restarts() -> Unknown {
    unknown();
}

#[childproof::test]
#[unknown::test]
async fn moved_below_others() {}

#[childproof::guard]
#[unknown::test]
fn guarded() {}

fn main() {
    fn restarts() {}
    restarts();
}
