//! Finds the lines of code that created what a test left: hooks that record calls, and names for the recorded
//! addresses.
//!
//! Uses `config`, `proc` and `sys`. Draws no conclusions.

// The hooks call the function behind them, which is libc's. So libc must be a shared library, in which the
// functions have the same names inside and outside.
pub(crate) mod awaited;
pub(crate) mod call_site;
#[cfg(all(feature = "sites", target_env = "gnu", not(target_feature = "crt-static")))]
mod calls;
#[cfg(feature = "sites")]
mod checkout;
#[cfg(all(feature = "sites", target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) mod hooks;
#[cfg(not(all(feature = "sites", target_env = "gnu", not(target_feature = "crt-static"))))]
#[path = "hooks_off.rs"]
pub(crate) mod hooks;
#[cfg(feature = "sites")]
pub(crate) mod lines;
#[cfg(feature = "__engine")]
pub mod preload;
#[cfg(all(feature = "__engine", target_env = "gnu", not(target_feature = "crt-static")))]
pub mod program_log;
#[cfg(feature = "sites")]
pub(crate) mod runtimes;
#[cfg(feature = "sites")]
pub(crate) mod symbols;
