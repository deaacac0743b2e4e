//! Shows verdicts. Reads no `/proc` and draws no conclusions.

pub(crate) mod annotations;
pub(crate) mod escape;
#[cfg(feature = "json")]
pub(crate) mod json;
#[cfg(feature = "junit")]
pub(crate) mod junit;
pub(crate) mod text;
