//! `childproof man` and `childproof completions`: written from the command line's own description.

use std::io;

use clap::{Arg, Command};
use clap_complete::Shell;

use crate::{cargo, options};

/// The pages that there are.
const PAGES: [&str; 2] = ["childproof", "cargo-childproof"];

/// The subcommands.
pub(crate) fn commands() -> [Command; 2] {
    let man =
        Command::new("man").about("Writes the manual page of childproof, or of one of its commands").arg(
            Arg::new("page")
                .value_name("PAGE")
                .default_value(PAGES[0])
                .help("`childproof`, a command of it such as `run`, or `cargo-childproof`"),
        );
    let completions = Command::new("completions")
        .about("Writes a shell's completions")
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(clap::value_parser!(Shell)));
    [man, completions]
}

/// Writes a manual page.
///
/// # Errors
///
/// If there is no such page, or stdout cannot be written to.
pub(crate) fn man(page: &str) -> Result<(), String> {
    let all = options::command();
    let title = match page {
        "childproof" | "cargo-childproof" => page.to_owned(),
        name => format!("childproof-{name}"),
    };
    let page = match page {
        "childproof" => all,
        "cargo-childproof" => cargo::command().name("cargo-childproof"),
        name => {
            let own =
                all.get_subcommands().find(|command| command.get_name() == name && !command.is_hide_set());
            let names =
                all.get_subcommands().map(Command::get_name).chain(PAGES).collect::<Vec<_>>().join("`, `");
            let own = own.ok_or_else(|| format!("there is no page `{name}`: expected one of `{names}`"))?;
            own.clone().bin_name(format!("childproof {name}"))
        }
    };
    clap_mangen::Man::new(page)
        .title(title)
        .render(&mut io::stdout())
        .map_err(|error| format!("cannot write the page: {error}"))
}

/// Writes the completions for a shell.
pub(crate) fn completions(shell: Shell) {
    clap_complete::generate(shell, &mut options::command(), PAGES[0], &mut io::stdout());
}
