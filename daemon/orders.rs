//! Commands that change what the ledger owes: release, identity, wave, backfill. A running daemon carries them out; without one
//! they are carried out here, through the same code. Each is written into the ledger with who gave it.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::app::{EX_CONFIG, EX_TEMPORARY, EX_UNAVAILABLE, EX_USAGE, fail, say, with_config};
use crate::cli::{IdentityCommand, ObjectArgs, WaveCommand};
use crate::config::Config;
use crate::ledger::batch::Lane;
use crate::ledger::command::{self, Asked, Asker, Asking, Command, Held};
use crate::ledger::{is_served, standing};
use crate::mapping::route::Route;
use crate::operate::{Refusal, ask, down, finish, open_alone, operator, source_named, target_named};

/// How long a running daemon may take to carry a command out.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries a command out, or has it carried out.
pub async fn order(config: &Config, client: &Client, order: Command) -> Result<(), Refusal> {
    if !is_served(client).await? {
        let ledger = open_alone(config).await?;
        let asker = Asker { name: operator(), peer_uid: None };
        let id = command::ask(ledger.reader(), &order, &asker).await?;
        if matches!(order, Command::Backfill { .. }) {
            return Ok(());
        }
        let role = config.ledger.user.clone();
        let asked = Asked { id, command: order, requested_by: asker.name, peer_uid: None, role };
        command::carry_out(ledger.reader(), ledger.writer(), asked, || ()).await?;
        return not_refused(id, command::ended(ledger.reader(), id).await?.flatten());
    }
    let id = match order {
        // Whoever could take a month away has the ledger's own credentials; others of the group have none to say so.
        Command::Archive { .. } => {
            command::ask(client, &order, &Asker { name: operator(), peer_uid: None }).await?
        }
        order => ask(config.admin_socket.as_deref(), client, &Asking::Command(order)).await?,
    };
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(refused) = command::ended(client, id).await? {
            return not_refused(id, refused);
        }
        if Instant::now() > until {
            let message = format!(
                "command {id} is noted, and the daemon has not carried it out yet\nnext: see its log"
            );
            return Err(Refusal(EX_TEMPORARY, message));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn not_refused(id: i64, refused: Option<String>) -> Result<(), Refusal> {
    refused.map_or(Ok(()), |why| Err(Refusal(EX_CONFIG, format!("command {id} was not carried out: {why}"))))
}

/// A session on the ledger.
pub async fn client(config: &Config) -> Result<Client, Refusal> {
    config.ledger.connect("tailwater-order").await.map_err(down)
}

/// `tailwater release`; `None` lists what is held.
pub async fn release(config: Config, what: Option<Command>) -> ExitCode {
    let work = async {
        let client = client(&config).await?;
        let held = command::held(&client).await?;
        let mut text = String::new();
        for Held { target, object, operation, reason, count, first } in &held {
            text.push_str(&format!(
                "{target}: {operation} {count} x {object}: {reason}\n  first: {}\n",
                first.join(", ")
            ));
        }
        let Some(what) = what else {
            let hint = if held.is_empty() {
                "nothing is held\n"
            } else {
                "next: tailwater release --all, or --discard with it\n"
            };
            return Ok(text + hint);
        };
        let discarded = matches!(what, Command::Release { discard: true, .. });
        order(&config, &client, what).await?;
        let left: i64 = command::held(&client).await?.iter().map(|held| held.count).sum();
        let before: i64 = held.iter().map(|held| held.count).sum();
        let done = if discarded { "thrown away" } else { "let go" };
        Ok(format!("{} deliveries are {done}, {left} are held\n", (before - left).max(0)))
    };
    finish(work.await)
}

/// `tailwater identity`.
pub async fn identity(command: IdentityCommand) -> ExitCode {
    match command {
        IdentityCommand::Show { config, id } => {
            with_config(&config, |config| show_identity(config, id)).await
        }
        IdentityCommand::Link { which: ObjectArgs { config, target, object, id }, external_id } => {
            let link = Command::Link { target, object, id, external_id };
            with_config(&config, |config| change_identity(config, link)).await
        }
        IdentityCommand::Unlink { which: ObjectArgs { config, target, object, id } } => {
            let unlink = Command::Unlink { target, object, id };
            with_config(&config, |config| change_identity(config, unlink)).await
        }
    }
}

async fn show_identity(config: Config, id: String) -> ExitCode {
    let shown = async {
        let client = config.ledger.connect("tailwater-identity").await?;
        standing::identities(&client, &id).await
    };
    match shown.await {
        Ok(found) if found.is_empty() => fail(
            EX_USAGE,
            &format!(
                "no target has an object {id}\nnext: a canonical id such as ERP-P-8, or a target's own id"
            ),
        ),
        Ok(found) => {
            for (canonical_id, target, object, external_id, state) in found {
                say(&format!("{canonical_id}  {target} {object} {external_id}  {state}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(EX_UNAVAILABLE, &error.to_string()),
    }
}

async fn change_identity(config: Config, change: Command) -> ExitCode {
    let (Command::Link { target, object, .. } | Command::Unlink { target, object, .. }) = &change else {
        return ExitCode::SUCCESS;
    };
    let known = match target_named(&config.targets, target) {
        Ok(known) => known,
        Err(code) => return code,
    };
    if known.connector.object(object).is_none() {
        let names: Vec<&str> = known.connector.objects.iter().map(|object| object.name.as_str()).collect();
        return fail(
            EX_USAGE,
            &format!("{target} has no object \"{object}\"\nnext: one of {}", names.join(", ")),
        );
    }
    let work = async {
        let client = client(&config).await?;
        if let Command::Link { target, object, id, external_id } = &change {
            let (target, object, canonical_id) = (target.clone(), object.clone(), id.clone());
            let lane = Lane { target, object, canonical_id };
            if !standing::taken(&client, &lane, std::slice::from_ref(external_id)).await?.is_empty() {
                let message = format!(
                    "{external_id} stands for another object\nnext: tailwater identity show {external_id}, and unlink that one first"
                );
                return Err(Refusal(EX_USAGE, message));
            }
        }
        order(&config, &client, change.clone()).await?;
        Ok("done; it is in the ledger\n".to_owned())
    };
    finish(work.await)
}

/// `tailwater wave`.
pub async fn wave(command: WaveCommand) -> ExitCode {
    match command {
        WaveCommand::List { config } => with_config(&config, list_waves).await,
        WaveCommand::Move { config, name } => {
            with_config(&config, |config| move_wave(config, name, true)).await
        }
        WaveCommand::Back { config, name } => {
            with_config(&config, |config| move_wave(config, name, false)).await
        }
    }
}

/// Routes that ask for a wave, or for customers outside it.
fn routes_of<'a>(routes: &'a [Route], name: &'a str) -> impl Iterator<Item = &'a Route> {
    routes.iter().filter(move |route| route.wave.as_ref().is_some_and(|(wave, _)| wave.name == name))
}

async fn list_waves(config: Config) -> ExitCode {
    let work = async {
        let client = client(&config).await?;
        let changes = command::waves(&client).await?;
        let mut names: Vec<&str> =
            config.routes.iter().filter_map(|route| Some(route.wave.as_ref()?.0.name.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        let mut text = String::new();
        for name in names {
            let change = changes.iter().find(|(known, ..)| known == name);
            let state = change.map_or_else(
                || "not moved".to_owned(),
                |(_, moved, by, at)| {
                    format!("{} at {at} by {by}", if *moved { "moved" } else { "moved back" })
                },
            );
            text.push_str(&format!("{name}: {state}\n"));
        }
        Ok(text)
    };
    finish(work.await)
}

async fn move_wave(config: Config, name: String, moved: bool) -> ExitCode {
    let pinned: Vec<String> =
        routes_of(&config.routes, &name).map(|route| route.event_type.clone()).collect();
    let reaches = |made: &str| pinned.iter().any(|pinned| config.upcasters.reaches(made, pinned));
    if pinned.is_empty() {
        return fail(EX_USAGE, &format!("no route names a wave \"{name}\"\nnext: tailwater wave list"));
    }
    let work = async {
        let client = client(&config).await?;
        order(&config, &client, Command::Wave { name: name.clone(), moved }).await?;
        let mut late = Ok(());
        for source in &config.sources {
            // The mapping's own types: a route may pin another version.
            let made = source.mapping.events.iter().map(|event| event.event_type.clone());
            let mut events: Vec<String> = made.filter(|made| reaches(made)).collect();
            events.dedup();
            let asked =
                order(&config, &client, Command::Backfill { source: source.name.clone(), events }).await;
            late = late.and(asked);
        }
        late?;
        let word = if moved { "has moved" } else { "has moved back" };
        Ok(format!("wave {name} {word}; what the other system lacks is delivered\n"))
    };
    finish(work.await)
}

/// `tailwater backfill`.
pub async fn backfill(config: Config, source: Option<String>, events: Vec<String>) -> ExitCode {
    let source = match source_named(&config.sources, source.as_deref()) {
        Ok(source) => source,
        Err(code) => return code,
    };
    let mapped: Vec<&str> = source.mapping.events.iter().map(|event| event.event_type.as_str()).collect();
    if let Some(unknown) = events.iter().find(|event| !mapped.contains(&event.as_str())) {
        return fail(EX_USAGE, &format!("no mapping makes {unknown}\nnext: of {}", mapped.join(", ")));
    }
    let work = async {
        let client = client(&config).await?;
        let asked = Command::Backfill { source: source.name.clone(), events: events.clone() };
        order(&config, &client, asked).await?;
        Ok(format!("{} are told again; what a target has already is not sent again\n", events.join(", ")))
    };
    finish(work.await)
}
