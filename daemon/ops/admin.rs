//! The admin socket: how operators on this machine ask the daemon for something, so that it knows from the kernel who they are.
//!
//! A Unix socket; one line of JSON each way. What is asked is noted in the ledger as it would be through the database; only who asked is
//! not their word but that of `SO_PEERCRED` (unix(7)).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::bounds::ADMIN_CONNECTIONS;
use crate::ledger::command::{Asker, Asking, Command, note};
use crate::ledger::{Ledger, LedgerError};

/// Longest line.
const LONGEST: u64 = 1 << 20;
/// How long a line may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// Its number.
    Noted(i64),
    /// Why not.
    Refused(String),
}

/// Says what of a request cannot be: a target that there is not, a rate that is none.
pub type Judge = Arc<dyn Fn(&Asking) -> Result<(), String> + Send + Sync>;

/// Answers until the daemon stops. Another process on this machine may have the socket already: then it is enough.
pub async fn serve(
    path: &Path,
    ledger: Ledger,
    judge: Judge,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    let stopped = async {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    tokio::pin!(stopped);
    let listener = match bind(path).await {
        Ok(Some(listener)) => listener,
        Ok(None) => {
            stopped.await;
            return Ok(());
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the admin socket cannot be had; operators are known by what they say");
            stopped.await;
            return Ok(());
        }
    };
    let open = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    loop {
        tokio::select! {
            // Whoever holds connections open keeps others waiting no longer than their patience.
            accepted = admitted(&listener, &open) => if let Ok((stream, turn)) = accepted {
                let (ledger, judge) = (ledger.clone(), judge.clone());
                tokio::spawn(async move {
                    let _turn = turn;
                    if timeout(PATIENCE, answer(stream, &ledger, &judge)).await.is_err() {
                        tracing::debug!("somebody at the admin socket said nothing");
                    }
                });
            },
            () = &mut stopped => {
                let _ = std::fs::remove_file(path);
                return Ok(());
            }
        }
    }
}

/// The next connection, once there is room for one more.
async fn admitted(
    listener: &UnixListener,
    open: &Arc<Semaphore>,
) -> std::io::Result<(UnixStream, OwnedSemaphorePermit)> {
    let turn = open.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, turn))
}

async fn bind(path: &Path) -> std::io::Result<Option<UnixListener>> {
    if UnixStream::connect(path).await.is_ok() {
        return Ok(None);
    }
    // Left by a process that was killed.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Those who may read the settings, which is the same group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(Some(listener))
}

async fn answer(mut stream: UnixStream, ledger: &Ledger, judge: &Judge) -> std::io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(LONGEST)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Asking>(&line) {
        // What was read is noted by who shows it, in the database.
        Ok(Asking::Command(Command::Read { .. } | Command::Export { .. })) => {
            Answer::Refused("readings are not noted here".into())
        }
        // What is in a file is told by who wrote the file, in the database.
        Ok(Asking::Command(Command::Archive { .. })) => {
            Answer::Refused("archives are noted by `tailwater ledger archive`".into())
        }
        Ok(asking) => match judge(&asking) {
            Err(reason) => Answer::Refused(reason),
            Ok(()) => {
                let asker = Asker { name: account(uid), peer_uid: Some(uid.into()) };
                match note(ledger.reader(), &asking, &asker).await {
                    Ok(number) => Answer::Noted(number),
                    Err(error) => Answer::Refused(error.to_string()),
                }
            }
        },
        Err(error) => Answer::Refused(format!("not what this version understands: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the daemon at `path`; `None` where nobody answers there.
pub async fn ask(path: &Path, asking: &Asking) -> Option<Result<i64, String>> {
    let asked = async {
        let mut stream = UnixStream::connect(path).await.ok()?;
        let mut line = serde_json::to_vec(asking).ok()?;
        line.push(b'\n');
        stream.write_all(&line).await.ok()?;
        let mut answer = String::new();
        BufReader::new(stream.take(LONGEST)).read_line(&mut answer).await.ok()?;
        match serde_json::from_str(&answer).ok()? {
            Answer::Noted(number) => Some(Ok(number)),
            Answer::Refused(reason) => Some(Err(reason)),
        }
    };
    timeout(PATIENCE, asked).await.ok().flatten()
}

/// `alice (uid 1000)`, as this machine's own accounts have it.
fn account(uid: u32) -> String {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    format!("{} (uid {uid})", name.unwrap_or_default())
}
