//! Test runners, by the variables that they put into the environment of what they start.

use std::collections::HashMap;
use std::fs;

use crate::sys::Pid;

/// A variable of a test runner in the environment of what it starts.
pub(super) struct Variable {
    pub(super) name: &'static str,
    /// Whether the value names the running test.
    is_test: bool,
    /// Whether it shows that a runner has started a process. Others are set by users too.
    #[cfg_attr(not(feature = "__engine"), allow(dead_code, reason = "only the tool asks for it"))]
    pub(super) is_evidence: bool,
}

const fn of_test(name: &'static str) -> Variable {
    Variable { name, is_test: true, is_evidence: true }
}

const fn of_run(name: &'static str) -> Variable {
    Variable { name, is_test: false, is_evidence: true }
}

/// The variables, the most specific one first.
pub(super) const VARIABLES: [Variable; 16] = [
    of_test("PYTEST_CURRENT_TEST"),
    of_test("NEXTEST_TEST_NAME"),
    of_test("BATS_TEST_DESCRIPTION"),
    of_test("BATS_TEST_NAME"),
    Variable { name: "GTEST_FILTER", is_test: true, is_evidence: false },
    of_run("NEXTEST_RUN_ID"),
    Variable { name: "NEXTEST", is_test: false, is_evidence: false },
    of_run("PYTEST_XDIST_WORKER"),
    of_run("BATS_TEST_FILENAME"),
    Variable { name: "GTEST_SHARD_INDEX", is_test: false, is_evidence: false },
    of_run("JEST_WORKER_ID"),
    of_run("VITEST_WORKER_ID"),
    Variable { name: "TEST_TARGET", is_test: false, is_evidence: false },
    of_run("MESON_TEST_ITERATION"),
    of_run("CARGO_MANIFEST_DIR"),
    of_run("CARGO_PKG_NAME"),
];

/// The environment that a process was started with; `None` if it may not be read.
pub(crate) fn environment(pid: Pid) -> Option<HashMap<String, String>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let entries = bytes.split(|byte| *byte == 0).filter_map(|entry| {
        let entry = String::from_utf8_lossy(entry);
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    // Of two with one name the first counts (getenv(3)).
    let mut environment = HashMap::new();
    for (name, value) in entries {
        environment.entry(name).or_insert(value);
    }
    Some(environment)
}

/// The name of the test that started a process, if its runner has put it into the environment.
pub(crate) fn test(environment: &HashMap<String, String>) -> Option<String> {
    let mut names = VARIABLES.iter().filter(|variable| variable.is_test).map(|variable| variable.name);
    let name = names.find_map(|name| environment.get(name).filter(|value| !value.is_empty()))?;
    // pytest appends the phase of the test.
    let phases = [" (setup)", " (call)", " (teardown)"];
    let plain = phases.iter().find_map(|phase| name.strip_suffix(phase)).unwrap_or(name);
    Some(plain.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::test;

    fn environment(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_test_is_named_by_the_variable_of_its_runner() {
        let named = |entries: &[(&str, &str)]| test(&environment(entries));
        let pytest = [("A", "1"), ("PYTEST_CURRENT_TEST", "tests/test_a.py::test_b (call)")];
        assert_eq!(named(&pytest).as_deref(), Some("tests/test_a.py::test_b"));
        assert_eq!(named(&[("NEXTEST", "1"), ("NEXTEST_TEST_NAME", "a::b")]).as_deref(), Some("a::b"));
        assert_eq!(named(&[("XNEXTEST_TEST_NAME", "a"), ("NEXTEST", "1"), ("NEXTEST_TEST_NAME", "")]), None);
        assert_eq!(named(&[]), None);
    }
}
