//! `childproof`: guards the process tree of a command.

mod cargo;
mod documents;
mod inspect;
mod kill;
mod options;
mod places;
#[cfg(recorder)]
mod preload;
mod progress;
mod repeat;
mod run;

use std::process::ExitCode;

use options::Asked;

/// What childproof could not do, as env(1) and timeout(1) say it.
const FAILED: u8 = 125;
/// The exit code of a command that passed and left something.
const LEAK: u8 = 123;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    #[cfg(recorder)]
    if arguments.get(1).is_some_and(|first| first == "__record") {
        return record::run(&arguments[2..]);
    }
    match arguments.get(1).and_then(|first| first.to_str()) {
        Some("__cargo") => return ExitCode::from(cargo::run(arguments[2..].to_vec())),
        Some("__runner") => return ExitCode::from(cargo::run_one(&arguments[2..])),
        _ => {}
    }
    match options::read(arguments) {
        Ok(Asked::Man(page)) => match documents::man(&page) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("childproof: {why}");
                ExitCode::from(FAILED)
            }
        },
        Ok(Asked::Completions(shell)) => {
            documents::completions(shell);
            ExitCode::SUCCESS
        }
        Ok(Asked::Inspect(options)) => ExitCode::from(inspect::run(&options)),
        Ok(Asked::Kill(options)) => ExitCode::from(kill::run(&options)),
        Ok(Asked::Run(options)) => ExitCode::from(match options.repeat {
            1 => run::run(&options, |_, _| Ok(())),
            _ => repeat::run(&options),
        }),
        Err(stop) if stop.use_stderr() => {
            eprint!("{stop}");
            ExitCode::from(FAILED)
        }
        Err(help) => {
            print!("{help}");
            ExitCode::SUCCESS
        }
    }
}

/// `__record [--tree] LOG -- COMMAND ARGUMENTS..`: runs a command with the recorder, writes the log to a
/// file, and ends as the command did. For tests of the recorder.
#[cfg(recorder)]
mod record {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, ExitCode};

    use crate::preload::{Record, Recorder};

    pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
        let (record, rest) = match arguments {
            [first, rest @ ..] if first == "--tree" => (Record::Tree, rest),
            rest => (Record::Program, rest),
        };
        let [log, dashes, program, arguments @ ..] = rest else { return ExitCode::from(125) };
        if dashes != "--" {
            return ExitCode::from(125);
        }
        let mut command = Command::new(program);
        command.args(arguments);
        match recorded(Path::new(log), &mut command, record) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("childproof: {error}");
                ExitCode::from(125)
            }
        }
    }

    fn recorded(log: &Path, command: &mut Command, record: Record) -> std::io::Result<u8> {
        let directory = PathBuf::from(format!("{}.d", log.display()));
        fs::create_dir(&directory)?;
        let recorder = Recorder::prepare(&directory, command, record);
        if let Ok(recorder) = &recorder {
            recorder.attach(command);
        }
        let status = command.status();
        let text = match recorder {
            Err(why) => format!("not recorded: {why}\n"),
            Ok(recorder) => match recorder.read() {
                Err(why) => format!("not recorded: {why}\n"),
                Ok(log) if !log.was_written() => "not recorded: nothing was written\n".to_owned(),
                Ok(log) => log.dump(),
            },
        };
        fs::write(log, text)?;
        fs::remove_dir_all(&directory)?;
        let status = status?;
        let code = status.code().or_else(|| Some(128 + status.signal()?));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }
}
