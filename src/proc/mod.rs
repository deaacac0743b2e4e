//! Reads `/proc`. Knows no policy and draws no conclusions.

pub(crate) mod fds;
#[cfg(test)]
mod fuzz;
pub(crate) mod maps;
pub(crate) mod process;
pub(crate) mod sockets;
pub(crate) mod tree;
#[cfg(feature = "sites")]
pub(crate) mod unwind;
pub(crate) mod waits;
