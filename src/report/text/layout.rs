//! The layout of a report: its width, and notes that appear only once.

/// Precedes callers until the whole report is written. No name contains it, since names are escaped.
pub(super) const CALLERS: char = '\0';

/// Stands for an unknown line of code. Written once per report.
pub(super) const UNKNOWN: &str = "its line is not known";

/// The width of a report that is not written to a terminal.
const WIDTH: usize = 100;

/// The layout of a report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Whether escape sequences for a terminal are added.
    pub(crate) colour: bool,
    /// The most characters of a line, unless a single word is longer.
    pub(crate) width: usize,
}

impl Layout {
    /// For a file.
    #[cfg_attr(not(feature = "junit"), allow(dead_code, reason = "all reports go to a terminal"))]
    pub(crate) const PLAIN: Layout = Layout { colour: false, width: WIDTH };

    /// For a possible terminal: `columns` is the value of `COLUMNS`, which takes precedence, `terminal` its
    /// width.
    pub(crate) fn new(colour: bool, columns: Option<&str>, terminal: Option<usize>) -> Layout {
        /// Below this a line would barely hold one word.
        const LEAST: usize = 40;
        let columns = columns.and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
        let width = columns.or(terminal).unwrap_or(WIDTH).max(LEAST);
        Layout { colour, width }
    }
}

/// Removes repeated notes, and wraps long lines. Must come last, because equal processes are found by
/// comparing their lines.
pub(in crate::report) fn finish(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut last_callers = "";
    let mut is_unknown_said = false;
    for (number, line) in text.trim_end_matches('\n').split('\n').enumerate() {
        if line.contains(UNKNOWN) && std::mem::replace(&mut is_unknown_said, true)
            || line.is_empty() && out.ends_with("\n\n")
        {
            continue;
        }
        let line = match line.split_once(CALLERS) {
            None => line.to_owned(),
            Some((line, callers)) if callers == last_callers => format!("{line} < as above"),
            Some((line, callers)) => {
                last_callers = callers;
                format!("{line}{callers}")
            }
        };
        // The head is not wrapped, for tools that look for it.
        wrap(&mut out, &line, if number == 0 { usize::MAX } else { width });
    }
    out
}

/// Adds a line, wrapped at words if it is too long; continuation lines are indented further.
fn wrap(out: &mut String, line: &str, width: usize) {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let label = ["fix:", "allow:", "wait longer:", "note:", "warning:", "killed:", "kept:", "look:", "end:"];
    let plain = plain(line);
    let label = label.iter().find(|label| plain[indent..].starts_with(**label));
    let hanging = indent + label.map_or(2, |label| label.len() + 1);
    let (mut column, mut is_first) = (indent, true);
    out.push_str(&line[..indent]);
    // A double space separates columns, and is kept within a line.
    for word in line[indent..].split(' ') {
        let length = visible(word);
        if !is_first && column + 1 + length > width {
            while out.ends_with(' ') {
                out.pop();
            }
            out.push('\n');
            out.push_str(&" ".repeat(hanging));
            column = hanging;
            is_first = word.is_empty();
        } else if !is_first {
            out.push(' ');
            column += 1;
        }
        if !is_first || !word.is_empty() {
            out.push_str(word);
            column += length;
            is_first = false;
        }
    }
    out.push('\n');
}

/// The number of visible characters of a word.
fn visible(word: &str) -> usize {
    plain(word).chars().count()
}

/// A text without the escape sequences that style it.
fn plain(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{Layout, finish, plain};

    #[test]
    fn callers_are_written_again_only_after_others() {
        let text = "a\0 < b\nc\0 < b\nd\n\0 < b\ne\0 < f\na\0 < b\n";
        let expected = "a < b\nc < as above\nd\n < as above\ne < f\na < b\n";
        assert_eq!(finish(text, 100), expected);
    }

    #[test]
    fn an_unknown_line_is_told_once() {
        let text = "a\n  x: its line is not known\nb\n  y: its line is not known\nc\n";
        assert_eq!(finish(text, 100), "a\n  x: its line is not known\nb\nc\n");
    }

    #[test]
    fn lines_fit_and_words_stay_whole() {
        let words =
            "seven words that are written one after another, and a/path/that/is/longer/than/the/line ";
        let text = format!("HEAD  {0}{0}\n\n  {0}{0}\n  \x1b[1mfix:\x1b[0m {0}{0}\n       `- {0}\n", words);
        for width in [40, 80, 100, 200] {
            let wrapped = finish(&text, width);
            let mut lines = wrapped.lines();
            assert_eq!(lines.next().map(str::trim_end), text.lines().next().map(str::trim_end));
            for line in lines {
                let one_word = !line.trim_start().contains(' ');
                assert!(plain(line).chars().count() <= width || one_word, "{width}: {line:?}");
            }
            let flat = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(flat(&wrapped), flat(&text), "{width}");
        }
        let narrow = finish(&text, 40);
        assert!(narrow.contains("\n  seven words that are written one after\n    another,"), "{narrow}");
        assert!(narrow.contains("written one\n       after another,"), "{narrow}");
    }

    #[test]
    fn the_width_is_that_of_the_terminal_unless_columns_is_set() {
        for (columns, terminal, expected) in [
            (None, None, 100),
            (None, Some(80), 80),
            (Some("200"), Some(80), 200),
            (Some("x"), Some(80), 80),
            (Some("0"), None, 100),
            (Some("3"), None, 40),
        ] {
            assert_eq!(Layout::new(false, columns, terminal).width, expected);
        }
    }
}
