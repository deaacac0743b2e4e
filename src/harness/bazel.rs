//! The files that Bazel wants of a harness: that it shards, whether it ran to its end, and its warnings.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::bazel::{PREMATURE_EXIT_FILE, SHARD_STATUS_FILE, WARNINGS_FILE};
use crate::config::options::Options;

/// The file that exists while tests run. Dropping this removes it; a process that exits earlier, or is killed, leaves
/// it, and Bazel then takes the run for a failure whatever its exit code.
pub(super) struct PrematureExitFile {
    path: Option<PathBuf>,
    /// The process that created it: its forks leave it alone.
    creator: u32,
}

/// Tells Bazel that this target shards, and creates the file that shows a premature exit. The error is a message.
pub(super) fn begin(options: &Options) -> Result<PrematureExitFile, String> {
    let failed = |what: &str, name: &str, path: &Path, error: &io::Error| {
        format!("cannot {what} `{name}={}`: {error}", path.display())
    };
    if let Some(path) = &options.bazel.shard_status_file {
        touch(path).map_err(|error| failed("touch", SHARD_STATUS_FILE, path, &error))?;
    }
    let path = options.bazel.premature_exit_file.clone();
    if let Some(path) = &path {
        File::create(path).map_err(|error| failed("create", PREMATURE_EXIT_FILE, path, &error))?;
    }
    Ok(PrematureExitFile { path, creator: std::process::id() })
}

/// Creates the file, or updates its time.
fn touch(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    file.set_modified(SystemTime::now())
}

impl Drop for PrematureExitFile {
    fn drop(&mut self) {
        let Some(path) = self.path.take().filter(|_| self.creator == std::process::id()) else { return };
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = path.display();
            let _ = writeln!(
                io::stderr(),
                "childproof: cannot remove `{PREMATURE_EXIT_FILE}={path}`, so Bazel takes the run for a failure: {error}"
            );
        }
    }
}

/// Appends lines to the file of warnings, if Bazel wants one. A failure is printed: it is no verdict on a test.
pub(super) fn warn(options: &Options, lines: &[String]) {
    let Some(path) = options.bazel.warnings_file.as_ref().filter(|_| !lines.is_empty()) else { return };
    let mut text = lines.join("\n");
    text.push('\n');
    let file = File::options().create(true).append(true).open(path);
    // One write, so that the lines of several processes do not mix.
    if let Err(error) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
        let path = path.display();
        let _ = writeln!(io::stderr(), "childproof: cannot write `{WARNINGS_FILE}={path}`: {error}");
    }
}
