//! `mappings/ownership.yaml`: which system is authoritative for which field.
//!
//! ```yaml
//! format: 1
//! owners:
//!   customer:
//!     "*": odoo          # every field that is not named; whoever makes the event when there is no such line
//!     email: stripe
//! conflicts:             # two systems changed a field that nobody owns, neither knowing of the other
//!   customer:
//!     phone: park        # nobody's word counts until one speaks again or both say the same; default: newest
//! ```
//!
//! What a source says of a field that it does not own goes nowhere: the field is null in its events, which say so (`foreign`), and
//! nothing that is made of it is written anywhere. A change of it is drift, and put right where the system is a target.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::file::{check_format, read};
use super::schema;
use super::shape::suggestion;
use crate::config::node::{At, Node, Problems};

/// A field's owner, and where that is said.
type Owner = (String, At);

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Ownership {
    owners: BTreeMap<String, BTreeMap<String, Owner>>,
    /// Fields of objects for which neither word counts in a conflict.
    parked: BTreeMap<String, BTreeSet<String>>,
}

impl Ownership {
    /// Loads the file; without one each source owns what it says.
    pub fn load(mappings: &Path, problems: &mut Problems) -> Self {
        let path = mappings.join("ownership.yaml");
        if !path.exists() {
            return Self::default();
        }
        let node = read(&path, problems).and_then(|text| Node::from_yaml(&path, &text, problems));
        let Some(node) = node else { return Self::default() };
        let mut fields = node.fields(problems);
        check_format(&mut fields, problems);
        let objects = fields.required("owners", "customer: { email: stripe }", problems);
        let conflicts = fields.optional("conflicts").map(|node| node.entries(problems)).unwrap_or_default();
        fields.finish(problems);
        let parked = conflicts.iter().map(|(object, node)| (object.clone(), read_parked(node, problems)));
        let parked = parked.collect();
        let mut owners = BTreeMap::new();
        for (object, node) in objects.map(|node| node.entries(problems)).unwrap_or_default() {
            let named = node.entries(problems).into_iter();
            let owner = |(field, node): (String, Node)| Some((field, (node.string(problems)?, node.at)));
            owners.insert(object, named.filter_map(owner).collect());
        }
        Self { owners, parked }
    }

    /// Whose word counts for a field of an object, and where that is said; `None`: whoever makes the event.
    fn owner(&self, object: &str, field: &str) -> Option<&Owner> {
        let fields = self.owners.get(object)?;
        fields.get(field).or_else(|| fields.get("*"))
    }

    /// True when `system` may say what the field is.
    #[must_use]
    pub fn may_say(&self, system: &str, object: &str, field: &str) -> bool {
        field == "id" || self.owner(object, field).is_none_or(|(owner, _)| owner == system)
    }

    /// True when in a conflict about the field nobody's word counts.
    #[must_use]
    pub fn parks(&self, object: &str, field: &str) -> bool {
        self.parked.get(object).is_some_and(|fields| fields.contains(field) || fields.contains("*"))
    }

    /// True when `system` has no say in some field of an object.
    #[must_use]
    pub fn is_shared(&self, system: &str, object: &str) -> bool {
        self.owners.get(object).is_some_and(|fields| fields.values().any(|(owner, _)| owner != system))
    }

    /// Reports objects and fields that no event has. `fields_of`: of an object, `None` when there is none.
    pub fn check_names(&self, fields_of: &dyn Fn(&str) -> Option<Vec<String>>, problems: &mut Problems) {
        for (object, fields) in &self.owners {
            let at = fields.values().next().map(|(_, at)| at.clone());
            let Some(known) = fields_of(object) else {
                let at = at.unwrap_or_else(|| At::file(Path::new("ownership.yaml")));
                // What of the canonical events there is depends on the sources.
                if is_canonical(&at, object) {
                    continue;
                }
                problems.add(&at, format!("no event is about `{object}`"), "an object such as customer");
                continue;
            };
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            for (field, (_, at)) in
                fields.iter().filter(|(field, _)| *field != "*" && !known.contains(&field.as_str()))
            {
                let what = format!("`{object}` has no field `{field}`");
                problems.add(at, what, suggestion(field, &known, "one of"));
            }
        }
    }
}

/// True when there is a canonical event about the object, whoever makes it.
fn is_canonical(at: &At, object: &str) -> bool {
    let known = at.file.parent().map(schema::written).unwrap_or_default();
    known.keys().any(|event_type| event_type.rsplit_once(".v").is_some_and(|(name, _)| name == object))
}

/// Fields whose rule is `park`; the only other one is `newest`.
fn read_parked(node: &Node, problems: &mut Problems) -> BTreeSet<String> {
    let mut parked = BTreeSet::new();
    for (field, node) in node.entries(problems) {
        match node.string(problems).as_deref() {
            Some("park") => drop(parked.insert(field)),
            Some("newest") | None => {}
            Some(rule) => {
                let what = format!("there is no rule `{rule}` for conflicts");
                problems.add(&node.at, what, "newest, or park; an owner, where there is one, always wins");
            }
        }
    }
    parked
}
