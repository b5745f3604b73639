//! What an object is when several sources speak of it: of each field the newest word of those that have a say in it. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Stands for the time of a field that two sources changed without knowing of each other, where nobody's word may count then.
pub const DISPUTED: i64 = -1;

/// What a source says of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Word {
    /// Fields that it has a say in.
    pub data: Map<String, Value>,
    /// Since when it says so, by field, in milliseconds since 1970; 0 for what it has always said.
    pub changed: BTreeMap<String, i64>,
}

/// What all sources say of an object, by source.
pub type Words = BTreeMap<String, Word>;

/// Two sources changed a field, each without knowing of the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// The field.
    pub field: String,
    /// The source that spoke last, and what it says.
    pub said: Value,
    /// Another one, and what it said.
    pub by_other: (String, Value),
    /// Whose word counts.
    pub kept: String,
}

impl Word {
    /// What a source says now that said `earlier` before. `at_ms`: since when, at the latest; `listed`: it came with a load, so what
    /// is new to us may always have been so.
    #[must_use]
    pub fn now(
        data: &Value,
        foreign: &[String],
        (at_ms, listed): (i64, bool),
        earlier: Option<&Self>,
    ) -> Self {
        let mut word = Self::default();
        for (field, value) in data.as_object().into_iter().flatten() {
            if field == "id" || foreign.contains(field) {
                continue;
            }
            let before = earlier.and_then(|earlier| Some((earlier, earlier.data.get(field)?)));
            let since = match before {
                Some((earlier, same)) if same == value => earlier.since(field),
                None if listed => 0,
                Some(_) | None => at_ms,
            };
            word.changed.insert(field.clone(), since);
            word.data.insert(field.clone(), value.clone());
        }
        word
    }

    /// Nobody's word counts for the field until this source speaks of it again, or all say the same.
    pub fn dispute(&mut self, field: &str) {
        self.changed.insert(field.to_owned(), DISPUTED);
    }

    fn since(&self, field: &str) -> i64 {
        self.changed.get(field).copied().unwrap_or_default()
    }
}

/// Fields that `source` has just changed although another source had changed them, which it did not know. `before`: what all said
/// until now.
#[must_use]
pub fn conflicts(source: &str, now: &Word, before: &Words) -> Vec<Conflict> {
    let Some(earlier) = before.get(source) else { return Vec::new() };
    let mut found = Vec::new();
    for (field, value) in &now.data {
        let known = earlier.data.get(field);
        if known.is_none() || known == Some(value) {
            continue;
        }
        for (other, word) in before.iter().filter(|(other, _)| *other != source) {
            let Some(theirs) = word.data.get(field) else { continue };
            let unknown = known != Some(theirs) && word.since(field) > earlier.since(field);
            if theirs != value && unknown {
                let kept = if word.since(field) > now.since(field) { other } else { source };
                let by_other = (other.clone(), theirs.clone());
                found.push(Conflict {
                    field: field.clone(),
                    said: value.clone(),
                    by_other,
                    kept: kept.to_owned(),
                });
            }
        }
    }
    found
}

/// Whose word an object is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Fields of which nobody who has a say has spoken.
    pub unknown: Vec<String>,
    /// For all others, by field, who spoke last.
    pub by: BTreeMap<String, String>,
}

/// Brings `data`, an event of `source`, to what all say of the object.
pub fn merge(data: &mut Value, foreign: &[String], source: &str, words: &Words) -> Merged {
    let mut merged = Merged::default();
    let Value::Object(map) = data else { return Merged { unknown: foreign.to_vec(), ..merged } };
    for (field, value) in map.iter_mut().filter(|(field, _)| *field != "id") {
        let spoken = words.iter().filter(|(_, word)| word.data.contains_key(field));
        let disputed = spoken.clone().any(|(_, word)| word.since(field) == DISPUTED);
        let mut said = spoken.clone().map(|(_, word)| word.data.get(field));
        let first = said.next();
        if disputed && !said.all(|other| Some(other) == first) {
            merged.unknown.push(field.clone());
            continue;
        }
        let newest = spoken.max_by_key(|(name, word)| (word.since(field), *name == source));
        match newest.and_then(|(name, word)| Some((name, word.data.get(field)?))) {
            Some((name, said)) => {
                *value = said.clone();
                merged.by.insert(field.clone(), name.clone());
            }
            None if foreign.contains(field) => merged.unknown.push(field.clone()),
            None => {}
        }
    }
    merged
}
