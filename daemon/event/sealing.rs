//! What is personal, sealed for the ledger with a key of whose it is: without that key it is as good as gone.
//!
//! AES-256-GCM over the JSON of the sealed members, with the subject authenticated. The nonce follows from key and text, as in SIV modes
//! (RFC 8452): the same members of the same subject give the same text, and nothing else is told by it. One text stands for all members
//! that were taken out, under a name that no column has.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use serde_json::{Map, Value};

/// Member that holds what was sealed of an object.
pub const SEALED: &str = "~sealed";
/// First word of a sealed text.
const VERSION: &str = "v1";

/// What is personal of an event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Personal {
    /// Of its data.
    pub data: Option<PersonalPart>,
    /// Of each row that it came from, in their order.
    pub changes: Vec<Option<PersonalPart>>,
}

/// Members, and whose they are.
#[derive(Debug, Clone, PartialEq)]
pub struct PersonalPart {
    /// Canonical id of the person or company.
    pub subject: String,
    /// Names, sorted.
    pub fields: Arc<[Arc<str>]>,
}

impl Personal {
    /// Whose data it is, each once.
    #[must_use]
    pub fn subjects(&self) -> Vec<&str> {
        let parts = self.data.iter().chain(self.changes.iter().flatten());
        let mut subjects: Vec<&str> = parts.map(|part| part.subject.as_str()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        subjects
    }
}

/// Whose a row is that is nobody's own: its own. Whoever is forgotten takes along rows that events about them came from.
#[must_use]
pub fn row_subject(source: &str, table: &str, key: &str) -> String {
    format!("{source}:{table}/{key}")
}

/// The key of a subject.
#[derive(Clone)]
pub struct SubjectKey(Arc<Halves>);

struct Halves {
    text: LessSafeKey,
    nonce: hmac::Key,
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Keys by subject.
pub type Keys = HashMap<String, SubjectKey>;

impl SubjectKey {
    /// From the secret outside the database and the salt inside it: destroying either destroys the key.
    #[must_use]
    pub fn derive(master: &[u8], subject: &str, salt: &[u8]) -> Option<Self> {
        let master = hmac::Key::new(hmac::HMAC_SHA256, master);
        let half = |purpose: &[u8]| sign(&master, &[purpose, subject.as_bytes(), salt]);
        let text = UnboundKey::new(&AES_256_GCM, half(b"tailwater sealing v1").as_ref()).ok()?;
        let nonce = hmac::Key::new(hmac::HMAC_SHA256, half(b"tailwater nonces v1").as_ref());
        Some(Self(Arc::new(Halves { text: LessSafeKey::new(text), nonce })))
    }

    /// One text for all of `members`.
    #[must_use]
    pub fn seal(&self, subject: &str, members: &Map<String, Value>) -> Option<String> {
        let mut text = serde_json::to_vec(members).ok()?;
        let digest = sign(&self.0.nonce, &[subject.as_bytes(), &text]);
        let nonce: [u8; NONCE_LEN] = digest.as_ref().get(..NONCE_LEN)?.try_into().ok()?;
        let unique = Nonce::assume_unique_for_key(nonce);
        self.0.text.seal_in_place_append_tag(unique, Aad::from(subject.as_bytes()), &mut text).ok()?;
        let bytes = [nonce.as_slice(), &text].concat();
        Some(format!("{VERSION} {} {subject}", BASE64_STANDARD_NO_PAD.encode(bytes)))
    }

    fn open(&self, subject: &str, text: &str) -> Option<Map<String, Value>> {
        let mut bytes = BASE64_STANDARD_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let clear = self.0.text.open_in_place(nonce, Aad::from(subject.as_bytes()), sealed).ok()?;
        serde_json::from_slice(clear).ok()
    }
}

/// Over parts that cannot be taken for each other.
fn sign(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    context.sign()
}

/// Subject and text of what is sealed in an object.
fn sealed_in(object: &Map<String, Value>) -> Option<(&str, &str)> {
    let mut words = object.get(SEALED)?.as_str()?.splitn(3, ' ');
    let (version, text, subject) = (words.next()?, words.next()?, words.next()?);
    (version == VERSION).then_some((subject, text))
}

/// Whose data is sealed anywhere in `value`.
pub fn subjects_in(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            found.extend(sealed_in(object).map(|(subject, _)| subject.to_owned()));
            object.values().for_each(|value| subjects_in(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| subjects_in(item, found)),
        _ => {}
    }
}

/// Puts back what is sealed anywhere in `value`, as far as there are keys.
pub fn unseal(value: &mut Value, keys: &Keys) {
    match value {
        Value::Object(object) => {
            let members =
                sealed_in(object).and_then(|(subject, text)| keys.get(subject)?.open(subject, text));
            if let Some(members) = members {
                object.remove(SEALED);
                object.extend(members);
            }
            object.values_mut().for_each(|value| unseal(value, keys));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| unseal(item, keys)),
        _ => {}
    }
}
