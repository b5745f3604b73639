//! The SQL that seals a batch: its guard, its entries, and the tree over them.

use jiff::civil::Date;

use super::LedgerError;
use super::entry::{SEPARATOR, SealedEntry};
use super::head::Head;
use super::statements::{Prepared, parameters};
use super::tree::{Subtree, Tree};

/// Fails the batch unless the one before, number `before`, was committed in this session: it may have failed when this
/// one was already on its way. A setting is taken back with the transaction that made it.
///
/// Fails it as well when the process has been found dead meanwhile: then another one does what it did.
pub fn guard_statements(before: u64, epoch: Option<i64>, out: &mut Vec<Prepared>) {
    if let Some(epoch) = epoch {
        out.push((
            "select 1 / count(*) from process where epoch = $1 and ended_at is null",
            parameters![epoch],
        ));
    }
    out.push((
        "select 1 / (coalesce(nullif(current_setting('tailwater.batch', true), ''), '0') = $1::text)::int",
        parameters![before.to_string()],
    ));
    out.push((
        "select set_config('tailwater.batch', $1::text, false)",
        parameters![(before + 1).to_string()],
    ));
}

/// Moves the tree on; fails if it is not where it should be.
pub fn tree_statement(before: &Tree, after: &Head) -> Result<Prepared, LedgerError> {
    let size =
        |tree: &Tree| i64::try_from(tree.size()).map_err(|_| LedgerError::Unreadable("tree size".into()));
    let frontier: Vec<Vec<u8>> = after.tree.frontier().iter().map(|hash| hash.0.to_vec()).collect();
    Ok((
        "with moved as (update tree set size = $1, frontier = $2, root = $3, month = $4,
                          recorded_at = $7
                        where size = $5 and root = $6 returning 1)
         select 1 / count(*) from moved",
        parameters![
            size(&after.tree)?,
            frontier,
            after.tree.root().0.to_vec(),
            after.month,
            size(before)?,
            before.root().0.to_vec(),
            after.recorded_at
        ],
    ))
}

/// Entries, which the tree covers.
pub fn entry_statement(sealed: Vec<SealedEntry>, month: Date) -> Prepared {
    let (mut seqs, mut kinds, mut times, mut ids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut refs, mut bodies, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    for entry in sealed {
        seqs.push(entry.seq);
        kinds.push(entry.kind.as_str());
        times.push(entry.recorded_at);
        ids.push(entry.correlation_id);
        refs.push(entry.refs.join(SEPARATOR));
        bodies.push(entry.body);
        leaves.push(entry.leaf.0.to_vec());
    }
    (
        "insert into entry (seq, month, kind, recorded_at, correlation_id, refs, body, leaf)
         select seq, $8, kind, recorded_at, correlation_id, string_to_array(refs, E'\\x01'), body, leaf
         from unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])
           as w(seq, kind, recorded_at, correlation_id, refs, body, leaf)",
        parameters![seqs, kinds, times, ids, refs, bodies, leaves, month],
    )
}

/// Subtrees that these entries complete.
pub fn subtree_statement(subtrees: &[Subtree]) -> Prepared {
    let levels: Vec<i16> = subtrees.iter().map(|subtree| i16::from(subtree.level)).collect();
    let index = |subtree: &Subtree| i64::try_from(subtree.index).unwrap_or(i64::MAX);
    let indexes: Vec<i64> = subtrees.iter().map(index).collect();
    let hashes: Vec<Vec<u8>> = subtrees.iter().map(|subtree| subtree.hash.0.to_vec()).collect();
    (
        "insert into subtree (level, index, hash) select * from unnest($1::smallint[], $2::bigint[], $3::bytea[])",
        parameters![levels, indexes, hashes],
    )
}

/// Makes room for the entries of this month and the next one.
pub fn open_month_statement(month: Date) -> Prepared {
    ("select open_month($1::date), open_month(($1::date + interval '1 month')::date)", parameters![month])
}
