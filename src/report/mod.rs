//! Turns findings into text, JSON, JUnit XML and annotations: the only room that writes English.
//!
//! Reads no `/proc` and draws no conclusions.

mod allow;
pub(crate) mod annotations;
pub(crate) mod escape;
pub(crate) mod failure;
#[cfg(feature = "__engine")]
pub(crate) mod inspection;
#[cfg(feature = "json")]
pub(crate) mod json;
#[cfg(feature = "junit")]
pub(crate) mod junit;
pub(crate) mod leftovers;
mod remedy;
mod sentence;
pub(crate) mod summary;
pub(crate) mod text;
#[cfg(feature = "__engine")]
mod unrecorded;
pub(crate) mod words;
