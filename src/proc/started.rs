//! What a process was started as: its program, its environment, its unit.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::runners::RUNNERS;
use crate::sys::Pid;

/// What cargo sets for a compiler or a build script, and for no program that it runs: a server that keeps on compiling
/// (sccache) was started by these.
const BUILDS: [&str; 2] = ["CARGO_CRATE_NAME", "OUT_DIR"];
/// What cargo writes into a target folder.
const TARGET_FOLDER: &str = ".rustc_info.json";

/// The variable by which a test runner shows in an environment.
pub(crate) fn runner(environment: &HashMap<String, String>) -> Option<(&'static str, &str)> {
    let is_build = BUILDS.iter().any(|name| environment.contains_key(*name));
    let mut names = RUNNERS.iter().filter(|(name, _)| !(is_build && name.starts_with("CARGO_")));
    names.find_map(|(name, _)| environment.get(*name).map(|value| (*name, value.as_str())))
}

/// The file of a process's program; `None` if it may not be read.
pub(crate) fn program(pid: Pid) -> Option<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = link.to_str()?;
    // It was removed, or another was put in its place.
    Some(text.strip_suffix(" (deleted)").map_or_else(|| link.clone(), PathBuf::from))
}

/// The folder of cargo's that a program lies in.
pub(crate) fn target_folder(program: &Path) -> Option<PathBuf> {
    let marked = program.ancestors().skip(1).find(|folder| folder.join(TARGET_FOLDER).is_file());
    marked.map(Path::to_path_buf).or_else(|| named_target_folder(program))
}

/// The same by the names alone: the folder may have been cleaned since.
fn named_target_folder(program: &Path) -> Option<PathBuf> {
    let is_profile = |folder: &&Path| {
        let is = |folder: &Path, name: &str| folder.file_name().is_some_and(|own| own == name);
        is(folder, "debug") || is(folder, "release")
    };
    let profile = program.ancestors().skip(1).find(is_profile)?;
    let folder =
        profile.ancestors().skip(1).find(|above| above.file_name().is_some_and(|own| own == "target"));
    folder.map(Path::to_path_buf)
}

/// Whether a process is in a unit of its own that a service manager has started (systemd.service(5)).
pub(crate) fn is_in_service(pid: Pid) -> bool {
    is_service(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default())
}

fn is_service(cgroups: &str) -> bool {
    let units = cgroups.lines().filter_map(|line| line.rsplit('/').next());
    units.into_iter().any(|unit| unit.ends_with(".service") && !unit.starts_with("user@"))
}

/// Whether, and how far, Yama lets a process trace others (`kernel.yama.ptrace_scope`); `None` if it is not there.
pub(crate) fn yama_scope() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::{is_service, named_target_folder, runner};

    fn environment(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_runner_shows_in_the_environment_and_a_compiler_does_not() {
        let found = |entries: &[(&str, &str)]| runner(&environment(entries)).map(|(name, _)| name);
        assert_eq!(found(&[("NEXTEST", "1"), ("NEXTEST_TEST_NAME", "a::b")]), Some("NEXTEST_TEST_NAME"));
        assert_eq!(found(&[("CARGO_MANIFEST_DIR", "/a")]), Some("CARGO_MANIFEST_DIR"));
        // What a user exports for cargo.
        assert_eq!(
            found(&[("CARGO_HOME", "/a"), ("CARGO_TERM_COLOR", "always"), ("GTEST_COLOR", "1")]),
            None
        );
        assert_eq!(found(&[("CARGO_MANIFEST_DIR", "/a"), ("CARGO_CRATE_NAME", "a")]), None);
    }

    #[test]
    fn a_target_folder_is_known_by_its_name_too() {
        let folder =
            |program: &str| named_target_folder(Path::new(program)).map(|path| path.display().to_string());
        assert_eq!(folder("/w/target/debug/deps/a-1"), Some("/w/target".to_owned()));
        assert_eq!(folder("/w/target/x86_64-unknown-linux-musl/release/a"), Some("/w/target".to_owned()));
        assert_eq!(folder("/usr/bin/a"), None);
        assert_eq!(folder("/w/target/a"), None);
    }

    #[test]
    fn a_service_is_known_by_its_unit() {
        assert!(is_service("0::/system.slice/nginx.service\n"));
        assert!(!is_service("0::/user.slice/user-1000.slice/session-3.scope\n"));
        assert!(!is_service("0::/user.slice/user-1000.slice/user@1000.service\n") && !is_service("0::/\n"));
    }
}
