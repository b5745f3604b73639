//! Mappings tried out on rows that are given, without any database: golden examples, and the properties that tests hold.

pub mod example;
pub mod store;

pub use store::Store;
