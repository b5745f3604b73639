//! One object: what a row is, compared with what was last emitted for it. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::document::{Part, joined, parts};
use super::overlay::{Drift, Emission, Overlay};
use super::project::{Emitted, Projection, Stamp};
use crate::bounds::{ID_BYTES, is_id, shown};
use crate::event::{
    CanonicalEvent, Cause, ChangePosition, Operation, Row, canonical_bytes, event_id, sha256_hex,
};
use crate::mapping::{EventSpec, Joined, JoinedRow};

impl Projection<'_> {
    /// What an object is now, whether or not it was emitted so, and the rows it is made of; `None` when the row is no such
    /// object.
    #[must_use]
    pub fn explained(
        &self,
        overlay: &Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        at: crate::event::Lsn,
    ) -> Option<(Emitted, Vec<Part>)> {
        let image = overlay.image(&spec.table, key)?;
        let (row, known) = (image.row.clone()?, image.emission(&spec.event_type).is_some());
        let (id, data, fault) = self.evaluated(overlay, spec, key, &row)?.checked(spec)?;
        let position = ChangePosition { commit_lsn: at, ordinal: 0 };
        let stamp = Stamp { position, committed_at: jiff::Timestamp::UNIX_EPOCH, xid: None, snapshot: false };
        let operation = if known { Operation::Update } else { Operation::Create };
        let event = self.event(spec, &stamp, (operation, id, data), Vec::new());
        let parts = parts(overlay, &spec.joins, &[(key.to_owned(), row)], 0);
        Some((Emitted { event, fault, heals: false }, parts))
    }

    /// The events of the object that a row is, when its data is not what was last emitted: one as a rule, two when the
    /// row has become another object.
    pub(super) fn object(
        &self,
        overlay: &mut Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        causes: Vec<Cause>,
        stamp: &Stamp,
    ) -> Vec<Emitted> {
        let Some(image) = overlay.image(&spec.table, key) else { return Vec::new() };
        let (row, known) = (image.row.clone(), image.emission(&spec.event_type).cloned());
        let Some(now) = row.map_or(Some(Evaluated::Nothing), |row| self.evaluated(overlay, spec, key, &row))
        else {
            return Vec::new();
        };
        let (now, fault) = match now.checked(spec) {
            None => (None, None),
            Some((id, data, fault)) => (Some((id, data)), fault),
        };
        let Own { now, foreign, said, mut theirs } = self.own(spec, now);
        let emission = now.as_ref().map(|(id, data)| Emission {
            event_type: spec.event_type.clone(),
            id: id.clone(),
            sha256: digest(data, fault.as_deref()),
            held: fault.is_some(),
            foreign: said,
        });
        if emission == known {
            return Vec::new();
        }
        if let (Some(now), Some(known)) = (&emission, &known)
            && now.id == known.id
            && now.foreign != known.foreign
        {
            let changed = drifted(&known.foreign, &now.foreign).into_iter();
            let fields = changed
                .map(|field| {
                    let said = theirs.remove(&field).unwrap_or_default();
                    (field, said)
                })
                .collect();
            overlay.note_drift(Drift { event_type: now.event_type.clone(), id: now.id.clone(), fields });
            if now.sha256 == known.sha256 && now.held == known.held {
                overlay.set_emission(&spec.table, key, &spec.event_type, emission);
                return Vec::new();
            }
        }
        let heals = known.as_ref().is_some_and(|known| known.held);
        let stays = known.as_ref().is_some_and(|known| now.as_ref().is_some_and(|(id, _)| *id == known.id));
        let mut emitted = Vec::new();
        if let Some(known) = known.filter(|_| !stays) {
            let event = self.event(spec, stamp, (Operation::Delete, known.id, Value::Null), causes.clone());
            emitted.push(Emitted { event, fault: None, heals });
        }
        if let Some((id, data)) = now {
            let operation = if stays { Operation::Update } else { Operation::Create };
            let event = self.event(spec, stamp, (operation, id, data), causes);
            let event = CanonicalEvent { foreign, ..event };
            emitted.push(Emitted { event, fault, heals: heals && stays });
        }
        overlay.set_emission(&spec.table, key, &spec.event_type, emission);
        emitted
    }

    /// The object without what the source has no say in.
    fn own(&self, spec: &EventSpec, now: Option<(String, Value)>) -> Own {
        let (ownership, source) = (&self.mapping.ownership, &self.mapping.name);
        let Some((id, mut data)) = now else { return Own::default() };
        let (mut foreign, mut said, mut theirs) = (Vec::new(), Vec::new(), Map::new());
        let shared = ownership.is_shared(source, &spec.object) || spec.says.is_some();
        if let Value::Object(map) = &mut data
            && shared
        {
            for (field, value) in map.iter_mut().filter(|(field, _)| *field != "id") {
                let silent = spec.says.as_ref().is_some_and(|says| !says.contains(field));
                if silent || !ownership.may_say(source, &spec.object, field) {
                    foreign.push(field.clone());
                    if !silent {
                        let digest = sha256_hex(&canonical_bytes(value));
                        said.push(format!("{field}={}", digest.get(..8).unwrap_or_default()));
                        theirs.insert(field.clone(), std::mem::take(value));
                    }
                    *value = Value::Null;
                }
            }
        }
        Own { now: Some((id, data)), foreign, said: said.join(" "), theirs }
    }

    /// The event of a row that has gone.
    pub(super) fn departure(
        &self,
        overlay: &Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        causes: Vec<Cause>,
        stamp: &Stamp,
    ) -> Option<Emitted> {
        let gone = causes.iter().find(|cause| cause.table == spec.table && cause.after.is_none())?;
        let row = gone.before.clone()?;
        let (id, data, fault) = self.evaluated(overlay, spec, key, &row)?.checked(spec)?;
        let event = self.event(spec, stamp, (Operation::Create, id, data), causes);
        Some(Emitted { event, fault, heals: false })
    }

    fn event(
        &self,
        spec: &EventSpec,
        stamp: &Stamp,
        (operation, id, data): (Operation, String, Value),
        causes: Vec<Cause>,
    ) -> CanonicalEvent {
        CanonicalEvent {
            event_id: event_id(self.source, self.cluster, &stamp.position, &spec.event_type, &id),
            event_type: spec.event_type.clone(),
            operation,
            id,
            data,
            foreign: Vec::new(),
            position: stamp.position.clone(),
            committed_at: stamp.committed_at,
            xid: stamp.xid,
            snapshot: stamp.snapshot,
            causes,
        }
    }

    /// What the row is; `None` when something has to be loaded first.
    fn evaluated(&self, overlay: &Overlay<'_>, spec: &EventSpec, key: &str, row: &Row) -> Option<Evaluated> {
        let constants = &self.mapping.constants;
        if !spec.may_be(constants, row) {
            return Some(Evaluated::Nothing);
        }
        // A row without a canonical id cannot be told apart from others; it is reported under its key.
        let own_key = || format!("{}-{}-{}", self.source.to_uppercase(), spec.table, shown(key));
        let id = match spec.canonical_id(constants, row) {
            Ok(id) if is_id(&id) => id,
            Ok(id) => {
                let reason = format!("its canonical id has {} bytes; {ID_BYTES} is the most", id.len());
                return Some(Evaluated::Fault(own_key(), reason));
            }
            Err(error) => {
                let reason = row.left_out().map_or_else(|| error.to_string(), str::to_owned);
                return Some(Evaluated::Fault(own_key(), reason));
            }
        };
        let joined = joined(overlay, &spec.joins, key, row)?;
        Some(match spec.evaluate(constants, row, &joined) {
            Ok(Some(data)) => {
                let data = with_id(data, &id);
                Evaluated::Object(id, data)
            }
            Ok(None) => Evaluated::Nothing,
            // Something that it reads was left out, as a rule; what and why is what a person has to know.
            Err(error) => {
                let noted = row.left_out().or_else(|| joined.iter().find_map(|(_, rows)| left_out(rows)));
                Evaluated::Fault(
                    id,
                    noted.map_or_else(|| error.to_string(), |why| format!("{why} ({error})")),
                )
            }
        })
    }
}

/// What was left out of joined rows, and why.
fn left_out(rows: &Joined) -> Option<&str> {
    match rows {
        Joined::One(row) => left_out_below(row),
        Joined::Many(rows) => rows.iter().find_map(left_out_below),
    }
}

fn left_out_below(row: &JoinedRow) -> Option<&str> {
    row.row.left_out().or_else(|| row.joins.iter().find_map(|(_, rows)| left_out(rows)))
}

/// What a source may say of an object.
#[derive(Default)]
struct Own {
    /// Canonical id and data, without the rest.
    now: Option<(String, Value)>,
    /// Fields that are the rest.
    foreign: Vec<String>,
    /// A digest of what it says of them all the same.
    said: String,
    /// What that is.
    theirs: Map<String, Value>,
}

/// What a row is.
enum Evaluated {
    /// No such object.
    Nothing,
    /// An object: canonical id and data.
    Object(String, Value),
    /// It may be one, but could not be worked out: canonical id and reason.
    Fault(String, String),
}

impl Evaluated {
    /// Canonical id, data, and what is wrong with it; `None` for nothing.
    fn checked(self, spec: &EventSpec) -> Option<(String, Value, Option<String>)> {
        match self {
            Self::Nothing => None,
            Self::Object(id, data) => {
                let fault = spec.schema.violation(&data);
                Some((id, data, fault))
            }
            Self::Fault(id, reason) => {
                let data = with_id(Value::Null, &id);
                Some((id, data, Some(reason)))
            }
        }
    }
}

/// Fields of which something else is said now.
fn drifted(before: &str, now: &str) -> Vec<String> {
    let before: BTreeSet<&str> = before.split(' ').collect();
    let changed = now.split(' ').filter(|said| !before.contains(said));
    changed.filter_map(|said| Some(said.split_once('=')?.0.to_owned())).collect()
}

/// What tells an emission from the one before it: the data, and what is wrong with it.
fn digest(data: &Value, fault: Option<&str>) -> String {
    let mut bytes = canonical_bytes(data);
    bytes.extend(fault.into_iter().flat_map(str::bytes));
    sha256_hex(&bytes)
}

fn with_id(data: Value, id: &str) -> Value {
    let mut map = match data {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.insert("id".into(), Value::String(id.to_owned()));
    Value::Object(map)
}
