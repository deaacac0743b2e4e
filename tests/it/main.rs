//! The promises of childproof, each kept by a test. Read the modules as a list.
//!
//! The suite runs under childproof itself: whatever a broken guard lets go in here, the outer
//! guard ends. The tests drive the crates in `tests/fixtures` as a user would.

mod death;
mod invariants;
mod shapes;
mod support;

childproof::main!();
