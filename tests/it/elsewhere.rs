//! Where nothing can be guarded, the crate compiles, its tests run, and each target says that they are
//! unguarded.
//!
//! The standard library of another system is not available here, so the code for those systems is built for
//! this one.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{Ran, root, scratch};

/// Runs one target of the fixture, built as for another system.
fn run(target: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let build = root().join("target/fixtures/unguarded");
    fs::create_dir_all(&build).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--quiet", "--test", target, "--"]).args(arguments);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CHILDPROOF_", "RUST_TEST_", "NEXTEST"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    let command = command
        .current_dir(root().join("tests/fixtures/elsewhere"))
        .env("CARGO_TARGET_DIR", build)
        .env("RUSTFLAGS", "--cfg childproof_unguarded -D warnings")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    Ran::of(command)
}

#[childproof::test(serial = "unguarded", timeout = "600s")]
fn a_stock_target_runs_its_tests_unguarded_and_says_so_once() {
    let ran = run("stock", &[], &[]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert!(ran.stdout.contains("4 passed; 3 failed; 1 ignored"), "{}", ran.all());
    assert_eq!(ran.stderr.matches("the tests run unguarded").count(), 1, "{}", ran.all());
}

#[childproof::test(serial = "unguarded", timeout = "600s")]
fn a_harness_runs_its_tests_unguarded_and_says_so_once() {
    let ran = run("harness", &[], &[]);
    assert_eq!(ran.code, Some(101), "{}", ran.all());
    assert!(ran.stdout.contains("5 passed; 3 failed; 2 ignored"), "{}", ran.all());
    assert_eq!(ran.stderr.matches("the tests run unguarded").count(), 1, "{}", ran.all());
    let listed = run("harness", &["--list"], &[]);
    assert!(listed.stdout.contains("added: test"), "{}", listed.all());
    assert!(!listed.stderr.contains("unguarded"), "{}", listed.all());
}

#[childproof::test(serial = "unguarded", timeout = "600s")]
fn a_required_guard_is_an_error() {
    for target in ["stock", "harness"] {
        let ran = run(target, &["passes"], &[("CHILDPROOF_REQUIRE", "1")]);
        assert!(ran.code.is_some_and(|code| code != 0), "{}", ran.all());
        assert!(ran.all().contains("`CHILDPROOF_REQUIRE` asks for guarded tests"), "{}", ran.all());
    }
    let ran = run("stock", &["passes"], &[("CHILDPROOF_REQUIRE", "0")]);
    assert_eq!(ran.code, Some(0), "{}", ran.all());
}

#[childproof::test(serial = "unguarded", timeout = "600s")]
fn a_harness_runs_its_shard_of_bazels() {
    let exit = scratch().join("exit");
    let names = |variables: &[(&str, &str)]| -> Vec<String> {
        let ran = run("harness", &["--format=pretty"], variables);
        let lines = ran.stdout.lines().filter_map(|line| line.strip_prefix("test "));
        lines.filter_map(|line| Some(line.split_once(" ... ")?.0.trim().to_owned())).collect()
    };
    let all = names(&[]);
    let mut together = Vec::new();
    for index in ["0", "1"] {
        let shard = names(&[
            ("TEST_TOTAL_SHARDS", "2"),
            ("TEST_SHARD_INDEX", index),
            ("TEST_PREMATURE_EXIT_FILE", exit.to_str().unwrap()),
        ]);
        assert_eq!(shard.len(), all.len() / 2, "{shard:?}");
        assert!(!exit.exists());
        together.extend(shard);
    }
    together.sort();
    assert_eq!(together, {
        let mut all = all;
        all.sort();
        all
    });
}

/// Miri runs constructors of one section alone, and tests register themselves in a constructor.
#[childproof::test(timeout = "600s")]
#[ignore = "needs a nightly toolchain with Miri: `cargo test --test it -- --ignored elsewhere`"]
fn miri_runs_the_tests_of_both_kinds_of_target() {
    for target in ["stock", "harness"] {
        let mut command = Command::new("cargo");
        command.args(["+nightly", "miri", "test", "--quiet", "--test", target, "--", "passes"]);
        for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        let directory = root().join("tests/fixtures/elsewhere");
        let ran = Ran::of(command.current_dir(directory).env("CARGO_TARGET_DIR", scratch().join("miri")));
        assert_eq!(ran.code, Some(0), "{target}\n{}", ran.all());
        assert!(ran.stdout.contains("1 passed; 0 failed"), "{target}\n{}", ran.all());
        assert!(
            ran.stderr.contains("the tests run unguarded: Miri has no processes"),
            "{target}\n{}",
            ran.all()
        );
    }
}
