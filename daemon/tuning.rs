//! `tailwater quota`: rates while the daemon runs.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::app::{EX_USAGE, with_config};
use crate::cli::QuotaCommand;
use crate::config::{Config, TargetConfig};
use crate::connector::limit::Rate;
use crate::ledger::LedgerError;
use crate::ledger::command::{Command, Tuning, changes};
use crate::ledger::status::{TargetState, target_states};
use crate::operate::{Refusal, finish};
use crate::orders::{client, order};

/// `tailwater quota`.
pub async fn quota(command: QuotaCommand) -> ExitCode {
    match command {
        QuotaCommand::Show { config, target, json } => {
            with_config(&config, |config| async move { finish(show(&config, target.as_deref(), json).await) })
                .await
        }
        QuotaCommand::Set { config, target, rate } => {
            with_config(&config, |config| async move { finish(set(&config, target, &rate).await) }).await
        }
        QuotaCommand::Reset { config, target, limit } => {
            with_config(&config, |config| async move { finish(reset(&config, target, limit).await) }).await
        }
    }
}

fn named<'a>(config: &'a Config, name: &str) -> Result<&'a TargetConfig, Refusal> {
    config.targets.iter().find(|target| target.name == name).ok_or_else(|| {
        let names: Vec<&str> = config.targets.iter().map(|target| target.name.as_str()).collect();
        Refusal(EX_USAGE, format!("there is no target \"{name}\"\nnext: one of {}", names.join(", ")))
    })
}

fn limits(target: &TargetConfig) -> Vec<&str> {
    target.connector.limits.iter().map(|limit| limit.name.as_str()).collect()
}

fn limit_named(target: &TargetConfig, limit: &str) -> Result<String, Refusal> {
    if limits(target).contains(&limit) {
        return Ok(limit.to_owned());
    }
    let message =
        format!("{} has no limit \"{limit}\"\nnext: one of {}", target.name, limits(target).join(", "));
    Err(Refusal(EX_USAGE, message))
}

/// `RATE`, or `LIMIT RATE`.
async fn set(config: &Config, target: String, rate: &[String]) -> Result<String, Refusal> {
    let known = named(config, &target)?;
    let (limit, text) = match rate {
        [limit, rate] => (limit_named(known, limit)?, rate),
        [rate] => (limits(known).first().map(|limit| (*limit).to_owned()).unwrap_or_default(), rate),
        _ => return Err(Refusal(EX_USAGE, "a rate is missing\nnext: 40/s".into())),
    };
    let rates: Option<Vec<Rate>> = text.split(',').map(|rate| Rate::parse(rate.trim())).collect();
    let Some(rates) = rates else {
        return Err(Refusal(
            EX_USAGE,
            format!("`{text}` is not a rate\nnext: 40/s, 600/min, 5000/h, or several: 40/s,50000/d"),
        ));
    };
    let rates: Vec<String> = rates.iter().map(Rate::to_string).collect();
    let said = rates.join(", ");
    let done = Command::Quota { target: target.clone(), limit: limit.clone(), rates: Some(rates) };
    order(config, &client(config).await?, done).await?;
    Ok(format!("{target} {limit}: {said}, until it is reset; it is in the ledger\n"))
}

async fn reset(config: &Config, target: String, limit: Option<String>) -> Result<String, Refusal> {
    let known = named(config, &target)?;
    let which = match limit {
        Some(limit) => vec![limit_named(known, &limit)?],
        None => limits(known).into_iter().map(str::to_owned).collect(),
    };
    let client = client(config).await?;
    let set = changes(&client).await?.tunings;
    let is_set =
        |limit: &String| set.iter().any(|tuning| tuning.target == target && tuning.limit_name == *limit);
    // One is enough to lift its pauses, where nothing was set.
    let (mut reset, others): (Vec<String>, Vec<String>) = which.into_iter().partition(is_set);
    let was_set = !reset.is_empty();
    reset.extend(others.into_iter().take(usize::from(!was_set)));
    for limit in &reset {
        let order_of = Command::Quota { target: target.clone(), limit: limit.clone(), rates: None };
        order(config, &client, order_of).await?;
    }
    Ok(match was_set {
        false => format!("{target}: nothing was set; its pauses are lifted; it is in the ledger\n"),
        true => format!(
            "{target} {}: as the settings say; its pauses are lifted; it is in the ledger\n",
            reset.join(", ")
        ),
    })
}

async fn show(config: &Config, only: Option<&str>, as_json: bool) -> Result<String, Refusal> {
    if let Some(only) = only {
        named(config, only)?;
    }
    let client = client(config).await?;
    let targets = gather(config, &client).await?;
    let shown: Vec<&Value> = targets
        .iter()
        .filter(|target| only.is_none_or(|only| target.get("target") == Some(&only.into())))
        .collect();
    if as_json {
        return Ok(format!("{}\n", json!({"targets": shown})));
    }
    Ok(shown.into_iter().map(render).collect())
}

/// Targets with their limits as the settings have them, as operators have set them, and as running processes use them.
async fn gather(config: &Config, client: &Client) -> Result<Vec<Value>, LedgerError> {
    let tunings = changes(client).await?.tunings;
    let states = target_states(client).await?;
    let target = |target: &TargetConfig| {
        let limits = target.connector.limits.iter().map(|limit| {
            let set = tunings.iter().find(|set| set.target == target.name && set.limit_name == limit.name);
            let settings: Vec<Rate> = match target.quota.rates.get(&limit.name) {
                Some(rates) => rates.clone(),
                None => limit.rates.iter().map(|rate| rate.scaled(target.quota.share)).collect(),
            };
            json!({
                "limit": limit.name,
                "settings": settings.iter().map(Rate::to_string).collect::<Vec<_>>(),
                "at_once": limit.at_once,
                "set": set.map(|Tuning { rates, changed_by, changed_at, .. }| {
                    json!({"rates": rates, "by": changed_by, "at": changed_at})
                }),
            })
        });
        let used = states.iter().filter(|state| state.target == target.name);
        let used = used.map(|TargetState { epoch, state, .. }| json!({"process": epoch, "state": state}));
        json!({"target": target.name, "limits": limits.collect::<Vec<_>>(), "processes": used.collect::<Vec<_>>()})
    };
    Ok(config.targets.iter().map(target).collect())
}

fn render(target: &Value) -> String {
    let list =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let words = |value: &Value, key: &str| {
        let words: Vec<String> =
            list(value, key).iter().filter_map(|word| Some(word.as_str()?.to_owned())).collect();
        if words.is_empty() { "no rate".to_owned() } else { words.join(", ") }
    };
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let mut out = format!("{}\n", text(target, "target"));
    for limit in list(target, "limits") {
        let _ = write!(out, "  {}: {}", text(&limit, "limit"), words(&limit, "settings"));
        if let Some(at_once) = limit.get("at_once").and_then(Value::as_u64) {
            let _ = write!(out, ", {at_once} at once");
        }
        if let Some(set) = limit.get("set").filter(|set| set.is_object()) {
            let _ =
                write!(out, "; set to {} by {} at {}", words(set, "rates"), text(set, "by"), text(set, "at"));
        }
        out.push('\n');
    }
    for process in list(target, "processes") {
        let state = process.get("state").cloned().unwrap_or_default();
        let number = process.get("process").map(Value::to_string).unwrap_or_default();
        let _ = write!(out, "  process {number}:");
        for limit in list(&state, "limits") {
            let _ = write!(out, " {} {}", text(&limit, "name"), words(&limit, "rates"));
            if let Some(told) = limit.get("told").and_then(Value::as_f64) {
                let _ = write!(out, " (the target says {told})");
            }
            if let Some(cut) = limit.get("cut").and_then(Value::as_f64).filter(|cut| *cut < 1.0) {
                let _ = write!(out, " (cut to {:.0} % after refusals)", cut * 100.0);
            }
            if let Some(until) = limit.get("paused_until").and_then(Value::as_str) {
                let _ = write!(out, " (paused until {until}; tailwater quota reset lifts it)");
            }
            out.push(';');
        }
        match state.get("closed").and_then(Value::as_str) {
            Some(why) => {
                let until = state.get("closed_until").and_then(Value::as_str);
                let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
                out.push_str(&format!(" paused: {why}{until}; tailwater quota reset lifts it\n"));
            }
            None => out.push_str(" open\n"),
        }
    }
    out
}
