//! `tailwater reconcile`: asks the daemon for a comparison, or makes it where no daemon runs, and shows what came of it.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::app::{EX_USAGE, fail};
use crate::config::Config;
use crate::ledger::command::Asking;
use crate::ledger::reconcile::{Difference, differences, state};
use crate::ledger::{Ledger, is_served};
use crate::operate::{Refusal, ask, down, finish, target_named};
use crate::ops::commands::Waves;
use crate::ops::pulse::Pulse;
use crate::prepare::prepare;
use crate::reconcile::readable;
use crate::reconcile::serve::one;

/// How often it is looked whether it is done.
const LOOK: Duration = Duration::from_millis(250);

/// What is compared, and how it is shown.
pub struct Reconcile {
    /// Target.
    pub target: String,
    /// Objects of its connector; all that can be read when empty.
    pub objects: Vec<String>,
    /// Put right what may be put right.
    pub repair: bool,
    /// For machines.
    pub json: bool,
}

/// See the module's text.
pub async fn reconcile(config: Config, what: Reconcile) -> ExitCode {
    if let Err(code) = target_named(&config.targets, &what.target) {
        return code;
    }
    let (database, socket) = (config.ledger.clone(), config.admin_socket.clone());
    let master = config.master.clone();
    let prepared = match prepare(config, &Waves::default()) {
        Ok(prepared) => prepared,
        Err(reason) => return fail(crate::app::EX_CONFIG, &reason),
    };
    let Some(target) = prepared.targets.iter().find(|target| target.name == what.target) else {
        return ExitCode::from(EX_USAGE);
    };
    let known: Vec<&str> = readable(target).iter().map(|(object, ..)| object.name.as_str()).collect();
    if known.is_empty() {
        let system = &target.connector.system;
        return fail(
            EX_USAGE,
            &format!(
                "nothing of {system} can be read back\nnext: `tables` with `list`, and `shown`, in its connector file"
            ),
        );
    }
    if let Some(unknown) = what.objects.iter().find(|object| !known.contains(&object.as_str())) {
        return fail(EX_USAGE, &format!("\"{unknown}\" cannot be read back\nnext: of {}", known.join(", ")));
    }
    let work = async {
        let client = database.connect("tailwater-reconcile").await.map_err(down)?;
        let asking = Asking::Reconcile {
            target: what.target.clone(),
            objects: what.objects.clone(),
            repair: what.repair,
        };
        let id = if is_served(&client).await? {
            ask(socket.as_deref(), &client, &asking).await?
        } else {
            let ledger = Ledger::open(&database, &master).await?;
            let id = ask(None, ledger.reader(), &asking).await?;
            let pulse = Pulse::default();
            while one(&ledger, &prepared.targets, &pulse).await? {}
            id
        };
        report(&client, id, what.json).await
    };
    finish(work.await)
}

/// What came of a comparison, once it has come to its end.
async fn report(client: &Client, id: i64, as_json: bool) -> Result<String, Refusal> {
    loop {
        match state(client, id).await? {
            (state, Some(report)) if state == "done" => {
                let found = differences(client, id).await?;
                return Ok(if as_json { machine(&report, &found) } else { people(&report, &found) });
            }
            (state, report) if state == "failed" => {
                let part =
                    |name: &str| report.as_ref().and_then(|report| report.get(name)?.as_str()).unwrap_or("?");
                let reason = format!("objects of {} cannot be read back: {}", part("failed"), part("reason"));
                return Err(Refusal(crate::app::EX_UNAVAILABLE, reason));
            }
            _ => sleep(LOOK).await,
        }
    }
}

fn machine(report: &Value, found: &[(String, Difference)]) -> String {
    let found = found.iter().map(|(kind, difference)| {
        let Difference { object, canonical_id, external_id, fields, repaired, .. } = difference;
        json!({"kind": kind, "object": object, "id": canonical_id, "external_id": external_id, "fields": fields, "repaired": repaired})
    });
    format!("{:#}\n", json!({"report": report, "differences": found.collect::<Vec<_>>()}))
}

fn people(report: &Value, found: &[(String, Difference)]) -> String {
    let mut text = String::new();
    for (object, figures) in report.as_object().into_iter().flatten() {
        let figure = |name: &str| {
            figures.get(name).map_or_else(String::new, |value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
        };
        text.push_str(&format!(
            "{object}: {} % of {} there; {} listed, {} of them somebody else's, {} unread; {}; {} being put right\n",
            figure("coverage_percent"),
            figure("expected"),
            figure("listed"),
            figure("others"),
            figure("unread"),
            kinds(figures),
            figure("repaired"),
        ));
    }
    for (kind, Difference { object, canonical_id, external_id, fields, repaired, .. }) in found {
        let what: Vec<String> = fields
            .as_array()
            .into_iter()
            .flatten()
            .map(|field| {
                let part = |name: &str| field.get(name).cloned().unwrap_or_default();
                format!(
                    "{}: {} there, should be {}",
                    part("field").as_str().unwrap_or_default(),
                    part("theirs"),
                    part("ours")
                )
            })
            .collect();
        let mark = if *repaired { ", being put right" } else { "" };
        text.push_str(&format!(
            "  {kind:<9} {object} {canonical_id} ({external_id}{mark}) {}\n",
            what.join("; ")
        ));
    }
    text
}

fn kinds(figures: &Value) -> String {
    let kinds = figures.get("differences").and_then(Value::as_object).cloned().unwrap_or_default();
    if kinds.is_empty() {
        return "nothing differs".to_owned();
    }
    kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}
