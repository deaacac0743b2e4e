//! Detects which kind of target is compiled.
//!
//! rustc drops every `#[test]` unless it was called with `--test`, which cargo leaves out for a target with
//! `harness = false`. No `cfg` tells the two apart. A procedural macro runs in the process of the compiler,
//! whose arguments do.

use std::sync::OnceLock;

/// The kind of the target that is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `#[test]` makes a test.
    Libtest,
    /// `#[test]` is dropped, with all that stands below it.
    OwnHarness,
    /// The process is not a compiler (rust-analyzer has its own for macros), or reads its arguments from a
    /// file.
    Unknown,
}

impl Target {
    /// Reads the arguments of this process.
    pub(crate) fn of_this_compilation() -> Target {
        static TARGET: OnceLock<Target> = OnceLock::new();
        let arguments =
            || std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
        *TARGET.get_or_init(|| Target::of(&arguments().collect::<Vec<_>>()))
    }

    fn of(arguments: &[String]) -> Target {
        let has = |wanted: fn(&str) -> bool| arguments.iter().any(|argument| wanted(argument));
        let is_compiler = has(|argument| argument == "--crate-name" || argument.starts_with("--crate-name="));
        if !is_compiler || has(|argument| argument.starts_with('@')) {
            Target::Unknown
        } else if has(|argument| argument == "--test") {
            Target::Libtest
        } else {
            Target::OwnHarness
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_known_by_the_arguments_of_its_compiler() {
        let of = |line: &str| Target::of(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("--crate-name a --edition=2024 a.rs --test"), Target::Libtest);
        assert_eq!(of("rustc --crate-name=a a.rs --test"), Target::Libtest);
        assert_eq!(of("--crate-name a --edition=2024 a.rs --cfg test"), Target::OwnHarness);
        assert_eq!(of("--crate-name a @arguments"), Target::Unknown);
        assert_eq!(of(""), Target::Unknown);
        assert_eq!(of("--test"), Target::Unknown);
    }

    #[test]
    fn the_arguments_of_this_process_are_no_compilers() {
        assert_eq!(Target::of_this_compilation(), Target::Unknown);
    }
}
