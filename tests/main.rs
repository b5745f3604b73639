//! Every test runs against real PostgreSQL and Redis, private ones in a temporary directory; Stripe and Zendesk are
//! simulated by servers that keep the vendors' contract and count every side effect.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::print_stdout
)]
#![allow(clippy::cast_possible_wrap, clippy::print_stderr)]
// A test tells one story from its beginning to its end.
#![allow(clippy::too_many_lines)]

mod support;

mod archives;
mod audit;
mod auditors;
mod bench;
mod bulk;
mod cache;
mod checkpoints;
mod contracts;
mod crash;
mod documents;
mod echo;
mod erasure;
mod faults;
mod flows;
mod fold;
mod hostile;
mod kinds;
mod layering;
mod ledger;
mod lifecycle;
mod loads;
mod localstripe;
mod mapping;
mod mass;
mod orders;
mod pages;
mod personal;
mod poison;
mod poll_gaps;
mod polling;
mod processes;
mod proofs;
mod properties;
mod publish;
mod quotas;
mod real_odoo;
mod reconcile;
mod refusals;
mod rules;
mod settings;
mod shutdown;
mod source;
mod systemd;
mod tampering;
mod tls;
mod unique_values;
mod versions;
mod way_back;
mod wire;
mod work_list;
