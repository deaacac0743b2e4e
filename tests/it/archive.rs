//! cargo-nextest's archives and partitions: built in one checkout, run in parts from another one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Fixture, Ran, root, scratch};

/// The files of the fixture.
const FILES: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    "crates/inner/Cargo.toml",
    "crates/inner/src/lib.rs",
    "crates/inner/tests/added.rs",
    "crates/inner/tests/stock.rs",
    "crates/inner/tests/whole.rs",
];

/// Copies the fixture, which is then a checkout.
fn check_out(at: &Path) {
    for file in FILES {
        let text = fs::read_to_string(root().join("tests/fixtures/archive").join(file)).unwrap();
        let text = text.replace("path = \"../../../../..\"", &format!("path = {:?}", root()));
        fs::create_dir_all(at.join(file).parent().unwrap()).unwrap();
        fs::write(at.join(file), text).unwrap();
    }
}

/// A command without the variables of the run of this test.
fn cargo_nextest(arguments: &[&str], here: &Path) -> Command {
    let like = Fixture::build("leaky").command("harness", &[]);
    let mut command = Command::new("cargo");
    for (name, _) in like.get_envs() {
        command.env_remove(name);
    }
    command.arg("nextest").args(arguments).arg("--color=never").current_dir(here);
    command
}

/// The place of the fixture's `MARK`.
fn mark(file: &str) -> String {
    let source = fs::read_to_string(root().join("tests/fixtures/archive").join(file)).unwrap();
    let at = source.lines().position(|line| line.ends_with("// MARK")).unwrap();
    format!("{file}:{}:", at + 1)
}

#[childproof::test(timeout = "600s")]
fn an_archive_of_one_checkout_runs_in_parts_from_another() {
    let installed = Command::new("cargo").args(["nextest", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    // Always the same path, so that cargo finds what it has built.
    let first = root().join("target/fixtures/checkout");
    let second = scratch().join("another").join("checkout");
    check_out(&first);
    check_out(&second);
    let archive = scratch().join("tests.tar.zst");
    let built = Ran::of(
        cargo_nextest(&["archive", "--archive-file", archive.to_str().unwrap()], &first)
            .env("CARGO_TARGET_DIR", root().join("target/fixtures")),
    );
    assert_eq!(built.code, Some(0), "{}", built.all());
    for (kind, is_there) in [("count", true), ("slice", false)] {
        // A path of the first checkout must not be reported, whether it is on this machine or not.
        if !is_there {
            fs::remove_dir_all(&first).unwrap();
        }
        let out = scratch().join(kind);
        let mut all = String::new();
        for part in 1..=2 {
            let partition = format!("--partition={kind}:{part}/2");
            let remap =
                ["--archive-file", archive.to_str().unwrap(), "--workspace-remap", second.to_str().unwrap()];
            let arguments = [&["run", "--no-fail-fast", &partition][..], &remap].concat();
            let mut command = cargo_nextest(&arguments, &second);
            command
                .env("COLUMNS", "100000")
                .env("ARCHIVE_OUT", &out)
                .env("GITHUB_ACTIONS", "true")
                .env("GITHUB_WORKSPACE", &second);
            let ran = Ran::of(&mut command);
            assert!(matches!(ran.code, Some(0 | 100)), "{}", ran.all());
            all += &ran.all();
        }
        assert_eq!(ran_tests(&out, &second), expected(), "{kind}: {all}");
        for target in ["added", "stock", "whole"] {
            let place = mark(&format!("crates/inner/tests/{target}.rs"));
            assert!(all.contains(&format!("It was spawned at {place}")), "{place}: {all}");
            let annotation = place.trim_end_matches(':').replacen(':', ",line=", 1);
            assert!(all.contains(&format!("::error file={annotation},")), "{annotation}: {all}");
        }
        assert!(!all.contains(first.to_str().unwrap()), "{kind}: {all}");
    }
}

/// How often each test ran; all of them ran in their package's directory of this checkout.
fn ran_tests(out: &Path, checkout: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(out).unwrap().lines() {
        let (test, directory) = line.rsplit_once(' ').unwrap();
        assert_eq!(PathBuf::from(directory), checkout.join("crates/inner"));
        *counts.entry(test.to_owned()).or_default() += 1;
    }
    counts
}

/// Each test once.
fn expected() -> BTreeMap<String, usize> {
    let names = ["first", "second", "third", "leaks"];
    let tests = ["added", "stock", "whole"].map(|target| names.map(|name| (format!("{target} {name}"), 1)));
    tests.into_iter().flatten().collect()
}
