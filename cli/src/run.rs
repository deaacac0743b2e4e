//! `childproof run`: guards a command, passes signals and stops on, and ends as the command did.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::mem;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use childproof::__engine::{
    Ending, Event, Guarded, Inherited, Outcome, Policy, Received, Report, Scratch, end_by, over_environment,
    preload, signal_name, stop_by,
};

use crate::FAILED;
use crate::options::{RecordOption, Run};
#[cfg(recorder)]
use crate::preload::{Record, Recorder};
use crate::progress::Progress;

const TIMED_OUT: u8 = 124;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// A shell's exit code for a command that was killed by a signal is this plus the signal's number.
const BY_SIGNAL: i32 = 128;

/// How long the command may take to end after a SIGTERM or SIGHUP.
const AFTER_TERM: Duration = Duration::from_secs(1);

mod signals {
    pub(super) const HUP: i32 = 1;
    pub(super) const INT: i32 = 2;
    pub(super) const QUIT: i32 = 3;
    pub(super) const TERM: i32 = 15;
    pub(super) const CONT: i32 = 18;
}

/// Runs the command. Gives the exit code. `noted` is given the report, and the signal that ended the
/// command, before what is left of the guard goes.
pub(crate) fn run(options: &Run, noted: impl FnOnce(&Report, Option<i32>) -> Result<(), String>) -> u8 {
    let json = options.json.as_deref().map(open).transpose();
    let shown = |report: &Report| say(&report.text(is_coloured()));
    match json.and_then(|mut json| guard(options, json.as_mut(), None, shown, noted)) {
        Ok(exit) => exit.take(),
        Err(why) => fail(&why),
    }
}

/// Says why childproof failed. Gives the exit code.
pub(crate) fn fail(why: &str) -> u8 {
    say(&format!("childproof: {why}\n"));
    FAILED
}

/// How this process ends.
pub(crate) struct Exit {
    pub(crate) code: u8,
    /// The signal that ends it, as it ended the command.
    signal: Option<i32>,
    /// The command is not to be run again, whatever its exit code: it was ended from outside, could not be run, or is kept.
    pub(crate) is_final: bool,
}

impl Exit {
    fn with(code: u8) -> Exit {
        Exit { code, signal: None, is_final: false }
    }

    /// Ends this process by the signal, if there is one. Gives the exit code.
    pub(crate) fn take(self) -> u8 {
        if let Some(signal) = self.signal {
            end_by(signal);
        }
        self.code
    }
}

/// Writes to stderr. A report that cannot be written changes nothing in how the command ended.
pub(crate) fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Runs the command once. With `inherited`, this process is as before after that has been restored. `shown` writes a report
/// of what was left.
pub(crate) fn guard(
    options: &Run,
    json: Option<&mut File>,
    inherited: Option<&Inherited>,
    shown: impl FnOnce(&Report),
    noted: impl FnOnce(&Report, Option<i32>) -> Result<(), String>,
) -> Result<Exit, String> {
    let Some((program, arguments)) = options.command.split_first() else {
        return Err("no command was given".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, value) in &options.environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let recording = Recording::prepare(&mut command, options);
    let policy = over_environment(policy(options))?;
    let scratch = recording.scratch.as_ref().map(|own| &own.scratch);
    let mut guarded = Guarded::start(command, policy, scratch, inherited)
        .map_err(|error| format!("the command cannot be guarded: {error}"))?;
    let mut followed = Followed::new(options.progress);
    let look = |mut outcome: Box<Outcome>| {
        recording.explain(&mut outcome);
        say(&outcome.conclude(preload::find(program).as_deref()).inspection(is_coloured()));
    };
    let mut outcome = match followed.follow(&mut guarded, &look) {
        End::Over(outcome) => outcome,
        End::NotStarted(error) => {
            return Ok(Exit { is_final: true, ..Exit::with(not_started(program, &error)) });
        }
        End::Failed(why) => return Err(why),
    };
    let ending = outcome.ending();
    if outcome.needs_calls() {
        recording.explain(&mut outcome);
    }
    let report = outcome.conclude(preload::find(program).as_deref());
    if let Some(json) = json {
        writeln!(json, "{}", report.json())
            .map_err(|error| format!("cannot write the JSON report: {error}"))?;
    }
    if let Some(path) = &options.junit {
        let file = Path::new(program).file_name().unwrap_or(program).to_string_lossy();
        report
            .write_junit(path, &file)
            .map_err(|error| format!("cannot write `--junit {}`: {error}", path.display()))?;
    }
    if let Some(why) = report.not_isolated().filter(|_| !options.quiet && !report.failed()) {
        say(&format!("childproof: {why}\n"));
    }
    if report.failed() && !options.quiet {
        shown(&report);
    }
    let signal = followed.signal_of(&ending);
    if let Some(signal) = signal
        && !report.failed()
        && !options.quiet
        && !options.is_in_summary
        && followed.received.contains(&signal)
    {
        let (name, signal) = (program.to_string_lossy(), signal_name(signal));
        let after = report.seconds();
        say(&format!(
            "childproof: `{name}` was ended by {signal} after {after:.1} s, and nothing was left\n"
        ));
    }
    noted(&report, signal)?;
    // What is printed above names it; before that, it ends with this process.
    let is_kept = report.keeps() && guarded.keep();
    if is_kept {
        // The guard that stays removes the files at its end.
        mem::forget(recording);
    } else {
        if report.has_stopped() {
            guarded.kill_kept();
        }
        guarded.shut_down();
        drop(recording);
    }
    let exit = match ending {
        Ending::Exited(0) if report.failed() => Exit::with(options.leak_exit_code),
        ending => followed.end_as(&ending),
    };
    Ok(Exit { is_final: is_kept || !followed.received.is_empty(), ..exit })
}

/// Whether what is written to stderr has colours.
pub(crate) fn is_coloured() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && io::stderr().is_terminal()
}

/// Says that a program could not be started. Gives the exit code of env(1) for it.
pub(crate) fn not_started(program: &OsStr, error: &io::Error) -> u8 {
    say(&format!("childproof: cannot run `{}`: {error}\n", program.display()));
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

fn by_signal(signal: i32) -> u8 {
    u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX)
}

pub(crate) fn open(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|error| format!("cannot write `--json {}`: {error}", path.display()))
}

fn policy(options: &Run) -> Policy {
    let policy = match options.timeout {
        Some(limit) => Policy::new().timeout(limit),
        None => Policy::new().no_timeout(),
    };
    let policy = match options.fds {
        Some(fds) => policy.fds(fds),
        None => policy,
    };
    let policy = match options.isolation {
        Some(isolation) => policy.isolation(isolation),
        None => policy,
    };
    let policy = if options.keep { policy.keep() } else { policy };
    let policy = options.allow_process.iter().fold(policy, |policy, glob| policy.allow_process(glob));
    let policy = options.allow_created_by.iter().fold(policy, |policy, path| policy.allow_created_by(path));
    match options.grace {
        Some(grace) => policy.grace(grace),
        None => policy,
    }
}

/// How the guard of a command came to its end.
pub(crate) enum End {
    Over(Box<Outcome>),
    NotStarted(io::Error),
    Failed(String),
}

/// What was received while the command ran.
pub(crate) struct Followed {
    /// SIGINT, SIGTERM and SIGHUP, as they came.
    received: Vec<i32>,
    /// When the command is cut.
    deadline: Option<Instant>,
    is_cut: bool,
    progress: Progress,
}

impl Followed {
    /// Shows a line on the terminal meanwhile, if `progress` asks for it.
    pub(crate) fn new(progress: bool) -> Followed {
        Followed { received: Vec::new(), deadline: None, is_cut: false, progress: Progress::new(progress) }
    }

    /// Follows the command to its end. `look` is given what was seen when that is asked for meanwhile.
    pub(crate) fn follow(&mut self, guarded: &mut Guarded, look: &dyn Fn(Box<Outcome>)) -> End {
        loop {
            let until = self.deadline.into_iter().chain(self.progress.next()).min();
            let event = guarded.wait(until);
            match event {
                Event::Deadline if self.deadline.is_none_or(|deadline| Instant::now() < deadline) => {
                    self.progress.update(guarded);
                    continue;
                }
                _ => self.progress.clear(),
            }
            match event {
                Event::Started => {}
                Event::Inspected(outcome) => look(outcome),
                Event::Stopped(signal) => {
                    stop_by(signal);
                    // The shell has only continued this process; the command may be in another process group.
                    guarded.signal(signals::CONT);
                }
                Event::Signal(received) => self.pass_on(guarded, received),
                Event::Deadline => self.cut(guarded),
                Event::Over(outcome) => return End::Over(outcome),
                Event::NotStarted(error) => return End::NotStarted(error),
                Event::Failed(why) => return End::Failed(why),
            }
        }
    }

    /// Forwards a signal to the command, unless the command has already received it, and sets a deadline if
    /// the signal should end the command.
    fn pass_on(&mut self, guarded: &Guarded, received: Received) {
        let Received { signal, by_terminal, by_command } = received;
        if by_command {
            return;
        }
        // From a terminal the command has it as well, to do what it does without a guard.
        if signal == signals::QUIT && !by_terminal {
            guarded.inspect();
            return;
        }
        if !by_terminal {
            guarded.signal(signal);
        }
        // A command with a handler for Ctrl-C at a terminal does not necessarily end because of it.
        let is_its_own = signal == signals::INT && by_terminal && guarded.catches(signal);
        if !matches!(signal, signals::INT | signals::TERM | signals::HUP) || is_its_own {
            return;
        }
        let is_second = self.received.iter().any(|before| *before != signals::HUP);
        self.received.push(signal);
        if is_second && signal != signals::HUP {
            self.cut(guarded);
        } else if signal != signals::INT && !self.is_cut {
            self.deadline.get_or_insert(Instant::now() + AFTER_TERM);
        }
    }

    /// By a signal if that is how the command ended, or with the exit code that says how.
    pub(crate) fn end_as(&self, ending: &Ending) -> Exit {
        let by = |signal| Exit { signal: Some(signal), ..Exit::with(by_signal(signal)) };
        match *ending {
            Ending::Exited(code) => Exit::with(u8::try_from(code).unwrap_or(u8::MAX)),
            // A shell ends its script if Ctrl-C has ended the command, and not if that has only failed.
            Ending::Signalled(signal) if self.received.contains(&signal) => by(signal),
            Ending::Signalled(signal) => Exit::with(by_signal(signal)),
            Ending::Cut => by(self.received.last().copied().unwrap_or(signals::TERM)),
            Ending::TimedOut => Exit::with(TIMED_OUT),
            Ending::Unguarded => Exit::with(FAILED),
        }
    }

    /// The last signal from outside that should end the command.
    pub(crate) fn last_signal(&self) -> Option<i32> {
        self.received.last().copied()
    }

    /// The signal that ended the command, or for which it was cut.
    fn signal_of(&self, ending: &Ending) -> Option<i32> {
        match *ending {
            Ending::Signalled(signal) => Some(signal),
            Ending::Cut => Some(self.last_signal().unwrap_or(signals::TERM)),
            Ending::Exited(_) | Ending::TimedOut | Ending::Unguarded => None,
        }
    }

    fn cut(&mut self, guarded: &Guarded) {
        self.deadline = None;
        if !std::mem::replace(&mut self.is_cut, true) {
            guarded.cut();
        }
    }
}

/// A directory of this tool, which is removed on drop.
pub(crate) struct OwnDirectory {
    pub(crate) scratch: Scratch,
}

impl OwnDirectory {
    /// Creates one in this directory, or in that for temporary files.
    pub(crate) fn create(above: Option<&Path>) -> io::Result<OwnDirectory> {
        Scratch::create(above).map(|scratch| OwnDirectory { scratch })
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for OwnDirectory {
    /// The guard has removed it already, unless that was killed.
    fn drop(&mut self) {
        let _ = self.scratch.remove();
    }
}

/// The recorder of the command's program, or why there is none.
struct Recording {
    /// The directory of the library and the log.
    scratch: Option<OwnDirectory>,
    #[cfg(recorder)]
    recorder: Option<Recorder>,
    /// Why nothing is recorded.
    why: Option<String>,
}

impl Recording {
    /// Makes the command start its program with the recorder, if possible.
    fn prepare(command: &mut Command, options: &Run) -> Recording {
        let mut recording = Recording {
            scratch: None,
            #[cfg(recorder)]
            recorder: None,
            why: None,
        };
        #[cfg(not(recorder))]
        let prepared = {
            let _ = command;
            (options.record != RecordOption::Off)
                .then(|| Err("childproof was built without the recorder's library".to_owned()))
        };
        #[cfg(recorder)]
        let prepared = match options.record {
            RecordOption::Off => None,
            RecordOption::Program => Some(record_in_scratch(command, Record::Program, options)),
            RecordOption::Tree => Some(record_in_scratch(command, Record::Tree, options)),
        };
        match prepared {
            None => recording.why = Some("`--record=off`".to_owned()),
            Some(Err(why)) => recording.why = Some(why),
            #[cfg(recorder)]
            Some(Ok((scratch, recorder))) => {
                recording.scratch = Some(scratch);
                recording.recorder = Some(recorder);
            }
            #[cfg(not(recorder))]
            Some(Ok(())) => {}
        }
        recording
    }

    /// Adds the recorded calls to the outcome of the command, or why there are none.
    fn explain(&self, outcome: &mut Outcome) {
        let why = match &self.why {
            Some(why) => Some(why.clone()),
            #[cfg(not(recorder))]
            None => None,
            #[cfg(recorder)]
            None => self.recorder.as_ref().and_then(|recorder| match recorder.read() {
                Ok(log) if log.was_written() => {
                    outcome.add_calls(&log);
                    None
                }
                Ok(_) => Some("the recorder was not loaded into the program".to_owned()),
                Err(error) => Some(error.to_string()),
            }),
        };
        if let Some(why) = why {
            outcome.set_unrecorded(why);
        }
    }
}

#[cfg(recorder)]
fn record_in_scratch(
    command: &mut Command,
    record: Record,
    options: &Run,
) -> Result<(OwnDirectory, Recorder), String> {
    let scratch = OwnDirectory::create(options.scratch.as_deref());
    let scratch = scratch.map_err(|error| format!("no directory for the recorder: {error}"))?;
    let recorder = Recorder::prepare(scratch.path(), command, record).map_err(|why| why.to_string())?;
    recorder.attach(command);
    Ok((scratch, recorder))
}
