//! The variables by which Bazel talks to a test, as its test encyclopedia has them.
//!
//! <https://bazel.build/reference/test-encyclopedia>
//!
//! They are meant for the program that Bazel starts, so they are not passed on to the tests of a `harness = false`
//! target: a harness that a test starts must run all of its tests, and must not replace the files of the outer one.
//! `TEST_TMPDIR` is passed on, since it says where any process may write.

use std::collections::HashSet;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::policy::BadValue;

const TOTAL_SHARDS: &str = "TEST_TOTAL_SHARDS";
const SHARD_INDEX: &str = "TEST_SHARD_INDEX";
/// The file whose existence says that the harness shards.
pub(crate) const SHARD_STATUS_FILE: &str = "TEST_SHARD_STATUS_FILE";
/// The file that exists while tests run.
pub(crate) const PREMATURE_EXIT_FILE: &str = "TEST_PREMATURE_EXIT_FILE";
/// The file to which warnings are appended.
pub(crate) const WARNINGS_FILE: &str = "TEST_WARNINGS_OUTPUT_FILE";
/// Where JUnit's XML is written.
pub(crate) const XML_FILE: &str = "XML_OUTPUT_FILE";
/// `bazel test --test_filter`.
const TEST_ONLY: &str = "TESTBRIDGE_TEST_ONLY";
/// `bazel test --test_runner_fail_fast`, from Bazel's user manual.
const FAIL_FAST: &str = "TESTBRIDGE_TEST_RUNNER_FAIL_FAST";
/// The directory in which a test may write.
const TMPDIR: &str = "TEST_TMPDIR";

const NOT_PASSED_ON: [&str; 8] = [
    TOTAL_SHARDS,
    SHARD_INDEX,
    SHARD_STATUS_FILE,
    PREMATURE_EXIT_FILE,
    WARNINGS_FILE,
    XML_FILE,
    TEST_ONLY,
    FAIL_FAST,
];
/// The same shards in the words of GoogleTest: Bazel's `test-setup.sh` sets them beside its own.
const OF_GOOGLETEST: [&str; 3] = ["GTEST_TOTAL_SHARDS", "GTEST_SHARD_INDEX", "GTEST_SHARD_STATUS_FILE"];

/// The variables that tests do not get.
pub(crate) fn not_passed_on() -> impl Iterator<Item = &'static str> {
    let is_sharded = std::env::var_os(TOTAL_SHARDS).is_some();
    NOT_PASSED_ON.into_iter().chain(OF_GOOGLETEST.into_iter().filter(move |_| is_sharded))
}

/// The directory for temporary files: `TEST_TMPDIR`, or `TMPDIR` if that lies in it, as in a test of a guarded run.
pub(crate) fn temp_dir() -> PathBuf {
    within(std::env::var_os(TMPDIR), std::env::temp_dir())
}

fn within(of_bazel: Option<OsString>, usual: PathBuf) -> PathBuf {
    match of_bazel.filter(|path| !path.is_empty()).map(PathBuf::from) {
        Some(own) if !usual.starts_with(&own) => std::path::absolute(&own).unwrap_or(own),
        _ => usual,
    }
}

/// What Bazel asks of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bazel {
    pub(crate) shard: Option<Shard>,
    /// A part of the names of the tests to run.
    pub(crate) filter: Option<String>,
    pub(crate) fail_fast: bool,
    pub(crate) shard_status_file: Option<PathBuf>,
    pub(crate) premature_exit_file: Option<PathBuf>,
    pub(crate) warnings_file: Option<PathBuf>,
    pub(crate) xml_file: Option<PathBuf>,
}

impl Bazel {
    /// Reads the variables. With `--exact` another runner has selected the tests, perhaps this shard of them, and with
    /// `--list` one wants to: rules_rust lists all tests, and runs those of the shard by their exact names.
    pub(crate) fn read(
        get: impl Fn(&str) -> Option<OsString>,
        is_exact: bool,
        is_list: bool,
    ) -> Result<Bazel, BadValue> {
        let value = |name: &str| get(name).filter(|value| !value.is_empty());
        let text = |name: &str| value(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| value(name).map(PathBuf::from).filter(|_| !is_list);
        if let Some(directory) = value(TMPDIR).map(PathBuf::from).filter(|path| !is_list && !path.is_dir()) {
            return Err(bad(TMPDIR, &directory.to_string_lossy(), "the path of a directory that exists"));
        }
        let mut bazel = Bazel {
            fail_fast: text(FAIL_FAST).is_some_and(|value| value == "1"),
            warnings_file: path(WARNINGS_FILE),
            xml_file: path(XML_FILE),
            ..Bazel::default()
        };
        if is_exact {
            return Ok(bazel);
        }
        bazel.filter = text(TEST_ONLY);
        if is_list {
            return Ok(bazel);
        }
        bazel.shard = Shard::read(text(TOTAL_SHARDS), text(SHARD_INDEX))?;
        bazel.shard_status_file = path(SHARD_STATUS_FILE);
        bazel.premature_exit_file = path(PREMATURE_EXIT_FILE);
        Ok(bazel)
    }
}

fn bad(place: &str, value: &str, valid: &str) -> BadValue {
    BadValue { place: place.to_owned(), value: value.to_owned(), valid: valid.to_owned() }
}

/// One of several runs that have the tests of a target between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Below `total`.
    index: usize,
    total: NonZeroUsize,
}

impl Shard {
    /// Zero shards are no sharding, as in Bazel's `test-setup.sh`.
    fn read(total: Option<String>, index: Option<String>) -> Result<Option<Shard>, BadValue> {
        let Some(total) = total else {
            return match index {
                None => Ok(None),
                Some(index) => Err(bad(
                    SHARD_INDEX,
                    &index,
                    &format!("`{TOTAL_SHARDS}` to be set too, to the number of shards"),
                )),
            };
        };
        let Ok(number) = total.parse::<usize>() else {
            return Err(bad(TOTAL_SHARDS, &total, "a number of shards, or 0 for no sharding"));
        };
        let Some(total) = NonZeroUsize::new(number) else { return Ok(None) };
        let valid = format!("a whole number below `{TOTAL_SHARDS}`, which is {total}");
        let Some(index) = index else {
            return Err(bad(
                TOTAL_SHARDS,
                &total.to_string(),
                &format!("`{SHARD_INDEX}` to be set too, to {valid}"),
            ));
        };
        match index.parse::<usize>() {
            Ok(index) if index < total.get() => Ok(Some(Shard { index, total })),
            _ => Err(bad(SHARD_INDEX, &index, &valid)),
        }
    }

    /// Selects the names of this shard, in turn from the sorted list. The order of addition and whether a test can run
    /// do not count: they may differ between the machines of the shards.
    pub(crate) fn of(self, names: impl Iterator<Item = String>) -> HashSet<String> {
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names.into_iter().skip(self.index).step_by(self.total.get()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], is_exact: bool, is_list: bool) -> Result<Bazel, String> {
        let get = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        Bazel::read(get, is_exact, is_list).map_err(|bad| bad.to_string())
    }

    fn shard(variables: &[(&str, &str)]) -> Result<Option<(usize, usize)>, String> {
        let shard = read(variables, false, false)?.shard;
        Ok(shard.map(|shard| (shard.index, shard.total.get())))
    }

    #[test]
    fn a_shard_is_an_index_below_a_total() {
        assert_eq!(shard(&[]), Ok(None));
        assert_eq!(shard(&[(TOTAL_SHARDS, ""), (SHARD_INDEX, "")]), Ok(None));
        assert_eq!(shard(&[(TOTAL_SHARDS, "0"), (SHARD_INDEX, "0")]), Ok(None));
        assert_eq!(shard(&[(TOTAL_SHARDS, "1"), (SHARD_INDEX, "0")]), Ok(Some((0, 1))));
        assert_eq!(shard(&[(TOTAL_SHARDS, "3"), (SHARD_INDEX, "2")]), Ok(Some((2, 3))));
        for (total, index, message) in [
            (
                Some("3"),
                Some("3"),
                "invalid value `3` for `TEST_SHARD_INDEX`: expected a whole number below `TEST_TOTAL_SHARDS`, which is 3",
            ),
            (
                Some("3"),
                Some("-1"),
                "invalid value `-1` for `TEST_SHARD_INDEX`: expected a whole number below `TEST_TOTAL_SHARDS`, which is 3",
            ),
            (
                Some("3"),
                None,
                "invalid value `3` for `TEST_TOTAL_SHARDS`: expected `TEST_SHARD_INDEX` to be set too, to a whole number below `TEST_TOTAL_SHARDS`, which is 3",
            ),
            (
                None,
                Some("1"),
                "invalid value `1` for `TEST_SHARD_INDEX`: expected `TEST_TOTAL_SHARDS` to be set too, to the number of shards",
            ),
            (
                Some("many"),
                Some("1"),
                "invalid value `many` for `TEST_TOTAL_SHARDS`: expected a number of shards, or 0 for no sharding",
            ),
        ] {
            let set = [(TOTAL_SHARDS, total), (SHARD_INDEX, index)];
            let set: Vec<(&str, &str)> =
                set.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            assert_eq!(shard(&set), Err(message.to_owned()));
        }
    }

    #[test]
    fn shards_have_every_name_once_whatever_its_place() {
        let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
        let all = |names: &[String]| -> Vec<Vec<String>> {
            let total = NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN);
            let shards = (0..4).map(|index| Shard { index, total }.of(names.iter().cloned()));
            shards
                .map(|shard| {
                    let mut shard: Vec<String> = shard.into_iter().collect();
                    shard.sort();
                    shard
                })
                .collect()
        };
        let shards = all(&names);
        assert_eq!(shards[1], ["n1", "n5", "n9"]);
        assert_eq!(shards[3], ["n3", "n7"]);
        let mut together = shards.concat();
        together.sort();
        assert_eq!(together, names);
        let backwards: Vec<String> = names.iter().rev().cloned().collect();
        assert_eq!(all(&backwards), shards);
    }

    #[test]
    fn a_runner_that_names_or_lists_tests_is_not_sharded() {
        let set = [
            (TOTAL_SHARDS, "2"),
            (SHARD_INDEX, "7"),
            (SHARD_STATUS_FILE, "/status"),
            (PREMATURE_EXIT_FILE, "/exit"),
            (WARNINGS_FILE, "/warnings"),
            (TEST_ONLY, "part"),
        ];
        assert!(read(&set, false, false).is_err());
        let exact = read(&set, true, false);
        assert_eq!(exact, Ok(Bazel { warnings_file: Some("/warnings".into()), ..Bazel::default() }));
        let list = read(&set, false, true);
        assert_eq!(list, Ok(Bazel { filter: Some("part".to_owned()), ..Bazel::default() }));
    }

    #[test]
    fn temporary_files_are_where_bazel_wants_them() {
        let of = |of_bazel: Option<&str>, usual: &str| within(of_bazel.map(OsString::from), usual.into());
        assert_eq!(of(None, "/tmp"), PathBuf::from("/tmp"));
        assert_eq!(of(Some(""), "/tmp"), PathBuf::from("/tmp"));
        assert_eq!(of(Some("/private"), "/tmp"), PathBuf::from("/private"));
        assert_eq!(of(Some("/private"), "/private/childproof-1/2"), PathBuf::from("/private/childproof-1/2"));
        let message = read(&[(TMPDIR, "/nonexistent")], false, false).err().unwrap_or_default();
        assert_eq!(
            message,
            "invalid value `/nonexistent` for `TEST_TMPDIR`: expected the path of a directory that exists"
        );
    }
}
