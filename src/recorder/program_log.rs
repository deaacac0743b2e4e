//! Reads the log of a program that was started with the recorder.
//!
//! The log was written by processes that may have been killed at any moment or may have overwritten it. So
//! nothing in it is trusted, and invalid parts are skipped.

use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::hooks::file::{self, File, State};
use super::hooks::log::{Call, Entry};
use crate::proc::maps::Address;
use crate::recorder::call_site::{CallSite, ResourceKind};
use crate::recorder::calls::{has_made, is_other_program};
use crate::sys::Pid;

/// The environment variable with the path of the recorder's log.
pub const LOG_VARIABLE: &str = file::LOG_VARIABLE;
/// The environment variable which, set to `tree`, also records programs that the program starts.
pub const RECORD_VARIABLE: &str = file::RECORD_VARIABLE;
/// The required file name of the recorder: the recorder finds itself in `LD_PRELOAD` by it.
pub const LIBRARY: &str = file::LIBRARY;

/// A snapshot of the log of a program.
pub struct ProgramLog {
    file: Box<File>,
    /// In the order in which they were found.
    mappings: Vec<Mapping>,
}

/// Why a log cannot be read.
#[derive(Debug)]
pub enum LogError {
    /// The file cannot be read.
    Io(io::Error),
    /// It has another size or header: it is of another version, or was overwritten.
    NotALog,
}

impl std::error::Error for LogError {}

/// A program in a process, from its start to its end or to an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedProgram {
    /// The pid.
    pub pid: Pid,
    /// The pid of its parent when it was started.
    pub parent: Pid,
    /// The path of its executable.
    pub path: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How many threads it had at its end.
    pub threads: u32,
    /// How many fds were open at its end; `None` if unknown.
    pub open: Option<u32>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is running, or was killed. With the last call that should have ended it: `abort`.
    Unfinished(Option<&'static str>),
    /// `main` returned, or the given function ended the process.
    Ended(Option<&'static str>),
    /// It continued as another program or process: by `exec` or by `daemon`.
    WentOn(Option<&'static str>),
}

/// A recorded call.
#[derive(Clone, Debug)]
pub struct RecordedCall {
    pub(crate) site: CallSite,
    /// Index of the program in [`ProgramLog::programs`].
    pub program: Option<usize>,
    /// The created fds.
    pub fds: Vec<i32>,
    /// Return addresses, innermost first.
    pub addresses: Vec<u64>,
}

/// An fd that was open at the end of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedFd {
    /// Index of the program in [`ProgramLog::programs`].
    pub program: usize,
    /// The fd number.
    pub fd: i32,
    /// `st_mode`.
    pub mode: u32,
    /// What `F_GETFL` says: `O_ACCMODE` and others.
    pub flags: i32,
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Whether it has close-on-exec set.
    pub cloexec: bool,
    /// The target of the link in /proc: `pipe:[12]`.
    pub target: String,
}

#[derive(Debug)]
struct Mapping {
    program: usize,
    pid: u32,
    start: u64,
    end: u64,
    base: u64,
    path: String,
    build_id: Vec<u8>,
}

impl ProgramLog {
    /// Creates the log file of a program. Only this user may read it.
    ///
    /// # Errors
    ///
    /// Those of the file system, also if the file exists already.
    pub fn create(path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(size_of::<File>() as u64)?;
        file.write_all(&File::beginning())
    }

    /// Reads what has been written so far.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is not a log of this version.
    pub fn read(path: &Path) -> Result<ProgramLog, LogError> {
        ProgramLog::parse(&fs::read(path).map_err(LogError::Io)?)
    }

    fn parse(bytes: &[u8]) -> Result<ProgramLog, LogError> {
        let file = File::copy(bytes).filter(|file| file.header.is_known()).ok_or(LogError::NotALog)?;
        let mappings = rows(&file.mappings).filter_map(|row| {
            let length = get(&row.build_id_length) as usize;
            let build_id = row.build_id.get(..length).unwrap_or_default();
            Some(Mapping {
                program: place(&row.program)?,
                pid: get(&row.pid),
                start: row.start.load(Ordering::Relaxed),
                end: row.end.load(Ordering::Relaxed),
                base: row.base.load(Ordering::Relaxed),
                path: text(&file, &row.path),
                build_id: build_id.iter().map(|byte| byte.load(Ordering::Relaxed)).collect(),
            })
        });
        let mappings = mappings.collect();
        Ok(ProgramLog { file, mappings })
    }

    /// Whether any program has written to it. If not, the recorder was not loaded.
    pub fn was_written(&self) -> bool {
        !self.programs().is_empty()
    }

    /// Whether nothing was dropped for lack of room.
    pub fn is_complete(&self) -> bool {
        let File { programs, mappings, open, texts, log, .. } = &*self.file;
        is_complete(programs)
            && is_complete(mappings)
            && is_complete(open)
            && texts.taken.load(Ordering::Relaxed) <= texts.bytes.len() as u64
            && log.is_complete()
    }

    /// The programs that were recorded: one, unless the programs that it starts are recorded too.
    pub fn programs(&self) -> Vec<RecordedProgram> {
        let programs = rows(&self.file.programs).map_while(|row| {
            let end = Call::of(get(&row.end)).map(Call::name);
            let state = get(&row.state);
            let outcome = [
                (State::Started, Outcome::Unfinished(end)),
                (State::Ended, Outcome::Ended(end)),
                (State::WentOn, Outcome::WentOn(end)),
            ];
            let (_, outcome) = outcome.into_iter().find(|(known, _)| *known as u32 == state)?;
            Some(RecordedProgram {
                pid: get(&row.pid) as Pid,
                parent: get(&row.parent) as Pid,
                path: text(&self.file, &row.path),
                outcome,
                threads: get(&row.threads),
                open: Some(get(&row.open)).filter(|open| *open != u32::MAX && state == State::Ended as u32),
            })
        });
        programs.collect()
    }

    /// The fds that were open at the end of a program.
    pub fn open_fds(&self) -> Vec<RecordedFd> {
        let fds = rows(&self.file.open).filter_map(|row| {
            Some(RecordedFd {
                program: place(&row.program)?,
                fd: get(&row.fd) as i32,
                mode: get(&row.mode),
                flags: get(&row.flags) as i32,
                dev: row.dev.load(Ordering::Relaxed),
                ino: row.ino.load(Ordering::Relaxed),
                cloexec: get(&row.cloexec) != 0,
                target: text(&self.file, &row.target),
            })
        });
        fds.collect()
    }

    /// The complete calls.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.file.log.kept().filter_map(|entry| self.call(entry)).collect()
    }

    /// The calls that created one of `keys`.
    pub(crate) fn sites(&self, keys: &[(ResourceKind, u64)]) -> Vec<CallSite> {
        let made = |entry: &&Entry| entry.call().is_some_and(|call| has_made(call, entry, keys));
        self.file.log.kept().filter(made).filter_map(|entry| Some(self.call(entry)?.site)).collect()
    }

    /// The last `most` programs that were started, except those in `but`.
    pub(crate) fn other_programs(&self, but: &[(ResourceKind, u64)], most: usize) -> Vec<CallSite> {
        let other = |entry: &&Entry| entry.call().is_some_and(|call| is_other_program(call, entry, but));
        let others: Vec<&Entry> = self.file.log.kept().filter(other).collect();
        let last = others.get(others.len().saturating_sub(most)..).unwrap_or_default();
        last.iter().filter_map(|entry| Some(self.call(entry)?.site)).collect()
    }

    fn call(&self, entry: &Entry) -> Option<RecordedCall> {
        let program = place(&entry.program);
        let pid = get(&entry.creator);
        let locate = |address| self.locate(program, pid, address);
        let fds = entry.fds.iter().map(|fd| get(fd) as i32).filter(|fd| *fd >= 0);
        let addresses = entry.frames.iter().map(|frame| frame.load(Ordering::Relaxed));
        Some(RecordedCall {
            site: entry.site(entry.call()?, locate),
            program,
            fds: fds.collect(),
            addresses: addresses.take_while(|address| *address != 0).collect(),
        })
    }

    /// Finds the file that contained an address. Mappings that the process itself recorded come first: after
    /// a fork, two processes may map different files at one address.
    fn locate(&self, program: Option<usize>, pid: u32, address: u64) -> Option<Address> {
        let is_there = |mapping: &&Mapping| {
            Some(mapping.program) == program && mapping.start <= address && address < mapping.end
        };
        let mut found = self.mappings.iter().rev().filter(is_there);
        let first = found.next()?;
        let own = std::iter::once(first).chain(found).find(|mapping| mapping.pid == pid);
        let mapping = own.unwrap_or(first);
        let offset = address.checked_sub(mapping.base)?;
        mapping.path.starts_with('/').then(|| Address { module: mapping.path.clone(), offset })
    }

    /// Prints the whole log, one item a line.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        let _ = self.write_to(&mut out);
        out
    }

    fn write_to(&self, out: &mut String) -> std::fmt::Result {
        for program in self.programs() {
            let RecordedProgram { pid, parent, path, outcome, threads, open } = program;
            writeln!(
                out,
                "program pid={pid} parent={parent} {outcome:?} threads={threads} open={open:?} {path:?}"
            )?;
        }
        for Mapping { program, pid, start, end, base, path, build_id } in &self.mappings {
            let id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(
                out,
                "mapping program={program} pid={pid} {start:x}-{end:x} base={base:x} build-id={id} {path:?}"
            )?;
        }
        for RecordedCall { site, program, fds, addresses } in self.calls() {
            let CallSite {
                call,
                kind,
                creator,
                keys,
                threads,
                thread,
                test: _,
                execed,
                cloexec,
                command_line,
                frames,
            } = site;
            let program = program.unwrap_or(usize::MAX);
            writeln!(
                out,
                "call {call} {kind:?} program={program} pid={creator} keys={keys:?} fds={fds:?} cloexec={cloexec} \
                 threads={threads} thread={thread:?} execed={execed} command={command_line:?} frames={}",
                addresses.len()
            )?;
            for Address { module, offset } in frames {
                writeln!(out, "  {module}+{offset:#x}")?;
            }
        }
        for RecordedFd { program, fd, mode, flags, dev, ino, cloexec, target } in self.open_fds() {
            writeln!(
                out,
                "open program={program} fd={fd} mode={mode:o} flags={flags:o} dev={dev} ino={ino} cloexec={cloexec} {target:?}"
            )?;
        }
        writeln!(out, "complete={}", self.is_complete())
    }
}

fn get(number: &AtomicU32) -> u32 {
    number.load(Ordering::Acquire)
}

/// Decodes an index that is stored plus one.
fn place(number: &AtomicU32) -> Option<usize> {
    get(number).checked_sub(1).map(|place| place as usize)
}

fn rows<T, const SIZE: usize>(table: &file::Table<T, SIZE>) -> impl Iterator<Item = &T> {
    let taken = usize::try_from(table.taken.load(Ordering::Acquire)).unwrap_or(usize::MAX);
    table.rows.iter().take(taken)
}

fn is_complete<T, const SIZE: usize>(table: &file::Table<T, SIZE>) -> bool {
    table.taken.load(Ordering::Relaxed) <= SIZE as u64
}

fn text(file: &File, text: &file::Text) -> String {
    let (at, length) = (get(&text.at) as usize, get(&text.length) as usize);
    let bytes = file.texts.bytes.get(at..).and_then(|bytes| bytes.get(..length)).unwrap_or_default();
    let bytes: Vec<u8> = bytes.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{File, LogError, ProgramLog};

    fn empty() -> Vec<u8> {
        let mut bytes = vec![0; size_of::<File>()];
        bytes[..24].copy_from_slice(&File::beginning());
        bytes
    }

    #[test]
    fn an_empty_log_has_nothing() {
        let log = ProgramLog::parse(&empty()).unwrap_or_else(|error| panic!("{error}"));
        assert!(!log.was_written());
        assert_eq!(log.dump(), "complete=true\n");
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let mut bytes = empty();
        assert!(matches!(ProgramLog::parse(&bytes[1..]), Err(LogError::NotALog)));
        assert!(matches!(ProgramLog::parse(&[]), Err(LogError::NotALog)));
        bytes[8] ^= 1;
        assert!(matches!(ProgramLog::parse(&bytes), Err(LogError::NotALog)));
    }

    /// A program may have overwritten it with anything.
    #[test]
    fn garbage_is_read_without_a_panic() {
        let mut state = 1_u64;
        for round in 0..8 {
            let mut bytes = empty();
            for (at, byte) in bytes.iter_mut().enumerate().skip(24) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let random = (state >> 56) as u8;
                // Some rows with small numbers, as if they were complete.
                *byte = if at % (4 + round) == 0 { random % 32 } else { random * u8::from(round % 2 == 0) };
            }
            let log = ProgramLog::parse(&bytes).unwrap_or_else(|error| panic!("{error}"));
            assert!(log.dump().len() > 20);
        }
    }
}
