//! HTML before it is parsed: how much of it, and how deep. Pure.
//!
//! What comes in e-mails and from editors is whatever people and programs put there, and building a tree of it takes memory for each tag
//! and time for each level. So the text is cut, tags beyond a depth are left out (their text stays), and so are those that only say how
//! letters look, which a parser would put into every paragraph anew.

use std::borrow::Cow;

use crate::bounds::{HTML_BYTES, HTML_DEPTH};

/// Elements that end by themselves, or have no content: they make nothing deeper.
const FLAT: [&str; 24] = [
    "p", "br", "hr", "img", "li", "dt", "dd", "tr", "td", "th", "tbody", "thead", "tfoot", "option", "input",
    "meta", "link", "col", "colgroup", "caption", "base", "wbr", "html", "body",
];
/// Elements that say how letters look.
const LOOKS: [&str; 24] = [
    "a", "abbr", "b", "big", "code", "del", "em", "font", "i", "ins", "kbd", "label", "mark", "nobr", "q",
    "s", "samp", "small", "span", "strike", "strong", "sub", "tt", "u",
];

/// The HTML, cut and flattened as far as that is needed.
pub fn bounded(html: &str) -> Cow<'_, str> {
    let cut = html.get(..html.floor_char_boundary(HTML_BYTES)).unwrap_or_default();
    // A tag that is cut in two is none.
    let cut = if cut.len() < html.len() {
        cut.get(..cut.rfind('<').unwrap_or(cut.len())).unwrap_or(cut)
    } else {
        cut
    };
    if cut.bytes().filter(|byte| *byte == b'<').count() <= HTML_DEPTH {
        return Cow::Borrowed(cut);
    }
    let mut out = String::with_capacity(cut.len());
    let mut rest = cut;
    let mut depth = 0_usize;
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let Some((name, closes)) = name_of(tag) else {
            out.push('<');
            rest = tag.get(1..).unwrap_or_default();
            continue;
        };
        let (whole, behind) = tag.split_at(tag_length(tag));
        let name = name.to_ascii_lowercase();
        let keeps = match (name.as_str(), closes) {
            (name, _) if LOOKS.contains(&name) => false,
            (name, _) if FLAT.contains(&name) => true,
            (_, true) => {
                depth = depth.saturating_sub(1);
                depth < HTML_DEPTH
            }
            (_, false) => {
                depth += 1;
                depth <= HTML_DEPTH
            }
        };
        if keeps {
            out.push_str(whole);
        }
        rest = behind;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The element of the tag that `text` begins with, and whether it ends there; `None` for what is no tag.
fn name_of(text: &str) -> Option<(&str, bool)> {
    let inside = text.get(1..)?;
    let (inside, closes) = inside.strip_prefix('/').map_or((inside, false), |inside| (inside, true));
    if !inside.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let end = inside.find(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/').unwrap_or(inside.len());
    Some((inside.get(..end)?, closes))
}

/// Bytes of the tag that `text` begins with: up to `>` outside quotes, or all of it.
fn tag_length(text: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), byte) if byte == open => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'>') => return at + 1,
            _ => {}
        }
    }
    text.len()
}
