//! The words in front of cargo's own command: only cargo's global options may stand there.

use std::ffi::{OsStr, OsString};

use childproof_values as values;

use crate::options;

/// Cargo's global options that have no value.
const FLAGS: [&str; 9] =
    ["--verbose", "--quiet", "--offline", "--locked", "--frozen", "--list", "--version", "--help", "-V"];
/// Those that have one, in the same word or in the next one.
const WITH_VALUE: [&str; 6] = ["--config", "--color", "--explain", "--lockfile-path", "-Z", "-C"];

/// Finds cargo's command among its arguments.
///
/// # Errors
///
/// If an option before it is none of cargo's: what it is.
pub(super) fn command(arguments: &[OsString]) -> Result<Option<&OsStr>, String> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if !text.starts_with('-') && !text.starts_with('+') {
            return Ok(Some(word));
        }
        match WITH_VALUE.iter().find(|option| is_option(&text, option)) {
            Some(option) if text == **option => _ = words.next(),
            Some(_) => {}
            None if is_flag(&text) => {}
            None => return Err(not_of_cargo(&text, &arguments[0].to_string_lossy())),
        }
    }
    Ok(None)
}

fn is_flag(word: &str) -> bool {
    let letters = word.strip_prefix('-').unwrap_or_default();
    let is_verbose = !letters.is_empty() && letters.chars().all(|letter| matches!(letter, 'v' | 'q'));
    // A toolchain is rustup's.
    is_verbose || FLAGS.contains(&word) || word == "-h" || word.starts_with('+')
}

/// Whether a word is this option, perhaps with its value: `--color=never`, `-Zunstable`.
fn is_option(word: &str, option: &str) -> bool {
    let rest = word.strip_prefix(option);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('=') || !option.starts_with("--"))
}

/// What an option is that stands before cargo's command and is none of cargo's. `first` is the first word of cargo's.
fn not_of_cargo(word: &str, first: &str) -> String {
    let name = word.split('=').next().unwrap_or(word);
    let names = |all: Vec<clap::Arg>| -> Vec<String> {
        all.iter().filter_map(|option| Some(format!("--{}", option.get_long()?))).collect()
    };
    let own = names(options::options());
    let of_run = names(options::run().get_opts().cloned().collect());
    let what = if own.iter().any(|option| option == name) {
        format!("it is an option of `cargo childproof`: write it before `{first}`")
    } else if of_run.iter().any(|option| option == name) {
        format!(
            "it is an option of `childproof run`, which guards one program: `cargo test --no-run` names the test binaries; run one \
             by `childproof run {name} .. TARGET/debug/deps/NAME-HASH`"
        )
    } else {
        let known = own.iter().map(String::as_str);
        match values::nearest(name, known, |length| (length / 3).min(2)) {
            Some(option) => format!("did you mean `{option}`?"),
            None => "neither `cargo childproof` nor cargo has it in front of a command. An option of the command stands \
                     behind it: `cargo childproof test --lib`"
                .to_owned(),
        }
    };
    format!("unexpected option `{name}` before cargo's command: {what}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::ffi::OsString;

    use super::command;

    fn of(words: &str) -> Result<Option<String>, String> {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        command(&words).map(|found| found.map(|word| word.to_string_lossy().into_owned()))
    }

    #[test]
    fn global_options_of_cargo_may_stand_before_its_command() {
        for words in [
            "test --tiemout",
            "+nightly test",
            "--offline --locked --frozen test",
            "--config a.b=1 test",
            "--config=a.b=1 test",
            "--color never test",
            "-Z unstable-options -Zbuild-std -C .. test",
            "-q -v -vv -qv --quiet --verbose test",
        ] {
            assert_eq!(of(words), Ok(Some("test".to_owned())), "{words}");
        }
        assert_eq!(of("--list"), Ok(None));
    }

    #[test]
    fn every_other_option_is_named_with_what_it_is() {
        for (words, said) in [
            ("--tiemout 5s test", "did you mean `--timeout`?"),
            ("--keep test", "an option of `childproof run`"),
            ("--repeat=2 test", "`--repeat` before cargo's command: it is an option of `childproof run`"),
            ("--offline --timeout 5s test", "write it before `--offline`"),
            ("--lib test", "stands behind it"),
            ("-x test", "`-x`"),
        ] {
            let error = of(words).unwrap_err();
            assert!(error.contains(said), "{words}: {error}");
        }
    }
}
