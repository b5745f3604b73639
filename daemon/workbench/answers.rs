//! `tailwater explain` and `plan`, from settings to what is printed.

use std::process::ExitCode;

use super::explain::{self, Question};
use super::plan;
use crate::app::{EX_UNAVAILABLE, EX_USAGE, fail, say};
use crate::config::Config;
use crate::ledger::LedgerError;
use crate::ledger::reading::note;
use crate::operate::{operator, source_named, target_named};

/// `tailwater explain`; `name`: of the source.
pub async fn explain(
    config: Config,
    name: Option<String>,
    table: String,
    key: String,
    values: bool,
) -> ExitCode {
    let source = match source_named(&config.sources, name.as_deref()) {
        Ok(source) => source,
        Err(code) => return code,
    };
    let question = Question { table: &table, key: &key, values };
    let answer = async {
        let client = config.ledger.connect(&format!("tailwater-explain of {}", operator())).await?;
        if values {
            note(&client, "explain", &format!("{table}/{key} (personal values)")).await?;
        }
        explain::explain(&config, source, &client, &question).await
    };
    match answer.await {
        Ok(None) => {
            let message = format!(
                "the ledger knows no row {key} of table \"{table}\"\nnext: a table of the mapping, and a key that exists"
            );
            fail(EX_USAGE, &message)
        }
        answer => print(answer.map(Option::unwrap_or_default)),
    }
}

/// `tailwater plan`; `only`: name of a target.
pub async fn plan(config: Config, only: Option<String>, first: i64, values: bool) -> ExitCode {
    if let Some(Err(code)) = only.as_deref().map(|name| target_named(&config.targets, name)) {
        return code;
    }
    let answer = async {
        let client = config.ledger.connect(&format!("tailwater-plan of {}", operator())).await?;
        if values {
            let what = only.as_deref().unwrap_or("all targets");
            note(&client, "plan", &format!("{what} (personal values)")).await?;
        }
        plan::plan(&config, &client, only.as_deref(), first, values).await
    };
    print(answer.await)
}

fn print(text: Result<String, LedgerError>) -> ExitCode {
    match text {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => fail(EX_UNAVAILABLE, &error.to_string()),
    }
}
