//! The ledger: inbox, outbox and truth (INV-2). All SQL on it is in this module; nothing here knows of HTTP.
//!
//! Each process has one session that writes, in batches ([`writer`]). They take turns by an advisory lock (`turn.rs`): whoever has
//! it is alone with the tree, and a process that is alone keeps it. Everything else reads.

pub mod archive;
pub mod batch;
pub mod calls;
pub mod command;
mod command_statements;
pub mod commit;
mod committer;
pub mod deliveries;
pub mod dispatch_statements;
pub mod entry;
pub mod erase;
pub mod erasures;
mod granting;
pub mod hashes;
pub mod head;
pub mod held;
pub mod images;
mod isolate;
pub mod keyring;
pub mod load_statements;
pub mod loads;
pub mod membership;
pub mod outbox;
pub mod owed;
pub mod parked;
pub mod polls;
pub mod position;
pub mod process;
pub mod raw;
pub mod reading;
pub mod recent;
pub mod reconcile;
pub mod said;
pub mod schema;
mod seal_statements;
pub mod spill;
pub mod standing;
pub mod statements;
mod statistics;
pub mod status;
pub mod tree;
mod turn;
pub mod verify;
mod walk;
mod walk_archived;
pub mod writer;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_postgres::Client;

use crate::pg::{ConnectError, Database, describe};
use erasures::Erasures;
use head::Head;
use keyring::Master;
use membership::{Ambition, Membership};
pub use process::is_served;
use process::{Process, Role, Tenure};
use statistics::Growth;
use turn::Turn;
use writer::{Writer, Writing};

mod migrations {
    //! Schema of the ledger, embedded in the binary.
    #![allow(missing_docs, clippy::all)]
    refinery::embed_migrations!("sql/ledger");
}

/// Everything of the ledger lives in this schema.
pub const SCHEMA: &str = "tailwater";
/// Where verification finds entries and hashes: in the tables, or for those who may not read them in the views.
pub const SCHEMA_OR_VIEWS: &str = "tailwater,tailwater_audit";
/// Views for those who read the ledger; each reading is an entry.
pub const VIEWS: &str = "tailwater_audit";

/// Key of the advisory lock (`TAILWATR` in ASCII).
const WRITER_LOCK: i64 = 0x5441_494C_5741_5452;

/// What the daemon asks is a handful of rows, however large the tables are; a planner without statistics would rather read
/// everything.
const READER_SETTINGS: &str = "set enable_bitmapscan = off; set random_page_cost = 1.1";

/// What a batch is about was written or read a moment ago: a look into an index does not cost a seek.
const WRITER_SETTINGS: &str = "set random_page_cost = 1.1";

/// What is due is found step by step, each by one look into an index. A planner that does not know how few there are would
/// rather join whole tables: half a second instead of one millisecond with a hundred thousand deliveries.
const OUTBOX_SETTINGS: &str =
    "set enable_bitmapscan = off; set enable_hashjoin = off; set enable_mergejoin = off;
                               set enable_seqscan = off";

/// What can go wrong with the ledger, by remedy.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be reached.
    #[error("ledger: {0}")]
    Unreachable(#[from] ConnectError),
    /// A statement failed.
    #[error("ledger: {}", describe(.0))]
    Statement(#[from] tokio_postgres::Error),
    /// It cannot hold what it was to be given, whoever asks and however often.
    #[error("ledger: it refuses what it was given: {0}")]
    Content(String),
    /// The writer ended before it could answer.
    #[error("ledger: the writing session has ended")]
    WriterGone,
    /// A daemon serves this ledger, and what is wanted needs it alone.
    #[error("ledger: another tailwater process is writing to it")]
    Locked,
    /// Other processes found this one dead, and have taken over what it did.
    #[error("ledger: this process was silent for too long, and others have taken over")]
    Fenced,
    /// Its schema is older than this version, and other processes work on it.
    #[error(
        "ledger: its schema has to be brought up to date first\nnext: stop all other tailwater processes of this ledger"
    )]
    OtherVersion,
    /// Its schema is older than this version, or there is none, and this role does not own it.
    #[error(
        "ledger: its schema has to be brought up to date, and this role does not own it\nnext: its DBA runs `tailwater ledger migrate --url postgres://…`"
    )]
    NotOwner,
    /// The schema could not be brought up to date.
    #[error("ledger: migration failed: {}", causes(.0))]
    Migration(#[from] refinery::Error),
    /// Its tree contradicts itself.
    #[error("ledger: {0}")]
    Tree(#[from] tree::BrokenTree),
    /// It must not be written to, and a person has to see why.
    #[error("{0}")]
    Refused(String),
    /// The entry, or the tree of that many entries, is not in it.
    #[error("ledger: it has no entry {0}")]
    NotThere(u64),
    /// Something in it is not what this version writes.
    #[error("ledger: {0} cannot be read by this version")]
    Unreadable(String),
}

impl LedgerError {
    /// What is wrong with the content of what was written, when that is the matter: by SQLSTATE, never by words. Nothing of the value is
    /// in it (INV-12).
    ///
    /// Classes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>. Division by zero is how our own guards fail.
    #[must_use]
    pub fn content(&self) -> Option<String> {
        let error = match self {
            Self::Content(reason) => return Some(reason.clone()),
            Self::Statement(error) => error.as_db_error()?,
            _ => return None,
        };
        let words = match error.code().code() {
            "22012" => return None,
            "54000" => "it is too large for an index",
            "54001" => "it is nested too deeply",
            "22P05" | "22021" => "it has characters that the database cannot hold",
            "22003" | "22008" => "a number or a time is out of range",
            "22P02" | "22023" | "22030" | "22032" => "it is not of the form that the database wants",
            "23502" | "23514" => "it breaks a rule of the ledger's tables",
            code if code.starts_with("22") || code.starts_with("54") || code == "21000" => {
                "the database cannot hold it"
            }
            _ => return None,
        };
        Some(format!("{words} (SQLSTATE {})", error.code().code()))
    }

    /// True when the ledger itself is not to be had: it is waited for, and nothing is wrong with what it was asked.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::WriterGone | Self::Locked | Self::Fenced => true,
            Self::Statement(error) => match error.as_db_error() {
                None => error.is_closed() || error.code().is_none(),
                // Connection, resources, shutdown, a lock that another holds.
                Some(error) => matches!(
                    error.code().code().get(..2),
                    Some("08" | "53" | "57" | "58" | "40" | "55" | "25")
                ),
            },
            _ => false,
        }
    }
}

/// A process's hold on the ledger.
#[derive(Clone)]
pub struct Ledger {
    reader: Arc<Client>,
    outbox: Arc<Client>,
    writer: Writer,
    lost: watch::Receiver<bool>,
    membership: Option<Membership>,
    tenure: Tenure,
    master: Master,
    erasures: Erasures,
}

impl Ledger {
    /// Connects as one of the daemons that share the ledger, and takes what of `ambition` is free.
    ///
    /// `heard` is called when another process may have written something that is owed.
    pub async fn join(
        (database, master): (&Database, &Master),
        role: Role,
        ambition: Ambition,
        heard: impl Fn() + Send + 'static,
    ) -> Result<Self, LedgerError> {
        let mut client = database.connect("tailwater-ledger-writer").await?;
        if !has_processes(&client).await? {
            schema::bring_up_to_date_alone(&mut client).await?;
        }
        let process = Process::enter(&client, role).await?;
        let (lost_tx, lost) = watch::channel(false);
        let lost_tx = Arc::new(lost_tx);
        let keeper = database.connect_and_hear("tailwater-ledger-process", heard).await?;
        keeper.batch_execute("listen tailwater").await?;
        let membership = Membership::begin(keeper, process.clone(), ambition, lost_tx.clone()).await?;
        // The others see the newcomer within a heartbeat, and take turns from then on.
        client.execute("select pg_advisory_lock($1)", &[&WRITER_LOCK]).await?;
        if schema::is_outdated(&mut client).await? && membership.standing().borrow().others.writing > 0 {
            return Err(LedgerError::OtherVersion);
        }
        schema::bring_up_to_date(&mut client).await?;
        client.execute("select pg_advisory_unlock($1)", &[&WRITER_LOCK]).await?;
        let tenure = process.tenure.clone();
        Self::start((database, master), client, (lost_tx, lost), tenure, Some(membership)).await
    }

    /// Connects as the only process; refused while a daemon lives.
    pub async fn open(database: &Database, master: &Master) -> Result<Self, LedgerError> {
        let mut client = database.connect("tailwater-ledger-writer").await?;
        if is_served(&client).await? {
            return Err(LedgerError::Locked);
        }
        schema::bring_up_to_date_alone(&mut client).await?;
        Process::enter(&client, Role::Command).await?;
        let (lost_tx, lost) = watch::channel(false);
        Self::start((database, master), client, (Arc::new(lost_tx), lost), Tenure::endless(), None).await
    }

    async fn start(
        (database, master): (&Database, &Master),
        client: Client,
        (lost_tx, lost): (Arc<watch::Sender<bool>>, watch::Receiver<bool>),
        tenure: Tenure,
        membership: Option<Membership>,
    ) -> Result<Self, LedgerError> {
        let reader = Arc::new(database.connect("tailwater-ledger-reader").await?);
        master.check(&*reader).await?;
        reader.batch_execute(READER_SETTINGS).await?;
        let outbox = Arc::new(database.connect("tailwater-ledger-outbox").await?);
        outbox.batch_execute(OUTBOX_SETTINGS).await?;
        client.batch_execute(WRITER_SETTINGS).await?;
        let sealer = commit::Sealer::new(
            membership.as_ref().map(|membership| membership.process.epoch),
            master.clone(),
        );
        let session = commit::Session::new(client);
        let turn = Turn::new(&session, membership.as_ref().map(Membership::standing));
        let erasures = Erasures::default();
        erasures.heard(Head::load(&*reader).await?.erasures);
        let writing =
            Writing { sealer, turn, growth: Growth::begin(database.clone()), erasures: erasures.clone() };
        let writer = Writer::start(session, writing, lost_tx);
        Ok(Self { reader, outbox, writer, lost, membership, tenure, master: master.clone(), erasures })
    }

    /// The reading session.
    #[must_use]
    pub fn reader(&self) -> &Client {
        &self.reader
    }

    /// What personal data is sealed with.
    #[must_use]
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// How many data subjects have been forgotten.
    #[must_use]
    pub fn erasures(&self) -> &Erasures {
        &self.erasures
    }

    /// The session in which dispatchers look for what is due: they do not wait for other readers.
    #[must_use]
    pub fn outbox(&self) -> &Client {
        &self.outbox
    }

    /// The writer.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// This process among the others; `None` for one that is alone by force.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// Until when something may be begun with what was read from this ledger.
    #[must_use]
    pub fn tenure(&self) -> &Tenure {
        &self.tenure
    }

    /// Says that this process is over, so that others need not find out.
    pub async fn leave(&self) -> Result<(), LedgerError> {
        match &self.membership {
            Some(membership) => membership.process.end(&self.reader).await,
            None => Ok(()),
        }
    }

    /// Ends when the writing session is lost, or this process was found dead.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // A closed channel means that the writer is gone, which is the same.
        let _ = lost.wait_for(|lost| *lost).await;
    }
}

/// An error with what it comes from; the library alone says little.
fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", causes(source)),
        None => error.to_string(),
    }
}

/// False in a database that is empty, or older than this version.
async fn has_processes(client: &Client) -> Result<bool, LedgerError> {
    Ok(client.query_one("select to_regclass('process') is not null", &[]).await?.try_get(0)?)
}
