//! What has to be true of the source before it is read, and every minute while it is.

use std::collections::BTreeSet;

use serde_json::json;
use tokio_postgres::Client;

use super::Source;
use super::error::CaptureError;
use super::load;
use crate::ledger::Ledger;
use crate::ledger::batch::{Batch, LoadWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::loads::{self, LoadKind};
use crate::source::postgres::catalog::{self, Finding, Severity};
use crate::source::postgres::chunk::identities;

/// Refuses a source that cannot be read safely; what is merely worth mending is logged. `known`: the source was read
/// before; then a column that has vanished parks what reads it, and tables that were not published are read again later.
pub async fn check(
    source: &Source,
    ledger: &Ledger,
    client: &Client,
    known: bool,
) -> Result<(), CaptureError> {
    let findings = found(source, client).await?;
    for Finding { subject, what, remedy, .. } in findings.iter().filter(|finding| !forbids(finding, known)) {
        tracing::warn!(subject, what, remedy, "worth mending at the source");
    }
    refuse(source, ledger, client, findings, known).await
}

/// The same while the source is read; and tables that have become others are asked for.
pub async fn recheck(source: &Source, ledger: &Ledger, client: &Client) -> Result<(), CaptureError> {
    let findings = found(source, client).await?;
    refuse(source, ledger, client, findings, true).await?;
    ask_for_what_is_new(source, ledger, client).await
}

async fn found(source: &Source, client: &Client) -> Result<Vec<Finding>, tokio_postgres::Error> {
    catalog::check(client, &source.flow.mapping, &source.publication, &source.slot).await
}

fn forbids(finding: &Finding, known: bool) -> bool {
    finding.severity == Severity::Error && !(known && finding.parks)
}

async fn refuse(
    source: &Source,
    ledger: &Ledger,
    client: &Client,
    findings: Vec<Finding>,
    known: bool,
) -> Result<(), CaptureError> {
    let findings: Vec<Finding> = findings.into_iter().filter(|finding| forbids(finding, known)).collect();
    if findings.is_empty() {
        return Ok(());
    }
    if known {
        note_missed(source, ledger, client).await?;
    }
    Err(CaptureError::Unsafe { source_name: source.flow.name.clone(), findings })
}

/// Tables that are not published any more: what was changed since is missing, so they are read again once they are back.
async fn note_missed(source: &Source, ledger: &Ledger, client: &Client) -> Result<(), CaptureError> {
    let published = identities(client, &source.flow.mapping.tables, &source.publication).await?;
    let published: BTreeSet<&str> = published.iter().map(|identity| &*identity.table).collect();
    let loaded = loads::relations(ledger.reader(), &source.flow.name).await?;
    let missed: Vec<&String> = loaded.keys().filter(|name| !published.contains(name.as_str())).collect();
    if missed.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    let fields = json!({
        "source": source.flow.name, "relations": missed,
        "reason": "not in the publication any more; read again once they are back",
    });
    batch.entry(NewEntry::new(EntryKind::Gap, None, fields));
    for relation in missed {
        batch.loads.push(LoadWrite::Forget { source: source.flow.name.clone(), relation: relation.clone() });
    }
    ledger.writer().write(batch).await?;
    Ok(())
}

/// Tables and columns that the mapping has new, tables that were dropped and made again, and tables that had left the
/// publication are read, without being asked for.
pub async fn ask_for_what_is_new(
    source: &Source,
    ledger: &Ledger,
    client: &Client,
) -> Result<(), CaptureError> {
    if loads::current(ledger.reader(), &source.flow.name, false).await?.is_some() {
        return Ok(());
    }
    let loaded = loads::relations(ledger.reader(), &source.flow.name).await?;
    let mut asked = Vec::new();
    for identity in identities(client, &source.flow.mapping.tables, &source.publication).await? {
        let wanted = source.flow.mapping.table_named(&identity.table).map(|table| table.columns.clone());
        let covers = |columns: &[String]| {
            wanted.iter().flatten().all(|column| columns.iter().any(|known| **known == **column))
        };
        let same = loaded.get(&*identity.table).is_some_and(|known| {
            known.oid == i64::from(identity.oid)
                && known.member == i64::from(identity.member)
                && covers(&known.columns)
                && known.shape.as_ref().is_none_or(|shape| *shape == identity.shape)
        });
        if !same {
            asked.push(identity.table.to_string());
        }
    }
    if asked.is_empty() {
        return Ok(());
    }
    let reason = "new to the mapping, made again or altered at the source, or back in the publication";
    tracing::warn!(tables = asked.join(", "), reason, "tables are read");
    load::ask(ledger, source, LoadKind::Reread, asked, reason).await?;
    Ok(())
}
