//! Log lines: to the journal under systemd, to standard error otherwise. `RUST_LOG` narrows or widens them.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging; a second call does nothing.
pub fn start() {
    let filter =
        || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,refinery_core=warn"));
    // Set by systemd when standard error goes to the journal: then fields are kept as journal fields.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_field_prefix(Some("TAILWATER".into()));
        let _ = tracing_subscriber::registry().with(filter()).with(journal).try_init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let _ = tracing_subscriber::registry().with(filter()).with(lines).try_init();
}
