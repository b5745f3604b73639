//! One batch, one transaction. Statements are prepared once and pipelined: a whole batch costs one round trip and one
//! flush to disk.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;
use jiff::Timestamp;
use jiff::civil::Date;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::LedgerError;
use super::batch::{Batch, EntryIndex};
use super::dispatch_statements::dispatch_statements;
use super::head::Head;
use super::keyring::{Keyring, Master, keys};
use super::seal_statements::{
    entry_statement, guard_statements, open_month_statement, subtree_statement, tree_statement,
};
use super::statements::{Parameters, Prepared, source_statements};

/// A batch with its place in the ledger, ready to be written.
#[must_use]
pub struct Sealed {
    /// `seq` of its first entry.
    pub first: i64,
    /// Subjects that have been forgotten once it is committed, where it forgets one.
    pub erasures: Option<i64>,
    statements: Vec<Prepared>,
}

/// Gives batches their places, one behind the other, whether or not the one before is committed yet: should that fail, the
/// session ends and nothing behind it is written.
pub struct Sealer {
    head: Head,
    /// The last month of which it is sure that its entries have a place.
    opened: Option<Date>,
    /// Batches sealed so far.
    batches: u64,
    /// The process that must not have ended; `None` for one that is alone by force.
    epoch: Option<i64>,
    keyring: Keyring,
}

impl Sealer {
    /// Seals for a process; the tree is taken over with its turn.
    #[must_use]
    pub fn new(epoch: Option<i64>, master: Master) -> Self {
        Self { head: Head::default(), opened: None, batches: 0, epoch, keyring: Keyring::new(master) }
    }

    /// Goes on where another process has stopped.
    pub fn follow(&mut self, head: Head) {
        self.keyring.follow(head.erasures);
        self.head = head;
    }

    /// Begins anew where the ledger stands, after so many batches of this session: what was sealed since was not committed.
    pub fn reset(&mut self, head: Head, batches: u64) {
        self.keyring.forget();
        self.opened = None;
        self.batches = batches;
        self.head = head;
    }

    /// The statements of parts of a batch, to see whether the database takes them; nothing of it stays.
    #[must_use]
    pub fn probe(&self, mut batch: Batch, now: Timestamp) -> Vec<Prepared> {
        let first = i64::try_from(self.head.tree.size()).unwrap_or(i64::MAX - 1) + 1;
        let now = now.max(self.head.recorded_at);
        let month = self.head.month_at(now);
        let seq_of = |index: EntryIndex| first + i64::try_from(index.0).unwrap_or(i64::MAX);
        let entries = std::mem::take(&mut batch.entries);
        let sealed = (first..).zip(entries).map(|(seq, entry)| entry.seal(seq, now, self.keyring.keys()));
        let sealed: Vec<_> = sealed.collect();
        let mut statements = vec![open_month_statement(month)];
        if !sealed.is_empty() {
            statements.push(entry_statement(sealed, month));
        }
        source_statements(&mut batch, (&seq_of, month), &mut statements);
        dispatch_statements(batch, &seq_of, &mut statements);
        statements
    }

    /// True when all batches before must be committed before keys are looked for.
    #[must_use]
    pub fn must_settle(&self) -> bool {
        self.keyring.must_settle()
    }

    /// Finds or makes the keys of everything personal in `batch`. Only while it is this process's turn.
    pub async fn fetch_keys(&mut self, client: &Client, batch: &mut Batch) -> Result<(), LedgerError> {
        self.keyring.fetch(client, batch).await
    }

    /// Hashes the entries of `batch` into the tree and makes the statements that write it.
    /// `announced`: other processes are told when something is newly owed.
    pub fn seal(&mut self, mut batch: Batch, now: Timestamp, announced: bool) -> Result<Sealed, LedgerError> {
        let announced = announced && !batch.deliveries.is_empty();
        let before = self.head.clone();
        // Entries are in the order of their times, whatever the clock does.
        let now = now.max(before.recorded_at);
        let first =
            i64::try_from(before.tree.size()).map_err(|_| LedgerError::Unreadable("tree size".into()))? + 1;
        let mut sealed = Vec::with_capacity(batch.entries.len());
        for (seq, entry) in (first..).zip(std::mem::take(&mut batch.entries)) {
            let entry = entry.seal(seq, now, self.keyring.keys());
            self.head.tree.append(entry.leaf);
            sealed.push(entry);
        }
        let subtrees = self.head.tree.take_completed();
        let seq_of = |index: EntryIndex| first + i64::try_from(index.0).unwrap_or(i64::MAX);
        let mut statements = Vec::new();
        guard_statements(self.batches, self.epoch, &mut statements);
        self.batches += 1;
        let month = before.month_at(now);
        if !sealed.is_empty() {
            self.head.month = month;
            self.head.recorded_at = now;
            if self.opened < Some(month) {
                statements.push(open_month_statement(month));
                self.opened = Some(month);
            }
            statements.push(tree_statement(&before.tree, &self.head)?);
            statements.push(entry_statement(sealed, month));
            if !subtrees.is_empty() {
                statements.push(subtree_statement(&subtrees));
            }
        }
        let forgets = !batch.erased.is_empty();
        self.head.erasures += i64::from(forgets);
        keys(&mut batch, &mut statements);
        source_statements(&mut batch, (&seq_of, month), &mut statements);
        dispatch_statements(batch, &seq_of, &mut statements);
        if announced {
            statements.push(("select pg_notify('tailwater', '')", Vec::new()));
        }
        Ok(Sealed { first, erasures: forgets.then_some(self.head.erasures), statements })
    }
}

/// The writing session: the only one that changes the ledger, as long as it holds the advisory lock.
pub struct Session {
    client: Arc<Client>,
    statements: HashMap<&'static str, Statement>,
}

impl Session {
    /// A session on a connection that holds the lock.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client: Arc::new(client), statements: HashMap::new() }
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// True when the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Makes a batch ready to be sent.
    pub async fn prepare(&mut self, sealed: Sealed) -> Result<Ready, LedgerError> {
        self.ready(sealed.statements).await
    }

    /// Makes statements ready to be sent.
    pub async fn ready(&mut self, prepared: Vec<Prepared>) -> Result<Ready, LedgerError> {
        let mut statements = Vec::with_capacity(prepared.len());
        for (sql, parameters) in prepared {
            let statement = match self.statements.get(sql) {
                Some(statement) => statement.clone(),
                None => {
                    let statement = self.client.prepare(sql).await?;
                    self.statements.insert(sql, statement.clone());
                    statement
                }
            };
            statements.push((statement, parameters));
        }
        Ok(Ready { client: self.client.clone(), statements })
    }
}

/// A batch with its statements, ready to be sent.
pub struct Ready {
    client: Arc<Client>,
    statements: Vec<(Statement, Parameters)>,
}

impl Ready {
    /// Commits it. Everything is sent when this is first polled, so the next one may be sent while the server works on
    /// this one; should this one fail, the next one fails too.
    pub async fn commit(self) -> Result<(), LedgerError> {
        self.carry_out("commit").await
    }

    /// Does all of it and takes it back.
    pub async fn try_out(self) -> Result<(), LedgerError> {
        self.carry_out("rollback").await
    }

    async fn carry_out(self, end: &str) -> Result<(), LedgerError> {
        // Each statement leaves when it is first polled: BEGIN, the statements and COMMIT go out together. What cannot even
        // be sent must not be committed without. After a statement that fails at the server COMMIT rolls back, hence every
        // answer is looked at.
        let client = &self.client;
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(self.statements.len() + 2);
        steps.push(Box::pin(client.batch_execute("begin")));
        for (statement, parameters) in &self.statements {
            steps.push(Box::pin(async move {
                let parameters: Vec<&(dyn ToSql + Sync)> =
                    parameters.iter().map(|value| &**value as _).collect();
                client.execute(statement, &parameters).await.map(|_| ())
            }));
        }
        let mut sent = Vec::with_capacity(steps.len() + 1);
        let mut unsent = None;
        for mut step in steps {
            match poll_fn(|context| Poll::Ready(step.as_mut().poll(context))).await {
                Poll::Ready(Err(error)) => {
                    unsent = Some(error);
                    break;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Pending => sent.push(step),
            }
        }
        sent.push(Box::pin(client.batch_execute(if unsent.is_some() { "rollback" } else { end })));
        let answers = join_all(sent).await;
        match unsent {
            Some(error) if error.is_closed() => return Err(error.into()),
            Some(_) => return Err(LedgerError::Content("a value cannot be sent to the database".into())),
            None => {}
        }
        answers.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(())
    }
}

/// A statement on its way.
type Step<'a> = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send + 'a>>;
