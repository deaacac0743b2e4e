//! The promises of childproof, each kept by a test. Read the modules as a list.
//!
//! The suite runs under childproof itself: the outer guard kills any process that a broken guard leaves. The
//! tests run the crates in `tests/fixtures` as a user would.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod adoption;
mod again;
mod annotations;
mod archive;
mod bazel;
mod bombs;
mod command_line;
mod compose;
mod covers;
mod cut;
mod death;
mod debuggers;
mod degraded;
mod elsewhere;
mod evidence;
mod failures;
mod fixtures;
mod foreign;
mod forks;
mod graphs;
mod held;
mod invariants;
mod isolation;
mod junit;
mod keep;
mod lifelines;
mod lines;
mod output;
mod policy;
mod proof;
mod readme;
mod scratch;
mod shapes;
mod shared;
mod sockets;
mod speed;
mod strangers;
mod strays;
mod support;
mod swept;
mod tidy;
mod tools;
mod turns;
mod versions;
mod waits;

childproof::main!();
