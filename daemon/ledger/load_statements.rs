//! The SQL of loads: rows without events, and how far each key range has come.

use super::batch::{LoadWrite, QuietState, QuietWrite};
use super::loads::{Part, REQUEST};
use super::statements::{Prepared, parameters};
use crate::event::Row;

/// Rows written while no events are made. A row that is gone and was emitted stays as a reminder, without columns, until
/// its object has been taken leave of.
pub fn quiet(write: QuietWrite, out: &mut Vec<Prepared>) {
    let QuietWrite { source, relation, load, truncated, rows } = write;
    let (mut whole, mut part, mut gone) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()), Vec::new());
    for (key, state) in rows {
        match state {
            QuietState::Whole(row) => {
                whole.0.push(key);
                whole.1.push(text(&row));
            }
            QuietState::Part(row) => {
                part.0.push(key);
                part.1.push(text(&row));
            }
            QuietState::Gone => gone.push(key),
        }
    }
    if truncated {
        out.push((
            "update image set row = null where source = $1 and relation = $2 and emitted is not null",
            parameters![source.clone(), relation.clone()],
        ));
        out.push((
            "delete from image where source = $1 and relation = $2 and emitted is null",
            parameters![source.clone(), relation.clone()],
        ));
    }
    if !whole.0.is_empty() {
        out.push((
            "insert into image (source, relation, key, row, load)
             select $1, $2, key, row::jsonb, $3 from unnest($4::text[], $5::text[]) w(key, row)
             on conflict (source, relation, key) do update set row = excluded.row, load = excluded.load",
            parameters![source.clone(), relation.clone(), load, whole.0, whole.1],
        ));
    }
    if !part.0.is_empty() {
        out.push((
            "update image i set row = i.row || w.row::jsonb, load = $3
             from unnest($4::text[], $5::text[]) w(key, row)
             where i.source = $1 and i.relation = $2 and i.key = w.key and i.row is not null",
            parameters![source.clone(), relation.clone(), load, part.0, part.1],
        ));
    }
    if !gone.is_empty() {
        out.push((
            "update image set row = null
             where source = $1 and relation = $2 and key = any ($3) and emitted is not null",
            parameters![source.clone(), relation.clone(), gone.clone()],
        ));
        out.push((
            "delete from image where source = $1 and relation = $2 and key = any ($3) and emitted is null",
            parameters![source, relation, gone],
        ));
    }
}

fn text(row: &Row) -> String {
    // A row of JSON values always has a text.
    serde_json::to_string(row).unwrap_or_default()
}

/// A step of a load.
pub fn load(write: LoadWrite, out: &mut Vec<Prepared>) {
    match write {
        LoadWrite::Begin { load, parts } => {
            out.push((
                "update load set state = 'reading', started_at = now() where id = $1",
                parameters![load],
            ));
            out.extend(parts.into_iter().map(new_part));
        }
        LoadWrite::Progress(part) => out.push((
            "update load_part set cursor = $4, rows = $5, done = $6
             where load = $1 and relation = $2 and part = $3",
            parameters![part.load, part.relation, part.part, part.cursor, part.rows, part.done],
        )),
        LoadWrite::Seen { load, source, relation, keys } => out.push((
            "update image set load = $1 where source = $2 and relation = $3 and key = any ($4)",
            parameters![load, source, relation, keys],
        )),
        LoadWrite::Sweep { load, source, relations } => {
            out.push((
                "update image set row = null where source = $2 and relation = any ($3) and row is not null
                 and load is distinct from $1 and emitted is not null",
                parameters![load, source.clone(), relations.clone()],
            ));
            out.push((
                "delete from image where source = $2 and relation = any ($3) and load is distinct from $1
                 and emitted is null",
                parameters![load, source, relations],
            ));
        }
        LoadWrite::End { load, refused } => out.push((
            "update load set state = $2, finished_at = now() where id = $1",
            parameters![load, if refused { "refused" } else { "done" }],
        )),
        LoadWrite::Forget { source, relation } => out.push((
            "delete from relation where source = $1 and relation = $2",
            parameters![source, relation],
        )),
        LoadWrite::Relation { source, relation, oid, member, columns, shape } => out.push((
            "insert into relation (source, relation, oid, member, columns, shape) values ($1, $2, $3, $4, $5, $6)
             on conflict (source, relation) do update set oid = excluded.oid, member = excluded.member,
               columns = excluded.columns, shape = excluded.shape",
            parameters![source, relation, i64::from(oid), i64::from(member), columns, shape],
        )),
        LoadWrite::Ask(request) => out.push((
            REQUEST,
            parameters![
                request.source,
                request.kind.as_str(),
                request.relations,
                request.lower,
                request.upper,
                request.reason,
                request.requested_by,
                request.look_first,
            ],
        )),
    }
}

fn new_part(part: Part) -> Prepared {
    (
        "insert into load_part (load, relation, part, lower, upper, estimated) values ($1, $2, $3, $4, $5, $6)",
        parameters![part.load, part.relation, part.part, part.lower, part.upper, part.estimated],
    )
}
