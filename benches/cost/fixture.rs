//! Builds the crates in `benches/fixtures`, and finds their binaries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// How a fixture is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// The test binaries of one build of a fixture crate.
pub(crate) struct Fixture {
    binaries: Vec<(String, PathBuf)>,
}

impl Fixture {
    /// Builds the tests of a fixture crate; the error is the end of cargo's output.
    pub(crate) fn build(name: &str, profile: Profile, more: &[&str]) -> Result<Fixture, String> {
        let mut command = cargo(name, "test");
        command.args(["--no-run", "--message-format=json"]).args(more);
        if profile == Profile::Release {
            command.arg("--release");
        }
        let output = command.env("COST_BULK", bulk()).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let error = text.lines().find(|line| line.starts_with("error")).unwrap_or("no error");
            return Err(format!("`{name}` cannot be built: {error}"));
        }
        let binaries = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| {
                let binary = message["executable"].as_str()?.into();
                Some((message["target"]["name"].as_str()?.to_owned(), binary))
            })
            .collect();
        Ok(Fixture { binaries })
    }

    /// The path of one target's test binary.
    pub(crate) fn binary(&self, target: &str) -> &Path {
        let found = self.binaries.iter().find(|(name, _)| name == target);
        &found.unwrap_or_else(|| panic!("no target `{target}` in {:?}", self.binaries)).1
    }

    /// Copies the binaries, so that another build of the same crate does not replace them.
    pub(crate) fn keep(self, name: &str) -> Fixture {
        let directory = target().join("kept").join(name);
        fs::create_dir_all(&directory).unwrap();
        let keep = |(target, binary): (String, PathBuf)| {
            let copy = directory.join(&target);
            fs::copy(binary, &copy).unwrap();
            (target, copy)
        };
        Fixture { binaries: self.binaries.into_iter().map(keep).collect() }
    }
}

/// Builds the program with two forks and two waits, and returns its path. Uses the C compiler that Rust links
/// with.
pub(crate) fn build_floor() -> PathBuf {
    fs::create_dir_all(target()).unwrap();
    let program = target().join("floor");
    let source = root().join("benches/fixtures/floor/floor.c");
    let status = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source).status();
    let built = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(built, "`cc` cannot build the floor: {status:?}");
    program
}

/// A cargo command in a fixture crate, without the environment of the cargo that runs this.
pub(crate) fn cargo(name: &str, subcommand: &str) -> Command {
    let mut command = clean(Path::new(env!("CARGO")));
    command
        .arg(subcommand)
        .current_dir(root().join("benches/fixtures").join(name))
        .env("CARGO_TARGET_DIR", target())
        .env_remove("RUSTFLAGS")
        .stdin(Stdio::null());
    command
}

/// A command without the variables that cargo, nextest and childproof set.
pub(crate) fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["CHILDPROOF_", "RUST_TEST_", "NEXTEST", "COST_", "RUST_BACKTRACE", "CARGO_PKG_"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// The root of the repository.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The target directory of the fixtures.
pub(crate) fn target() -> PathBuf {
    root().join("target/bench")
}

/// The file that makes a binary large: 200 MB of data.
fn bulk() -> PathBuf {
    target().join("bulk")
}

/// Creates that file. Not all zeroes, which a linker could leave out.
pub(crate) fn make_bulk() {
    const SIZE: usize = 200 << 20;
    let size = fs::metadata(bulk()).map_or(0, |found| found.len());
    if size != SIZE as u64 {
        fs::create_dir_all(target()).unwrap();
        fs::write(bulk(), vec![0x5au8; SIZE]).unwrap();
    }
}
