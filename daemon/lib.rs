//! Tailwater: from an ERP's PostgreSQL to billing and support systems, once, with a ledger that proves it.
//!
//! The way of a change, in reading order: [`source`] (bytes to row changes), [`image`] (last known rows, before and
//! after), [`mapping`] (rows to canonical events and their routes), [`ledger`] (what happened and what is owed),
//! [`dispatch`] (when and in which order), [`connector`] and [`target`] (one request, one outcome). [`capture`] joins
//! the first half, [`supervise`] and [`app`] everything. See ARCHITECTURE.md.

pub mod app;
pub mod audit;
mod auditing;
pub mod bounds;
pub mod cache;
pub mod capture;
pub mod cli;
pub mod config;
pub mod connector;
pub mod demo;
pub mod dispatch;
pub mod event;
pub mod image;
pub mod ledger;
pub mod mapping;
pub mod operate;
pub mod ops;
pub mod orders;
pub mod pg;
pub mod pg_tls;
pub mod prepare;
pub mod reconcile;
mod reconciling;
mod reload;
pub mod source;
pub mod supervise;
pub mod target;
pub mod terminal;
pub mod trial;
mod tuning;
mod work_list;
pub mod workbench;

/// Rows are made by one thread and let go by another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
