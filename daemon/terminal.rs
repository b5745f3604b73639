//! Text for terminals: what others wrote must not move the cursor, set the title, or read from right to left.

use std::borrow::Cow;

/// Characters by which text is not what it looks like: controls of both planes, marks and overrides of direction, line separators.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// The text with odd characters written as `\u{1b}`; lines and columns of our own stay.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_odd(c) && c != '\n' && c != '\t')
}

/// The same of a value in a line: nothing of it begins another line.
#[must_use]
pub fn in_line(text: &str) -> Cow<'_, str> {
    replaced(text, is_odd)
}

fn replaced(text: &str, odd: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&odd) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if odd(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    Cow::Owned(out)
}
