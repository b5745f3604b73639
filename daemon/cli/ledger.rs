//! What auditors and DBAs ask of the ledger.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::ConfigArgs;

/// Which ledger.
#[derive(Debug, Clone, Args)]
pub struct LedgerArgs {
    /// The settings file, whose `[ledger]` says where it is.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/tailwater/tailwater.toml")]
    pub config: PathBuf,
    /// Where it is, for those who have no settings file: postgres://alice@ledger.example.com/tailwater
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// With --url: a password file as libpq reads it. Left out: ~/.pgpass, where there is one.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub passfile: Option<PathBuf>,
}

/// Who reads what, and how it is shown. Each reading is an entry of its own.
#[derive(Debug, Clone, Args)]
pub struct ReadingArgs {
    /// Which.
    #[command(flatten)]
    pub ledger: LedgerArgs,
    /// Zone in which times are shown beside UTC; left out: that of this machine.
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Print JSON, a line for each thing.
    #[arg(long)]
    pub json: bool,
    /// Show personal values that are sealed, with the key of the settings.
    #[arg(long, conflicts_with = "url")]
    pub unseal: bool,
}

/// Where checkpoints are, and whose they must be.
#[derive(Debug, Clone, Args)]
pub struct EvidenceArgs {
    /// Directory in which the log was published. Left out: as the settings have it.
    #[arg(long, value_name = "DIR")]
    pub log: Option<PathBuf>,
    /// File with checkpoints from elsewhere: a witness, the journal, an e-mail. May be given several times.
    #[arg(long = "checkpoint", value_name = "FILE")]
    pub checkpoints: Vec<PathBuf>,
    /// Public key of the log (NAME+ID+KEY), or a file with it. Left out: that of the settings' key.
    #[arg(long, value_name = "KEY")]
    pub pubkey: Option<String>,
}

/// `tailwater ledger …`.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Prove that the ledger is what was written. Exit 0: sound; 1: tampered with; 2: incomplete.
    ///
    /// Every body is hashed, every copy of it in a column compared, the tree made anew and held against the checkpoints that
    /// were kept outside the database. The first entry that does not hold is named.
    Verify {
        /// Which.
        #[command(flatten)]
        ledger: LedgerArgs,
        /// What is known from outside.
        #[command(flatten)]
        evidence: EvidenceArgs,
        /// First entry.
        #[arg(long, value_name = "SEQ", default_value_t = 1)]
        from: u64,
        /// Last entry; left out: to the end.
        #[arg(long, value_name = "SEQ")]
        to: Option<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prove that an entry is in the ledger, or that a ledger goes on where a smaller one ended, to somebody who has neither.
    #[command(subcommand)]
    Proof(ProofCommand),
    /// Show an entry.
    Show {
        /// Which ledger.
        #[command(flatten)]
        reading: ReadingArgs,
        /// The entry.
        seq: i64,
    },
    /// What became of a row: who wrote it, when, which fields, from what to what.
    History {
        /// Which ledger.
        #[command(flatten)]
        reading: ReadingArgs,
        /// Table, such as res_partner.
        table: String,
        /// Primary key; a JSON array of texts when it has several columns.
        key: String,
    },
    /// A row as it was at a time.
    AsOf {
        /// Which ledger.
        #[command(flatten)]
        reading: ReadingArgs,
        /// Table.
        table: String,
        /// Primary key.
        key: String,
        /// When, such as 2026-11-24, "2026-11-24 10:00" in your zone, or 2026-11-24T10:00:00Z.
        time: String,
        /// Where several sources have a table of that name: which.
        #[arg(long)]
        source: Option<String>,
    },
    /// What changed between two times: each row once, as it was and as it became.
    Diff {
        /// Which ledger.
        #[command(flatten)]
        reading: ReadingArgs,
        /// From here.
        from: String,
        /// To here.
        to: String,
        /// Only this table.
        #[arg(long)]
        table: Option<String>,
    },
    /// The whole story: rows, event, requests, answers.
    ///
    /// Of an event id, an entry's number, a canonical id (ERP-P-8), a row (res_partner/8), or an object at a target (stripe/cus_…, or
    /// its id alone).
    Trace {
        /// Which ledger.
        #[command(flatten)]
        reading: ReadingArgs,
        /// Of what.
        id: String,
        /// Stories at the most, the newest ones.
        #[arg(long, default_value_t = 20, value_name = "N")]
        last: i64,
    },
    /// Take a copy of a part of the ledger, for tools or to be checked elsewhere (tailwater-verify).
    Export {
        /// Which ledger.
        #[command(flatten)]
        reading: ReadingArgs,
        /// What is known from outside: the newest checkpoint becomes part of a bundle.
        #[command(flatten)]
        evidence: EvidenceArgs,
        /// From this entry, or this time.
        #[arg(long, value_name = "SEQ|TIME", default_value = "1")]
        from: String,
        /// To this entry, or this time; left out: to the end.
        #[arg(long, value_name = "SEQ|TIME")]
        to: Option<String>,
        /// In which form.
        #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
        format: ExportFormat,
        /// A bundle (tar) that proves itself complete and unaltered.
        #[arg(long)]
        with_proofs: bool,
        /// File to write; left out: standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Forget a person: destroy the key of what is sealed of them, and take what is in clear out of everything but the entries.
    ///
    /// Entries, tree and proofs stay as they are. Have the person erased in the ERP first: what it still says comes back. What the
    /// targets hold is not touched; where that is, is printed.
    Erase {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Canonical id, such as ERP-P-8.
        subject: String,
        /// Why; it stands in the ledger.
        #[arg(long)]
        reason: String,
        /// Even while deliveries are owed: they are given up.
        #[arg(long)]
        now: bool,
    },
    /// Write whole months to files, and take them out of the database. Proofs of their entries can still be made.
    ///
    /// Each month becomes a bundle (tar) of its entries, compressed, with their hashes, a proof and a checkpoint; it is checked before
    /// the month is dropped. Needs the rights of the tables' owner.
    Archive {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// What and where.
        #[command(flatten)]
        args: ArchiveArgs,
    },
    /// Put an archived month back. Needs the rights of the tables' owner.
    Restore {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// As whom.
        #[command(flatten)]
        owner: OwnerArgs,
        /// Month, such as 2026-01.
        month: String,
        /// Its file; left out: where it was written.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// What must not be archived or erased, for a court or an audit.
    #[command(subcommand)]
    Hold(HoldCommand),
    /// Make the ledger's roles, tables, views and rights, or bring them up to date.
    ///
    /// Run by a DBA, once and with each new version: as a superuser, or as one with CREATEROLE who owns the database. Three roles keep
    /// apart who owns (tailwater_owner), who writes (tailwater_writer) and who reads (tailwater_auditor). May be run again.
    Migrate {
        /// The database, as a role that may make others: postgres://postgres@/tailwater?host=/run/postgresql
        #[arg(long, value_name = "URL")]
        url: String,
        /// A password file as libpq reads it.
        #[arg(long, value_name = "FILE")]
        passfile: Option<PathBuf>,
        /// Role with which the daemon connects; made a writer.
        #[arg(long, value_name = "ROLE", default_value = "tailwater")]
        writer: String,
        /// Role of an auditor; may be given several times.
        #[arg(long = "auditor", value_name = "ROLE")]
        auditors: Vec<String>,
        /// Print the SQL of the roles, and do nothing.
        #[arg(long)]
        print: bool,
    },
    /// Make a key to sign checkpoints with. The public part is printed: give it to the auditors.
    Key {
        /// Name of the log: a host with a path of yours, such as example.com/ledger.
        #[arg(long)]
        name: String,
        /// File that the private part is written to, readable by nobody else.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// `tailwater ledger proof …`.
#[derive(Debug, Subcommand)]
pub enum ProofCommand {
    /// An entry is in the ledger.
    Inclusion {
        /// Which.
        #[command(flatten)]
        ledger: LedgerArgs,
        /// What is known from outside: the newest checkpoint becomes part of the proof.
        #[command(flatten)]
        evidence: EvidenceArgs,
        /// The entry.
        seq: u64,
        /// In the tree of this many entries; left out: of the newest checkpoint, or of all.
        #[arg(long)]
        size: Option<u64>,
    },
    /// The first OLD of NEW entries are those of the ledger of OLD entries.
    Consistency {
        /// Which.
        #[command(flatten)]
        ledger: LedgerArgs,
        /// What is known from outside.
        #[command(flatten)]
        evidence: EvidenceArgs,
        /// The smaller size.
        old: u64,
        /// The larger size; left out: of all entries.
        new: Option<u64>,
    },
}

/// As whom tables are changed.
#[derive(Debug, Clone, Args)]
pub struct OwnerArgs {
    /// The ledger, as a member of tailwater_owner or a superuser. Left out: as the settings have it.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// A password file as libpq reads it.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub passfile: Option<PathBuf>,
}

/// `tailwater ledger archive`.
#[derive(Debug, Clone, Args)]
pub struct ArchiveArgs {
    /// As whom.
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// Months before this one, such as 2026-01.
    #[arg(long, value_name = "MONTH")]
    pub before: String,
    /// Directory for the files.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `tailwater ledger hold …`.
#[derive(Debug, Subcommand)]
pub enum HoldCommand {
    /// Hold months, or everything about a subject, an object or a row.
    Add {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Name, such as that of the case.
        name: String,
        /// Month, such as 2026-01; may be given several times.
        #[arg(long = "month", value_name = "MONTH")]
        months: Vec<String>,
        /// ERP-P-8, res_partner/8, stripe/cus_…; may be given several times.
        #[arg(long, value_name = "ID")]
        about: Vec<String>,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Let go of it.
    Release {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Name.
        name: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// All holds.
    List {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
    },
}

impl HoldCommand {
    /// The settings file.
    #[must_use]
    pub fn config(&self) -> &ConfigArgs {
        match self {
            Self::Add { config, .. } | Self::Release { config, .. } | Self::List { config } => config,
        }
    }
}

/// Forms of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Comma-separated values, one line for each entry, its body in a column.
    Csv,
    /// The exact bytes of each body on a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}
