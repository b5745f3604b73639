//! One request, one answer. No retry, no sleep, no queue.

pub mod http;

pub use http::{HttpTarget, SendError};
