//! Starts a program with the recorder, and reads its log.

use std::env;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};
use std::process::Command;

use childproof::__engine::preload::{Unfit, check, check_library};
use childproof::__engine::program_log::{LIBRARY, LOG_VARIABLE, LogError, ProgramLog, RECORD_VARIABLE};

/// The recorder's library.
static RECORDER: &[u8] = include_bytes!(env!("RECORDER_LIBRARY"));

/// The programs that are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The program itself and its forks. Its children see no trace of the recorder.
    Program,
    /// Every program that it starts, too.
    Tree,
}

/// Why a program is not recorded.
#[derive(Debug)]
pub(crate) enum NotRecorded {
    /// It cannot be recorded.
    Unfit(Unfit),
    /// The library or the log could not be written.
    Io { path: PathBuf, error: io::Error },
}

impl Display for NotRecorded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotRecorded::Unfit(why) => Display::fmt(why, out),
            NotRecorded::Io { path, error } => write!(out, "{} cannot be written: {error}", path.display()),
        }
    }
}

impl std::error::Error for NotRecorded {}

/// The recorder of one program: its library and its log, in a directory.
pub(crate) struct Recorder {
    library: PathBuf,
    log: PathBuf,
    record: Record,
}

impl Recorder {
    /// Writes the library and an empty log to a directory, if the command's program can be recorded.
    pub(crate) fn prepare(
        directory: &Path,
        command: &Command,
        record: Record,
    ) -> Result<Recorder, NotRecorded> {
        let tree = record == Record::Tree;
        check(command.get_program(), preloaded(command).as_deref(), tree).map_err(NotRecorded::Unfit)?;
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| NotRecorded::Io { path, error }
        };
        // The program may have another working directory.
        let directory = path::absolute(directory).map_err(io(directory))?;
        let (library, log) = (directory.join(LIBRARY), directory.join("calls"));
        fs::write(&library, RECORDER).map_err(io(&library))?;
        check_library(&library).map_err(NotRecorded::Unfit)?;
        ProgramLog::create(&log).map_err(io(&log))?;
        Ok(Recorder { library, log, record })
    }

    /// Makes the command start its program with the recorder.
    pub(crate) fn attach(&self, command: &mut Command) {
        let mut list = self.library.clone().into_os_string();
        if let Some(others) = preloaded(command).filter(|others| !others.is_empty()) {
            list.push(":");
            list.push(others);
        }
        command.env("LD_PRELOAD", list).env(LOG_VARIABLE, &self.log);
        match self.record {
            Record::Program => command.env_remove(RECORD_VARIABLE),
            Record::Tree => command.env(RECORD_VARIABLE, "tree"),
        };
    }

    /// Reads the log as it is now.
    pub(crate) fn read(&self) -> Result<ProgramLog, LogError> {
        ProgramLog::read(&self.log)
    }
}

/// The value of `LD_PRELOAD` for the command's program.
fn preloaded(command: &Command) -> Option<OsString> {
    let own = command.get_envs().find(|(name, _)| *name == "LD_PRELOAD");
    match own {
        Some((_, value)) => value.map(OsString::from),
        None => env::var_os("LD_PRELOAD"),
    }
}
