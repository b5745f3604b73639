//! From transactions to a ledger batch: images, events, deliveries, position, all in one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::Instant;

use super::flow::Flow;
use super::mass::LEAST;
use super::seen::{AsOf, Changed, compare};
use super::way::{Way, ways};
use super::words::{Together, overrule, subjects, together};
use crate::event::{CanonicalEvent, Cluster, Operation, Origin, Transaction};
use crate::image::{Drift, Emitted, Images, Missing, Overlay, OverlayChanges, Projection, RowId, Touch};
use crate::ledger::batch::{Batch, ImageWrite, Lane, SpillWrite};
use crate::ledger::spill::Spilled;
use crate::ledger::{Ledger, LedgerError, images, standing};
use crate::mapping::EventSpec;
use crate::pg::Database;
use crate::source::postgres::chunk::{ChunkError, read_back};

/// Rounds of loading after which something must be wrong: each round resolves one level of joins.
const MAX_ROUNDS: usize = 16;

/// How long a count of all objects of a type is good for.
const COUNTED: Duration = Duration::from_secs(60);

/// Why a slice could not be worked out.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The source, when a row had to be read back.
    #[error(transparent)]
    Source(#[from] ChunkError),
    /// Loading does not come to an end.
    #[error("the images a slice needs could not be loaded in {MAX_ROUNDS} rounds")]
    Endless,
}

/// What came of a try to work a slice out.
pub enum Prepared {
    /// To be written. The images have taken it over already: should the write fail, they are thrown away with the rest.
    Batch(Box<Batch>),
    /// This has to be loaded first, perhaps nothing; everything written so far must be in the ledger by then.
    Needs(Missing),
    /// The transaction of this index touches too many objects to be worked out at once.
    TooLarge(usize),
}

/// Clocks differ, and some know whole seconds only: what happened no longer ago than this when a source was first read is no history.
const SLACK: SignedDuration = SignedDuration::from_secs(60);

/// Works out slices of one source over its images.
pub struct Intake {
    pub(super) flow: Arc<Flow>,
    /// Where rows are read again of which a column was not sent.
    database: Option<Database>,
    name: Arc<str>,
    pub(super) origin: Arc<Origin>,
    pub(super) ledger: Ledger,
    images: Images,
    /// Subjects that had been forgotten when they were loaded.
    erasures: i64,
    rounds: usize,
    /// Objects that are new to the ledger may be known to the targets.
    pub(super) look_first: bool,
    /// When the source was first read; `None` where that does not matter.
    pub began: Option<jiff::Timestamp>,
    /// How old what is worked out next is.
    pub as_of: AsOf,
    /// Rows that were read before the system was last told something of them.
    pub outdated: Vec<RowId>,
    /// Objects by type, as last counted.
    pub(super) known: HashMap<String, (u64, Instant)>,
}

impl Intake {
    /// Nothing is cached yet.
    #[must_use]
    pub fn new(flow: Arc<Flow>, database: Option<Database>, cluster: Cluster, ledger: Ledger) -> Self {
        let images = Images::new(&flow.mapping.lookup_columns());
        let mapping_sha256 = flow.mapping.sha256.clone();
        let origin = Arc::new(Origin { source: flow.name.clone(), cluster, mapping_sha256 });
        Self {
            erasures: flow.waves.erasures(),
            name: flow.name.as_str().into(),
            flow,
            database,
            origin,
            ledger,
            images,
            rounds: 0,
            look_first: false,
            began: None,
            as_of: AsOf::default(),
            outdated: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// After changes were lost, perhaps in the ledger itself: what is new to it is looked up before it is created.
    pub fn look_first(&mut self) {
        self.look_first = true;
    }

    /// Works out streamed transactions of at most `most` objects each. `settled`: everything written so far is in the ledger.
    pub async fn transactions(
        &mut self,
        transactions: &[Transaction],
        settled: bool,
        most: usize,
    ) -> Result<Prepared, IntakeError> {
        let mut too_large = None;
        let last = transactions.last();
        self.as_of = last.map_or(AsOf::Unknown, |last| AsOf::Committed(last.committed_at));
        let prepared = self.prepare(settled, |projection, overlay| {
            let mut emitted = Vec::new();
            for (index, transaction) in transactions.iter().enumerate() {
                match projection.transaction(overlay, transaction, most) {
                    Some(events) => emitted.extend(events),
                    None => {
                        too_large = Some(index);
                        break;
                    }
                }
            }
            (too_large.is_none()).then_some(emitted)
        });
        let prepared = prepared.await?;
        Ok(too_large.map_or(prepared, Prepared::TooLarge))
    }

    /// Takes a transaction, or a slice of one, into the images, and notes which objects it touches.
    /// `trusted`: a row that it inserts is in no image.
    pub async fn spill(&mut self, transaction: &Transaction, trusted: bool) -> Result<Prepared, IntakeError> {
        let projection = self.projection();
        let mut overlay = Overlay::new(&self.images);
        let touched = if trusted {
            projection.touched(&mut overlay, transaction)
        } else {
            let mut looked_up = transaction.clone();
            looked_up.changes.iter_mut().for_each(|change| change.inserted = false);
            projection.touched(&mut overlay, &looked_up)
        };
        let (missing, changes) = overlay.finish();
        if !missing.is_empty() {
            return self.needs(missing);
        }
        self.rounds = 0;
        let mut batch = Batch { images: self.image_writes(&changes), ..Batch::default() };
        for (spec, roots) in self.flow.mapping.events.iter().zip(touched) {
            let write = |(key, touch): (String, Touch)| SpillWrite {
                source: self.flow.name.clone(),
                event_type: spec.event_type.clone(),
                root: spec.table.to_string(),
                key,
                ordinal: touch.ordinal,
                causes: touch.causes,
            };
            batch.spilled.extend(roots.into_iter().map(write));
        }
        self.images.absorb(changes);
        Ok(Prepared::Batch(Box::new(batch)))
    }

    /// Works out spilled objects of `transaction`, all of which is in the images now.
    pub async fn spilled(
        &mut self,
        spec: &EventSpec,
        objects: &[Spilled],
        transaction: &Transaction,
    ) -> Result<Prepared, IntakeError> {
        self.prepare(true, |projection, overlay| {
            Some(events_of(projection, overlay, spec, objects, transaction))
        })
        .await
    }

    /// Only counts what [`Intake::spilled`] would make of these objects, for the mass guard; gives what is missing for it.
    pub async fn weigh(
        &mut self,
        spec: &EventSpec,
        objects: &[Spilled],
        transaction: &Transaction,
    ) -> Result<Option<Missing>, IntakeError> {
        let projection = self.projection();
        let mut overlay = Overlay::new(&self.images);
        let events = events_of(&projection, &mut overlay, spec, objects, transaction);
        let (missing, _) = overlay.finish();
        if !missing.is_empty() {
            return self.needs(missing).map(|needs| match needs {
                Prepared::Needs(missing) => Some(missing),
                _ => None,
            });
        }
        self.rounds = 0;
        self.count_known(&events).await?;
        let known = |event_type: &str| self.known.get(event_type).map(|(known, _)| *known);
        let events = events.iter().map(|emitted| &emitted.event);
        self.flow.mass_guard.note(&self.flow.mass, events, known);
        Ok(None)
    }

    fn projection(&self) -> Projection<'_> {
        let cluster = &self.origin.cluster;
        Projection { mapping: &self.flow.mapping, source: &self.flow.name, cluster }
    }

    fn needs(&mut self, missing: Missing) -> Result<Prepared, IntakeError> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS { Err(IntakeError::Endless) } else { Ok(Prepared::Needs(missing)) }
    }

    /// Works out whatever `project` says; when that is nothing, nothing is changed.
    pub async fn prepare(
        &mut self,
        settled: bool,
        project: impl FnOnce(&Projection<'_>, &mut Overlay<'_>) -> Option<Vec<Emitted>>,
    ) -> Result<Prepared, IntakeError> {
        if self.forgets() && !settled {
            return Ok(Prepared::Needs(Missing::default()));
        }
        self.forget_erased();
        let as_of = std::mem::take(&mut self.as_of);
        let projection = self.projection();
        let mut overlay = Overlay::new(&self.images);
        let Some(emitted) = project(&projection, &mut overlay) else {
            return Ok(Prepared::Needs(Missing::default()));
        };
        let (missing, changes) = overlay.finish();
        if !missing.is_empty() {
            return self.needs(missing);
        }
        let flow = self.flow.clone();
        let moved = flow.waves.moved();
        let seen: Vec<Changed> = self.shown(&changes);
        let reads_words = !changes.drifts.is_empty() || !subjects(&flow, &emitted).is_empty();
        if !settled && (!seen.is_empty() || reads_words) {
            return Ok(Prepared::Needs(missing));
        }
        let together = together(&flow, &self.ledger, &emitted).await?;
        let ways = |(emitted, together): (&Emitted, &Option<Together>)| match together {
            Some(seen) => ways(&flow, &seen.event, (seen.partial, self.is_history(&seen.event)), &moved),
            None => ways(&flow, &emitted.event, (false, self.is_history(&emitted.event)), &moved),
        };
        let ways: Vec<Vec<Way<'_>>> = emitted.iter().zip(&together).map(ways).collect();
        // Only of these it matters whether they are owed already.
        let asked: Vec<Lane> = ways
            .iter()
            .flatten()
            .filter(|way| way.unless_owed != Ok(true))
            .map(|way| way.lane.clone())
            .collect();
        let ordered: Vec<Lane> =
            ways.iter().flatten().filter(|way| way.route.newest).map(|way| way.lane.clone()).collect();
        let reads_lanes = !asked.is_empty() || !ordered.is_empty();
        if reads_lanes && !settled {
            return Ok(Prepared::Needs(missing));
        }
        self.rounds = 0;
        let owed = images::owed(self.ledger.reader(), &asked).await?;
        let latest = standing::latest(self.ledger.reader(), &ordered).await?;
        self.count_known(&emitted).await?;
        let mut batch = self.batch(emitted, &together, ways, (&owed, latest), &moved);
        let compared = compare(&flow, &self.ledger, &seen, as_of, &mut batch).await?;
        self.outdated = compared.outdated;
        batch.images = self.image_writes(&changes);
        // What we told the system comes back as if it had said so itself.
        let is_real = |drift: &&Drift| flow.twin.is_none() || compared.changed.contains(&drift.id);
        let drifts: Vec<&Drift> = changes.drifts.iter().filter(is_real).collect();
        overrule(&flow, &self.ledger, &drifts, &mut batch).await?;
        self.images.absorb(changes);
        Ok(Prepared::Batch(Box::new(batch)))
    }

    /// Somebody has been forgotten since the images were loaded.
    fn forgets(&self) -> bool {
        self.flow.waves.erasures() != self.erasures
    }

    /// Forgets all images, once everything in them is in the ledger.
    fn forget_erased(&mut self) {
        if self.forgets() {
            self.erasures = self.flow.waves.erasures();
            self.images = Images::new(&self.flow.mapping.lookup_columns());
        }
    }

    pub(super) fn is_history(&self, event: &CanonicalEvent) -> bool {
        self.began.is_some_and(|began| began.duration_since(event.committed_at) > SLACK)
    }

    /// Counts the objects of each type of which there may be a mass, when a share of them matters.
    async fn count_known(&mut self, emitted: &[Emitted]) -> Result<(), IntakeError> {
        if self.flow.mass.percent.is_none() {
            return Ok(());
        }
        for spec in &self.flow.mapping.events {
            let of_type = |emitted: &&Emitted| {
                emitted.event.event_type == spec.event_type
                    && (!emitted.event.snapshot || emitted.event.operation == Operation::Delete)
            };
            let more = u64::try_from(emitted.iter().filter(of_type).count()).unwrap_or(u64::MAX);
            let count = self.flow.mass_guard.count(&spec.event_type);
            let fresh = self.known.get(&spec.event_type).is_some_and(|(_, at)| at.elapsed() < COUNTED);
            // Counting takes a look at all of them.
            if more > 0 && count + more > LEAST && !fresh {
                let reader = self.ledger.reader();
                let known = images::objects(reader, &self.flow.name, &spec.table, &spec.event_type).await?;
                self.known.insert(spec.event_type.clone(), (known, Instant::now()));
            }
        }
        Ok(())
    }

    /// True when the images should age before the next slice.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.images.is_full()
    }

    /// Forgets images that have not been needed for a while; everything sent before the last time must be written.
    pub fn age(&mut self) {
        self.images.age();
    }

    /// Loads what a slice needs.
    pub async fn load(&mut self, missing: Missing) -> Result<(), IntakeError> {
        self.read_back(&missing.unsent).await?;
        Ok(images::load(self.ledger.reader(), &self.name, missing, &mut self.images).await?)
    }

    /// Reads rows from the source, by key: a value that was not sent has not changed, so it is there as it was.
    async fn read_back(&mut self, unsent: &HashSet<RowId>) -> Result<(), IntakeError> {
        // Only PostgreSQL leaves columns out.
        let Some(database) = &self.database else { return Ok(()) };
        let mut found = read_back(database, &self.flow.mapping, unsent).await?;
        for id in unsent {
            self.images.insert_read_back(id.clone(), found.remove(id));
        }
        Ok(())
    }

    /// Changed rows of which the twin was told.
    fn shown(&self, changes: &OverlayChanges) -> Vec<Changed> {
        let Some(twin) = &self.flow.twin else { return Vec::new() };
        let tables = twin.connector.objects.iter().filter_map(|object| object.shown.as_ref());
        let tables: HashSet<&str> = tables.map(|shown| shown.table.as_str()).collect();
        let rows = changes.rows().filter(|((table, _), changed)| changed.row && tables.contains(&**table));
        let changed = |(id, changed): (&RowId, &crate::image::Changed)| Changed {
            id: id.clone(),
            before: self.images.row(id),
            after: changed.image.row.clone(),
        };
        rows.map(changed).collect()
    }

    fn image_writes(&self, changes: &OverlayChanges) -> Vec<ImageWrite> {
        let write = |((relation, key), changed): (&(Arc<str>, String), &crate::image::Changed)| ImageWrite {
            source: self.name.clone(),
            relation: relation.clone(),
            key: key.clone(),
            image: changed.image.clone(),
            row_changed: changed.row,
        };
        changes.rows().map(write).collect()
    }
}

/// The events of spilled objects.
fn events_of(
    projection: &Projection<'_>,
    overlay: &mut Overlay<'_>,
    spec: &EventSpec,
    objects: &[Spilled],
    transaction: &Transaction,
) -> Vec<Emitted> {
    let events = objects.iter().flat_map(|object| {
        let touch = Touch { ordinal: object.ordinal, causes: object.causes.clone() };
        projection.of_touched(overlay, spec, &object.key, touch, transaction)
    });
    events.collect()
}
