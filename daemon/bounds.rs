//! How long, deep, large and many things may be that come from outside: rows, records, pages, answers, ids, files, commands.
//!
//! One place for all of them, so that a bound can be found, reasoned about and tested. What exceeds one is neither cut silently nor
//! does it stop anything else: it is left out, parked, in doubt or refused, by name, with its size (INV-14). Bounds in which users
//! differ are settings (`[sources.NAME.bounds]`); their defaults and ranges are here.

/// Bytes of an id: a key of a row or a record, a canonical id, a target's own id, a reference. PostgreSQL's indexes take 2,704 bytes
/// for all columns of a row together (`BTMaxItemSize`); vendors' ids are below 255.
pub const ID_BYTES: usize = 500;

/// Levels of a JSON value that is kept as such; what is deeper is kept as text. Images, events and requests wrap it in a few more, and
/// `serde_json` reads 127.
pub const JSON_DEPTH: usize = 64;

/// Items of one list in a polled record, and rows of one table in a document: expressions go through them, some more than once.
pub const LIST_ITEMS: usize = 20_000;

/// Bytes of an HTML text that are read; what is behind them is cut. The longest tickets that people write have some ten thousand.
pub const HTML_BYTES: usize = 100_000;

/// Levels of HTML elements that are kept; tags of deeper ones are left out, their text is not. Odoo's own sanitizer lets some 250 pass.
pub const HTML_DEPTH: usize = 40;

/// Bytes of a column's value, or of a polled record, unless the settings say otherwise.
pub const VALUE_BYTES: usize = 1 << 20;

/// Range of that setting: what it lets pass is in memory a dozen times on its way.
pub const VALUE_BYTES_RANGE: (u64, u64) = (1 << 10, 8 << 20);

/// Values of a row that are kept are together no larger than so many of the largest.
pub const VALUES_IN_ROW: usize = 4;

/// A message of the stream that is longer is taken apart while it is read, so that what is left out of it is never held.
pub const WHOLE_MESSAGE_BYTES: usize = 1 << 20;

/// Bytes of an answer to a request that writes.
pub const ANSWER_BYTES: usize = 1 << 20;

/// Bytes of a page that is polled; where it is larger, smaller pages are asked for.
pub const PAGE_BYTES: usize = 16 << 20;

/// Bytes of a token or an address by which a stream goes on.
pub const TOKEN_BYTES: usize = 8 << 10;

/// Pages of one pass that are remembered, to find out when they go round.
pub const PAGES_REMEMBERED: usize = 4_096;

/// Bytes of a secret's file.
pub const SECRET_BYTES: u64 = 64 << 10;

/// Bytes of a file that people write: settings, mappings, connectors, routes, certificates.
pub const FILE_BYTES: u64 = 4 << 20;

/// Rows or objects of which one statement of ours is about, however many a TRUNCATE or a change of a country is about.
pub const ROWS_AT_ONCE: usize = 1_000;

/// Bytes of rows, as text, that one step works out.
pub const ROW_BYTES_AT_ONCE: usize = 4 << 20;

/// Longest wait that an answer can ask for, unless a limit of the connector has a longer window, in seconds.
pub const WAIT_S: u64 = 900;

/// Seconds by which clocks may differ before that is said, and what the other one says is not believed.
pub const CLOCK_SKEW_S: i64 = 120;

/// Connections to the admin socket at once, and bytes of a name or a reason that is given there.
pub const ADMIN_CONNECTIONS: usize = 32;
/// See [`ADMIN_CONNECTIONS`].
pub const COMMAND_TEXT_BYTES: usize = 4_000;

/// Bytes of a name that is shown; longer ones are cut and carry a digest of the whole.
const SHOWN_BYTES: usize = 120;

/// True when an index, a path and a person can take it for an id.
#[must_use]
pub fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= ID_BYTES && !text.contains('\0')
}

/// The same of an id at a target: it will be a segment of a path, and must not lead out of it. No vendor's has control characters, or
/// U+FFFD, which stands where something could not be read.
#[must_use]
pub fn is_external_id(text: &str) -> bool {
    is_id(text) && !matches!(text, "." | "..") && !text.chars().any(|c| c.is_control() || c == '\u{FFFD}')
}

/// What stands for an id in lists and reasons, however long it is: its beginning, and a digest of all of it.
#[must_use]
pub fn shown(id: &str) -> String {
    let clean = |text: &str| text.replace('\0', "\u{FFFD}");
    if id.len() <= ID_BYTES / 2 {
        return clean(id);
    }
    let digest = crate::event::sha256_hex(id.as_bytes());
    let start = id.get(..id.floor_char_boundary(SHOWN_BYTES)).unwrap_or_default();
    format!("{}… ({} bytes, sha256 {})", clean(start), id.len(), digest.get(..16).unwrap_or_default())
}

/// The largest value of the list of a setting's range in words, for people: `1 MB`.
#[must_use]
pub fn size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}
