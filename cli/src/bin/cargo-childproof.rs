//! `cargo childproof`: the tool beside this file does it all.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let beside = env::current_exe().ok().map(|own| own.with_file_name("childproof"));
    let tool = beside.filter(|tool| tool.is_file()).unwrap_or_else(|| PathBuf::from("childproof"));
    let mut command = Command::new(&tool);
    command.arg("__cargo").args(env::args_os().skip(1));
    let error = command.exec();
    eprintln!(
        "childproof: cannot run `{}`: {error}: both are installed with `childproof-cli`",
        tool.display()
    );
    ExitCode::from(125)
}
