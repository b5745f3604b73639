//! placeholder
pub async fn run(_keep: bool, _seconds: u64, _plain: bool) -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
