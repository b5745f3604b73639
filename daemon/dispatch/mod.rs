//! When and in which order deliveries go: lanes, quotas, pauses, retries, deduplication. Knows nothing of the
//! replication protocol; `gate`, `plan`, `quota`, `retry` and `turn` are pure.

mod adopt;
mod bulk;
pub mod compare;
pub mod dedup;
pub mod deliver;
mod evidence;
pub mod follow_up;
pub mod gate;
mod group;
mod inputs;
pub mod job;
pub mod lane;
pub mod look_up;
mod outcome;
pub mod pace;
pub mod plan;
mod prepare;
pub mod quota;
pub mod retry;
mod shadow;
mod take;
pub mod target;
pub mod together;
pub mod turn;
pub mod unsent;

pub use lane::Dispatcher;
pub use target::Target;
