//! Reads `/proc`. Knows no policy and draws no conclusions.

pub(crate) mod fds;
#[cfg_attr(not(feature = "sites"), expect(dead_code, reason = "only addresses are looked up"))]
pub(crate) mod maps;
pub(crate) mod process;
pub(crate) mod tree;
pub(crate) mod waits;
