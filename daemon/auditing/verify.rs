//! `tailwater ledger verify`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

use serde_json::json;

use super::{Outside, place, unreadable};
use crate::app::{EX_CONFIG, EX_SOFTWARE, EX_UNAVAILABLE, fail, say};
use crate::audit::checkpoint::{SignedHead, split};
use crate::audit::directory::PublishedLeaves;
use crate::audit::publish::published;
use crate::cli::{EvidenceArgs, LedgerArgs};
use crate::ledger::verify::{Evidence, Span, Verdict, verify as verify_ledger};
use crate::ledger::{LedgerError, SCHEMA_OR_VIEWS};
use crate::operate::{Refusal, down};

/// Entries between two words on the progress.
const STEP: u64 = 50_000;

/// See the module's text.
pub async fn verify(
    ledger: LedgerArgs,
    evidence: EvidenceArgs,
    (from, to): (u64, Option<u64>),
    as_json: bool,
) -> ExitCode {
    // Session and verification in one thread: waking each other up for every few rows costs more than all the hashing.
    let verified = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(down)?;
        runtime.block_on(verdict(&ledger, &evidence, Span { from, to }))
    });
    match verified.await.unwrap_or_else(|error| Err(Refusal(EX_SOFTWARE, error.to_string()))) {
        Ok(Ok(verdict)) => report(&verdict, as_json),
        Ok(Err(error)) => unreadable(&error),
        Err(Refusal(code, message)) => fail(code, &message),
    }
}

async fn verdict(
    ledger: &LedgerArgs,
    evidence: &EvidenceArgs,
    span: Span,
) -> Result<Result<Verdict, LedgerError>, Refusal> {
    let (database, config) = place(ledger, SCHEMA_OR_VIEWS)?;
    let outside = Outside::find(evidence, config.as_ref())?;
    let heads = heads(&outside, evidence)?;
    let mut client = database.connect("tailwater-verify").await?;
    if let (true, Some((directory, key))) =
        (heads.is_empty(), outside.directory.as_ref().zip(outside.key.as_ref()))
    {
        let size = published(&client, key).await;
        match size.map_err(down)? {
            0 => {}
            size => return Err(Refusal(EX_UNAVAILABLE, directory.away(key, size).to_string())),
        }
    }
    let mut checkpoints = BTreeMap::new();
    for head in &heads {
        if checkpoints.insert(head.size, head.root).is_some_and(|other| other != head.root) {
            let size = head.size;
            let what = format!(
                "two checkpoints of {size} entries are signed that differ: there are two logs of that name"
            );
            return Ok(Ok(Verdict::Tampered { seq: i64::try_from(size).unwrap_or(i64::MAX), what }));
        }
    }
    let newest = outside.newest(&heads);
    let mut leaves = newest.map(|(directory, size)| PublishedLeaves::new(directory, size));
    let mut leaf = leaves.as_mut().map(|leaves| |seq| leaves.leaf(seq));
    let evidence = Evidence {
        checkpoints,
        leaf: leaf.as_mut().map(|leaf| leaf as &mut (dyn FnMut(u64) -> Option<_> + Send)),
    };
    let terminal = std::io::stderr().is_terminal();
    let progress = |done: u64, of: u64| {
        if terminal && done.is_multiple_of(STEP) {
            // A terminal that went away is no reason to stop looking.
            let _ = write!(std::io::stderr(), "\r\x1b[K{done} of {of} entries");
        }
    };
    let verdict = verify_ledger(&mut client, span, evidence, progress).await;
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(verdict)
}

impl Outside {
    /// The published log, and up to where it goes.
    fn newest(&self, heads: &[SignedHead]) -> Option<(crate::audit::directory::LogDirectory, u64)> {
        let directory = self.directory.clone()?;
        let newest = directory.newest(self.key.as_ref()?).ok().flatten()?;
        heads.iter().any(|head| head.size == newest.size).then_some((directory, newest.size))
    }
}

/// All checkpoints from outside, their signatures verified.
fn heads(outside: &Outside, evidence: &EvidenceArgs) -> Result<Vec<SignedHead>, Refusal> {
    let Some(key) = &outside.key else { return Ok(Vec::new()) };
    let wrong = |what: String| Refusal(EX_CONFIG, what);
    let mut heads = match &outside.directory {
        Some(directory) => directory.all(key).map_err(|error| wrong(error.to_string()))?,
        None => Vec::new(),
    };
    for path in &evidence.checkpoints {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| Refusal(EX_UNAVAILABLE, format!("{}: {error}", path.display())))?;
        for note in split(&text) {
            heads.push(key.verify(note).map_err(|error| wrong(format!("{}: {error}", path.display())))?);
        }
    }
    Ok(heads)
}

fn report(verdict: &Verdict, as_json: bool) -> ExitCode {
    let (word, details) = match verdict {
        Verdict::Sound { size, root, checkpoints, misprinted, archived } => (
            "sound",
            json!({"size": size, "root": root, "checkpoints": checkpoints, "misprinted": misprinted, "archived": archived}),
        ),
        Verdict::Tampered { seq, what } => ("tampered", json!({"seq": seq, "what": what})),
        Verdict::Incomplete { seq, what } => ("incomplete", json!({"seq": seq, "what": what})),
    };
    if as_json {
        say(&format!("{}\n", json!({"verdict": word, "details": details})));
        return ExitCode::from(verdict.exit_code());
    }
    match verdict {
        Verdict::Sound { size, root, checkpoints, misprinted, archived } => {
            say(&format!("sound: {size} entries, tree head {root}, {checkpoints} checkpoints agree\n"));
            if *checkpoints == 0 {
                say(
                    "nothing outside the database was compared: its owner could have rewritten it as a whole\n",
                );
            }
            if *archived > 0 {
                say(&format!(
                    "{archived} of them lie in files; of these the hashes were verified (tailwater-verify FILE)\n"
                ));
            }
            if let Some(seq) = misprinted {
                say(&format!(
                    "the published log was changed at entry {seq}; the ledger and its checkpoints were not\n"
                ));
            }
        }
        Verdict::Tampered { seq, what } | Verdict::Incomplete { seq, what } => {
            say(&format!("{word}: entry {seq}: {what}\n"));
        }
    }
    ExitCode::from(verdict.exit_code())
}
