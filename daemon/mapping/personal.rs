//! What is personal, by the mapping: whose it is, and what is done with it. Pure.
//!
//! ```yaml
//! personal:                                   # of a table: columns; of an event: fields of its data
//!   subject: "source + '-P-' + string(row.id)"  # whose data it is; left out: of an event its canonical id, of a table the row
//!   seal: [name, email]                       # in clear for the targets, in the ledger only for who has the subject's key
//!   mask: [phone]                             # of a table only: nobody sees more than the first letter
//!   hmac: [vat]                               # of a table only: a keyed digest stands for it; equal values stay equal
//! ```
//! Columns that are named nowhere but in `columns` pass; columns that are not there are dropped by the decoder.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::Value;

use super::expression::Expression;
use super::scope::{Scope, Variable};
use super::shape::Variables;
use super::{EventSpec, SourceMapping, TableSpec};
use crate::config::node::{Node, Problems};
use crate::event::sealing::row_subject;
use crate::event::{CanonicalEvent, Personal, PersonalPart, Row};

/// What stands for digits and letters that nobody shall see.
const MASK: &str = "***";

/// What is done with what is personal of a table or an event.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Whose it is.
    pub subject: Option<Arc<Expression>>,
    /// Sealed, in the order of their names.
    pub seal: Arc<[Arc<str>]>,
    /// Masked.
    pub mask: Vec<Arc<str>>,
    /// Replaced by a keyed digest.
    pub hmac: Vec<Arc<str>>,
}

/// Key of digests that stand for values.
#[derive(Clone)]
pub struct DigestKey(hmac::Key);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl DigestKey {
    /// From a secret.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn digest(&self, text: &str) -> String {
        format!("hmac:v1:{}", BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, text.as_bytes())))
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        let subject = |policy: &Self| policy.subject.as_ref().map(|subject| subject.text().to_owned());
        (&self.seal, &self.mask, &self.hmac, subject(self))
            == (&other.seal, &other.mask, &other.hmac, subject(other))
    }
}

impl Eq for Policy {}

/// There is one.
impl PartialEq for DigestKey {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for DigestKey {}

impl Policy {
    /// Reads `personal` of a table or an event. `known`: its columns or fields.
    pub fn read(
        node: &Node,
        (known, of_table): (&[&str], bool),
        variables: &Variables,
        problems: &mut Problems,
    ) -> Self {
        let mut fields = node.fields(problems);
        let subject = fields.optional("subject");
        let subject = subject.and_then(|node| Expression::compile(&node, variables, problems));
        let mut list = |key, problems: &mut Problems| -> Vec<Arc<str>> {
            let mut names: Vec<Arc<str>> = Vec::new();
            for node in fields.optional(key).map(|node| node.list(problems)).unwrap_or_default() {
                let Some(name) = node.string(problems) else { continue };
                if !known.contains(&name.as_str()) {
                    let near = super::shape::suggestion(&name, known, "one of");
                    problems.add(&node.at, format!("`{name}` is not there, so it cannot be protected"), near);
                }
                names.push(name.into());
            }
            names.sort_unstable();
            names
        };
        let seal = list("seal", problems).into();
        let (mask, hmac) = if of_table {
            (list("mask", problems), list("hmac", problems))
        } else {
            (Vec::new(), Vec::new())
        };
        fields.finish(problems);
        Self { subject: subject.map(Arc::new), seal, mask, hmac }
    }

    /// Takes over what another file says of the same table.
    pub fn merge(&mut self, other: &Self) {
        self.subject = self.subject.take().or_else(|| other.subject.clone());
        let mut seal: Vec<Arc<str>> = self.seal.iter().chain(other.seal.iter()).cloned().collect();
        seal.sort_unstable();
        seal.dedup();
        self.seal = seal.into();
        self.mask.extend(other.mask.iter().cloned());
        self.hmac.extend(other.hmac.iter().cloned());
    }

    fn part(&self, subject: Option<String>) -> Option<PersonalPart> {
        let subject = subject.filter(|subject| !subject.is_empty() && !self.seal.is_empty())?;
        Some(PersonalPart { subject, fields: self.seal.clone() })
    }
}

impl TableSpec {
    /// True when something of it is masked or replaced by a digest.
    #[must_use]
    pub fn protects(&self) -> bool {
        !self.personal.mask.is_empty() || !self.personal.hmac.is_empty()
    }

    /// Puts masks and digests in the place of what nobody shall see. Without a key nothing stands for a value.
    pub fn protect(&self, columns: &[Arc<str>], values: &mut [Value]) {
        let Policy { mask, hmac, .. } = &self.personal;
        if !self.protects() {
            return;
        }
        for (name, value) in columns.iter().zip(values).filter(|(_, value)| !value.is_null()) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if mask.contains(name) {
                *value = masked(&text).into();
            } else if hmac.contains(name) {
                *value = self.digest_key.as_ref().map(|key| key.digest(&text)).into();
            }
        }
    }
}

/// `j***@e***` of an address, `+***` of a number.
fn masked(text: &str) -> String {
    let parts: Vec<String> =
        text.split('@').map(|part| part.chars().take(1).chain(MASK.chars()).collect()).collect();
    parts.join("@")
}

impl SourceMapping {
    /// Gives all tables the key of digests; false when one needs it and there is none.
    pub fn set_digest_key(&mut self, key: Option<&DigestKey>) -> bool {
        for table in self.tables.iter_mut().chain(self.parts.iter_mut().flat_map(|part| &mut part.tables)) {
            table.digest_key = key.cloned();
        }
        key.is_some() || self.tables.iter().all(|table| table.personal.hmac.is_empty())
    }

    /// What is personal of an event of `source` and of the rows that it came from.
    #[must_use]
    pub fn personal_of(&self, source: &str, event: &CanonicalEvent) -> Personal {
        let spec = self.events.iter().find(|spec| spec.event_type == event.event_type);
        let own = spec.map_or_else(|| Some(event.id.clone()), |spec| self.subject_of_event(spec, event));
        let data = spec.and_then(|spec| spec.personal.part(own));
        let change = |cause: &crate::event::Cause| {
            let table = self.table_named(&cause.table).filter(|table| !table.personal.seal.is_empty())?;
            let row = cause.after.as_deref().or(cause.before.as_deref())?;
            // The same whatever event it led to, and whether or not that says whose it is.
            let its_own = || row_subject(source, &cause.table, &cause.key);
            table.personal.part(Some(
                self.subject_of(table, row).filter(|subject| !subject.is_empty()).unwrap_or_else(its_own),
            ))
        };
        Personal { data, changes: event.causes.iter().map(change).collect() }
    }

    /// Whose row it is, as the mapping says.
    #[must_use]
    pub fn subject_of(&self, table: &TableSpec, row: &Row) -> Option<String> {
        let own = [("row", Variable::Row(row))];
        let scope = Scope::over(own.into_iter().chain(self.constants.variables()));
        match table.personal.subject.as_ref()?.evaluate(&scope) {
            Ok(Value::String(subject)) => Some(subject),
            _ => None,
        }
    }

    fn subject_of_event(&self, spec: &EventSpec, event: &CanonicalEvent) -> Option<String> {
        let Some(subject) = &spec.personal.subject else { return Some(event.id.clone()) };
        let own = [("event", Variable::Value(&event.data))];
        match subject.evaluate(&Scope::over(own.into_iter().chain(self.constants.variables()))) {
            Ok(Value::String(subject)) => Some(subject),
            // Whoever it is about: the object itself is the nearest that is known.
            _ => Some(event.id.clone()),
        }
    }
}
