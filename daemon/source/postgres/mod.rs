//! PostgreSQL as a source: one role, one publication, one slot; nothing else on the ERP.
//!
//! Owns bytes to row changes. Knows nothing of events or targets.

mod array;
mod binary;
pub mod catalog;
pub mod chunk;
pub mod condense;
pub mod connection;
pub mod copy;
pub mod drain;
pub mod presence;
pub mod relation;
pub mod script;
pub mod settings;
pub mod slot;
pub mod stream;
mod thread;
pub mod transaction;
pub mod types;
pub mod value;
pub mod wire;
