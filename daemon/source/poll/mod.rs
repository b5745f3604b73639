//! Reading a system by asking it: which request comes next, and what its answer says. Pure; who asks is `capture::poll`.
//!
//! A pass goes through the pages of a stream or of a list. What is told twice, late or out of order does no harm: a record counts only
//! when it is newer than what is known of its object, and only if it says something else.

pub mod cursor;
pub mod page;

pub use cursor::{Cursor, Pass};
pub use page::{Page, PageError, Record, Unreadable};
