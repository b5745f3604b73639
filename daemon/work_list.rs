//! `tailwater deliveries` and `tailwater parked`: what is owed, and what waits for a person, as a list of work.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::app::{EX_USAGE, with_config};
use crate::cli::{DecisionArgs, DeliveriesCommand, ParkedCommand, ParkedDecision, ParkedWhich, Which};
use crate::config::Config;
use crate::ledger::command::Command;
use crate::ledger::deliveries::{Group, Selection, doubtful, each, groups, story};
use crate::ledger::parked::{ParkedItem, ParkedSelection, ParkedVerb, count, parked as parked_items};
use crate::operate::{Refusal, finish};
use crate::orders::{client, order};
use crate::terminal::in_line;
use crate::workbench::redact::redacted;

/// States that a delivery of the list can be in.
const STATES: [&str; 7] = ["pending", "sending", "waiting", "parked", "rejected", "held", "shadowed"];

/// `tailwater deliveries`.
pub async fn deliveries(command: DeliveriesCommand) -> ExitCode {
    match command {
        DeliveriesCommand::List { config, which, state, each, json } => {
            let listed = |config| async move { finish(list(&config, which, state, each, json).await) };
            with_config(&config, listed).await
        }
        DeliveriesCommand::Show { config, id, values } => {
            with_config(&config, |config| async move { finish(show(&config, id, values).await) }).await
        }
        DeliveriesCommand::Retry(DecisionArgs { config, which, reason }) => {
            let decided = Command::Retry { which: selection(which), reason };
            with_config(&config, |config| async move { finish(decide(&config, decided).await) }).await
        }
        DeliveriesCommand::Discard(DecisionArgs { config, which, reason }) => {
            let decided = Command::Discard { which: selection(which), reason };
            with_config(&config, |config| async move { finish(decide(&config, decided).await) }).await
        }
        DeliveriesCommand::Resolve { config, id, applied, not_applied: _, reason } => {
            let resolved = |config| async move { finish(resolve(&config, id, applied, reason).await) };
            with_config(&config, resolved).await
        }
    }
}

fn selection(which: Which) -> Selection {
    let Which { ids, target, object, cause } = which;
    Selection { ids, target, object, cause }
}

async fn list(
    config: &Config,
    which: Which,
    state: Option<String>,
    most: Option<i64>,
    as_json: bool,
) -> Result<String, Refusal> {
    if let Some(unknown) = state.as_deref().filter(|state| !STATES.contains(state)) {
        let message = format!("there is no state \"{unknown}\"\nnext: one of {}", STATES.join(", "));
        return Err(Refusal(EX_USAGE, message));
    }
    let client = client(config).await?;
    let which = selection(which);
    if let Some(most) = most {
        let lines = each(&client, &which, state.as_deref(), most).await?;
        return Ok(lines
            .iter()
            .map(|line| if as_json { format!("{line}\n") } else { one_line(line) })
            .collect());
    }
    let found = groups(&client, &which, state.as_deref()).await?;
    // What is no delivery has neither target nor state.
    let all = which == Selection::default() && state.is_none();
    let others = if all {
        parked_items(&client, &ParkedSelection::default(), PARKED_LISTED).await?
    } else {
        Vec::new()
    };
    if as_json {
        let groups: Vec<Value> = found.iter().map(group_json).collect();
        return Ok(format!("{}\n", json!({"groups": groups, "parked": others})));
    }
    if found.is_empty() && others.is_empty() {
        return Ok("nothing is owed, and nothing waits for a person\n".into());
    }
    let text: String = found.iter().map(group_line).collect();
    Ok(text + &parked_lines(&others, "tailwater parked list"))
}

/// Parked things that the list of deliveries shows; all of them are in their own.
const PARKED_LISTED: i64 = 20;

fn parked_lines(items: &[ParkedItem], next: &str) -> String {
    let mut text = String::new();
    for ParkedItem { id, kind, source, place, key, reason, bytes, parked_at, times, state, .. } in items {
        let size = bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        let again = if state == "retry" { "; it is looked at again" } else { "" };
        let _ = writeln!(
            text,
            "parked {id}: {kind} {} {} {}: {}{size}; since {parked_at}, {times} times{again}",
            in_line(source),
            in_line(place),
            in_line(key),
            in_line(reason),
        );
    }
    if !text.is_empty() {
        let _ = writeln!(
            text,
            "  next: {next}; correct it where it comes from, which heals it; or tailwater parked retry ID --reason …"
        );
    }
    text
}

/// `tailwater parked`.
pub async fn parked(command: ParkedCommand) -> ExitCode {
    let (verb, ParkedDecision { config, which, reason }) = match command {
        ParkedCommand::List { config, which, most, json } => {
            let listed = |config| async move { finish(list_parked(&config, which, most, json).await) };
            return with_config(&config, listed).await;
        }
        ParkedCommand::Retry(decision) => (ParkedVerb::Retry, decision),
        ParkedCommand::Resolve(decision) => (ParkedVerb::Resolve, decision),
        ParkedCommand::Discard(decision) => (ParkedVerb::Discard, decision),
    };
    let which = parked_selection(which);
    with_config(&config, |config| async move { finish(decide_parked(&config, verb, which, reason).await) })
        .await
}

fn parked_selection(which: ParkedWhich) -> ParkedSelection {
    let ParkedWhich { ids, source, kind } = which;
    ParkedSelection { ids, source, kind }
}

async fn list_parked(
    config: &Config,
    which: ParkedWhich,
    most: i64,
    as_json: bool,
) -> Result<String, Refusal> {
    let client = client(config).await?;
    let items = parked_items(&client, &parked_selection(which), most).await?;
    if as_json {
        return Ok(items.iter().map(|item| format!("{}\n", json!(item))).collect());
    }
    if items.is_empty() {
        return Ok("nothing is parked\n".into());
    }
    Ok(parked_lines(&items, "see why"))
}

async fn decide_parked(
    config: &Config,
    verb: ParkedVerb,
    which: ParkedSelection,
    reason: String,
) -> Result<String, Refusal> {
    if which == ParkedSelection::default() {
        let message = "say which: numbers, --source or --kind\nnext: tailwater parked list";
        return Err(Refusal(EX_USAGE, message.into()));
    }
    let client = client(config).await?;
    let there = count(&client, &which).await?;
    if there == 0 {
        return Err(Refusal(EX_USAGE, "nothing like that is parked\nnext: tailwater parked list".into()));
    }
    order(config, &client, Command::Parked { verb, which, reason }).await?;
    let word = match verb {
        ParkedVerb::Retry => "looked at again",
        ParkedVerb::Resolve => "resolved",
        ParkedVerb::Discard => "given up",
    };
    Ok(format!("{there} parked things are {word}; it is in the ledger\n"))
}

fn group_json(group: &Group) -> Value {
    json!({
        "target": group.target, "object": group.object, "state": group.state, "cause": group.cause,
        "reason": group.reason, "count": group.count, "oldest": group.oldest.to_string(), "first": group.first,
    })
}

fn group_line(group: &Group) -> String {
    let mut line = format!("{} {}: {} {}", group.target, group.object, group.count, group.state);
    if let Some(cause) = &group.cause {
        let _ = write!(line, ", {cause}");
    }
    if let Some(reason) = &group.reason {
        let _ = write!(line, ": {}", in_line(reason));
    }
    let first: Vec<String> = group.first.iter().map(i64::to_string).collect();
    let _ = writeln!(line, "; since {}; first: {}", group.oldest, first.join(", "));
    if let Some(next) = next_step(group) {
        let _ = writeln!(line, "  next: {next}");
    }
    line
}

/// What a person can do about it.
fn next_step(group: &Group) -> Option<String> {
    let Group { target, object, .. } = group;
    Some(match group.cause.as_deref()? {
        "refused" | "unique" => format!(
            "correct it in the ERP, which delivers it again; or tailwater deliveries retry --target {target} --object {object} --cause {} --reason …",
            group.cause.as_deref().unwrap_or_default()
        ),
        "mapping" => format!("correct the mapping, restart, and tailwater deliveries retry --target {target} --cause mapping --reason …"),
        "doubt" => "look at the target whether it was carried out: tailwater deliveries resolve ID --applied | --not-applied --reason …".into(),
        "ambiguous" => format!("choose with tailwater identity link --target {target} --object {object}"),
        "mass" => "tailwater release".into(),
        "ledger" | "unreadable" => format!(
            "its next change delivers it; or tailwater deliveries discard --target {target} --cause {} --reason …",
            group.cause.as_deref().unwrap_or_default()
        ),
        _ => return None,
    })
}

fn one_line(line: &Value) -> String {
    let text = |key: &str| match line.get(key) {
        Some(Value::String(text)) => in_line(text).into_owned(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    format!(
        "{} {} {} {} {}: {}, cause {}, attempts {}, since {}: {}\n",
        text("delivery"),
        text("target"),
        text("operation"),
        text("object"),
        text("id"),
        text("state"),
        text("cause"),
        text("attempts"),
        text("created_at"),
        text("reason"),
    )
}

async fn show(config: &Config, id: i64, values: bool) -> Result<String, Refusal> {
    let client = client(config).await?;
    let found = each(&client, &Selection { ids: vec![id], ..Selection::default() }, None, 1).await?;
    let Some(delivery) = found.first() else {
        return Err(Refusal(
            EX_USAGE,
            format!("there is no delivery {id}\nnext: tailwater deliveries list --each 20"),
        ));
    };
    let mut text = one_line(delivery);
    for entry in story(&client, id).await? {
        let _ = writeln!(text, "  {}", if values { entry } else { without_values(entry) });
    }
    Ok(text)
}

/// The entry without what the rows and the event say of people.
fn without_values(mut entry: Value) -> Value {
    for key in ["data", "changes"] {
        if let Some(values) = entry.get_mut(key) {
            *values = redacted(values);
        }
    }
    entry
}

async fn decide(config: &Config, decided: Command) -> Result<String, Refusal> {
    let (which, word) = match &decided {
        Command::Retry { which, .. } => (which.clone(), "delivered again"),
        Command::Discard { which, .. } => (which.clone(), "given up"),
        _ => return Err(Refusal(EX_USAGE, "neither retried nor discarded".into())),
    };
    if which == Selection::default() {
        let message = "say which: numbers, --target, --object or --cause\nnext: tailwater deliveries list";
        return Err(Refusal(EX_USAGE, message.into()));
    }
    let client = client(config).await?;
    let waiting = |found: &[Group]| {
        found.iter().filter(|group| group.cause.is_some()).map(|group| group.count).sum::<i64>()
    };
    let before = waiting(&groups(&client, &which, None).await?);
    order(config, &client, decided).await?;
    let after = waiting(&groups(&client, &which, None).await?);
    let mut text = format!("{} deliveries are {word}; it is in the ledger\n", (before - after).max(0));
    if after > 0 {
        let _ = writeln!(
            text,
            "{after} are left, because it is in doubt whether they were carried out, or they were refused again"
        );
    }
    Ok(text)
}

async fn resolve(
    config: &Config,
    id: i64,
    applied: Option<String>,
    reason: String,
) -> Result<String, Refusal> {
    let client = client(config).await?;
    let Some((lane, creates)) = doubtful(&client, id).await? else {
        let message = format!(
            "delivery {id} does not wait for that\nnext: tailwater deliveries list --cause doubt --each 20"
        );
        return Err(Refusal(EX_USAGE, message));
    };
    if creates && applied.as_deref() == Some("") {
        let message = format!(
            "delivery {id} was to make the object, so its id at {} has to be known\nnext: tailwater deliveries resolve {id} --applied ID --reason …",
            lane.target
        );
        return Err(Refusal(EX_USAGE, message));
    }
    let resolved = Command::Resolve {
        id,
        target: lane.target,
        object: lane.object,
        canonical_id: lane.canonical_id,
        applied: applied.is_some(),
        external_id: applied.filter(|id| !id.is_empty()),
        reason,
    };
    order(config, &client, resolved).await?;
    Ok("done; it is in the ledger\n".into())
}
