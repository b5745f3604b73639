//! Signatures of witnesses: a signed note with the time at which the witness saw it (<https://c2sp.org/tlog-cosignature>).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use signed_note::{Verifier, key_id};

/// Type of a key that signs with a time.
pub const COSIGNATURE: u8 = 4;
/// Seconds since 1970 come before the signature.
const TIME_LENGTH: usize = 8;

/// Knows what a witness has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CosignatureVerifier {
    name: String,
    id: u32,
    key: Vec<u8>,
}

impl CosignatureVerifier {
    /// Reads `NAME+ID+KEY` with a key of this type; `None` for any other.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let typed = BASE64_STANDARD.decode(key).ok()?;
        let id = u32::from_str_radix(id, 16).ok().filter(|_| id.len() == 8)?;
        let (algorithm, key) = typed.split_first()?;
        let fits = *algorithm == COSIGNATURE && key.len() == 32 && id == key_id(name, &typed);
        (fits && signed_note::is_key_name_valid(name)).then(|| Self {
            name: name.to_owned(),
            id,
            key: key.to_vec(),
        })
    }
}

/// What a witness signs of a note's text at a time.
#[must_use]
pub fn message(seconds: u64, text: &[u8]) -> Vec<u8> {
    [format!("cosignature/v1\ntime {seconds}\n").as_bytes(), text].concat()
}

impl Verifier for CosignatureVerifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let Some((time, signature)) = signature.split_first_chunk::<TIME_LENGTH>() else { return false };
        let message = message(u64::from_be_bytes(*time), text);
        UnparsedPublicKey::new(&ED25519, &self.key).verify(&message, signature).is_ok()
    }
}
