//! The promises of childproof, each kept by a test. Read the modules as a list.
//!
//! The suite runs under childproof itself: whatever a broken guard lets go in here, the outer
//! guard ends. The tests drive the crates in `tests/fixtures` as a user would.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod again;
mod annotations;
mod command_line;
mod compose;
mod death;
mod degraded;
mod forks;
mod graphs;
mod invariants;
mod junit;
mod lines;
mod output;
mod policy;
mod readme;
mod shapes;
mod sockets;
mod speed;
mod support;
mod turns;
mod waits;

childproof::main!();
