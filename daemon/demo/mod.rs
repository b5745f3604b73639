//! `tailwater demo`.

pub mod odoo;
pub mod private;
pub mod vendor;

/// placeholder
pub async fn run(_keep: bool, _seconds: u64, _plain: bool) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
