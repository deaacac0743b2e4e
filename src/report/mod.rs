//! Shows verdicts. Reads no `/proc` and draws no conclusions.

pub(crate) mod escape;
#[cfg(feature = "json")]
pub(crate) mod json;
pub(crate) mod text;
