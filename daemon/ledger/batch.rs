//! What one ledger transaction writes. Everything that happens between two commits is described here first; nothing
//! else writes to the ledger.

use std::sync::Arc;

use serde_json::Value;

pub use super::owed::{
    AppliedWrite, CallWrite, Cause, ClaimWrite, ClosedWrite, DeliveryWrite, Lane, RetryWrite, SendingWrite,
    WaitWrite,
};

use super::entry::{EntryKind, NewEntry};
use super::held::SeenWrite;
use super::loads::{Part, Request};
use super::parked::{Parked, ParkedName};
use super::polls::PollWrite;
use super::position::Position;
use super::reconcile::ReconcileWrite;
use super::said::SaidWrite;
use crate::event::{self, Row};
use crate::image::Image;

/// An entry of this batch, by its index in [`Batch::entries`]: its `seq` is known only when the batch is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryIndex(pub usize);

/// What is kept of a row from now on.
#[derive(Debug, Clone)]
pub struct ImageWrite {
    /// Source name.
    pub source: Arc<str>,
    /// Table.
    pub relation: Arc<str>,
    /// Row key.
    pub key: String,
    /// Row and emissions; nothing of it is kept when it [is nothing](Image::is_nothing).
    pub image: Image,
    /// The row itself changed, not only what was emitted for it.
    pub row_changed: bool,
}

/// What a load, or the stream during one, says of a row while no events are made. What was emitted for it stays.
#[derive(Debug, Clone)]
pub enum QuietState {
    /// All its columns.
    Whole(Arc<Row>),
    /// Some of its columns; if there is no image the row is still to be read.
    Part(Row),
    /// It is gone.
    Gone,
}

/// Rows of one table, written without events.
#[derive(Debug, Clone)]
pub struct QuietWrite {
    /// Source name.
    pub source: String,
    /// Table.
    pub relation: String,
    /// The load that is going on.
    pub load: i64,
    /// TRUNCATE came first.
    pub truncated: bool,
    /// Row key and what is said of it; each key once.
    pub rows: Vec<(String, QuietState)>,
}

/// An object that a large transaction touched, until all of the transaction is there.
#[derive(Debug, Clone)]
pub struct SpillWrite {
    /// Source name.
    pub source: String,
    /// Type with version.
    pub event_type: String,
    /// Table of the row that the object is.
    pub root: String,
    /// Key of that row.
    pub key: String,
    /// Ordinal of the last change.
    pub ordinal: u64,
    /// The row changes behind it.
    pub causes: Vec<event::Cause>,
}

/// Spilled objects that have been worked out.
#[derive(Debug, Clone)]
pub struct SpillDone {
    /// Source name.
    pub source: String,
    /// Type with version and root table; `None` for everything of the source.
    pub of: Option<(String, String)>,
    /// Keys.
    pub keys: Vec<String>,
}

/// A step of a load.
#[derive(Debug, Clone)]
pub enum LoadWrite {
    /// It begins, with these key ranges.
    Begin {
        /// Number.
        load: i64,
        /// Key ranges.
        parts: Vec<Part>,
    },
    /// A key range has come this far.
    Progress(Part),
    /// These rows stand at the source.
    Seen {
        /// Number.
        load: i64,
        /// Source name.
        source: String,
        /// Table.
        relation: String,
        /// Row keys.
        keys: Vec<String>,
    },
    /// Whatever it did not see of these tables is gone.
    Sweep {
        /// Number.
        load: i64,
        /// Source name.
        source: String,
        /// Tables.
        relations: Vec<String>,
    },
    /// It is over.
    End {
        /// Number.
        load: i64,
        /// Nothing was read, because it makes no sense.
        refused: bool,
    },
    /// Changes of a table may have been missed: it is to be read again.
    Forget {
        /// Source name.
        source: String,
        /// Table.
        relation: String,
    },
    /// What of a table is in the images.
    Relation {
        /// Source name.
        source: String,
        /// Table.
        relation: String,
        /// OID of the table.
        oid: u32,
        /// OID of its membership in the publication.
        member: u32,
        /// Columns.
        columns: Vec<String>,
        /// What the columns and partitions are.
        shape: String,
    },
    /// It is asked for.
    Ask(Request),
}

/// See the module's text. Writes happen in the order of the fields.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Sources whose images are forgotten, before their first load begins anew.
    pub forget: Vec<String>,
    /// Entries, covered by the tree.
    pub entries: Vec<NewEntry>,
    /// Subjects that are forgotten from now on.
    pub erased: Vec<String>,
    /// New halves of keys: subject, salt.
    pub keys: Vec<(String, Vec<u8>)>,
    /// Row images.
    pub images: Vec<ImageWrite>,
    /// Rows without events.
    pub quiet: Vec<QuietWrite>,
    /// Objects to be worked out later.
    pub spilled: Vec<SpillWrite>,
    /// Objects that have been.
    pub unspilled: Vec<SpillDone>,
    /// Steps of loads, after the rows they are about.
    pub loads: Vec<LoadWrite>,
    /// Objects whose document was held back, and the event that makes up for it: what is parked of them is replaced.
    pub healed: Vec<(Lane, EntryIndex)>,
    /// Newly owed.
    pub deliveries: Vec<DeliveryWrite>,
    /// What sources say of objects that several speak of.
    pub said: Vec<SaidWrite>,
    /// Objects at targets that are seen to be something else than we made them.
    pub seen: Vec<SeenWrite>,
    /// Steps of comparisons with what targets hold, before the checks that they lead to.
    pub reconciled: Vec<ReconcileWrite>,
    /// Objects of which it is looked whether they are what they should be, after everything else.
    pub checks: Vec<Lane>,
    /// What waits by name and is no delivery.
    pub parked: Vec<Parked>,
    /// What of that has come right.
    pub healed_parked: Vec<ParkedName>,
    /// Where a source stands afterwards.
    pub positions: Vec<Position>,
    /// Where streams of polled systems stand afterwards.
    pub polls: Vec<PollWrite>,
    /// Values that somebody else holds at a target, as it told the lane that wanted them.
    pub foreign: Vec<(Lane, String, i64)>,
    /// Unique values and wishes.
    pub claims: Vec<ClaimWrite>,
    /// What people asked for.
    pub commands: Vec<super::command::Asked>,
    /// Commands that are not carried out, and why.
    pub refused: Vec<(i64, String)>,
    /// How targets look to a process: target, epoch, what people are shown.
    pub states: Vec<(String, i64, Value)>,
    /// Deliveries that people have decided about.
    pub decided: Vec<(super::deliveries::Verb, Vec<i64>)>,
    /// Targets whose shadowed deliveries are owed after all.
    pub live: Vec<String>,
    /// About to be sent.
    pub sending: Vec<SendingWrite>,
    /// Steps of bulk requests.
    pub calls: Vec<CallWrite>,
    /// Finished.
    pub closed: Vec<ClosedWrite>,
    /// To be tried again.
    pub retries: Vec<RetryWrite>,
    /// To be left alone for now.
    pub waits: Vec<WaitWrite>,
    /// Accepted by targets.
    pub applied: Vec<AppliedWrite>,
}

impl Batch {
    /// Rows that it writes, about.
    #[must_use]
    pub fn rows(&self) -> usize {
        let quiet: usize = self.quiet.iter().map(|write| write.rows.len()).sum();
        self.images.len() + quiet + self.spilled.len() + self.deliveries.len() + self.applied.len()
    }

    /// True when there is nothing to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let source = self.entries.is_empty() && self.images.is_empty() && self.loads.is_empty();
        source
            && self.rows() == 0
            && self.polls.is_empty()
            && self.positions.is_empty()
            && self.healed_parked.is_empty()
    }

    /// The index of the entry that is added next.
    #[must_use]
    pub fn next_entry(&self) -> EntryIndex {
        EntryIndex(self.entries.len())
    }

    /// Adds an entry.
    pub fn entry(&mut self, entry: NewEntry) -> EntryIndex {
        self.entries.push(entry);
        EntryIndex(self.entries.len() - 1)
    }

    /// Parks something, with the entry that says so.
    pub fn park(&mut self, parked: Parked) {
        self.entry(NewEntry::new(EntryKind::Gap, None, parked.to_json()));
        self.parked.push(parked);
    }

    /// Adds everything of `other` behind what is here.
    pub fn append(&mut self, other: Self) {
        let shift = self.entries.len();
        let moved = |index: EntryIndex| EntryIndex(index.0 + shift);
        self.forget.extend(other.forget);
        self.entries.extend(other.entries);
        self.erased.extend(other.erased);
        self.keys.extend(other.keys);
        self.images.extend(other.images);
        self.quiet.extend(other.quiet);
        self.spilled.extend(other.spilled);
        self.unspilled.extend(other.unspilled);
        self.loads.extend(other.loads);
        self.healed.extend(other.healed.into_iter().map(|(lane, entry)| (lane, moved(entry))));
        self.deliveries.extend(other.deliveries.into_iter().map(|mut write| {
            write.event = moved(write.event);
            write
        }));
        self.said.extend(other.said.into_iter().map(|mut write| {
            write.event = moved(write.event);
            write
        }));
        self.seen.extend(other.seen);
        self.reconciled.extend(other.reconciled);
        self.checks.extend(other.checks);
        self.parked.extend(other.parked);
        self.healed_parked.extend(other.healed_parked);
        self.positions.extend(other.positions);
        self.polls.extend(other.polls);
        self.foreign.extend(other.foreign);
        self.claims.extend(other.claims);
        self.commands.extend(other.commands);
        self.refused.extend(other.refused);
        self.live.extend(other.live);
        self.states.extend(other.states);
        self.decided.extend(other.decided);
        self.sending.extend(other.sending);
        self.calls.extend(other.calls);
        self.closed.extend(other.closed);
        self.retries.extend(other.retries);
        self.waits.extend(other.waits);
        self.applied.extend(other.applied.into_iter().map(|mut write| {
            write.outcome = moved(write.outcome);
            write
        }));
    }
}
