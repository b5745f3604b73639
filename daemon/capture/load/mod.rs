//! Loads: tables are read in chunks between watermarks while the stream runs, so that no transaction is ever long, the
//! WAL never waits for a load, and a load that was interrupted goes on where it stopped.
//!
//! A first load and a recovery are *quiet*: rows become images, and events are made once all of them are there, because
//! an event may need any row. A re-read makes events at once, where a row differs from its image.

pub mod emit;
pub mod quiet;
pub mod reader;
pub mod window;

use std::sync::Arc;

use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::Source;
use super::error::CaptureError;
use crate::ledger::batch::{Batch, LoadWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::loads::{self, Load, LoadKind, Part, Request};
use crate::ledger::{Ledger, LedgerError};
use crate::mapping::TableSpec;
use crate::source::postgres::chunk::{self, Identity};
use reader::Shelf;
use window::Windows;

/// A load that is going on.
pub struct Loading {
    /// What is read.
    pub load: Load,
    /// Where chunks wait for their watermark.
    pub shelf: Arc<Shelf>,
    /// What the stream brings meanwhile.
    pub windows: Windows,
    /// Ends with an error when the source is away.
    pub readers: JoinSet<Result<(), CaptureError>>,
    /// Key ranges that are not done.
    pub open_parts: usize,
    /// Tables whose unseen rows are still to be looked for; a key range of one has none.
    pub to_sweep: Vec<String>,
}

impl Loading {
    /// True while no events are made.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.load.kind != LoadKind::Reread
    }

    /// True for a table of this load.
    #[must_use]
    pub fn reads(&self, relation: &str) -> bool {
        self.load.relations.iter().any(|known| known == relation)
    }
}

/// The load to be worked off now, begun if it was only asked for. A quiet one is asked for here, if `quiet` says that there
/// must be one.
pub async fn begin(
    source: &Arc<Source>,
    ledger: &Ledger,
    client: &Client,
    quiet: bool,
) -> Result<Option<Loading>, CaptureError> {
    let mut current = loads::current(ledger.reader(), &source.flow.name, quiet).await?;
    if current.is_none() && quiet {
        let all = source.flow.mapping.tables.iter().map(|table| table.name.to_string()).collect();
        ask(ledger, source, LoadKind::First, all, "the source is new").await?;
        current = loads::current(ledger.reader(), &source.flow.name, quiet).await?;
    }
    let Some((load, begun)) = current else { return Ok(None) };
    if !begun {
        let Some(parts) = plan(source, client, &load).await? else {
            tracing::error!(load = load.id, "a load was asked for that makes no sense; it is refused");
            write(ledger, LoadWrite::End { load: load.id, refused: true }).await?;
            return Ok(None);
        };
        note(ledger, source, client, &load, parts).await?;
    }
    let parts = loads::parts(ledger.reader(), load.id).await?.into_iter();
    // A table that is mapped no more is not waited for.
    let is_open = |part: &Part| !part.done && source.flow.mapping.table_named(&part.relation).is_some();
    let parts: Vec<Part> = parts.filter(is_open).collect();
    let open_parts = parts.len();
    let to_sweep = if load.is_ranged() { Vec::new() } else { load.relations.clone() };
    // A slot that is new has waited for them itself.
    let waits = !quiet && !load.is_ranged();
    let (shelf, readers) = reader::start(source, parts, waits);
    tracing::info!(
        load = load.id,
        kind = load.kind.as_str(),
        tables = load.relations.len(),
        "reading tables"
    );
    Ok(Some(Loading { load, shelf, windows: Windows::default(), readers, open_parts, to_sweep }))
}

/// Asks for a load on the daemon's own account.
pub async fn ask(
    ledger: &Ledger,
    source: &Source,
    kind: LoadKind,
    relations: Vec<String>,
    reason: &str,
) -> Result<(), LedgerError> {
    let request = Request {
        source: source.flow.name.clone(),
        kind,
        relations,
        lower: None,
        upper: None,
        reason: reason.to_owned(),
        look_first: false,
        requested_by: "tailwater".to_owned(),
    };
    loads::request(ledger.reader(), &request).await.map(|_| ())
}

async fn write(ledger: &Ledger, write: LoadWrite) -> Result<(), LedgerError> {
    ledger.writer().write(Batch { loads: vec![write], ..Batch::default() }).await.map(|_| ())
}

/// The key ranges of a load; `None` when it names what cannot be read.
async fn plan(source: &Source, client: &Client, load: &Load) -> Result<Option<Vec<Part>>, CaptureError> {
    let mut parts = Vec::new();
    for relation in &load.relations {
        let Some(table) = source.flow.mapping.table_named(relation) else {
            if load.kind == LoadKind::Reread {
                return Ok(None);
            }
            // It was in the mapping when the load was asked for.
            continue;
        };
        if load.is_ranged() && (table.key.len() != 1 || load.relations.len() != 1) {
            return Ok(None);
        }
        let ranges = if load.is_ranged() { 1 } else { i64::try_from(source.load.parallel).unwrap_or(1) };
        parts.extend(plan_table(client, table, load, ranges).await?);
    }
    Ok(Some(parts))
}

async fn plan_table(
    client: &Client,
    table: &TableSpec,
    load: &Load,
    ranges: i64,
) -> Result<Vec<Part>, CaptureError> {
    let division = chunk::divide(client, table, ranges).await?;
    let bounds: Vec<Option<String>> = division.bounds.into_iter().map(Some).collect();
    let lowers = std::iter::once(load.lower.clone()).chain(bounds.iter().cloned());
    let uppers = bounds.iter().cloned().chain(std::iter::once(load.upper.clone()));
    let count = i64::try_from(bounds.len() + 1).unwrap_or(1);
    let part = |(number, (lower, upper)): (i32, (Option<String>, Option<String>))| Part {
        load: load.id,
        relation: table.name.to_string(),
        part: number,
        lower: lower.map(|key| vec![key]),
        upper: upper.map(|key| vec![key]),
        cursor: None,
        rows: 0,
        estimated: division.estimated / count,
        done: false,
    };
    Ok((0..).zip(lowers.zip(uppers)).map(part).collect())
}

/// Writes down that a load begins, who asked, and what the tables are: should one become another, or leave the publication,
/// before the load is over, that is noticed afterwards.
async fn note(
    ledger: &Ledger,
    source: &Source,
    client: &Client,
    load: &Load,
    parts: Vec<Part>,
) -> Result<(), CaptureError> {
    let mut batch = Batch::default();
    let fields = json!({
        "source": source.flow.name, "action": "load", "load": load.id, "kind": load.kind.as_str(),
        "relations": load.relations, "after": load.lower, "to": load.upper, "requested_by": load.requested_by,
    });
    batch.entry(NewEntry::new(EntryKind::Operator, None, fields));
    batch.loads.push(LoadWrite::Begin { load: load.id, parts });
    if !load.is_ranged() {
        let reads = |table: &&TableSpec| load.relations.iter().any(|name| **name == *table.name);
        let tables: Vec<TableSpec> = source.flow.mapping.tables.iter().filter(reads).cloned().collect();
        for Identity { table, oid, member, shape } in
            chunk::identities(client, &tables, &source.publication).await?
        {
            let Some(spec) = tables.iter().find(|spec| spec.name == table) else { continue };
            batch.loads.push(LoadWrite::Relation {
                source: source.flow.name.clone(),
                relation: table.to_string(),
                oid,
                member,
                columns: spec.columns.iter().map(ToString::to_string).collect(),
                shape,
            });
        }
    }
    ledger.writer().write(batch).await?;
    Ok(())
}
