//! What auditors and DBAs ask of the ledger.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

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
