//! What operators ask of a running daemon.

use clap::{Args, Subcommand};

use super::ConfigArgs;

/// An object of ours at a target.
#[derive(Debug, Args)]
pub struct ObjectArgs {
    /// The settings file.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Target.
    #[arg(long)]
    pub target: String,
    /// Object of its connector, such as customer.
    #[arg(long)]
    pub object: String,
    /// Canonical id.
    pub id: String,
}

/// `tailwater identity …`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Where an object stands: at each target, under which id.
    Show {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Canonical id, or the id that a target gave it.
        id: String,
    },
    /// Say that an object at a target is one of ours; what waited for that goes on.
    Link {
        /// Which.
        #[command(flatten)]
        which: ObjectArgs,
        /// The target's own id.
        external_id: String,
    },
    /// Forget where an object stands at a target; nothing is changed there.
    Unlink {
        /// Which.
        #[command(flatten)]
        which: ObjectArgs,
    },
}

/// `tailwater wave …`.
#[derive(Debug, Subcommand)]
pub enum WaveCommand {
    /// The waves of the route files, and which of them have moved, when, and by whom.
    List {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// From now on the wave's customers go where its routes say; what the new system lacks of them is delivered to it.
    Move {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Name.
        name: String,
    },
    /// Back to where they were.
    Back {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Name.
        name: String,
    },
}

/// `tailwater quota …`.
#[derive(Debug, Subcommand)]
pub enum QuotaCommand {
    /// The rates in force, where they come from, what the targets say they allow, and pauses.
    Show {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Only this target.
        target: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set the rate of a target, or of one of its limits, until it is reset.
    Set {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Target.
        target: String,
        /// A limit of the connector (the first when left out), and a rate such as 40/s; several with commas: 40/s,50000/d.
        #[arg(num_args = 1..=2, required = true, value_names = ["LIMIT] [RATE"])]
        rate: Vec<String>,
    },
    /// Back to what the settings say.
    Reset {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Target.
        target: String,
        /// A limit of its connector; all when left out.
        limit: Option<String>,
    },
}

/// Which deliveries a command is about; all that are given must be true of them.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// Numbers.
    pub ids: Vec<i64>,
    /// To this target.
    #[arg(long)]
    pub target: Option<String>,
    /// Of this object of its connector.
    #[arg(long)]
    pub object: Option<String>,
    /// For this cause, as `list` groups them.
    #[arg(long)]
    pub cause: Option<String>,
}

/// What is decided about deliveries, and why.
#[derive(Debug, Args)]
pub struct DecisionArgs {
    /// The settings file.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Why, for the ledger.
    #[arg(long)]
    pub reason: String,
}

/// `tailwater deliveries …`.
#[derive(Debug, Subcommand)]
pub enum DeliveriesCommand {
    /// What is owed and what waits for a person, by target, object, state and cause; or one by one.
    List {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Which.
        #[command(flatten)]
        which: Which,
        /// In this state: pending, sending, waiting, parked, rejected, held, shadowed.
        #[arg(long)]
        state: Option<String>,
        /// One line for each delivery, at most so many.
        #[arg(long, value_name = "N")]
        each: Option<i64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Everything about one delivery: its event, its attempts and their outcomes.
    Show {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Number.
        id: i64,
        /// Print all values.
        #[arg(long)]
        values: bool,
    },
    /// Deliver again what was parked or refused, as the object is now; a fact as it was.
    ///
    /// One whose request may have been carried out is left out: first say with `resolve` whether it was.
    Retry(DecisionArgs),
    /// Say of a request in doubt whether it was carried out; its lane goes on.
    #[command(group = clap::ArgGroup::new("carried out").required(true))]
    Resolve {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Number.
        id: i64,
        /// It was; the target's own id of the object, when there is a new one.
        #[arg(long, group = "carried out", value_name = "ID", num_args = 0..=1, default_missing_value = "")]
        applied: Option<String>,
        /// It was not, and is sent again.
        #[arg(long, group = "carried out")]
        not_applied: bool,
        /// How that is known, for the ledger.
        #[arg(long)]
        reason: String,
    },
    /// Give up what was parked, refused, held or recorded in shadow mode; the object is delivered again with its next change.
    Discard(DecisionArgs),
}

/// Which parked things a command is about; all that are given must be true of them.
#[derive(Debug, Clone, Args)]
pub struct ParkedWhich {
    /// Numbers.
    pub ids: Vec<i64>,
    /// Of this source.
    #[arg(long)]
    pub source: Option<String>,
    /// Of this kind: row, record, stream, image, command.
    #[arg(long)]
    pub kind: Option<String>,
}

/// What is decided about parked things, and why.
#[derive(Debug, Args)]
pub struct ParkedDecision {
    /// The settings file.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Which.
    #[command(flatten)]
    pub which: ParkedWhich,
    /// Why, for the ledger.
    #[arg(long)]
    pub reason: String,
}

/// `tailwater parked …`.
#[derive(Debug, Subcommand)]
pub enum ParkedCommand {
    /// What is parked, the newest first, each with the reason and its size.
    List {
        /// The settings file.
        #[command(flatten)]
        config: ConfigArgs,
        /// Which.
        #[command(flatten)]
        which: ParkedWhich,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        most: i64,
        /// Print JSON, one line each.
        #[arg(long)]
        json: bool,
    },
    /// Look at it again: the row is read again, the record is asked for, the command is carried out.
    Retry(ParkedDecision),
    /// It was seen to elsewhere.
    Resolve(ParkedDecision),
    /// Give it up; a row or record counts again with its next change.
    Discard(ParkedDecision),
}
