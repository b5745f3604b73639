//! Signs the ledger's tree head from time to time and takes it out of the database: into files, the journal, and to witnesses.
//!
//! A checkpoint is signed only when it follows from the last one that was published, by the leaves that are published with it; so whoever
//! rewrites what a checkpoint covers gets no further one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::GenericClient;

use super::checkpoint::{CheckpointError, CheckpointKey, PublicKey, SignedHead, public_of};
use super::directory::{DirectoryError, LogDirectory};
use super::witness::{Place, Teller, Told, WitnessError};
use crate::config::secret::{Secret, SecretError};
use crate::ledger::hashes::{consistency, leaves, root_at};
use crate::ledger::head::Head;
use crate::ledger::tree::Tree;
use crate::ledger::{Ledger, LedgerError};
use crate::ops::pulse::Pulse;

/// Lease of the process that publishes.
pub const CHECKPOINTS: &str = "checkpoints";
/// How often it is looked whether a checkpoint is due.
const LOOK: Duration = Duration::from_millis(500);
/// Leaves that are read at once.
const PAGE: u64 = 50_000;

/// When and where checkpoints are published.
#[derive(Debug, Clone)]
pub struct CheckpointSettings {
    /// What they are signed with.
    pub key: Secret,
    /// Files.
    pub directory: LogDirectory,
    /// After this time, where anything was written meanwhile.
    pub every: Duration,
    /// After this many entries.
    pub entries: u64,
    /// Elsewhere.
    pub places: Vec<Place>,
}

/// Why nothing more is published, or nothing may be written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The key cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It is none, or what it should have signed was signed by another one.
    #[error("checkpoints: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The published log is broken or away.
    #[error("checkpoints: {0}")]
    Directory(#[from] DirectoryError),
    /// A witness cannot be used.
    #[error("checkpoints: {0}")]
    Witness(#[from] WitnessError),
    /// The ledger is away.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger is an older copy of itself.
    #[error(
        "the ledger has {size} entries, and a checkpoint of {published} was published: it is an older copy, or its end was cut off\n\
         next: restore a newer one. If there is none: `tailwater recover --ledger` notes what is missing, then `tailwater recover --source …`"
    )]
    Older {
        /// Entries.
        size: u64,
        /// Of the newest checkpoint.
        published: u64,
    },
    /// The key is that of a log that has ended.
    #[error(
        "the log {name} has ended, because its ledger was lost\n\
         next: tailwater ledger key --name {name}-2 --out FILE, name FILE in [ledger.checkpoints], and give the public key to the auditors"
    )]
    Ended {
        /// Its name.
        name: String,
    },
    /// What was published is not where it should be.
    #[error(
        "{}: no checkpoint is there, although {size} entries were published as {name}\n\
         next: mount or restore the directory. If it is lost: tailwater ledger key --name {name}-2 --out FILE, name FILE in [ledger.checkpoints], \
         and give the public key to the auditors", path.display()
    )]
    Away {
        /// Where it was looked for.
        path: PathBuf,
        /// Of the log.
        name: String,
        /// Entries that its newest checkpoint covered.
        size: u64,
    },
    /// The ledger is not the one of which checkpoints were published.
    #[error(
        "the first {size} entries of the ledger are not those of the checkpoint that was published: it was rewritten, or is another ledger\n\
         next: `tailwater ledger verify` names the first entry that was changed"
    )]
    Rewritten {
        /// Of the checkpoint.
        size: u64,
    },
}

impl CheckpointSettings {
    /// The key.
    pub fn read_key(&self) -> Result<(CheckpointKey, PublicKey), PublishError> {
        let text = self.key.read()?;
        Ok((CheckpointKey::parse(text.expose())?, public_of(text.expose())?))
    }

    /// Refuses a ledger that is not the one of which checkpoints were published, or an older copy of it.
    pub async fn guard(&self, client: &impl GenericClient) -> Result<(), PublishError> {
        let (_, public) = self.read_key()?;
        if self.directory.ended().iter().any(|name| name == public.name()) {
            return Err(PublishError::Ended { name: public.name().to_owned() });
        }
        let Some(newest) = self.directory.newest(&public)? else {
            return match published(client, &public).await? {
                0 => Ok(()),
                size => Err(self.directory.away(&public, size)),
            };
        };
        let size = Head::load(client).await?.tree.size();
        if size < newest.size {
            return Err(PublishError::Older { size, published: newest.size });
        }
        if newest.size > 0 && root_at(client, newest.size).await? != newest.root {
            return Err(PublishError::Rewritten { size: newest.size });
        }
        Ok(())
    }
}

/// How many entries were published under this key's name, as the ledger has it.
pub async fn published(client: &impl GenericClient, key: &PublicKey) -> Result<u64, LedgerError> {
    let sql = "select published_size from installation where published_log = $1";
    let size: Option<i64> =
        client.query_opt(sql, &[&key.name()]).await?.map(|row| row.try_get(0)).transpose()?;
    Ok(size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default())
}

impl LogDirectory {
    /// See [`PublishError::Away`].
    #[must_use]
    pub fn away(&self, key: &PublicKey, size: u64) -> PublishError {
        PublishError::Away { path: self.path().to_path_buf(), name: key.name().to_owned(), size }
    }
}

/// Publishes.
pub struct Publisher {
    settings: Arc<CheckpointSettings>,
    ledger: Ledger,
    key: CheckpointKey,
    public: PublicKey,
    tellers: Vec<Teller>,
    /// What was published last.
    size: u64,
}

impl Publisher {
    /// Goes on behind the newest checkpoint.
    pub fn new(settings: Arc<CheckpointSettings>, ledger: Ledger) -> Result<Self, PublishError> {
        let (key, public) = settings.read_key()?;
        let size = settings.directory.newest(&public)?.map_or(0, |head| head.size);
        let tellers = settings.places.iter().cloned().map(Teller::new).collect::<Result<_, _>>()?;
        Ok(Self { settings, ledger, key, public, tellers, size })
    }

    /// Publishes until the daemon stops. What is outside may be away for a while: then it is caught up with.
    pub async fn run(mut self, pulse: Pulse, mut stopping: watch::Receiver<bool>) -> Result<(), LedgerError> {
        let mut due = Instant::now();
        loop {
            pulse.beat();
            let tree = Head::load(self.ledger.reader()).await?.tree;
            let new = tree.size().saturating_sub(self.size);
            if new > 0 && (Instant::now() >= due || new >= self.settings.entries) {
                match pulse.during(self.publish(&tree)).await {
                    Ok(()) => {}
                    Err(PublishError::Ledger(error)) => return Err(error),
                    Err(error @ PublishError::Rewritten { .. }) => {
                        return Err(LedgerError::Refused(error.to_string()));
                    }
                    Err(error) => tracing::error!(%error, "no checkpoint was published; it is tried again"),
                }
                due = Instant::now() + self.settings.every;
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
        }
    }

    /// Signs the head of `tree`, which the ledger has.
    pub async fn publish(&mut self, tree: &Tree) -> Result<(), PublishError> {
        let (size, mut done) = (tree.size(), self.size);
        let mut published = None;
        while done < size {
            let next = (done + PAGE).min(size);
            let leaves = leaves(self.ledger.reader(), done, next).await?;
            published = Some(self.settings.directory.extend(done, &leaves)?);
            done = next;
        }
        let Some(published) = published else { return Ok(()) };
        // What was published before, and what has come since, must make what the ledger says it is.
        if published.root() != tree.root() {
            return Err(PublishError::Rewritten { size: self.size });
        }
        let mut head = self.key.sign(size, tree.root())?;
        head.note = self.tell(&head).await?;
        self.settings.directory.publish(&head, &Timestamp::now().strftime("%Y-%m-%d").to_string())?;
        tracing::info!(size, note = %head.note.escape_debug(), "checkpoint");
        self.size = size;
        let sql = "update installation set published_log = $1, published_size = $2";
        let counted = i64::try_from(size).unwrap_or(i64::MAX);
        self.ledger
            .reader()
            .execute(sql, &[&self.public.name(), &counted])
            .await
            .map_err(LedgerError::from)?;
        Ok(())
    }

    /// Tells everybody elsewhere; gives the note with their signatures. One that is away hears of the next one.
    async fn tell(&self, head: &SignedHead) -> Result<String, PublishError> {
        let mut note = head.note.clone();
        for teller in &self.tellers {
            match self.tell_one(teller, head).await {
                Ok(signatures) => {
                    // Whatever a witness answers, the note stays one of ours.
                    let signed = format!("{note}{signatures}");
                    if self.public.verify(&signed).is_ok() {
                        note = signed;
                    }
                }
                Err(PublishError::Witness(error @ WitnessError::OtherLog { .. })) => {
                    tracing::error!(%error, "a witness refuses the checkpoint");
                }
                Err(PublishError::Witness(error)) => {
                    tracing::warn!(%error, "the checkpoint is not known everywhere; the next one will be");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(note)
    }

    async fn tell_one(&self, teller: &Teller, head: &SignedHead) -> Result<String, PublishError> {
        let mut old = teller.known();
        for _ in 0..2 {
            let proof = match old {
                0 => Vec::new(),
                old => consistency(self.ledger.reader(), old, head.size).await?,
            };
            match teller.tell(head, old, &proof).await? {
                Told::Done { signatures } => return Ok(signatures),
                Told::From(size) => old = size,
            }
        }
        Ok(String::new())
    }
}
