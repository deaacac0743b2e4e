//! The settings of a run: the policy of a test, options, environment, and the registry of tests.
//!
//! Uses `sys` alone. Reads no `/proc` and starts nothing.

pub(crate) mod bazel;
pub(crate) mod isolation;
pub(crate) mod options;
pub(crate) mod policy;
pub(crate) mod printable;
pub(crate) mod registry;
