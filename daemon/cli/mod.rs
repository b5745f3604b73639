//! The command line.

mod ledger;
mod operators;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ledger::process::Role;

pub use ledger::{
    ArchiveArgs, EvidenceArgs, ExportFormat, HoldCommand, LedgerArgs, LedgerCommand, OwnerArgs, ProofCommand,
    ReadingArgs,
};
pub use operators::{
    DecisionArgs, DeliveriesCommand, IdentityCommand, ObjectArgs, ParkedCommand, ParkedDecision, ParkedWhich,
    QuotaCommand, WaveCommand, Which,
};

/// Change-data-capture replication between an ERP's PostgreSQL and billing and support systems.
///
/// Tailwater follows the logical replication of the ERP's database and polls billing and support systems, turns what changed
/// into business events, and applies them to all the others, the ERP included: within their rate limits, never twice, and
/// with every step in an append-only ledger. The ERP gets one role, one publication and one replication slot, and a user of
/// its API if it is written, too; no module, no trigger.
#[derive(Debug, Parser)]
#[command(name = "tailwater", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Explains the exit codes below every help text.
const EXIT_CODES: &str = "Exit codes: 0 done; 64 wrong usage; 69 a database or service is down; 70 a fault of \
tailwater itself; 75 try again later; 78 wrong settings, or not safe to start.";

/// The settings file.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Settings file. Any key can be overridden by the environment: TAILWATER__LEDGER__URL sets `url` of the ledger.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/tailwater/tailwater.toml")]
    pub config: PathBuf,
}

/// What a process does.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RunRole {
    /// Everything.
    All,
    /// Follow the sources, or stand by to do so.
    Capture,
    /// Deliver.
    Dispatch,
}

impl From<RunRole> for Role {
    fn from(role: RunRole) -> Self {
        match role {
            RunRole::All => Self::All,
            RunRole::Capture => Self::Capture,
            RunRole::Dispatch => Self::Dispatch,
        }
    }
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: follow the sources, deliver to the targets.
    ///
    /// Tells systemd READY=1 once the ledger, the slot and the mapping are proven. Stops on SIGTERM: requests in flight
    /// are finished, what is not confirmed is sent again by PostgreSQL at the next start.
    ///
    /// Several processes may run on one ledger, on one machine or on several: one follows the sources while the others stand by,
    /// and all share the deliveries. SIGHUP reads the settings again and puts rates and shares in force.
    Run {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Only follow the sources, or only deliver.
        #[arg(long, value_enum, default_value = "all")]
        role: RunRole,
    },
    /// Check settings, mapping and connector files, the ledger, the ERP's PostgreSQL and the targets' secrets. Changes
    /// nothing.
    Check {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Print findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show where the sources stand, what is owed to each target, and what waits for a person.
    Status {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Go on after changes of a source were lost: its slot dropped, invalidated or advanced, the ERP or the ledger restored.
    ///
    /// Records the gap in the ledger and lets go of what is left of the slot. The next `tailwater run` makes a new slot and
    /// reads all tables again; what changed in between is delivered, what was deleted too. The daemon must be stopped.
    ///
    /// With --ledger: the ledger is an older copy than its published checkpoints say, and there is none newer. What is missing is
    /// recorded, and the published log is put aside: the ledger goes on under a new key. Then recover each source.
    Recover {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Source in the settings.
        #[arg(long, required_unless_present = "ledger")]
        source: Option<String>,
        /// The ledger itself was restored from an older copy.
        #[arg(long, conflicts_with = "source")]
        ledger: bool,
        /// The source is another database cluster than before, and that is meant: the ERP was restored from a dump.
        #[arg(long)]
        accept_new_cluster: bool,
    },
    /// Compare what a target holds with what it should.
    ///
    /// Reads the target back through its lists, within a tenth of its quota, and names what is missing, what differs (field by field,
    /// what is there and what should be), what is there twice, what carries an id of ours that we know nothing of, and how much of
    /// everything is there. What may not be looked at counts as unread, never as missing. The result stands in the ledger. With `--repair` what is missing or differs is put right by ordinary
    /// deliveries, as far as ownership goes.
    Reconcile {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Target.
        target: String,
        /// Only these objects of its connector.
        #[arg(long = "type", value_name = "OBJECT")]
        objects: Vec<String>,
        /// Put right what may be put right.
        #[arg(long)]
        repair: bool,
        /// For machines.
        #[arg(long)]
        json: bool,
    },
    /// About the ERP's PostgreSQL.
    #[command(subcommand)]
    Source(SourceCommand),
    /// About the ledger.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Explain a row: its look-ups, the events it is part of, their routes, and the exact requests. Nothing is sent.
    ///
    /// Answered from the ledger's images, so it also works while the ERP is down. Texts that may be personal are given by their
    /// length.
    Explain {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Table, such as account_move.
        table: String,
        /// Primary key of the row; a JSON array of texts when it has several columns.
        key: String,
        /// Source in the settings; may be left out when there is one.
        #[arg(long)]
        source: Option<String>,
        /// Print all values.
        #[arg(long)]
        values: bool,
    },
    /// Show what is owed as it would be sent: counts, time under the quotas, the first requests. Nothing is sent.
    Plan {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Only what is owed to this one.
        #[arg(long)]
        target: Option<String>,
        /// Requests shown for each target.
        #[arg(long, default_value_t = 3, value_name = "N")]
        first: i64,
        /// Print all values.
        #[arg(long)]
        values: bool,
    },
    /// Let a mass change go that is held (`[sources.NAME.mass]`); without an option, list what is held.
    Release {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// All of it.
        #[arg(long)]
        all: bool,
        /// What is held for this target.
        #[arg(long)]
        target: Option<String>,
        /// What is held of this object, such as customer.
        #[arg(long)]
        object: Option<String>,
        /// Throw the deliveries away. An object is delivered again with its next change; one whose deletion is thrown away
        /// stays at the target.
        #[arg(long)]
        discard: bool,
    },
    /// How fast each target may be spoken to. What is set takes effect within a second, without a restart.
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// What is owed to the targets, and what waits for a person there.
    #[command(subcommand)]
    Deliveries(DeliveriesCommand),
    /// What waits by name and is no delivery: rows, records, streams and commands that are refused.
    #[command(subcommand)]
    Parked(ParkedCommand),
    /// Which object at a target is which of ours.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Groups of customers that move from one system to another (`waves` in the route files).
    #[command(subcommand)]
    Wave(WaveCommand),
    /// Tell objects again, as if they were read for the first time: for a target or a route that is new. What a target has
    /// already is not sent again.
    Backfill {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Event types, such as customer.v1.
        #[arg(required = true, value_name = "EVENT")]
        events: Vec<String>,
        /// Source in the settings; may be left out when there is one.
        #[arg(long)]
        source: Option<String>,
    },
    /// For those who write mapping files: check them, try them on examples, compare versions, print the reference.
    #[command(subcommand)]
    Mappings(MappingsCommand),
    /// Show it at work: a private PostgreSQL, Redis, an Odoo-shaped database and simulated Stripe and Zendesk.
    Demo {
        /// Leave everything running at the end and print the connection strings.
        #[arg(long)]
        keep: bool,
        /// How long to change customers and contacts, in seconds.
        #[arg(long, default_value_t = 25, value_name = "SECONDS")]
        seconds: u64,
        /// Print plain lines even on a terminal.
        #[arg(long)]
        plain: bool,
    },
    /// Print the manual page (roff).
    #[command(hide = true)]
    Man,
}

/// Where the mapping files are.
#[derive(Debug, Args)]
pub struct MappingsArgs {
    /// Directory with sources/, canonical/, connectors/ and routes/.
    #[arg(long, short, value_name = "DIR", default_value = "/usr/share/tailwater/mappings")]
    pub dir: PathBuf,
}

/// `tailwater mappings …`.
#[derive(Debug, Subcommand)]
pub enum MappingsCommand {
    /// Check all files, every mistake at once, each with its place and what to write instead. Needs no settings and no
    /// server; with `--against` the tables and columns are looked for in a database, too.
    Check {
        /// Where the files are.
        #[command(flatten)]
        files: MappingsArgs,
        /// Settings whose sources are compared with the mapping: tables, columns, keys.
        #[arg(long, value_name = "SETTINGS")]
        against: Option<PathBuf>,
    },
    /// Try the mappings on the examples beside them (sources/NAME/examples/*.yaml): rows in, events and requests out.
    Test {
        /// Where the files are.
        #[command(flatten)]
        files: MappingsArgs,
    },
    /// Say what changes for those who read the events. Exit 1 when something would break them.
    Diff {
        /// Where the files are.
        #[command(flatten)]
        files: MappingsArgs,
        /// Another directory of mappings, or a revision in git.
        #[arg(long, value_name = "DIR|REV")]
        against: String,
    },
    /// Print the reference of all events.
    Docs {
        /// Where the files are.
        #[command(flatten)]
        files: MappingsArgs,
        /// For people, or for tools.
        #[arg(long, value_enum, default_value_t = DocsFormat::Markdown)]
        format: DocsFormat,
    },
}

/// Forms of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DocsFormat {
    /// Markdown.
    Markdown,
    /// AsyncAPI 3.0, as JSON.
    Asyncapi,
}

/// `tailwater source …`.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Print the SQL that a DBA runs on the ERP: role, grants, publication, settings, and the way out.
    Sql {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Source in the settings; needed when there are several.
        #[arg(long)]
        source: Option<String>,
        /// Print the way out instead: what removes everything from the ERP.
        #[arg(long)]
        uninstall: bool,
    },
    /// Read tables again while the daemon runs: rows that differ from what is known are delivered, rows that are gone too.
    Reread {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Source in the settings; needed when there are several.
        #[arg(long)]
        source: Option<String>,
        /// Table as the mapping has it; may be given several times.
        #[arg(long = "table", value_name = "TABLE", required = true)]
        tables: Vec<String>,
        /// Only rows whose key comes after this one (one table with one key column; rows that are gone are not looked for).
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
        /// Only rows whose key comes no later than this one.
        #[arg(long, value_name = "KEY")]
        to: Option<String>,
        /// Return at once instead of showing the progress.
        #[arg(long)]
        no_wait: bool,
    },
    /// Read a slot to a point and keep nothing: how fast this server can be read. Confirms nothing.
    #[command(hide = true)]
    Drain {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Source in the settings; needed when there are several.
        #[arg(long)]
        source: Option<String>,
        /// Slot to read; never the one in use.
        #[arg(long)]
        slot: String,
        /// Where to stop: an LSN such as 16/B374D848.
        #[arg(long, value_name = "LSN")]
        until: crate::event::Lsn,
    },
}
