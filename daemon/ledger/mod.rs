//! The ledger: inbox, outbox and truth (INV-2). All SQL on it is in this module; nothing here knows of HTTP.
//!
//! One session writes, in batches ([`writer`]); it holds an advisory lock, so that two daemons never serve one ledger.
//! Everything else reads.

pub mod batch;
pub mod command;
pub mod commit;
pub mod dispatch_statements;
pub mod entry;
pub mod images;
pub mod load_statements;
pub mod loads;
pub mod outbox;
pub mod position;
pub mod recent;
pub mod spill;
pub mod statements;
pub mod status;
pub mod tree;
pub mod verify;
pub mod writer;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_postgres::Client;

use crate::pg::{ConnectError, Database, describe};
use writer::Writer;

mod migrations {
    //! Schema of the ledger, embedded in the binary.
    #![allow(missing_docs, clippy::all)]
    refinery::embed_migrations!("sql/ledger");
}

/// Everything of the ledger lives in this schema.
pub const SCHEMA: &str = "tailwater";

/// Key of the advisory lock (`TAILWATR` in ASCII).
const WRITER_LOCK: i64 = 0x5441_494C_5741_5452;

/// What the daemon asks is a handful of rows in the order of an index, however large the tables are; a planner without
/// statistics would rather read everything and sort it.
const READER_SETTINGS: &str = "set enable_bitmapscan = off";

/// What can go wrong with the ledger, by remedy.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be reached.
    #[error("ledger: {0}")]
    Unreachable(#[from] ConnectError),
    /// A statement failed.
    #[error("ledger: {}", describe(.0))]
    Statement(#[from] tokio_postgres::Error),
    /// The writer ended before it could answer.
    #[error("ledger: the writing session has ended")]
    WriterGone,
    /// Another daemon serves this ledger.
    #[error("ledger: another tailwater process is writing to it")]
    Locked,
    /// The schema could not be brought up to date.
    #[error("ledger: migration failed: {0}")]
    Migration(#[from] refinery::Error),
    /// Its tree contradicts itself.
    #[error("ledger: {0}")]
    Tree(#[from] tree::BrokenTree),
    /// Something in it is not what this version writes.
    #[error("ledger: {0} cannot be read by this version")]
    Unreadable(String),
}

/// The daemon's hold on the ledger.
#[derive(Clone)]
pub struct Ledger {
    reader: Arc<Client>,
    writer: Writer,
    lost: watch::Receiver<bool>,
}

impl Ledger {
    /// Connects, brings the schema up to date and takes the writer's lock.
    pub async fn open(database: &Database) -> Result<Self, LedgerError> {
        let mut client = database.connect("tailwater-ledger-writer").await?;
        let row = client.query_one("select pg_try_advisory_lock($1)", &[&WRITER_LOCK]).await?;
        if !row.try_get::<_, bool>(0)? {
            return Err(LedgerError::Locked);
        }
        client.batch_execute(&format!("create schema if not exists {SCHEMA}")).await?;
        migrations::migrations::runner().run_async(&mut client).await?;
        let reader = Arc::new(database.connect("tailwater-ledger-reader").await?);
        reader.batch_execute(READER_SETTINGS).await?;
        let (lost_tx, lost) = watch::channel(false);
        let sealer = commit::Sealer::new(verify::load_tree(&client).await?);
        let writer = Writer::start(commit::Session::new(client), sealer, lost_tx);
        Ok(Self { reader, writer, lost })
    }

    /// The reading session.
    #[must_use]
    pub fn reader(&self) -> &Client {
        &self.reader
    }

    /// The writer.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Ends when the writing session is lost.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // A closed channel means that the writer is gone, which is the same.
        let _ = lost.wait_for(|lost| *lost).await;
    }
}

/// True when a daemon holds the writer's lock.
pub async fn is_served(client: &Client) -> Result<bool, LedgerError> {
    let sql = "select exists (select from pg_locks where locktype = 'advisory' and granted
                and database = (select oid from pg_database where datname = current_database())
                and (classid::bigint << 32 | objid::bigint) = $1)";
    Ok(client.query_one(sql, &[&WRITER_LOCK]).await?.try_get(0)?)
}
