//! Settings: one TOML file, overridden by environment variables (`TAILWATER__LEDGER__URL`). Every mistake is reported at
//! once, with file and line (INV-11); the mapping, connector and route files it names are part of that.

pub mod address;
mod checkpoints;
pub mod database;
pub mod environment;
pub mod files;
pub mod node;
pub mod parse;
mod poll;
mod redis;
pub mod secret;
pub mod settings;
pub mod source;
mod target;

pub use database::ledger_at;
pub use poll::PollConfig;
pub use settings::{Config, load};
pub use source::{GuardSettings, LoadSettings, MassSettings, SourceConfig};
pub use target::TargetConfig;
