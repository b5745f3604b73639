//! Proves that the ledger is what was written: every body hashes to its leaf, every leaf is in the tree, none is missing.

use futures_util::{StreamExt, pin_mut};
use serde_json::Value;
use tlog_tiles::tlog::record_hash;
use tokio_postgres::Client;

use super::LedgerError;
use super::tree::Tree;
use crate::event::hex;

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything holds.
    Sound {
        /// Entries covered.
        size: u64,
        /// Tree head, in hexadecimal.
        root: String,
    },
    /// Something was changed.
    Tampered {
        /// First entry that does not hold.
        seq: i64,
        /// What is wrong with it.
        what: String,
    },
    /// Entries are missing, or there are more than the tree covers.
    Incomplete {
        /// First entry expected and not found, or found and not covered.
        seq: i64,
        /// What is wrong.
        what: String,
    },
}

impl Verdict {
    /// Exit code of `tailwater ledger verify`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Sound { .. } => 0,
            Self::Tampered { .. } => 1,
            Self::Incomplete { .. } => 2,
        }
    }
}

/// Reads the tree as the ledger has it.
pub async fn load_tree(client: &Client) -> Result<Tree, LedgerError> {
    let row = client.query_one("select size, frontier from tree", &[]).await?;
    let size: i64 = row.try_get(0)?;
    let frontier: Vec<Vec<u8>> = row.try_get(1)?;
    let hashes = frontier.into_iter().map(<[u8; 32]>::try_from).collect::<Result<Vec<_>, _>>();
    let hashes = hashes.map_err(|_| LedgerError::Unreadable("the tree's frontier".into()))?;
    let size = u64::try_from(size).map_err(|_| LedgerError::Unreadable("the tree's size".into()))?;
    Ok(Tree::restore(size, &hashes)?)
}

/// Verifies the whole ledger as of one instant; `progress` is told every thousand entries.
pub async fn verify(client: &mut Client, mut progress: impl FnMut(u64, u64)) -> Result<Verdict, LedgerError> {
    let transaction = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let head = transaction.query_one("select size, root from tree", &[]).await?;
    let (claimed, root): (i64, Vec<u8>) = (head.try_get(0)?, head.try_get(1)?);
    let sql = "select seq, kind, recorded_at, correlation_id, body, leaf from entry order by seq";
    let rows = transaction.query_raw(sql, Vec::<i64>::new()).await?;
    pin_mut!(rows);
    let mut tree = Tree::default();
    let mut expected: i64 = 1;
    while let Some(row) = rows.next().await {
        let row = row?;
        let seq: i64 = row.try_get(0)?;
        if seq != expected {
            return Ok(Verdict::Incomplete {
                seq: expected,
                what: format!("missing; the next one there is {seq}"),
            });
        }
        if seq > claimed {
            return Ok(Verdict::Incomplete {
                seq,
                what: format!("not covered by the tree, whose size is {claimed}"),
            });
        }
        let body: Vec<u8> = row.try_get(4)?;
        let leaf = record_hash(&body);
        if leaf.0.as_slice() != row.try_get::<_, &[u8]>(5)? {
            return Ok(Verdict::Tampered { seq, what: "the body does not hash to its leaf".into() });
        }
        if let Some(what) = column_mismatch(&row, &body)? {
            return Ok(Verdict::Tampered { seq, what });
        }
        tree.append(leaf)?;
        if seq % 1000 == 0 {
            tree.prune();
            progress(tree.size(), u64::try_from(claimed).unwrap_or_default());
        }
        expected += 1;
    }
    if expected - 1 != claimed {
        return Ok(Verdict::Incomplete {
            seq: expected,
            what: format!("missing; the tree covers {claimed} entries"),
        });
    }
    if tree.root()?.as_slice() != root.as_slice() {
        return Ok(Verdict::Tampered {
            seq: claimed,
            what: "the entries do not hash to the tree head".into(),
        });
    }
    Ok(Verdict::Sound { size: tree.size(), root: hex(&root) })
}

/// Columns are copies of what the body says; a copy that differs was changed.
fn column_mismatch(row: &tokio_postgres::Row, body: &[u8]) -> Result<Option<String>, LedgerError> {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return Ok(Some("the body is not JSON".into()));
    };
    let recorded_at: jiff::Timestamp = row.try_get(2)?;
    let columns = [
        ("seq", Value::from(row.try_get::<_, i64>(0)?)),
        ("kind", Value::from(row.try_get::<_, String>(1)?)),
        ("recorded_at", Value::from(recorded_at.to_string())),
        ("correlation_id", Value::from(row.try_get::<_, Option<String>>(3)?)),
    ];
    let differs = columns.into_iter().find(|(name, value)| body.get(*name) != Some(value));
    Ok(differs.map(|(name, _)| format!("column {name} is not what the body says")))
}
