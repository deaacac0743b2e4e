//! Makes names from the system safe to print: a process may give itself any name.

pub(crate) use crate::config::printable::text;
use crate::guard::facts::Process;
use crate::proc::process::guarded;

/// The most characters of a command line in one line of a report.
const COMMAND: usize = 100;

/// The command line of a process as typed in a shell, truncated to one line.
///
/// A fork without exec has the command line of the test, which says nothing; the process name may say more.
pub(crate) fn command(process: &Process) -> String {
    if let Some(name) = guarded(&process.comm, &process.command_line) {
        return guard(&name);
    }
    if process.command_line.is_empty() || process.forked_without_exec {
        return text(&process.comm);
    }
    words(&process.command_line)
}

/// The one name of a guard's own processes: `childproof's guard of NAME`.
pub(crate) fn guard(name: &str) -> String {
    match name {
        "" => "childproof's guard".to_owned(),
        name => shortened(&text(&format!("childproof's guard of {name}"))),
    }
}

/// The name of a process of which only the kernel's name is known.
pub(crate) fn outsider(comm: &str) -> String {
    guarded(comm, &[]).map_or_else(|| text(comm), |name| guard(&name))
}

/// A command line as typed in a shell, truncated to one line.
pub(crate) fn words(words: &[String]) -> String {
    shortened(&command_line(words))
}

/// A command line as typed in a shell.
pub(crate) fn command_line(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// A text, truncated to one line.
pub(crate) fn shortened(full: &str) -> String {
    match full.char_indices().nth(COMMAND) {
        Some((end, _)) => format!("{}..", &full[..end]),
        None => full.to_owned(),
    }
}

/// Quotes a word for a shell, if needed. Invisible characters stay Rust escapes.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return text(word);
    }
    let mut quoted = String::with_capacity(word.len() + 2);
    for c in word.chars() {
        // sh(1), "Double-Quotes".
        if "\"\\$`".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    format!("\"{}\"", text(&quoted))
}

#[cfg(test)]
mod tests {
    use super::{COMMAND, quote, text, words};
    use crate::config::printable::rearranges;

    #[test]
    fn nothing_that_moves_a_cursor_gets_through() {
        let nasty = "a\x1b[31mred\x1b[0m\nb\r\x07\u{9b}2J\u{202e}gnp.exe";
        let safe = text(nasty);
        assert_eq!(safe, r"a\u{1b}[31mred\u{1b}[0m\nb\r\u{7}\u{9b}2J\u{202e}gnp.exe");
    }

    #[test]
    fn nothing_invisible_gets_through() {
        for c in "\0\u{7f}\u{85}\u{a0}\u{ad}\u{61c}\u{180e}\u{200b}\u{200d}\u{2028}\u{2060}\u{2066}\u{feff}\u{fff9}\u{e0041}"
            .chars()
        {
            assert_eq!(text(&format!("a{c}b")), format!("a{}b", c.escape_default()));
        }
        for seen in ["naïve ☃", "nai\u{308}ve", "файл", "文件", "ملف", "\u{fffd}"] {
            assert_eq!(text(seen), seen);
        }
    }

    #[test]
    fn a_name_may_not_rearrange_the_line_that_it_is_in() {
        assert!("a\nb\x1b\u{9b}\u{2029}\u{202e}\u{2066}".chars().filter(|c| rearranges(*c)).count() == 6);
        assert!(!"naïve ☃ 👩\u{200d}🚀 ملف".contains(rearranges));
    }

    #[test]
    fn a_word_is_quoted_as_a_shell_reads_it() {
        for (word, expected) in [
            ("sleep", "sleep"),
            ("--path=/a/b_c.d", "--path=/a/b_c.d"),
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("it's", r#""it's""#),
            ("say \"no\"", r#""say \"no\"""#),
            ("$HOME `id`", r#""\$HOME \`id\`""#),
            ("*.rs", r#""*.rs""#),
            ("#a", r##""#a""##),
            ("a~b{c}[d]!", r#""a~b{c}[d]!""#),
            // The first has a newline, the second a backslash and a letter.
            ("a\nb", r#""a\nb""#),
            (r"a\nb", r#""a\\nb""#),
            ("a\u{a0}b", r#""a\u{a0}b""#),
            ("файл", "файл"),
        ] {
            assert_eq!(quote(word), expected, "{word:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut() {
        let long = words(&["echo".to_owned(), "é".repeat(100_000)]);
        assert_eq!(long, format!("echo {}..", "é".repeat(COMMAND - 5)));
        assert_eq!(words(&["x".repeat(COMMAND)]), "x".repeat(COMMAND));
    }
}
