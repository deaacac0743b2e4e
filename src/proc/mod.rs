//! Reads `/proc`. Knows no policy and draws no conclusions.

pub(crate) mod fds;
pub(crate) mod process;
pub(crate) mod tree;
pub(crate) mod waits;
