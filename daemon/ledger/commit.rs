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

/// The writing session: the only one that changes the ledger, as long as it holds the advisory lock.
pub struct Session {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    tree: Tree,
}

impl Session {
    /// Takes over the tree as the ledger has it.
    pub async fn open(client: Client) -> Result<Self, LedgerError> {
        let tree = super::verify::load_tree(&client).await?;
        Ok(Self { client, statements: HashMap::new(), tree })
    }

    /// The session itself, for reading what it wrote.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Commits `batch`; gives the `seq` of its first entry.
    pub async fn commit(&mut self, mut batch: Batch, now: Timestamp) -> Result<i64, LedgerError> {
        let mut after = self.tree.clone();
        let first =
            i64::try_from(self.tree.size()).map_err(|_| LedgerError::Unreadable("tree size".into()))? + 1;
        let mut sealed = Vec::with_capacity(batch.entries.len());
        for (seq, entry) in (first..).zip(std::mem::take(&mut batch.entries)) {
            let entry = entry.seal(seq, now);
            after.append(entry.leaf)?;
            sealed.push(entry);
        }
        after.prune();
        let seq_of = |index: EntryIndex| first + i64::try_from(index.0).unwrap_or(i64::MAX);
        let mut statements = Vec::new();
        if !sealed.is_empty() {
            entry_statements(sealed, &self.tree, &after, &mut statements)?;
        }
        source_statements(&mut batch, &seq_of, &mut statements);
        dispatch_statements(batch, &seq_of, &mut statements);
        self.run(statements).await?;
        self.tree = after;
        Ok(first)
    }

    async fn run(&mut self, statements: Vec<Prepared>) -> Result<(), LedgerError> {
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
