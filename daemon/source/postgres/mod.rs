//! PostgreSQL as a source: one role, one publication, one slot; nothing else on the ERP.
//!
//! Owns bytes to row changes. Knows nothing of events or targets.

pub mod catalog;
pub mod connection;
pub mod copy;
pub mod relation;
pub mod script;
pub mod slot;
pub mod stream;
pub mod transaction;
pub mod value;
pub mod wire;
