//! The direction of dependencies: which module may name which. Data flows one way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and what it may import of the crate.
const ALLOWED: [(&str, &[&str]); 18] = [
    ("audit", &["audit", "config", "event", "ledger", "ops", "pg"]),
    ("event", &["event"]),
    ("cache", &["config"]),
    ("config", &["audit", "cache", "config", "connector", "dispatch", "ledger", "mapping", "pg", "pg_tls"]),
    ("pg", &["config", "pg_tls"]),
    ("pg_tls", &["pg"]),
    ("mapping", &["mapping", "config", "event"]),
    ("connector", &["connector", "config", "mapping"]),
    ("image", &["image", "event", "mapping"]),
    ("source", &["source", "connector", "event", "mapping", "pg", "pg_tls", "ledger"]),
    ("ledger", &["ledger", "event", "image", "pg"]),
    ("target", &["cache", "target", "config", "connector"]),
    ("dispatch", &["cache", "dispatch", "connector", "event", "image", "ledger", "mapping", "ops", "target"]),
    (
        "capture",
        &[
            "capture",
            "config",
            "connector",
            "dispatch",
            "event",
            "image",
            "ledger",
            "mapping",
            "ops",
            "pg",
            "source",
        ],
    ),
    ("ops", &["ops", "config", "ledger", "pg"]),
    ("reconcile", &["connector", "dispatch", "event", "ledger", "mapping", "ops", "reconcile", "source"]),
    ("trial", &["trial", "config", "event", "image", "mapping"]),
    (
        "workbench",
        &[
            "workbench",
            "app",
            "cli",
            "config",
            "connector",
            "dispatch",
            "event",
            "image",
            "ledger",
            "mapping",
            "operate",
            "trial",
        ],
    ),
];

/// Modules that name nothing of the crate but each other and the event's digest, and that every other one may name.
const LEAVES: [&str; 2] = ["bounds", "terminal"];

/// Modules without I/O, clocks or tasks: `now` and random draws are parameters.
const PURE: [&str; 36] = [
    "bounds.rs",
    "terminal.rs",
    "mapping/html.rs",
    "connector/lenient.rs",
    "dispatch/evidence.rs",
    "source/postgres/condense.rs",
    "event",
    "mapping/mod.rs",
    "mapping/expression.rs",
    "mapping/template.rs",
    "image",
    "mapping/simple.rs",
    "mapping/scope.rs",
    "mapping/shape.rs",
    "mapping/function.rs",
    "mapping/decimal.rs",
    "mapping/join.rs",
    "mapping/event.rs",
    "trial/store.rs",
    "capture/mass.rs",
    "workbench/rehearsal.rs",
    "workbench/redact.rs",
    "capture/load/window.rs",
    "capture/load/quiet.rs",
    "connector/request.rs",
    "connector/classify.rs",
    "connector/limit.rs",
    "connector/stream.rs",
    "connector/reading.rs",
    "source/poll",
    "dispatch/turn.rs",
    "dispatch/plan.rs",
    "dispatch/retry.rs",
    "dispatch/compare.rs",
    "dispatch/inputs.rs",
    "reconcile/tally.rs",
];

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| files(&path)).collect()
}

fn daemon() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("daemon")
}

#[test]
fn a_module_names_only_what_stands_before_it() {
    let mut wrong = Vec::new();
    for (module, allowed) in ALLOWED {
        let directory = daemon().join(module);
        let path = if directory.exists() { directory } else { daemon().join(format!("{module}.rs")) };
        for file in files(&path) {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let named: BTreeSet<String> = code
                .flat_map(|line| {
                    line.match_indices("crate::").map(|(at, _)| line[at + 7..].to_owned()).collect::<Vec<_>>()
                })
                .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect())
                .collect();
            let named = named.iter().filter(|name| !LEAVES.contains(&name.as_str()));
            for name in named.filter(|name| !allowed.contains(&name.as_str()) && !name.is_empty()) {
                wrong.push(format!("{} names {name}", file.strip_prefix(daemon()).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_modules_have_no_clock_socket_or_task() {
    let mut wrong = Vec::new();
    for module in PURE {
        for file in files(&daemon().join(module)) {
            let text = std::fs::read_to_string(&file).unwrap();
            for banned in [
                "tokio::",
                "Timestamp::now",
                "Instant::now",
                "rand::",
                "std::net",
                "std::fs",
                "tokio_postgres",
            ] {
                if text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(banned)) {
                    wrong.push(format!("{} uses {banned}", file.strip_prefix(daemon()).unwrap().display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
