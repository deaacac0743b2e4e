//! Which test runners there are: the variables and the programs that each of them is known by.

use std::collections::HashMap;

use super::runners::VARIABLES;

/// A test runner.
#[derive(PartialEq, Eq)]
pub(crate) struct Runner {
    /// How the names of its variables begin.
    prefix: &'static str,
    /// The variables that have another value in each run (of cargo: in each package).
    pub(crate) ids: &'static [&'static str],
    /// How the names of its programs begin.
    programs: &'static [&'static str],
}

/// cargo itself, whose target folder shows it too.
pub(crate) const CARGO: Runner =
    Runner { prefix: "CARGO_", ids: &["CARGO_MANIFEST_DIR"], programs: &["cargo", "nextest"] };
static RUNNERS: [Runner; 7] = [
    Runner { prefix: "NEXTEST", ids: &["NEXTEST_RUN_ID"], programs: &["cargo-nextest", "nextest"] },
    Runner {
        prefix: "PYTEST_",
        ids: &["PYTEST_XDIST_TESTRUNUID"],
        programs: &["pytest", "py.test", "python", "pypy"],
    },
    Runner { prefix: "BATS_", ids: &["BATS_RUN_TMPDIR", "BATS_ROOT_PID"], programs: &["bats"] },
    Runner { prefix: "JEST_", ids: &[], programs: &["node", "jest", "bun"] },
    Runner { prefix: "VITEST_", ids: &[], programs: &["node", "vitest", "bun"] },
    Runner { prefix: "MESON_TEST_", ids: &[], programs: &["meson", "ninja"] },
    CARGO,
];
/// How the names of other programs begin that run tests, and whose own environment does not show it.
const OTHERS: [&str; 4] = ["go", "ctest", "make", "bazel"];

impl Runner {
    /// Whether one of its variables is there by which a process counts as its.
    pub(crate) fn has_variable(&self, environment: &HashMap<String, String>) -> bool {
        let mut own = VARIABLES.iter().filter(|variable| variable.name.starts_with(self.prefix));
        own.any(|variable| environment.contains_key(variable.name))
            || self.ids.iter().any(|name| environment.contains_key(*name))
    }

    /// Whether a program of this name is one of its.
    pub(crate) fn has_program(&self, name: &str) -> bool {
        self.programs.iter().any(|own| name.starts_with(own))
    }
}

/// The runners of which a process has a variable.
pub(crate) fn of(environment: &HashMap<String, String>) -> impl Iterator<Item = &'static Runner> {
    RUNNERS.iter().filter(|runner| runner.has_variable(environment))
}

/// Whether a program of this name runs tests, of whichever kind.
pub(crate) fn is_runner(name: &str) -> bool {
    RUNNERS.iter().any(|runner| runner.has_program(name))
        || OTHERS.iter().any(|other| name.starts_with(other))
}

/// Whether a variable of any runner is there, be it one that users set too.
pub(crate) fn has_any_variable(environment: &HashMap<String, String>) -> bool {
    VARIABLES.iter().any(|variable| environment.contains_key(variable.name))
}
