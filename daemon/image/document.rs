//! The rows that a document is made of, and the documents that a row is part of, over an [`Overlay`].
//!
//! Down: from a root row through the joins of its event to all rows below it. Up: from a changed row through the same joins to
//! the roots above it. Whatever is not known yet is noted by the overlay; then the answer is incomplete and thrown away.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::overlay::Overlay;
use crate::event::{Cause, Row, key_text};
use crate::mapping::{Join, JoinKind, Joined, JoinedRow};

/// The rows of all joins; `None` when something has to be loaded first. Every join is asked, so that one batch loads all
/// that is missing.
pub fn joined(
    overlay: &Overlay<'_>,
    joins: &[Join],
    key: &str,
    row: &Row,
) -> Option<Vec<(Arc<str>, Joined)>> {
    let mut found = Vec::with_capacity(joins.len());
    let mut complete = true;
    for join in joins {
        let rows = match &join.kind {
            JoinKind::By(column) => by(overlay, join, row, column),
            JoinKind::Children(column) => children(overlay, join, key, column),
        };
        match rows {
            Some(rows) => found.push((join.alias.clone(), rows)),
            None => complete = false,
        }
    }
    complete.then_some(found)
}

/// The row a column points to.
fn by(overlay: &Overlay<'_>, join: &Join, row: &Row, column: &str) -> Option<Joined> {
    let Some(key) = reference_in(row, column) else { return Some(join.nothing()) };
    let Some(row) = overlay.row(&join.table, &key)? else { return Some(join.nothing()) };
    let joins = joined(overlay, &join.joins, &key, &row)?;
    Some(Joined::One(Arc::new(JoinedRow { row, joins })))
}

fn children(overlay: &Overlay<'_>, join: &Join, key: &str, column: &Arc<str>) -> Option<Joined> {
    let keys = overlay.keys_where(&join.table, column, key)?;
    let found: Vec<_> = keys.into_iter().map(|key| (overlay.row(&join.table, &key), key)).collect();
    let mut rows = Vec::with_capacity(found.len());
    for (row, key) in found {
        rows.extend(row?.map(|row| (key, row)));
    }
    rows.sort_by(|a, b| join.compare(a, b));
    let below: Vec<_> = rows.iter().map(|(key, row)| joined(overlay, &join.joins, key, row)).collect();
    let rows = rows.into_iter().zip(below).map(|((_, row), joins)| Some(JoinedRow { row, joins: joins? }));
    rows.collect::<Option<Vec<_>>>().map(Joined::Many)
}

/// The rows of a join, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// 0 for joins of the root row.
    pub depth: usize,
    /// Name in expressions.
    pub alias: String,
    /// Table.
    pub table: String,
    /// Keys of the rows, in their order.
    pub keys: Vec<String>,
}

/// Which rows a document is made of.
pub fn parts(overlay: &Overlay<'_>, joins: &[Join], rows: &[(String, Arc<Row>)], depth: usize) -> Vec<Part> {
    let mut found = Vec::new();
    for join in joins {
        let mut below: Vec<(String, Arc<Row>)> = Vec::new();
        for (key, row) in rows {
            let keys: BTreeSet<String> = match &join.kind {
                JoinKind::By(column) => reference_in(row, column).into_iter().collect(),
                JoinKind::Children(column) => {
                    overlay.keys_where(&join.table, column, key).unwrap_or_default()
                }
            };
            let known = |key: String| overlay.row(&join.table, &key).flatten().map(|row| (key, row));
            let mut joined: Vec<(String, Arc<Row>)> = keys.into_iter().filter_map(known).collect();
            joined.sort_by(|a, b| join.compare(a, b));
            joined.retain(|(key, _)| below.iter().all(|(known, _)| known != key));
            below.extend(joined);
        }
        let keys = below.iter().map(|(key, _)| key.clone()).collect();
        found.push(Part { depth, alias: join.alias.to_string(), table: join.table.to_string(), keys });
        found.extend(parts(overlay, &join.joins, &below, depth + 1));
    }
    found
}

/// Keys of the rows of `table` that a changed row is joined to, directly or through others, now or before.
pub fn parents(overlay: &Overlay<'_>, table: &Arc<str>, joins: &[Join], cause: &Cause) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for join in joins.iter().filter(|join| mentions(join, &cause.table)) {
        let between = parents(overlay, &join.table, &join.joins, cause);
        match &join.kind {
            JoinKind::By(column) => {
                let own = (join.table == cause.table).then_some(&cause.key);
                for key in between.iter().chain(own) {
                    found.extend(overlay.keys_where(table, column, key).unwrap_or_default());
                }
            }
            JoinKind::Children(column) => {
                if join.table == cause.table {
                    let versions = [cause.before.as_deref(), cause.after.as_deref()];
                    found.extend(versions.into_iter().flatten().filter_map(|row| reference_in(row, column)));
                }
                let rows = between.iter().filter_map(|key| overlay.row(&join.table, key).flatten());
                found.extend(rows.filter_map(|row| reference_in(&row, column)));
            }
        }
    }
    found
}

fn mentions(join: &Join, table: &Arc<str>) -> bool {
    join.table == *table || join.joins.iter().any(|join| mentions(join, table))
}

fn reference_in(row: &Row, column: &str) -> Option<String> {
    row.get(column).filter(|value| !value.is_null()).map(key_text)
}
