//! Reads `/proc`. Knows no policy and draws no conclusions.

pub(crate) mod fds;
#[expect(dead_code, reason = "for waits and creation sites")]
pub(crate) mod maps;
pub(crate) mod process;
pub(crate) mod tree;
pub(crate) mod waits;
