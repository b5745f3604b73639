//! Operating the daemon: logs, signs of life, systemd, status.

pub mod admin;
pub mod commands;
pub mod log;
pub mod progress;
pub mod pulse;
pub mod status;
pub mod systemd;
