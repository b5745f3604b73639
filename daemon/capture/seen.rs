//! What a source shows of objects that its twin, the target which is the same system, was told of. What stands there as we left it is
//! an echo and goes nowhere. What somebody has changed is noted, and looked at again: what the system has no say in is put right.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::flow::Flow;
use crate::connector::Shown;
use crate::connector::request::without_nulls;
use crate::dispatch::compare::same;
use crate::event::{Row, canonical_bytes, sha256_hex};
use crate::image::RowId;
use crate::ledger::Ledger;
use crate::ledger::LedgerError;
use crate::ledger::batch::{Batch, Lane};
use crate::ledger::held::{SeenWrite, held};

/// A row before and after.
pub(super) struct Changed {
    pub id: RowId,
    pub before: Option<Arc<Row>>,
    pub after: Option<Arc<Row>>,
}

/// How old rows are.
#[derive(Debug, Clone, Copy, Default)]
pub enum AsOf {
    /// Nobody knows.
    #[default]
    Unknown,
    /// They were so when the system was asked, at this time; there may be no other word about them.
    Asked(Timestamp),
    /// They were so when the source committed them, at this time at the latest; what was written later comes behind them.
    Committed(Timestamp),
}

/// What came of comparing.
#[derive(Default)]
pub(super) struct Compared {
    /// Rows that were read before the twin was last told something of them.
    pub outdated: Vec<RowId>,
    /// Objects that somebody else has made something that we did not tell the twin.
    pub changed: BTreeSet<String>,
}

/// Compares changed rows with what the twin was told, unless they are older than that.
pub(super) async fn compare(
    flow: &Flow,
    ledger: &Ledger,
    changed: &[Changed],
    as_of: AsOf,
    batch: &mut Batch,
) -> Result<Compared, LedgerError> {
    let Some(twin) = &flow.twin else { return Ok(Compared::default()) };
    let shown = |changed: &Changed| {
        let objects = twin.connector.objects.iter();
        let of_table = objects.filter_map(|object| {
            let shown = object.shown.as_ref().filter(|shown| *shown.table == *changed.id.0)?;
            Some((object.name.clone(), shown))
        });
        of_table.collect::<Vec<_>>()
    };
    let pairs: Vec<(&Changed, String, &Shown)> = changed
        .iter()
        .flat_map(|changed| shown(changed).into_iter().map(move |(object, shown)| (changed, object, shown)))
        .collect();
    let ids: Vec<(String, String)> =
        pairs.iter().map(|(changed, object, _)| (object.clone(), changed.id.1.clone())).collect();
    let known = held(ledger.reader(), &twin.name, &ids).await?;
    let mut compared = Compared::default();
    for (changed, object, shown) in pairs {
        let Some(held) = known.get(&(object.clone(), changed.id.1.clone())) else { continue };
        match as_of {
            AsOf::Asked(at) if held.told_at.is_some_and(|told| told >= at) => {
                compared.outdated.push(changed.id.clone());
                continue;
            }
            // Our own write, which said all that is compared, comes behind it.
            AsOf::Committed(at) if held.attempted_at.is_some_and(|attempted| attempted > at) => continue,
            AsOf::Unknown | AsOf::Asked(_) | AsOf::Committed(_) => {}
        }
        let lane = Lane { target: twin.name.clone(), object, canonical_id: held.canonical_id.clone() };
        let Some(after) = &changed.after else {
            batch.checks.push(lane);
            continue;
        };
        let (before, after) =
            (changed.before.as_deref().map(|row| as_body(shown, row)), as_body(shown, after));
        let body = overlaid(&held.body, before.as_ref(), &after);
        if !same(&body, &held.body) {
            let sha256 = sha256_hex(&canonical_bytes(&without_nulls(&body)));
            // What is on its way may be there before we know that it is.
            if !held.is_on_its_way {
                compared.changed.insert(held.canonical_id.clone());
            }
            batch.checks.push(lane.clone());
            batch.seen.push(SeenWrite { lane, body, sha256 });
        }
    }
    Ok(compared)
}

fn as_body(shown: &Shown, row: &Row) -> Value {
    let record = row.iter().map(|(name, value)| (name.to_string(), value.clone()));
    shown.as_body(&Value::Object(record.collect()))
}

/// `body` with what changed of it from `before` to `after`.
fn overlaid(body: &Value, before: Option<&Value>, after: &Value) -> Value {
    match (body, after) {
        (Value::Object(body), Value::Object(after)) => {
            let member = |(name, value): (&String, &Value)| {
                let null = Value::Null;
                let was = before.map(|before| before.get(name).unwrap_or(&null));
                let now = match after.get(name) {
                    Some(now) => overlaid(value, was, now),
                    // It says nothing of this.
                    None if was.is_none_or(Value::is_null) => value.clone(),
                    None => Value::Null,
                };
                (name.clone(), now)
            };
            Value::Object(body.iter().map(member).collect())
        }
        (body, after) if before.is_some_and(|before| same(before, after)) => body.clone(),
        (_, after) => after.clone(),
    }
}
