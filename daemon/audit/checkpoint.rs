//! Checkpoints: signed tree heads (<https://c2sp.org/tlog-checkpoint>, <https://c2sp.org/signed-note>), and the key they are signed with.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use signed_note::{Note, Signer, StandardSigner, StandardVerifier, Verifier, VerifierList, key_id};
use tlog_tiles::Checkpoint;
use tlog_tiles::tlog::Hash;

use super::cosignature::CosignatureVerifier;

/// Type of an Ed25519 key in a signed note.
const ED25519: u8 = 1;

/// What is wrong with a key or a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not `PRIVATE+KEY+NAME+ID+KEY`.
    #[error("not a private key as `tailwater ledger key` makes it")]
    NoKey,
    /// Not `NAME+ID+KEY`.
    #[error("`{0}` is not a public key (NAME+ID+KEY, as `tailwater ledger key` prints it)")]
    NoPublicKey(String),
    /// Names are hosts with a path.
    #[error("`{0}` cannot be the name of a log: no blanks, no plus sign, such as example.com/ledger")]
    BadName(String),
    /// It is not a signed note, or not one of a tree head.
    #[error("not a checkpoint")]
    Malformed,
    /// The key has not signed it.
    #[error("the checkpoint of {size} entries is not signed by {name}")]
    NotSigned {
        /// Size it claims.
        size: u64,
        /// Name of the key.
        name: String,
    },
    /// It is of another log.
    #[error("the checkpoint is of the log {found}, not of {expected}")]
    OtherLog {
        /// Its origin.
        found: String,
        /// Name of the key.
        expected: String,
    },
}

/// A tree head that somebody has signed.
#[derive(Debug, Clone, PartialEq)]
pub struct SignedHead {
    /// Entries.
    pub size: u64,
    /// Root.
    pub root: Hash,
    /// The signed note.
    pub note: String,
}

/// Signs tree heads.
pub struct CheckpointKey(StandardSigner);

impl fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key of {}", self.0.name())
    }
}

/// Knows what a key has signed.
#[derive(Clone)]
pub struct PublicKey {
    text: String,
    name: String,
}

impl CheckpointKey {
    /// Reads a key: `PRIVATE+KEY+NAME+ID+KEY`, its public part following from it.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        StandardSigner::new(text.trim()).map(Self).map_err(|_| CheckpointError::NoKey)
    }

    /// Name of the log.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Signs a tree head.
    pub fn sign(&self, size: u64, root: Hash) -> Result<SignedHead, CheckpointError> {
        let malformed = |_| CheckpointError::Malformed;
        let text = Checkpoint::new(self.name(), size, root, "").map_err(|_| CheckpointError::Malformed)?;
        let mut note = Note::new(&text.to_bytes(), &[]).map_err(malformed)?;
        note.add_sigs(&[&self.0]).map_err(malformed)?;
        let note = String::from_utf8(note.to_bytes()).map_err(|_| CheckpointError::Malformed)?;
        Ok(SignedHead { size, root, note })
    }
}

/// Makes a key for the log of this name: the private and the public one.
pub fn generate(name: &str) -> Result<(String, String), CheckpointError> {
    if !signed_note::is_key_name_valid(name) || name.contains(char::is_control) {
        return Err(CheckpointError::BadName(name.to_owned()));
    }
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| CheckpointError::NoKey)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| CheckpointError::NoKey)?;
    let typed = |key: &[u8]| [&[ED25519], key].concat();
    let public = typed(pair.public_key().as_ref());
    let id = key_id(name, &public);
    let private = format!("PRIVATE+KEY+{name}+{id:08x}+{}", BASE64_STANDARD.encode(typed(&seed)));
    Ok((private, format!("{name}+{id:08x}+{}", BASE64_STANDARD.encode(public))))
}

/// The public key that belongs to a private one.
pub fn public_of(private: &str) -> Result<PublicKey, CheckpointError> {
    let name = CheckpointKey::parse(private)?.name().to_owned();
    // PRIVATE, KEY, name, id, and the key, which may have a plus sign in it.
    let mut parts = private.trim().splitn(5, '+').skip(3);
    let (id, key) = parts.next().zip(parts.next()).ok_or(CheckpointError::NoKey)?;
    let key = BASE64_STANDARD.decode(key).map_err(|_| CheckpointError::NoKey)?;
    let seed = key.get(1..).ok_or(CheckpointError::NoKey)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| CheckpointError::NoKey)?;
    let public = [&[ED25519], pair.public_key().as_ref()].concat();
    PublicKey::parse(&format!("{name}+{id}+{}", BASE64_STANDARD.encode(public)))
}

impl PublicKey {
    /// Reads `NAME+ID+KEY`.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let text = text.trim();
        let name = verifier(text)?.name().to_owned();
        Ok(Self { name, text: text.to_owned() })
    }

    /// Name of the log, or of the witness.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `NAME+ID+KEY`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reads a checkpoint that this key has signed.
    pub fn verify(&self, note: &str) -> Result<SignedHead, CheckpointError> {
        let (parsed, head) = read(note)?;
        if head.origin() != self.name {
            return Err(CheckpointError::OtherLog {
                found: head.origin().to_owned(),
                expected: self.name.clone(),
            });
        }
        let not_signed = || CheckpointError::NotSigned { size: head.size(), name: self.name.clone() };
        parsed.verify(&self.verifiers()?).map_err(|_| not_signed())?;
        Ok(SignedHead { size: head.size(), root: *head.hash(), note: note.to_owned() })
    }

    /// True when this key, which may be that of a witness, has signed the checkpoint.
    pub fn has_signed(&self, note: &str) -> Result<bool, CheckpointError> {
        Ok(read(note)?.0.verify(&self.verifiers()?).is_ok())
    }

    fn verifiers(&self) -> Result<VerifierList, CheckpointError> {
        Ok(VerifierList::new(vec![verifier(&self.text)?]))
    }
}

/// A log's key, or that of a witness.
fn verifier(text: &str) -> Result<Box<dyn Verifier>, CheckpointError> {
    if let Some(witness) = CosignatureVerifier::parse(text) {
        return Ok(Box::new(witness));
    }
    let log = StandardVerifier::new(text).map_err(|_| CheckpointError::NoPublicKey(text.to_owned()))?;
    Ok(Box::new(log))
}

fn read(note: &str) -> Result<(Note, Checkpoint), CheckpointError> {
    let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| CheckpointError::Malformed)?;
    let head = Checkpoint::from_bytes(parsed.text()).map_err(|_| CheckpointError::Malformed)?;
    Ok((parsed, head))
}

/// Notes one behind the other, as they are kept in a file: each ends with its last signature.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let signatures = rest.find("\n\n").map_or(rest.len(), |blank| blank + 2);
        let mut end = signatures;
        for line in rest.get(signatures..).unwrap_or_default().split_inclusive('\n') {
            if !line.starts_with('\u{2014}') {
                break;
            }
            end += line.len();
        }
        let (note, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        rest = after;
        Some(note)
    })
}
