//! Places elsewhere that are told of each checkpoint: a witness, which signs it only if the log has not been rewritten
//! (<https://c2sp.org/tlog-witness>), or a store of objects that takes a file by PUT.

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Client, Method, StatusCode};
use tlog_tiles::tlog::Hash;

use super::checkpoint::{PublicKey, SignedHead};
use crate::config::secret::Secret;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer that is read: a few signatures.
const MOST_BYTES: usize = 16 * 1024;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// No answer.
    #[error("{place}: {}", reqwest_reason(.error))]
    Unreachable {
        /// Where.
        place: String,
        /// Why.
        error: reqwest::Error,
    },
    /// The witness knows another log under this name: it may have been rewritten.
    #[error("{place}: it knows a log of this name that is not the beginning of ours (status {status})")]
    OtherLog {
        /// Where.
        place: String,
        /// HTTP status.
        status: u16,
    },
    /// Any other refusal.
    #[error("{place}: status {status}")]
    Refused {
        /// Where.
        place: String,
        /// HTTP status.
        status: u16,
    },
    /// Its signature is none.
    #[error("{place}: the answer is not signed by {name}")]
    NotSigned {
        /// Where.
        place: String,
        /// Name of the key.
        name: String,
    },
    /// The token cannot be read.
    #[error(transparent)]
    Secret(#[from] crate::config::secret::SecretError),
}

/// An error without its address, which may hold what is secret.
fn reqwest_reason(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() { "no answer in time" } else { "cannot be reached" }
}

/// What is done with a checkpoint there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// It is shown to be later than the one before, and signed.
    Witness {
        /// Whose signature that is.
        key: String,
    },
    /// It is put there as a file of its own, which is never replaced.
    Store,
}

/// Where a checkpoint is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Base of its addresses, without a slash at the end.
    pub url: String,
    /// What is done there.
    pub manner: Manner,
    /// `Authorization: Bearer`.
    pub token: Option<Secret>,
}

/// A place, and what it is known to have.
pub struct Teller {
    place: Place,
    client: Client,
    /// Size of the newest checkpoint it has; nothing is known before the first answer.
    known: Mutex<Option<u64>>,
}

/// What a witness has to be shown.
pub enum Told {
    /// It has it.
    Done {
        /// Its signature, to be put below the note.
        signatures: String,
    },
    /// It wants to be shown how ours follows from the tree of this size.
    From(u64),
}

impl Teller {
    /// Speaks to `place`.
    pub fn new(place: Place) -> Result<Self, WitnessError> {
        let failed = |error| WitnessError::Unreachable { place: place.url.clone(), error };
        let client = Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
        let client = client.build().map_err(failed)?;
        Ok(Self { place, client, known: Mutex::new(None) })
    }

    /// The size from which it has to be shown the way; 0 where that does not matter.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.known.lock().ok().and_then(|known| *known).unwrap_or_default()
    }

    /// Tells it of a checkpoint that follows from the tree of `old` entries by `proof`.
    pub async fn tell(&self, head: &SignedHead, old: u64, proof: &[Hash]) -> Result<Told, WitnessError> {
        match &self.place.manner {
            Manner::Store => self.store(head).await,
            Manner::Witness { key } => self.witness(head, (old, proof), key).await,
        }
    }

    async fn store(&self, head: &SignedHead) -> Result<Told, WitnessError> {
        let path = format!("checkpoint-{:020}", head.size);
        let (status, _) = self.send(Method::PUT, &path, head.note.clone()).await?;
        // 412: there is one already, from before a restart.
        if status.is_success() || status == StatusCode::PRECONDITION_FAILED {
            return Ok(self.done(head.size, String::new()));
        }
        Err(WitnessError::Refused { place: self.place.url.clone(), status: status.as_u16() })
    }

    async fn witness(
        &self,
        head: &SignedHead,
        (old, proof): (u64, &[Hash]),
        key: &str,
    ) -> Result<Told, WitnessError> {
        let lines: String = proof.iter().map(|hash| BASE64_STANDARD.encode(hash.0) + "\n").collect();
        let body = format!("old {old}\n{lines}\n{}", head.note);
        let (status, answer) = self.send(Method::POST, "add-checkpoint", body).await?;
        let place = self.place.url.clone();
        match status.as_u16() {
            200 => {
                let signed = format!("{}{answer}", head.note);
                let by_it = PublicKey::parse(key).and_then(|key| Ok((key.has_signed(&signed)?, key)));
                match by_it {
                    Ok((true, _)) => Ok(self.done(head.size, answer)),
                    _ => Err(WitnessError::NotSigned {
                        place,
                        name: key.split('+').next().unwrap_or_default().into(),
                    }),
                }
            }
            // It has another one than we thought, and says which.
            409 => match answer.trim().parse() {
                // At the same size another root: a fork.
                Ok(size) if size <= head.size && size != old => {
                    self.note(size);
                    Ok(Told::From(size))
                }
                _ => Err(WitnessError::OtherLog { place, status: 409 }),
            },
            422 => Err(WitnessError::OtherLog { place, status: 422 }),
            status => Err(WitnessError::Refused { place, status }),
        }
    }

    fn done(&self, size: u64, signatures: String) -> Told {
        self.note(size);
        Told::Done { signatures }
    }

    fn note(&self, size: u64) {
        if let Ok(mut known) = self.known.lock() {
            *known = Some(size);
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, String), WitnessError> {
        let failed = |error| WitnessError::Unreachable { place: self.place.url.clone(), error };
        let mut request =
            self.client.request(method.clone(), format!("{}/{path}", self.place.url)).body(body);
        if method == Method::PUT {
            request = request.header("if-none-match", "*");
        }
        if let Some(token) = &self.place.token {
            request = request.bearer_auth(token.read()?.expose());
        }
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > MOST_BYTES {
                return Err(WitnessError::Refused { place: self.place.url.clone(), status: status.as_u16() });
            }
            answer.extend_from_slice(&chunk);
        }
        Ok((status, String::from_utf8_lossy(&answer).into_owned()))
    }
}
