//! Makes untrusted text safe to print.

/// Replaces characters that move the cursor, change colours or hide text by their Rust escapes.
pub(crate) fn text(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len());
    for c in raw.chars() {
        if shows(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_default());
        }
    }
    safe
}

/// Whether a character is visible as itself: no control, nothing invisible, no space but the space.
pub(crate) fn shows(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // std knows which characters are printable, and `escape_debug` shows it. The character comes second,
    // because std also escapes an accent at the beginning of a string.
    let mut bytes = *b"x\0\0\0\0";
    let length = c.encode_utf8(&mut bytes[1..]).len();
    std::str::from_utf8(&bytes[..=length]).is_ok_and(|pair| pair.escape_debug().nth(1) == Some(c))
}

/// Whether a character changes how its neighbours are shown: a control, a line end, or one of Unicode's
/// characters for the direction of writing.
pub(crate) fn rearranges(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
