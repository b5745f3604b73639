//! Log lines: to the journal under systemd, to standard error otherwise. `RUST_LOG` narrows or widens them, but never beyond what is
//! safe to keep: the libraries' own debugging prints the parameters of statements and the bodies of requests, names, addresses and the
//! salts of keys among them (INV-12).

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What may be logged at all, whatever is asked for: of libraries, nothing in more detail than `info`.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().split("::").next().is_some_and(|krate| krate.starts_with("tailwater"));
    ours || *metadata.level() <= Level::INFO
}

/// Starts logging; a second call does nothing.
pub fn start() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,refinery_core=warn"));
    // What nobody asked for is not even looked at.
    let most = filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
    let subscriber =
        tracing_subscriber::registry().with(filter_fn(is_safe).with_max_level_hint(most)).with(filter);
    // Set by systemd when standard error goes to the journal: then fields are kept as journal fields.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        let _ = subscriber.with(journal.with_field_prefix(Some("TAILWATER".into()))).try_init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let _ = subscriber.with(lines).try_init();
}
