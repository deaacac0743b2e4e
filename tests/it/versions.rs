//! The versions of other crates that cargo may select, and the profile that a project may give to this one.
//!
//! Each test asks the registry and builds all dependencies in another way than the suite does, so they run
//! only on request: `cargo test --test it -- --ignored versions::`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{root, scratch};

/// Runs cargo, which is to succeed.
fn cargo(directory: &Path, arguments: &[&str]) {
    let output = build(directory, arguments);
    assert!(output.status.success(), "cargo {arguments:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn build(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(directory)
        .env("CARGO_TARGET_DIR", root().join("target/fixtures/versions"))
        .env_remove("RUSTFLAGS")
        // Lets cargo accept `-Z direct-minimal-versions`. Builds must not see it: build scripts would take
        // this compiler for a nightly one.
        .envs(arguments.contains(&"-Zdirect-minimal-versions").then_some(("RUSTC_BOOTSTRAP", "1")))
        .output()
        .unwrap()
}

/// The versions of a crate in the lock file of a project.
fn locked(directory: &Path, name: &str) -> Vec<String> {
    let lock = fs::read_to_string(directory.join("Cargo.lock")).unwrap();
    let packages = lock.split("[[package]]").filter_map(|package| {
        package.split_once(&format!("name = \"{name}\"\nversion = \"")).map(|(_, version)| version)
    });
    packages.filter_map(|version| version.split_once('"')).map(|(version, _)| version.to_owned()).collect()
}

/// A project that depends on childproof and on these crates.
fn project(dependencies: &str) -> PathBuf {
    let directory = scratch().join("project");
    fs::create_dir_all(directory.join("src")).unwrap();
    fs::write(directory.join("src/lib.rs"), "").unwrap();
    let root = root();
    let manifest = format!(
        "[workspace]\n[package]\nname = \"project\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\nchildproof = {{ path = {root:?} }}\n{dependencies}"
    );
    fs::write(directory.join("Cargo.toml"), manifest).unwrap();
    cargo(&directory, &["generate-lockfile"]);
    directory
}

/// `backtrace` uses gimli 0.32, the project gimli 0.34, and addr2line may use either.
#[childproof::test(timeout = "15m")]
#[ignore = "asks the registry and builds for a minute"]
fn of_gimli_may_be_two_in_one_project() {
    let project = project("backtrace = \"=0.3.76\"\ngimli = \"0.34\"\n");
    cargo(&project, &["check", "--locked", "--quiet"]);
    let newest = locked(&project, "addr2line").pop().unwrap();
    cargo(&project, &["update", "--quiet", &format!("addr2line@{newest}"), "--precise", "0.25.1"]);
    assert_eq!(locked(&project, "addr2line"), ["0.25.1"]);
    assert_eq!(locked(&project, "gimli").len(), 2);
    cargo(&project, &["check", "--locked", "--quiet"]);
}

#[childproof::test(timeout = "15m")]
#[ignore = "asks the registry and builds for a minute"]
fn that_are_the_lowest_of_their_ranges_compile() {
    let (root, copy) = (root(), scratch().join("lowest"));
    // The tool has no version range of its own: it depends on exactly this version.
    for package in ["", "macros", "values"] {
        fs::create_dir_all(copy.join(package)).unwrap();
        let source = root.join(package).join("src");
        assert!(Command::new("cp").arg("-r").args([source, copy.join(package)]).status().unwrap().success());
        // Without dependencies of tests alone, which would have to be in their lowest versions too.
        let manifest = fs::read_to_string(root.join(package).join("Cargo.toml")).unwrap();
        let mut is_left_out = false;
        let lines = manifest.lines().filter(|line| {
            if line.starts_with('[') {
                is_left_out = *line == "[dev-dependencies]" || line.starts_with("[[");
            }
            !is_left_out
        });
        fs::write(
            copy.join(package).join("Cargo.toml"),
            lines.collect::<Vec<_>>().join("\n").replace("\"cli\", ", ""),
        )
        .unwrap();
    }
    cargo(&copy, &["-Zdirect-minimal-versions", "generate-lockfile"]);
    assert_eq!(locked(&copy, "nix"), ["0.31.2"]);
    cargo(&copy, &["check", "--locked", "--quiet", "--all-features"]);
}

/// Most of a debug binary is debug information; without childproof's own it has less than half the size.
#[childproof::test(timeout = "15m")]
#[ignore = "asks the registry and builds for a minute"]
fn of_childproof_without_debug_information_report_the_same_lines() {
    let project = project(
        "[profile.dev.package.childproof]\ndebug = false\n[[test]]\nname = \"guarded\"\nharness = false\n",
    );
    fs::create_dir(project.join("tests")).unwrap();
    fs::write(project.join("tests/guarded.rs"), GUARDED).unwrap();
    let Output { stdout, .. } = build(&project, &["test", "--test=guarded", "--", "--color=never"]);
    let report = String::from_utf8_lossy(&stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "was still running 10 ms after the test ended. It was spawned at tests/guarded.rs:4:67 guarded::serve.",
        "(posix_spawnp) < tests/guarded.rs:9:31 guarded::leaks clock_nanosleep",
        "the test did not return within its timeout of 1 s: it is at tests/guarded.rs:14:11.",
        "in <std::process::Child>::wait < tests/guarded.rs:14:11 guarded::hangs",
    ] {
        assert!(report.contains(expected), "no {expected:?} in\n{}", String::from_utf8_lossy(&stdout));
    }
}

const GUARDED: &str = r#"childproof::main!();

fn serve() -> std::process::Child {
    let started = std::process::Command::new("sleep").arg("3137").spawn();
    started.unwrap()
}

#[childproof::test(grace = "10ms")]
fn leaks() { std::mem::forget(serve()) }

#[childproof::test(timeout = "1s")]
fn hangs() {
    let mut child = serve();
    child.wait().unwrap();
}
"#;
