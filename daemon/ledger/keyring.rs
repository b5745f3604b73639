//! Keys of data subjects. Half of each is a salt in schema `tailwater_keys`, half a secret that is nowhere in the database: who has only
//! one of them has nothing, and who destroys the salt has destroyed the key.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use tokio_postgres::GenericClient;

use super::LedgerError;
use super::batch::Batch;
use super::entry::Content;
use super::statements::{Prepared, parameters};
use crate::event::sealing::{SubjectKey, subjects_in, unseal};
use crate::event::{Keys, hex};

/// Bytes of a salt.
const SALT_LENGTH: usize = 32;
/// Keys that are remembered: some 10 MB (INV-8).
const MOST: usize = 20_000;

/// The secret half of all keys. Nothing is sealed without it.
#[derive(Clone, Default)]
pub struct Master(Option<Arc<[u8]>>);

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl Master {
    /// From a secret of at least 32 bytes.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(Some(secret.into()))
    }

    /// There is one.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Refuses another secret than the one that this ledger is sealed with, and none where there is one.
    pub async fn check(&self, client: &impl GenericClient) -> Result<(), LedgerError> {
        let sql = "select sealing from installation";
        let known: Option<String> = client.query_one(sql, &[]).await?.try_get(0)?;
        let own = self.0.as_deref().map(|master| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, master);
            hex(hmac::sign(&key, b"tailwater sealing verifier v1").as_ref())
        });
        let next = "next: sealing_key in [ledger], with the secret that was there before";
        match (known, own) {
            (Some(known), Some(own)) if known != own => Err(LedgerError::Refused(format!(
                "sealing_key is not the one that personal data in this ledger is sealed with\n{next}"
            ))),
            (Some(_), None) => Err(LedgerError::Refused(format!(
                "personal data in this ledger is sealed, and there is no sealing_key\n{next}"
            ))),
            (None, Some(own)) => {
                client.execute("update installation set sealing = $1 where sealing is null", &[&own]).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Puts back what is sealed in `values`, as far as its keys are there.
    pub async fn unseal(
        &self,
        client: &impl GenericClient,
        values: &mut [&mut Value],
    ) -> Result<(), LedgerError> {
        let Some(master) = &self.0 else { return Ok(()) };
        let mut subjects = Vec::new();
        values.iter().for_each(|value| subjects_in(value, &mut subjects));
        if subjects.is_empty() {
            return Ok(());
        }
        let keys = derive(master, known(client, &subjects).await?)?;
        for value in values {
            unseal(value, &keys);
        }
        Ok(())
    }
}

/// Keys that the writer has used of late. Only whoever has the turn to write makes or destroys keys, so what is remembered holds until
/// another process has had it.
pub struct Keyring {
    master: Master,
    keys: Keys,
    /// Erasures up to now: with another one, what is remembered may be destroyed.
    erasures: i64,
    /// The batch before destroys keys: until it is committed they are still to be found.
    unsettled: bool,
}

impl Keyring {
    /// Knows no key yet.
    #[must_use]
    pub fn new(master: Master) -> Self {
        Self { master, keys: Keys::new(), erasures: 0, unsettled: false }
    }

    /// The ledger's end is taken over, after so many erasures.
    pub fn follow(&mut self, erasures: i64) {
        if self.erasures != erasures {
            self.erasures = erasures;
            self.keys.clear();
        }
    }

    /// True when everything sealed before must be committed before [`Keyring::fetch`], which looks into the ledger.
    #[must_use]
    pub fn must_settle(&self) -> bool {
        self.unsettled || self.keys.len() > MOST
    }

    /// The keys of everything personal in `batch`; those that are new become part of it.
    pub async fn fetch(&mut self, client: &impl GenericClient, batch: &mut Batch) -> Result<(), LedgerError> {
        batch.erased.iter().for_each(|subject| drop(self.keys.remove(subject)));
        self.unsettled = !batch.erased.is_empty();
        if self.keys.len() > MOST {
            self.keys.clear();
        }
        let Some(master) = self.master.0.clone() else { return Ok(()) };
        let subjects: BTreeSet<&str> = batch
            .entries
            .iter()
            .flat_map(|entry| match &entry.content {
                Content::Event(record) => record.personal.subjects(),
                Content::Fields(_) => entry.personal.iter().map(|part| part.subject.as_str()).collect(),
            })
            .collect();
        let unknown = subjects.into_iter().filter(|subject| !self.keys.contains_key(*subject));
        let unknown: Vec<String> = unknown.map(str::to_owned).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut salts = known(client, &unknown).await?;
        // What comes of a subject that is forgotten in this very batch has a new key.
        salts.retain(|subject, _| !batch.erased.contains(subject));
        for subject in unknown {
            if salts.contains_key(&subject) {
                continue;
            }
            let mut salt = vec![0; SALT_LENGTH];
            SystemRandom::new()
                .fill(&mut salt)
                .map_err(|_| LedgerError::Unreadable("a random number".into()))?;
            batch.keys.push((subject.clone(), salt.clone()));
            salts.insert(subject, salt);
        }
        self.keys.extend(derive(&master, salts)?);
        Ok(())
    }

    /// What was made of late may not have been committed: nothing is remembered.
    pub fn forget(&mut self) {
        self.keys.clear();
        self.unsettled = false;
    }

    /// What [`Keyring::fetch`] has found.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }
}

async fn known(
    client: &impl GenericClient,
    subjects: &[String],
) -> Result<HashMap<String, Vec<u8>>, LedgerError> {
    let sql = "select subject, salt from tailwater_keys.subject_key where subject = any ($1)";
    let rows = client.query(sql, &[&subjects]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn derive(master: &[u8], salts: HashMap<String, Vec<u8>>) -> Result<Keys, LedgerError> {
    let key = |(subject, salt): (String, Vec<u8>)| {
        let key = SubjectKey::derive(master, &subject, &salt)?;
        Some((subject, key))
    };
    let keys = salts.into_iter().map(key).collect::<Option<Keys>>();
    keys.ok_or_else(|| LedgerError::Unreadable("a key".into()))
}

/// Keys that are destroyed, and new ones.
pub fn keys(batch: &mut Batch, out: &mut Vec<Prepared>) {
    let erased = std::mem::take(&mut batch.erased);
    if !erased.is_empty() {
        out.push(("select destroy_keys($1::text[])", parameters![erased]));
        out.push(("update tree set erasures = erasures + 1", Vec::new()));
    }
    if batch.keys.is_empty() {
        return;
    }
    let (subjects, salts): (Vec<String>, Vec<Vec<u8>>) = std::mem::take(&mut batch.keys).into_iter().unzip();
    out.push((
        "insert into tailwater_keys.subject_key (subject, salt) select * from unnest($1::text[], $2::bytea[])",
        parameters![subjects, salts],
    ));
}
