//! What a ledger transaction says of deliveries: newly owed, about to be sent, and what became of them.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::batch::EntryIndex;
use crate::event::Priority;

/// An object at a target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    /// Target name.
    pub target: String,
    /// Object of its connector.
    pub object: String,
    /// Canonical id.
    pub canonical_id: String,
}

/// Something newly owed to a target.
#[derive(Debug, Clone)]
pub struct DeliveryWrite {
    /// Whom and what.
    pub lane: Lane,
    /// The event it delivers.
    pub event: EntryIndex,
    /// `upsert` or `delete`.
    pub operation: &'static str,
    /// A fact is never coalesced (INV-6).
    pub fact: bool,
    /// What goes first.
    pub priority: Priority,
    /// References that must stand at the target first.
    pub requires: Vec<String>,
    /// Why it is parked from the start, when it is.
    pub parked: Option<String>,
    /// Why it is held for a person, when it is.
    pub held: Option<String>,
    /// The target may have the object although the ledger does not know it: it is looked up before it is created.
    pub look_first: bool,
}

/// A delivery about to be requested (INV-3).
#[derive(Debug, Clone)]
pub struct SendingWrite {
    /// Delivery.
    pub id: i64,
    /// The same for all attempts of this round.
    pub idempotency_key: String,
    /// Exactly what will be sent.
    pub request: Value,
    /// When.
    pub attempted_at: Timestamp,
    /// If nothing is heard of it, it is resolved no sooner than that.
    pub settled_after: Option<Duration>,
}

/// A step of a bulk request.
#[derive(Debug, Clone)]
pub enum CallWrite {
    /// It is about to be sent.
    Begin {
        /// Its key.
        key: String,
        /// Target.
        target: String,
        /// Object of the connector.
        object: String,
        /// Which of the connector's bulk requests.
        way: i16,
        /// Deliveries in the order of the request.
        deliveries: Vec<i64>,
        /// Exactly what will be sent.
        request: Value,
        /// Process that sends it.
        epoch: i64,
    },
    /// It still waits until it may leave.
    Waiting {
        /// Its key.
        key: String,
        /// If nothing is heard of it, its deliveries are resolved no sooner than that.
        settled_after: Duration,
    },
    /// The vendor works it off in a job.
    Running {
        /// Its key.
        key: String,
        /// The vendor's number.
        job: String,
        /// When it is given up.
        patience: Duration,
    },
    /// The outcome of each of its deliveries is known, or will be found out one by one.
    Done {
        /// Its key.
        key: String,
    },
}

/// What became of a delivery.
#[derive(Debug, Clone)]
pub struct ClosedWrite {
    /// Delivery.
    pub id: i64,
    /// `applied`, `duplicate`, `superseded`, `rejected`, `parked`, `shadowed`.
    pub state: &'static str,
    /// Why.
    pub reason: Option<String>,
    /// What kind of reason it is, when it waits for a person.
    pub cause: Option<Cause>,
}

/// Why a delivery waits for a person: what is done about it depends on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The target refuses it.
    Refused,
    /// An expression of a mapping, a route or a connector fails on it.
    Mapping,
    /// It is not known whether its request was carried out.
    Doubt,
    /// Several objects at the target may be it.
    Ambiguous,
    /// Another object has a value that it cannot do without.
    Unique,
    /// The ledger refuses what came of it.
    Ledger,
    /// Its event cannot be read back.
    Unreadable,
}

impl Cause {
    /// In the ledger and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Mapping => "mapping",
            Self::Doubt => "doubt",
            Self::Ambiguous => "ambiguous",
            Self::Unique => "unique",
            Self::Ledger => "ledger",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A delivery to be tried again.
#[derive(Debug, Clone)]
pub struct RetryWrite {
    /// Delivery.
    pub id: i64,
    /// Not before.
    pub due_at: Timestamp,
    /// Why.
    pub reason: String,
    /// `pending`: nothing is in doubt; `sending`: the last request's outcome is not known.
    pub uncertain: bool,
    /// Begin a new round: the next request is a new one with a new key.
    pub new_round: bool,
    /// A look-up, which is not counted as an attempt otherwise.
    pub counted: bool,
    /// It does not go with others in one request any more.
    pub alone: bool,
    /// The attempt was answered with a stored answer, so the last one that may have been carried out is an earlier one.
    pub replayed_since: Option<Timestamp>,
}

/// A delivery that waits until another object has come to stand at the target, or will not.
#[derive(Debug, Clone)]
pub struct WaitWrite {
    /// Delivery.
    pub id: i64,
    /// `object/canonical id`.
    pub reference: String,
    /// Without it there is nothing to send: it waits until it stands, not only while it is on its way.
    pub needed: bool,
}

/// What a target holds of an object from now on.
#[derive(Debug, Clone)]
pub struct AppliedWrite {
    /// Whom and what.
    pub lane: Lane,
    /// The target's own id; `None` when the object is gone there.
    pub external_id: Option<String>,
    /// Digest of the body it accepted.
    pub sha256: Option<String>,
    /// That body, where it matters what the target is seen to hold.
    pub body: Option<Value>,
    /// The delivery that was accepted.
    pub delivery: i64,
    /// The outcome.
    pub outcome: EntryIndex,
    /// Unique values this object holds at the target now; all others of it are released.
    pub holds: Vec<String>,
    /// Objects here can wait for each other, so wishes may have to be granted.
    pub grants: bool,
}

/// Unique values taken and wishes noted with an attempt.
#[derive(Debug, Clone)]
pub struct ClaimWrite {
    /// Whom and what.
    pub lane: Lane,
    /// Values taken.
    pub reserve: Vec<String>,
    /// Values or references it has to do without.
    pub wishes: Vec<String>,
    /// The event that is sent without them.
    pub event_seq: i64,
    /// References of that event.
    pub requires: Vec<String>,
}
