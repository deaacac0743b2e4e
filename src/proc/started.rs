//! What a process was started as: its program, its environment, its PID namespace, its unit.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::runners::VARIABLES;
use crate::sys::Pid;

/// What cargo sets for a compiler or a build script, and for no program that it runs: a server that keeps on compiling
/// (sccache) was started by these.
const BUILDS: [&str; 2] = ["CARGO_CRATE_NAME", "OUT_DIR"];
/// What cargo writes into a target folder.
const TARGET_FOLDER: &str = ".rustc_info.json";

/// The variable by which a test runner shows in an environment. A name that users set too shows none.
pub(crate) fn runner(environment: &HashMap<String, String>) -> Option<(&'static str, &str)> {
    let is_build = BUILDS.iter().any(|name| environment.contains_key(*name));
    let is_set = |name: &str| !(is_build && name.starts_with("CARGO_"));
    let mut names = VARIABLES.iter().filter(|variable| variable.is_evidence && is_set(variable.name));
    names.find_map(|variable| environment.get(variable.name).map(|value| (variable.name, value.as_str())))
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

/// The folder that a process works in; `None` if it may not be read.
pub(crate) fn working_folder(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The PID namespace that a process is in, as the kernel names it (pid_namespaces(7)); `None` if it may not be read.
pub(crate) fn pid_namespace(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// What a service manager has put a process into (systemd.unit(5)): the path of its unit in the tree of cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unit {
    #[default]
    None,
    /// The manager has started its first process (systemd.service(5)).
    Service(String),
    /// Another process than the manager has started all of it (systemd.scope(5)).
    Scope(String),
}

impl Unit {
    pub(crate) fn of(pid: Pid) -> Unit {
        Unit::in_cgroups(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default())
    }

    /// Of version 1 there may be several lines; any that names a service counts.
    fn in_cgroups(cgroups: &str) -> Unit {
        let mut found = Unit::None;
        for path in cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let mut length = 0;
            let mut unit = Unit::None;
            for folder in path.split_inclusive('/') {
                length += folder.len();
                let (name, above) = (folder.trim_end_matches('/'), || path[..length].to_owned());
                // The manager of a user's units is a service, what it starts is in units of its own.
                if name.ends_with(".service") && !name.starts_with("user@") {
                    unit = Unit::Service(above());
                } else if name.ends_with(".scope") {
                    unit = Unit::Scope(above());
                }
            }
            if found == Unit::None || matches!(unit, Unit::Service(_)) {
                found = unit;
            }
        }
        found
    }
}

/// Whether, and how far, Yama lets a process trace others (`kernel.yama.ptrace_scope`); `None` if it is not there.
pub(crate) fn yama_scope() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::{Unit, named_target_folder, runner};

    fn environment(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_runner_shows_in_the_environment_and_a_compiler_does_not() {
        let found = |entries: &[(&str, &str)]| runner(&environment(entries)).map(|(name, _)| name);
        assert_eq!(found(&[("NEXTEST", "1"), ("NEXTEST_TEST_NAME", "a::b")]), Some("NEXTEST_TEST_NAME"));
        assert_eq!(found(&[("CARGO_MANIFEST_DIR", "/a")]), Some("CARGO_MANIFEST_DIR"));
        // What users set as well.
        assert_eq!(found(&[("GTEST_FILTER", "a.*"), ("TEST_TARGET", "//a:b"), ("NEXTEST", "1")]), None);
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
        let unit = |path: &str| Unit::in_cgroups(&format!("0::{path}\n"));
        let service = |path: &str| Unit::Service(path.to_owned());
        assert_eq!(unit("/system.slice/nginx.service"), service("/system.slice/nginx.service"));
        assert_eq!(unit("/system.slice/a.service/b"), service("/system.slice/a.service/"));
        let session = "/user.slice/user-1000.slice/session-3.scope";
        assert_eq!(unit(session), Unit::Scope(session.to_owned()));
        let user = "/user.slice/user-1000.slice/user@1000.service";
        assert_eq!((unit(user), unit("/")), (Unit::None, Unit::None));
        let own = format!("{user}/app.slice/a.service");
        assert_eq!(unit(&own), service(&own));
        let several = "3:cpu:/\n2:memory:/system.slice/a.service\n1:name=systemd:/b.scope\n";
        assert_eq!(Unit::in_cgroups(several), service("/system.slice/a.service"));
    }
}
