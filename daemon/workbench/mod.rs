//! What people use who write mappings: check them, try them on examples, compare versions, print the reference, and see what
//! a change would send.

pub mod answers;
pub mod diff;
pub mod docs;
pub mod explain;
pub mod mappings;
pub mod plan;
pub mod redact;
pub mod rehearsal;
