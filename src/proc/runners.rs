//! Test runners, by the variables that they put into the environment of what they start.

use std::collections::HashMap;
use std::fs;

use crate::sys::Pid;

/// The variables of test runners in the environment of what they start, the most specific one first, and
/// whether the value names the running test.
pub(super) const RUNNERS: [(&str, bool); 16] = [
    ("PYTEST_CURRENT_TEST", true),
    ("NEXTEST_TEST_NAME", true),
    ("BATS_TEST_DESCRIPTION", true),
    ("BATS_TEST_NAME", true),
    ("GTEST_FILTER", true),
    ("NEXTEST_RUN_ID", false),
    ("NEXTEST", false),
    ("PYTEST_XDIST_WORKER", false),
    ("BATS_TEST_FILENAME", false),
    ("GTEST_SHARD_INDEX", false),
    ("JEST_WORKER_ID", false),
    ("VITEST_WORKER_ID", false),
    ("TEST_TARGET", false),
    ("MESON_TEST_ITERATION", false),
    ("CARGO_MANIFEST_DIR", false),
    ("CARGO_PKG_NAME", false),
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
    let mut names = RUNNERS.iter().filter(|(_, is_test)| *is_test).map(|(name, _)| name);
    let name = names.find_map(|name| environment.get(*name).filter(|value| !value.is_empty()))?;
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
