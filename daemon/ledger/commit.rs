//! One batch, one transaction. Statements are prepared once and pipelined: a whole batch costs one round trip and one
//! flush to disk.

use std::collections::HashMap;
use std::pin::Pin;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::LedgerError;
use super::batch::{Batch, EntryIndex};
use super::statements::{Prepared, dispatch_statements, entry_statements, source_statements};
use super::tree::Tree;

/// A batch with its place in the ledger, ready to be written.
pub struct Sealed {
    /// `seq` of its first entry.
    pub first: i64,
    statements: Vec<Prepared>,
}

/// Gives batches their places, one behind the other, whether or not the one before is committed yet: should that fail, the
/// session ends and nothing behind it is written.
pub struct Sealer {
    tree: Tree,
}

impl Sealer {
    /// Takes over the tree as the ledger has it.
    #[must_use]
    pub fn new(tree: Tree) -> Self {
        Self { tree }
    }

    /// Hashes the entries of `batch` into the tree and makes the statements that write it.
    pub fn seal(&mut self, mut batch: Batch, now: Timestamp) -> Result<Sealed, LedgerError> {
        let before = self.tree.clone();
        let first =
            i64::try_from(before.size()).map_err(|_| LedgerError::Unreadable("tree size".into()))? + 1;
        let mut sealed = Vec::with_capacity(batch.entries.len());
        for (seq, entry) in (first..).zip(std::mem::take(&mut batch.entries)) {
            let entry = entry.seal(seq, now);
            self.tree.append(entry.leaf)?;
            sealed.push(entry);
        }
        self.tree.prune();
        let seq_of = |index: EntryIndex| first + i64::try_from(index.0).unwrap_or(i64::MAX);
        let mut statements = Vec::new();
        if !sealed.is_empty() {
            entry_statements(sealed, &before, &self.tree, &mut statements)?;
        }
        source_statements(&mut batch, &seq_of, &mut statements);
        dispatch_statements(batch, &seq_of, &mut statements);
        Ok(Sealed { first, statements })
    }
}

/// The writing session: the only one that changes the ledger, as long as it holds the advisory lock.
pub struct Session {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Session {
    /// A session on a connection that holds the lock.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, statements: HashMap::new() }
    }

    /// True when the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Commits a batch.
    pub async fn commit(&mut self, sealed: Sealed) -> Result<(), LedgerError> {
        let statements = sealed.statements;
        for (sql, _) in &statements {
            if !self.statements.contains_key(sql) {
                self.statements.insert(sql, self.client.prepare(sql).await?);
            }
        }
        // Futures are polled in order and each sends its message when first polled, so BEGIN, the statements and
        // COMMIT leave in one go. After a failed statement COMMIT rolls back, hence every answer is looked at.
        type Step<'a> = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a>>;
        let client = &self.client;
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(statements.len() + 2);
        steps.push(Box::pin(client.batch_execute("begin")));
        for (sql, parameters) in &statements {
            let Some(statement) = self.statements.get(sql) else { continue };
            steps.push(Box::pin(async move {
                let parameters: Vec<&(dyn ToSql + Sync)> =
                    parameters.iter().map(|value| &**value as _).collect();
                client.execute(statement, &parameters).await.map(|_| ())
            }));
        }
        steps.push(Box::pin(client.batch_execute("commit")));
        join_all(steps).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(())
    }
}
