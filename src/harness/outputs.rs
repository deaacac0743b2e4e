//! The paths of the machine-readable reports: one file per target, so that no target of the same run
//! overwrites another's.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::guard::origin;
use crate::proc::process::{Stat, age};

/// The values of the placeholders in a path.
pub(super) struct TargetNames {
    pub(super) package: String,
    pub(super) binary: String,
}

impl TargetNames {
    /// The names of this target: cargo and cargo-nextest set the package's; the binary's is its file name
    /// without cargo's hash.
    pub(super) fn of_self() -> TargetNames {
        let path = PathBuf::from(std::env::args_os().next().unwrap_or_default());
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let is_hash = |hash: &str| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let binary = match file.rsplit_once('-') {
            Some((name, hash)) if is_hash(hash) => name.to_owned(),
            _ => file.into_owned(),
        };
        let package = std::env::var("CARGO_PKG_NAME").ok().filter(|name| !name.is_empty());
        TargetNames { package: package.unwrap_or_else(|| binary.clone()), binary }
    }

    /// Replaces `{package}` and `{binary}` by the names: `cargo test` runs all targets with the same
    /// arguments.
    fn fill(&self, path: &Path) -> PathBuf {
        let names = [("{package}", &self.package), ("{binary}", &self.binary)];
        let mut rest = path.as_os_str().as_bytes();
        let mut filled = Vec::with_capacity(rest.len());
        while let Some((first, behind)) = rest.split_first() {
            match names.iter().find(|(place, _)| rest.starts_with(place.as_bytes())) {
                Some((place, name)) => {
                    filled.extend_from_slice(name.as_bytes());
                    rest = &rest[place.len()..];
                }
                None => {
                    filled.push(*first);
                    rest = behind;
                }
            }
        }
        OsString::from_vec(filled).into()
    }

    /// The first `{word}` of a path that stands for nothing.
    pub(super) fn unknown(path: &Path) -> Option<String> {
        let path = path.to_string_lossy();
        let words = path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
        let is_word = |word: &&str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        words
            .filter(is_word)
            .find(|word| !["package", "binary"].contains(word))
            .map(|word| format!("{{{word}}}"))
    }

    /// Adds the target's names to a path: `report.xml` becomes `report-server-restarts.xml`.
    fn told_apart(&self, path: &Path, nth: usize) -> PathBuf {
        let mut name = path.file_stem().unwrap_or_default().to_owned();
        for part in [&self.package, &self.binary] {
            name.push("-");
            name.push(part);
        }
        if nth > 0 {
            name.push(format!("-{}", nth + 1));
        }
        if let Some(ending) = path.extension() {
            name.push(".");
            name.push(ending);
        }
        path.with_file_name(name)
    }
}

/// Resolves the path of a report and creates its directories.
///
/// A file that was written since this run of cargo began belongs to another target: then this target's names
/// are added to the path, with a message on stderr. `option` is the option or variable that gave the path.
pub(super) fn resolve(option: &str, path: &Path, names: &TargetNames) -> PathBuf {
    let wanted = names.fill(path);
    // If a directory cannot be created, opening the file reports the error.
    if let Some(folder) = wanted.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let _ = fs::create_dir_all(folder);
    }
    let since = run_began();
    let is_of_this_run = |path: &Path| {
        let written = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
        let written = written.and_then(|file| file.modified().ok());
        matches!((written, since), (Some(written), Some(since)) if written >= since)
    };
    if !is_of_this_run(&wanted) {
        return wanted;
    }
    let free = (0..).map(|nth| names.told_apart(&wanted, nth)).find(|path| !is_of_this_run(path));
    let path = free.unwrap_or_else(|| wanted.clone());
    let _ = writeln!(
        io::stderr(),
        "childproof: `{option}{}` was written by another target of this run; this one writes `{}` \
         (`{{package}}` and `{{binary}}` in the path tell them apart)",
        wanted.display(),
        path.display()
    );
    path
}

/// When the cargo process that runs this target was started; `None` if the parent is not cargo.
fn run_began() -> Option<SystemTime> {
    let mut runner = Stat::read(Stat::of_self()?.ppid)?;
    if runner.comm == "childproof" {
        // It is configured as cargo's runner.
        runner = Stat::read(runner.ppid)?;
    }
    if !origin::is_runner(runner.pid) {
        return None;
    }
    // Start times are rounded down to ticks of 10 ms; cargo takes longer than that before it starts a target.
    SystemTime::now().checked_sub(age(&runner)?)?.checked_add(Duration::from_millis(10))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
    use super::*;

    fn names() -> TargetNames {
        TargetNames { package: "shop".to_owned(), binary: "server".to_owned() }
    }

    #[test]
    fn a_path_has_the_names_where_they_are_asked_for() {
        let filled = |path: &str| names().fill(Path::new(path)).display().to_string();
        assert_eq!(filled("out/{binary}.json"), "out/server.json");
        assert_eq!(filled("{package}/{binary}/{binary}"), "shop/server/server");
        assert_eq!(filled("{name}/{}/{{binary}.xml"), "{name}/{}/{server.xml");
        let unknown = |path: &str| TargetNames::unknown(Path::new(path));
        assert_eq!(unknown("{binary}/{pkg}.xml").as_deref(), Some("{pkg}"));
        assert_eq!(unknown("{package}/{}/{a b}/{{binary}.xml"), None);
        let odd = OsString::from_vec(b"\xff{binary}\xfe".to_vec());
        let filled = names().fill(Path::new(&odd));
        assert_eq!(filled.into_os_string(), OsString::from_vec(b"\xffserver\xfe".to_vec()));
    }

    #[test]
    fn a_path_is_told_apart_before_its_ending() {
        let named = |path: &str, nth| names().told_apart(Path::new(path), nth).display().to_string();
        assert_eq!(named("out/report.xml", 0), "out/report-shop-server.xml");
        assert_eq!(named("report", 1), "report-shop-server-2");
    }
}
