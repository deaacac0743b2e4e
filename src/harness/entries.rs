//! The tests of a run: their names, their order, and which of them are selected.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Trial};

use super::builder::{Added, More};
use crate::config::options::Options;
use crate::config::policy::Policy;
use crate::config::printable;
use crate::config::registry::{ArgumentPosition, ArgumentSyntax, Test};

/// One test of the run.
pub(super) struct Entries {
    pub(super) registered: Vec<&'static Test>,
    pub(super) added: Vec<Added>,
}

impl Entries {
    pub(super) fn get(&self, index: usize) -> Option<Entry<'_>> {
        match self.registered.get(index) {
            Some(test) => Some(Entry::Registered(test)),
            None => self.added.get(index - self.registered.len()).map(Entry::Added),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..).map_while(|index| self.get(index))
    }
}

#[derive(Clone, Copy)]
pub(super) enum Entry<'a> {
    Registered(&'static Test),
    Added(&'a Added),
}

impl<'a> Entry<'a> {
    pub(super) fn name(self) -> String {
        match self {
            Entry::Registered(test) => test.full_name(),
            Entry::Added(added) => added.name.to_string(),
        }
    }

    /// The path of its function; `None` if it was added.
    pub(super) fn path(self) -> Option<String> {
        match self {
            Entry::Registered(test) => Some(format!("{}::{}", test.module, test.name)),
            Entry::Added(_) => None,
        }
    }

    /// Runs its body.
    pub(super) fn run(self) -> ExitCode {
        match self {
            Entry::Registered(test) => (test.body)(),
            Entry::Added(added) => (added.body)(),
        }
    }

    /// The file and the line where the test is defined.
    pub(super) fn place(self) -> (&'static str, u32) {
        match self {
            Entry::Registered(test) => test.place,
            Entry::Added(added) => (added.place.file(), added.place.line()),
        }
    }

    pub(super) fn ignore(self) -> Option<&'a str> {
        match self {
            Entry::Registered(test) => test.attribute.ignore,
            Entry::Added(added) => match added.more.as_deref() {
                Some(More::Ignored(reason)) => Some(reason),
                _ => None,
            },
        }
    }

    pub(super) fn should_panic(self) -> Option<&'static str> {
        match self {
            Entry::Registered(test) => test.attribute.should_panic,
            Entry::Added(_) => None,
        }
    }

    pub(super) fn policy(self) -> Policy {
        match self {
            Entry::Registered(test) => test.attribute.policy(),
            Entry::Added(added) => match added.more.as_deref() {
                Some(More::Policy(policy)) => policy.clone(),
                _ => Policy::new(),
            },
        }
    }

    pub(super) fn syntax(self) -> ArgumentSyntax {
        match self {
            Entry::Registered(test) => test.attribute.syntax(),
            Entry::Added(added) => {
                ArgumentSyntax { position: ArgumentPosition::Policy, has_arguments: added.more.is_some() }
            }
        }
    }

    /// Whether the test is not run, and why. No option selects an added test that cannot run here.
    pub(super) fn left_out(self, options: &Options) -> Option<&'a str> {
        let asked_for = options.ignored || options.include_ignored;
        match self {
            Entry::Registered(_) if asked_for => None,
            _ => self.ignore(),
        }
    }

    /// Whether the test is selected and runs.
    #[cfg(all(target_os = "linux", not(miri), not(childproof_unguarded)))]
    pub(super) fn runs(self, options: &Options) -> bool {
        self.selected(options) && self.left_out(options).is_none()
    }

    pub(super) fn selected(self, options: &Options) -> bool {
        options.selects(&self.name(), self.ignore().is_some(), self.should_panic().is_some())
    }
}

/// The most characters of a test's name: printers pad all names to the longest one.
const NAME: usize = 1000;

/// The message for a target without any test.
const NONE: &str = "no test is registered in this target. In a target with `harness = false` rustc silently drops \
    `#[test]`, also the one that `#[tokio::test]` and the like make: write `#[childproof::test]` in place of `#[test]`, \
    and above `#[tokio::test]`. Or remove `harness = false` and `childproof::main!()`, or add tests to the `Harness`";

/// Refuses names that are not unique or cannot be listed or selected. Returns the order of the tests: the
/// registered ones by name, as libtest does, then the added ones in the order of addition.
pub(super) fn check(entries: &Entries, options: &Options) -> Result<Vec<usize>, String> {
    let names: Vec<String> = entries.iter().map(Entry::name).collect();
    if names.iter().any(String::is_empty) {
        return Err("a test that was added has an empty name: expected text".to_owned());
    }
    if let Some(name) = names.iter().find(|name| name.contains(printable::rearranges)) {
        return Err(format!(
            "invalid test name `{}`: expected text without control characters",
            printable::text(name)
        ));
    }
    if let Some(name) = names.iter().find(|name| name.chars().count() > NAME) {
        let begin: String = name.chars().take(40).collect();
        return Err(format!("the test name `{begin}..` is too long: expected at most {NAME} characters"));
    }
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|index| &names[*index]);
    if let Some(pair) = order.windows(2).find(|pair| names[pair[0]] == names[pair[1]]) {
        return Err(format!("two tests are called `{}`: names must differ", names[pair[0]]));
    }
    let first_added = entries.registered.len();
    order.sort_by_key(|index| (*index >= first_added).then_some(*index));
    if names.is_empty() && !options.list && options.is_of_all() {
        return Err(NONE.to_owned());
    }
    let off = [
        ("json", options.json.is_some() && !cfg!(feature = "json")),
        ("junit", options.junit.is_some() && !cfg!(feature = "junit")),
    ];
    if let Some((name, _)) = off.iter().find(|(_, missing)| *missing) {
        return Err(format!("`--{name}` needs childproof's feature `{name}`, which is off in this build"));
    }
    Ok(order)
}

/// The name of trials that libtest-mimic must count as filtered out: no test can have it.
pub(super) const FILTERED: &str = "\0";

/// Fills libtest-mimic's arguments. Tests are selected here, so libtest-mimic sees the others only as
/// filtered out.
pub(super) fn arguments(options: &Options) -> Arguments {
    Arguments {
        skip: vec![FILTERED.to_owned()],
        list: options.list,
        ignored: options.list && options.ignored && !options.include_ignored,
        quiet: options.quiet,
        test_threads: options.threads,
        color: options.color,
        format: options.format,
        logfile: options.logfile.clone(),
        ..Arguments::default()
    }
}

pub(super) fn list_entry(entry: Entry<'_>, options: &Options) -> Trial {
    let name = if entry.selected(options) { entry.name() } else { FILTERED.to_owned() };
    Trial::test(name, || Ok(())).with_ignored_flag(entry.ignore().is_some())
}

pub(super) fn now_in_nanoseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Fisher-Yates with SplitMix64 (Steele, Lea, Flood 2014): the same order for the same seed.
pub(super) fn shuffle(order: &mut [usize], mut seed: u64) {
    let mut random = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    for last in (1..order.len()).rev() {
        order.swap(last, (random() % (last as u64 + 1)) as usize);
    }
}
