//! Where changes come from.

pub mod poll;
pub mod postgres;
