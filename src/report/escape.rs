//! Makes names from the system safe to print: a process may call itself anything.

use crate::facts::Process;

/// The most characters of a command line that one line of a report shows.
const COMMAND: usize = 100;

/// Replaces what would move the cursor, change colours or hide text by its Rust escape.
pub(crate) fn text(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len());
    for c in raw.chars() {
        let hides = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hides {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The command line of a process as one would type it, cut to one line.
///
/// A copy of the test that never called exec has the command line of the test, which says
/// nothing: its name may.
pub(crate) fn command(process: &Process) -> String {
    let full = if process.command_line.is_empty() || process.forked_without_exec {
        text(&process.comm)
    } else {
        let words: Vec<String> = process.command_line.iter().map(|word| quote(word)).collect();
        words.join(" ")
    };
    if full.chars().count() <= COMMAND {
        return full;
    }
    full.chars().take(COMMAND).chain("..".chars()).collect()
}

fn quote(word: &str) -> String {
    let safe = text(word);
    if safe.is_empty()
        || safe.contains([' ', '"', '\'', '\\', '$', '&', ';', '|', '<', '>', '(', ')', '*', '?'])
    {
        format!("\"{}\"", safe.replace('"', "\\\""))
    } else {
        safe
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn nothing_that_moves_a_cursor_gets_through() {
        let nasty = "a\x1b[31mred\x1b[0m\nb\r\x07\u{202e}gnp.exe";
        let safe = text(nasty);
        assert_eq!(safe, r"a\u{1b}[31mred\u{1b}[0m\nb\r\u{7}\u{202e}gnp.exe");
        assert_eq!(text("naïve ☃"), "naïve ☃");
    }
}
