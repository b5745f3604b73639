//! One tree for every file that people write: TOML settings, YAML mappings, connectors and routes.
//!
//! Each node knows its line, and a [`Fields`] reader takes the keys of a map one by one and reports what is
//! missing, of the wrong type or unknown. Nothing stops at the first mistake: [`Problems`] collects them all
//! (INV-11), so that a person mends a file once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A mistake in a file: where, what is wrong, what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file as the person named it.
    pub file: PathBuf,
    /// First line is 1; 0 when the whole file is meant.
    pub line: usize,
    /// First column is 1; 0 when the whole line is meant.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub instead: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.file.display(), self.line)?;
        if self.column > 0 {
            write!(f, "{}:", self.column)?;
        }
        write!(f, " {}", self.what)?;
        if !self.instead.is_empty() {
            write!(f, "\n  instead: {}", self.instead)?;
        }
        Ok(())
    }
}

/// Every mistake found so far.
#[derive(Debug, Default, Clone)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one mistake.
    pub fn add(&mut self, at: &At, what: impl Into<String>, instead: impl Into<String>) {
        self.0.push(Problem {
            file: at.file.clone(),
            line: at.line,
            column: at.column,
            what: what.into(),
            instead: instead.into(),
        });
    }

    /// True while nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mistakes, by file and line.
    #[must_use]
    pub fn sorted(mut self) -> Vec<Problem> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The file as the person named it.
    pub file: PathBuf,
    /// First line is 1; 0 when the whole file is meant.
    pub line: usize,
    /// First column is 1; 0 when the whole line is meant.
    pub column: usize,
}

impl At {
    /// The file as a whole.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self { file: path.to_path_buf(), line: 0, column: 0 }
    }
}

/// What stands at a place.
#[derive(Debug, Clone)]
pub enum Content {
    /// A string, number, boolean or null.
    Scalar(Value),
    /// A sequence.
    List(Vec<Node>),
    /// A map with string keys, in the order of the file.
    Map(Vec<(String, Node)>),
}

/// A value and the place it stands at.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where.
    pub at: At,
    /// What.
    pub content: Content,
}

impl Node {
    /// The node as plain JSON, places forgotten.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Map(entries) => {
                Value::Object(entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect())
            }
        }
    }

    /// The string, or a problem.
    pub fn string(&self, problems: &mut Problems) -> Option<String> {
        match &self.content {
            Content::Scalar(Value::String(text)) => Some(text.clone()),
            other => {
                problems.add(
                    &self.at,
                    format!("expected a string, found {}", kind(other)),
                    "put the value in quotes",
                );
                None
            }
        }
    }

    /// The boolean, or a problem.
    pub fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match &self.content {
            Content::Scalar(Value::Bool(value)) => Some(*value),
            other => {
                problems.add(
                    &self.at,
                    format!("expected true or false, found {}", kind(other)),
                    "true or false",
                );
                None
            }
        }
    }

    /// The whole number of at least `least`, or a problem.
    pub fn whole(&self, least: u64, problems: &mut Problems) -> Option<u64> {
        match &self.content {
            Content::Scalar(value) if value.as_u64().is_some_and(|n| n >= least) => value.as_u64(),
            other => {
                problems.add(
                    &self.at,
                    format!("expected a whole number of at least {least}, found {}", kind(other)),
                    format!("a number such as {}", least.max(1)),
                );
                None
            }
        }
    }

    /// The items of a list, or a problem.
    pub fn list(&self, problems: &mut Problems) -> Vec<Self> {
        match &self.content {
            Content::List(items) => items.clone(),
            other => {
                problems.add(
                    &self.at,
                    format!("expected a list, found {}", kind(other)),
                    "[a, b] or one `- item` per line",
                );
                Vec::new()
            }
        }
    }

    /// The strings of a list, or problems.
    pub fn strings(&self, problems: &mut Problems) -> Vec<String> {
        self.list(problems).iter().filter_map(|item| item.string(problems)).collect()
    }

    /// The entries of a map, or a problem.
    pub fn entries(&self, problems: &mut Problems) -> Vec<(String, Self)> {
        match &self.content {
            Content::Map(entries) => entries.clone(),
            other => {
                problems.add(&self.at, format!("expected a map, found {}", kind(other)), "key: value pairs");
                Vec::new()
            }
        }
    }

    /// A reader over the keys of a map.
    pub fn fields(&self, problems: &mut Problems) -> Fields {
        Fields { at: self.at.clone(), left: self.entries(problems).into_iter().collect(), known: Vec::new() }
    }
}

/// Takes the keys of one map; [`Fields::finish`] reports those nobody asked for.
#[derive(Debug)]
pub struct Fields {
    /// Where the map begins.
    pub at: At,
    left: BTreeMap<String, Node>,
    known: Vec<&'static str>,
}

impl Fields {
    /// The value under `key`, when there is one.
    pub fn optional(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        self.left.remove(key)
    }

    /// The value under `key`, or a problem.
    pub fn required(&mut self, key: &'static str, example: &str, problems: &mut Problems) -> Option<Node> {
        let found = self.optional(key);
        if found.is_none() {
            let toml = self.at.file.extension().is_some_and(|extension| extension == "toml");
            let instead = match (toml, example.starts_with('[')) {
                (true, true) => example.to_owned(),
                (true, false) => format!("{key} = {example}"),
                (false, _) => format!("{key}: {example}"),
            };
            problems.add(&self.at, format!("`{key}` is missing"), instead);
        }
        found
    }

    /// The string under `key`, or a problem.
    pub fn string(&mut self, key: &'static str, example: &str, problems: &mut Problems) -> Option<String> {
        self.required(key, example, problems)?.string(problems)
    }

    /// Reports every key that was never asked for, with the nearest known one.
    pub fn finish(self, problems: &mut Problems) {
        for (key, node) in &self.left {
            let instead = nearest(key, &self.known).map_or_else(
                || format!("one of: {}", self.known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            problems.add(&node.at, format!("unknown key `{key}`"), instead);
        }
    }
}

/// The candidate that differs from `word` by at most two edits.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let scored = candidates.iter().map(|candidate| (edits(word, candidate), *candidate));
    scored.filter(|(distance, _)| *distance <= 2).min().map(|(_, candidate)| candidate)
}

/// Levenshtein distance, one row at a time.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (cb, above) in b.iter().zip(row.iter().skip(1)) {
            let cost = if ca == *cb { diagonal } else { diagonal + 1 };
            left = cost.min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

fn kind(content: &Content) -> &'static str {
    match content {
        Content::List(_) => "a list",
        Content::Map(_) => "a map",
        Content::Scalar(Value::Null) => "nothing",
        Content::Scalar(Value::Bool(_)) => "a boolean",
        Content::Scalar(Value::Number(_)) => "a number",
        Content::Scalar(_) => "a string",
    }
}
