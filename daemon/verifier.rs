//! `tailwater-verify`: checks a bundle of `tailwater ledger export --with-proofs`. Needs no database, no network and no settings.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tailwater::audit::bundle::{Finding, verify};
use tailwater::audit::checkpoint::PublicKey;

/// Check that a bundle of ledger entries is complete and unaltered.
///
/// Exit codes: 0 it is; 1 it was changed; 2 something is missing; 64 wrong usage; 69 the file cannot be read.
#[derive(Parser)]
#[command(name = "tailwater-verify", version)]
struct Cli {
    /// What `tailwater ledger export --with-proofs` wrote.
    bundle: PathBuf,
    /// Public key of the log (NAME+ID+KEY), or a file with it, from whoever runs the ledger. Without it only the bundle itself is
    /// checked, not who made it.
    #[arg(long, value_name = "KEY")]
    pubkey: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let key = cli.pubkey.as_ref().map(|text| {
        let text = std::fs::read_to_string(text).unwrap_or_else(|_| text.clone());
        PublicKey::parse(&text)
    });
    let key = match key.transpose() {
        Ok(key) => key,
        Err(error) => return say(64, "wrong usage", &error.to_string(), cli.json),
    };
    let finding = File::open(&cli.bundle).and_then(|file| verify(BufReader::new(file), key.as_ref()));
    match finding {
        Ok(Finding::Sound { first, last, tree_size, signed_by, unchecked }) => {
            let whose = match signed_by {
                Some(name) => format!("whose head {name} has signed"),
                None => "whose head nobody has signed, as far as was asked (--pubkey)".to_owned(),
            };
            let beside = match unchecked.as_slice() {
                [] => String::new(),
                names => format!("; not looked at: {}", names.join(", ")),
            };
            let what = format!(
                "entries {first} to {last}, all of them, of a ledger of {tree_size}, {whose}{beside}"
            );
            say(0, "sound", &what, cli.json)
        }
        Ok(Finding::Tampered(what)) => say(1, "tampered", &what, cli.json),
        Ok(Finding::Incomplete(what)) => say(2, "incomplete", &what, cli.json),
        Err(error) => say(69, "unreadable", &format!("{}: {error}", cli.bundle.display()), cli.json),
    }
}

fn say(code: u8, verdict: &str, what: &str, as_json: bool) -> ExitCode {
    let line = if as_json {
        serde_json::json!({"verdict": verdict, "what": what}).to_string()
    } else {
        format!("{verdict}: {what}")
    };
    // Whoever read it may have seen enough.
    let _ = writeln!(std::io::stdout(), "{line}");
    ExitCode::from(code)
}
