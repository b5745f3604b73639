//! `tailwater ledger show`, `history`, `as-of`, `diff` and `trace`.

use serde_json::{Map, Value};

use super::reader;
use super::times::Times;
use crate::app::EX_USAGE;
use crate::cli::ReadingArgs;
use crate::event::sealing::SEALED;
use crate::ledger::reading::Reading;
use crate::operate::Refusal;
use crate::terminal::in_line;

/// Longest value that is shown in a line.
const LONGEST: usize = 80;

/// `tailwater ledger show`.
pub async fn show(args: &ReadingArgs, seq: i64) -> Result<String, Refusal> {
    let (mut client, master) = reader(args).await?;
    let reading = Reading::begin(&mut client, "read", ("show", &seq.to_string()), master).await?;
    let entry = reading.entry(seq).await?;
    reading.end().await?;
    match entry {
        Some(entry) if args.json => Ok(format!("{entry}\n")),
        Some(entry) => Ok(format!("{entry:#}\n")),
        None => Err(Refusal(EX_USAGE, format!("the ledger has no entry {seq}"))),
    }
}

/// `tailwater ledger history`.
pub async fn history(args: &ReadingArgs, table: &str, key: &str) -> Result<String, Refusal> {
    let times = Times::of(args)?;
    let (mut client, master) = reader(args).await?;
    let reading = Reading::begin(&mut client, "read", ("history", &format!("{table}/{key}")), master).await?;
    let changes = reading.history(table, key).await?;
    reading.end().await?;
    if changes.is_empty() && !args.json {
        return Ok(format!("the ledger knows of no change of {table} {key} that led to an event\n"));
    }
    Ok(changes
        .iter()
        .map(|change| if args.json { line(change) } else { change_text(change, &times) })
        .collect())
}

/// `tailwater ledger as-of`.
pub async fn as_of(
    args: &ReadingArgs,
    (table, key): (&str, &str),
    source: Option<String>,
    time: &str,
) -> Result<String, Refusal> {
    let times = Times::of(args)?;
    let at = times.parse(time)?;
    let (mut client, master) = reader(args).await?;
    let reading =
        Reading::begin(&mut client, "read", ("as-of", &format!("{table}/{key} {at}")), master).await?;
    let source = match (source, reading.sources(table, key).await?.as_slice()) {
        (Some(source), _) => source,
        (None, []) => String::new(),
        (None, [source]) => source.clone(),
        (None, several) => {
            let message = format!(
                "several sources have {table} {key}\nnext: --source {}",
                several.join(", or --source ")
            );
            return Err(Refusal(EX_USAGE, message));
        }
    };
    let (last, next) = reading.around(&source, (table, key), at).await?;
    reading.end().await?;
    let row = match (&last, &next) {
        (Some(change), _) => change.get("after"),
        // What it was before the first change that is known.
        (None, Some(change)) => change.get("before"),
        (None, None) => None,
    };
    let row = row.filter(|row| !row.is_null());
    if args.json {
        return Ok(line(&serde_json::json!({"table": table, "key": key, "at": at, "row": row})));
    }
    let Some(Value::Object(row)) = row else {
        let what = if last.is_none() && next.is_none() {
            "no change of it is known; it may never have been, or not have changed since it was first read"
        } else {
            "it did not exist"
        };
        return Ok(format!("{table} {key} at {}: {what}\n", times.show(at)));
    };
    let mut text = format!("{table} {key} at {}\n", times.show(at));
    row.iter().for_each(|(name, value)| text.push_str(&format!("  {name}: {}\n", short(value))));
    if let Some(change) = last {
        text.push_str(&format!("  last written {}\n", who_and_when(&change, &times)));
    }
    Ok(text)
}

/// `tailwater ledger diff`.
pub async fn diff(
    args: &ReadingArgs,
    (from, to): (&str, &str),
    table: Option<&str>,
) -> Result<String, Refusal> {
    let times = Times::of(args)?;
    let (from, to) = (times.parse(from)?, times.parse(to)?);
    let (mut client, master) = reader(args).await?;
    let details = format!("{from} to {to} {}", table.unwrap_or("all tables"));
    let reading = Reading::begin(&mut client, "read", ("diff", &details), master).await?;
    let rows = reading.differences((from, to), table).await?;
    reading.end().await?;
    if args.json {
        return Ok(rows.iter().map(line).collect());
    }
    let mut text = String::new();
    for row in &rows {
        let of = |name| row.get(name).map(short).unwrap_or_default();
        text.push_str(&format!(
            "{} {}: {} changes, entries {} to {}\n",
            of("table"),
            of("key"),
            of("changes"),
            of("first_seq"),
            of("last_seq")
        ));
        text.push_str(&fields(row));
    }
    Ok(text + &format!("{} rows differ\n", rows.len()))
}

/// `tailwater ledger trace`.
pub async fn trace(args: &ReadingArgs, id: &str, last: i64) -> Result<String, Refusal> {
    let times = Times::of(args)?;
    let (mut client, master) = reader(args).await?;
    let reading = Reading::begin(&mut client, "read", ("trace", id), master).await?;
    let mut text = String::new();
    let stories = reading.stories(id, last).await?;
    for story in stories.iter().rev() {
        for entry in reading.story(story).await? {
            text.push_str(&if args.json { line(&entry) } else { entry_text(&entry, &times) });
        }
    }
    reading.end().await?;
    if stories.is_empty() {
        let message = format!(
            "the ledger knows nothing of {id}\nnext: an event id, an entry's number, ERP-P-8, res_partner/8, or stripe/cus_…"
        );
        return Err(Refusal(EX_USAGE, message));
    }
    Ok(text)
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn change_text(change: &Value, times: &Times) -> String {
    let of = |name| change.get(name).map(short).unwrap_or_default();
    let head = format!("{} {}\n", of("operation"), who_and_when(change, times));
    let event = format!("  entry {}: {} {}, event {}\n", of("seq"), of("event"), of("id"), of("event_id"));
    head + &fields(change) + &event
}

fn who_and_when(change: &Value, times: &Times) -> String {
    let of = |name| change.get(name).map(short).unwrap_or_default();
    let by = match change.get("by") {
        Some(Value::Null) | None => "by nobody that the row names".to_owned(),
        Some(by) => format!("by user {}", short(by)),
    };
    let xid = match change.get("xid") {
        Some(Value::Null) | None => String::new(),
        Some(xid) => format!(", transaction {xid}"),
    };
    format!(
        "{} {by}{xid} (source {}, {})",
        times.show_text(&of("committed_at")),
        of("source"),
        of("commit_lsn")
    )
}

/// What `before` and `after` differ in.
fn fields(change: &Value) -> String {
    let none = Map::new();
    let side = |name| change.get(name).and_then(Value::as_object).unwrap_or(&none);
    let (before, after) = (side("before"), side("after"));
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    let value = |row: &Map<String, Value>, name: &str| row.get(name).map_or_else(|| "-".to_owned(), short);
    let open = names
        .filter(|name| before.get(*name) != after.get(*name) && *name != SEALED)
        .map(|name| format!("  {name}: {} -> {}\n", value(before, name), value(after, name)));
    // Of what is sealed it is known that it changed.
    let is_sealed = before.contains_key(SEALED) || after.contains_key(SEALED);
    let sealed = change.get("sealed").and_then(Value::as_array).filter(|_| is_sealed);
    let mut names: Vec<&str> = sealed.into_iter().flatten().filter_map(Value::as_str).collect();
    names.dedup();
    open.chain(names.iter().map(|name| format!("  {name}: (sealed)\n"))).collect()
}

/// A line of a story.
fn entry_text(entry: &Value, times: &Times) -> String {
    let of = |name| entry.get(name).map(short).unwrap_or_default();
    let at = times.show_text(&of("recorded_at"));
    let head = format!("{} {at} {}", of("seq"), of("kind"));
    match entry.get("kind").and_then(Value::as_str).unwrap_or_default() {
        "event" => {
            let mut text = format!("{head} {} {} {}\n", of("type"), of("op"), of("id"));
            for change in entry.get("changes").and_then(Value::as_array).into_iter().flatten() {
                let of = |name| change.get(name).map(short).unwrap_or_default();
                let by = change.get("by").map(|by| format!(" by user {}", short(by))).unwrap_or_default();
                text.push_str(&format!("  {} {} {}{by}\n", of("op"), of("relation"), of("key")));
                text.push_str(&fields(change).replace("  ", "    "));
            }
            text
        }
        "attempt" => format!(
            "{head} {} {} {} {} {}, delivery {}, attempt {}, key {}\n",
            of("target"),
            of("object"),
            of("id"),
            of("method"),
            of("step"),
            of("delivery"),
            of("attempt"),
            of("idempotency_key")
        ),
        "outcome" => format!(
            "{head} {} {} {}: {} {} {}, delivery {}\n",
            of("target"),
            of("object"),
            of("id"),
            of("class"),
            of("reason"),
            of("external_id"),
            of("delivery")
        ),
        _ => format!("{head} {}\n", short(entry)),
    }
}

/// A value in a line.
fn short(value: &Value) -> String {
    let text = match value {
        Value::String(text) => in_line(&text.replace('\n', " ")).into_owned(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
