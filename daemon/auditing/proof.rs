//! `tailwater ledger proof`.

use serde_json::{Value, json};

use super::{Outside, place};
use crate::audit::bundle::text;
use crate::cli::{EvidenceArgs, LedgerArgs};
use crate::ledger::SCHEMA_OR_VIEWS;
use crate::ledger::hashes;
use crate::ledger::head::Head;
use crate::operate::Refusal;

/// An entry is in the ledger.
pub async fn inclusion(
    ledger: &LedgerArgs,
    evidence: &EvidenceArgs,
    seq: u64,
    size: Option<u64>,
) -> Result<String, Refusal> {
    let (database, config) = place(ledger, SCHEMA_OR_VIEWS)?;
    let newest = Outside::find(evidence, config.as_ref())?.newest_note()?;
    let client = database.connect("tailwater-proof").await?;
    let covering = newest.filter(|(covered, _)| *covered >= seq && size.is_none_or(|size| size == *covered));
    let size = match (&covering, size) {
        (Some((covered, _)), _) => *covered,
        (None, Some(size)) => size,
        (None, None) => Head::load(&client).await?.tree.size(),
    };
    let (leaf, hashes) = hashes::inclusion(&client, seq, size).await?;
    let root = hashes::root_at(&client, size).await?;
    Ok(print(&json!({
        "seq": seq, "leaf_index": seq - 1, "leaf_hash": text(&leaf), "tree_size": size, "root": text(&root),
        "hashes": hashes.iter().map(text).collect::<Vec<_>>(), "checkpoint": covering.map(|(_, note)| note),
    })))
}

/// The first of a ledger's entries are those of a smaller one.
pub async fn consistency(
    ledger: &LedgerArgs,
    evidence: &EvidenceArgs,
    old: u64,
    new: Option<u64>,
) -> Result<String, Refusal> {
    let (database, config) = place(ledger, SCHEMA_OR_VIEWS)?;
    let newest = Outside::find(evidence, config.as_ref())?.newest_note()?;
    let client = database.connect("tailwater-proof").await?;
    let new = match new {
        Some(new) => new,
        None => Head::load(&client).await?.tree.size(),
    };
    let hashes = hashes::consistency(&client, old, new).await?;
    let (old_root, root) = (hashes::root_at(&client, old).await?, hashes::root_at(&client, new).await?);
    Ok(print(&json!({
        "old_size": old, "old_root": text(&old_root), "tree_size": new, "root": text(&root),
        "hashes": hashes.iter().map(text).collect::<Vec<_>>(),
        "checkpoint": newest.filter(|(covered, _)| *covered == new).map(|(_, note)| note),
    })))
}

fn print(proof: &Value) -> String {
    format!("{proof:#}\n")
}
