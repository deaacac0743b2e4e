//! Globs on command lines: how `allow_process` matches, and which glob is suggested.

use crate::config::printable::shows;
use crate::guard::facts::Process;

/// A glob that matches this process and similar ones: the program in any directory, with any arguments.
/// `None` for a copy of the test binary itself, which has no name of its own.
pub(super) fn glob_for(process: &Process) -> Option<String> {
    if process.forked_without_exec {
        return None;
    }
    Some(match process.command_line.split_first() {
        Some((program, arguments)) => glob(program, arguments),
        None => glob(&process.comm, &[]),
    })
}

fn glob(program: &str, arguments: &[String]) -> String {
    /// The most characters of a name that a glob contains.
    const NAME: usize = 60;
    // A program that rewrites its title puts everything into one argument: `nginx: master process ..`.
    let (name, cut) = match program.split_once(' ') {
        Some((name, _)) if !program.starts_with('/') => (name, true),
        _ => (program, false),
    };
    // A glob without a `/` matches the program in any directory.
    let name = name.rsplit('/').next().unwrap_or_default();
    // The character must mean itself both in a string literal and in a glob.
    let literal = |c: char| shows(c) && !"\"\\*?\u{fffd}".contains(c);
    let mut rest = name.chars();
    let name: String = rest.by_ref().take(NAME).map(|c| if literal(c) { c } else { '?' }).collect();
    let kept = if cut { Vec::new() } else { kept_arguments(&name, arguments) };
    let end = match rest.next() {
        Some(_) => "*".to_owned(),
        None if cut || kept.len() < arguments.len() => kept.concat() + " *",
        None => kept.concat(),
    };
    format!("{name}{end}")
}

/// The first arguments that say which program it is, each with a leading space: a subcommand, or what an interpreter runs.
fn kept_arguments(name: &str, arguments: &[String]) -> Vec<String> {
    /// The most options before a script.
    const OPTIONS: usize = 4;
    if !is_interpreter(name) {
        let subcommand = arguments.first().filter(|argument| is_subcommand(argument));
        return subcommand.map(|subcommand| format!(" {subcommand}")).into_iter().collect();
    }
    let options = arguments.iter().take_while(|argument| argument.starts_with('-')).count();
    let (options, rest) = arguments.split_at(options);
    let runs = options.last().map(String::as_str);
    // The code of `-c` and `-e` is no name.
    let has_code = options.iter().any(|option| matches!(option.as_str(), "-c" | "-e" | "-lc" | "-ic" | "-p"));
    let Some(script) = rest.first().filter(|_| !has_code && options.len() <= OPTIONS) else {
        return Vec::new();
    };
    let name = script.rsplit('/').next().unwrap_or_default();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if name.is_empty()
        || !name.chars().all(is_name)
        || !options.iter().all(|option| option.chars().all(is_name))
    {
        return Vec::new();
    }
    // The file may lie in another directory the next time.
    let place = if script.contains('/') && !matches!(runs, Some("-m")) { "*/" } else { "" };
    let options = options.iter().map(|option| format!(" {option}"));
    options.chain([format!(" {place}{name}")]).collect()
}

/// Whether a program runs another one, which its arguments name.
fn is_interpreter(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "python", "pypy", "ruby", "perl", "node", "nodejs", "deno", "bun", "php", "lua", "java", "bash",
        "dash", "sh",
    ];
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    NAMES.contains(&plain) || matches!(name, "zsh" | "ksh" | "ash")
}

/// Whether an argument is a subcommand, as in `git gc`: other subcommands must not match.
fn is_subcommand(argument: &str) -> bool {
    /// The longest argument that is taken for one.
    const LONGEST: usize = 40;
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    argument.starts_with(|c: char| c.is_ascii_lowercase())
        && argument.len() <= LONGEST
        && argument.chars().all(is_part)
}

/// Whether a glob of `allow_process` matches a command line. A glob without a `/` matches the file name of
/// the program, in any directory, and its arguments.
pub(crate) fn allows(glob: &str, line: &str) -> bool {
    if matches(glob, line) {
        return true;
    }
    let (program, arguments) = match line.split_once(' ') {
        Some((program, _)) => (program, &line[program.len()..]),
        None => (line, ""),
    };
    let has_path = glob.split(' ').next().is_some_and(|program| program.contains('/'));
    let name = program.rsplit('/').next().unwrap_or_default();
    !has_path && name.len() < program.len() && matches(glob, &format!("{name}{arguments}"))
}

/// Whether a pattern of the tool's names a process: as a glob of `allow_process` does, or, without `*` and `?`, by a part of
/// the command line. A process without one is known by its name.
#[cfg(feature = "__engine")]
pub(crate) fn names_process(pattern: &str, comm: &str, line: &str) -> bool {
    let line = if line.is_empty() { comm } else { line };
    match pattern.contains(['*', '?']) {
        true => allows(pattern, line),
        false => line.contains(pattern),
    }
}

/// Matches `*` (any run of characters) and `?` (one character) against the whole of `text`.
pub(super) fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    // Where to continue if the last star must match one more character.
    let mut retry = None;
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                retry = Some((g, t));
                g += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => {
                let Some((star, taken)) = retry else {
                    return false;
                };
                retry = Some((star, taken + 1));
                g = star + 1;
                t = taken + 1;
            }
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::{allows, glob, matches};

    #[test]
    fn a_glob_matches_the_whole_command_line() {
        for (glob, text, expected) in [
            ("sleep *", "sleep 100", true),
            ("sleep", "sleep 100", false),
            ("*sleep*", "/bin/sleep 100", true),
            ("s?eep 1*0", "sleep 1000", true),
            ("s?eep 1*0", "sleep 1001", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("**a**b", "xxaxxb", true),
            ("a*b*c", "abcbd", false),
        ] {
            assert_eq!(matches(glob, text), expected, "`{glob}` on `{text}`");
        }
    }

    #[test]
    fn a_glob_that_is_proposed_is_a_literal_and_matches() {
        for (program, arguments, expected) in [
            ("sleep", "100", "sleep *"),
            ("/bin/cat", "", "cat"),
            ("/usr/bin/git", "credential-cache--daemon /tmp/s", "git credential-cache--daemon *"),
            ("git", "daemon", "git daemon"),
            ("python3", "server.py", "python3 server.py"),
            ("python3.12", "/tmp/a1/server.py --port 0", "python3.12 */server.py *"),
            ("/usr/bin/python3", "-m http.server 0", "python3 -m http.server *"),
            ("python3", "-u -m pytest", "python3 -u -m pytest"),
            ("python3", "-u -c 1", "python3 *"),
            ("java", "-Xmx1g -jar /opt/app.jar", "java -Xmx1g -jar */app.jar"),
            ("bash", "-c ls", "bash *"),
            ("bash", "/tmp/x/run.sh", "bash */run.sh"),
            ("node", "--inspect ./x/a[b].js", "node *"),
            ("nginx: master process", "", "nginx: *"),
            ("/tmp/a\"b\\c\n\u{202e}*?\u{fffd}", "-x", "a?b?c????? *"),
            ("naïve ☃", "", "naïve *"),
        ] {
            let all: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
            let proposed = glob(program, &all);
            assert_eq!(proposed, expected);
            let line = [program, arguments].join(" ");
            assert!(allows(&proposed, line.trim_end()), "`{proposed}` on `{line}`");
        }
        let long = "x".repeat(4096);
        let proposed = glob(&long, &["y".to_owned()]);
        assert!(proposed.len() < 100 && allows(&proposed, &format!("{long} y")), "{proposed}");
    }

    #[test]
    fn a_glob_without_a_slash_matches_the_program_wherever_it_lies() {
        for (glob, line, expected) in [
            ("sleep *", "/usr/bin/sleep 100", true),
            ("sleep", "/usr/bin/sleep 100", false),
            ("cat /etc/*", "/bin/cat /etc/passwd", true),
            ("/bin/sleep *", "/usr/bin/sleep 100", false),
            ("*/sleep *", "sleep 100", false),
            ("leep *", "/usr/bin/sleep 100", false),
        ] {
            assert_eq!(allows(glob, line), expected, "`{glob}` on `{line}`");
        }
    }
}
