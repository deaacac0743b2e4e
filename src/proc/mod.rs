//! Reads `/proc`. Knows no policy and draws no conclusions.

pub(crate) mod fds;
#[cfg_attr(
    not(all(feature = "sites", target_env = "gnu", not(target_feature = "crt-static"))),
    allow(dead_code, reason = "only recorded addresses are looked up")
)]
pub(crate) mod maps;
pub(crate) mod process;
pub(crate) mod tree;
pub(crate) mod waits;
