//! The SQL of what people ask for.

use super::archive::hold;
use super::batch::Lane;
use super::command::{Asked, Command};
use super::deliveries::resolve;
use super::dispatch_statements::{rehead, rehead_lane};
use super::erase::erase;
use super::parked::decide;
use super::statements::{Prepared, parameters};

/// Its statements.
pub fn statements(asked: Asked, out: &mut Vec<Prepared>) {
    match asked.command {
        Command::Release { target, object, discard } => {
            out.push((
                "update delivery set state = case when $3 then 'superseded' else 'pending' end,
                        reason = case when $3 then 'discarded by an operator' end, due_at = now()
                 where state = 'held' and aside and ($1::text is null or target = $1) and ($2::text is null or object = $2)",
                parameters![target.clone(), object, discard],
            ));
            rehead(target, out);
        }
        Command::Link { target, object, id, external_id } => link(target, object, id, external_id, out),
        Command::Unlink { target, object, id } => {
            out.push((
                "delete from identity where system = $1 and object = $2 and canonical_id = $3",
                parameters![target.clone(), object.clone(), id.clone()],
            ));
            out.push((
                "delete from applied where target = $1 and object = $2 and canonical_id = $3",
                parameters![target, object, id],
            ));
        }
        Command::Backfill { source, events } => out.push((
            "update image i set emitted = (
               select nullif(jsonb_agg(e order by n), '[]')::text
               from jsonb_array_elements(i.emitted::jsonb) with ordinality as x(e, n) where e ->> 0 <> all ($2::text[]))
             where source = $1 and emitted like any ($3::text[])",
            parameters![
                source,
                events.clone(),
                events.iter().map(|event| format!("%[\"{event}\",%")).collect::<Vec<_>>()
            ],
        )),
        Command::Wave { name, moved } => out.push((
            "insert into wave (name, moved, changed_by) values ($1, $2, $3)
             on conflict (name) do update set moved = excluded.moved, changed_by = excluded.changed_by, changed_at = now()",
            parameters![name, moved, asked.requested_by],
        )),
        Command::Erase(erasure) => erase(erasure, out),
        // Of these there is nothing but the entry, or they go through in portions of their own, before: see `deliveries::step`.
        Command::Retry { .. } | Command::Discard { .. } | Command::Read { .. } | Command::Export { .. } | Command::Archive { .. } => {}
        Command::Hold { name, months, refs, reason } => {
            hold(name, (months, refs), (reason, asked.requested_by), out);
        }
        Command::Unhold { name, .. } => out.push(("select lift_hold($1)", parameters![name])),
        Command::Resolve { id, target, object, canonical_id, applied, .. } => {
            resolve(&Lane { target, object, canonical_id }, id, applied, out);
        }
        Command::Parked { verb, which, .. } => decide((verb, which), &asked.requested_by, out),
        Command::Quota { target, limit, rates: Some(rates) } => out.push((
            "insert into quota (target, limit_name, rates, changed_by) values ($1, $2, $3, $4)
             on conflict (target, limit_name) do update set
               rates = excluded.rates, changed_by = excluded.changed_by, changed_at = now()",
            parameters![target, limit, rates, asked.requested_by],
        )),
        Command::Quota { target, limit, rates: None } => take_back(target, limit, out),
    }
    out.push(("update command set done_at = now() where id = $1", parameters![asked.id]));
}

/// What was set of a limit goes, and what was told to come back later may come back now.
fn take_back(target: String, limit: String, out: &mut Vec<Prepared>) {
    out.push(("delete from quota where target = $1 and limit_name = $2", parameters![target.clone(), limit]));
    out.push((
        "update delivery set due_at = now()
         where target = $1 and open and due_at > created_at and due_at > now()",
        parameters![target],
    ));
}

/// The person has said which object at the target it is: what waited for that goes on.
fn link(target: String, object: String, id: String, external_id: String, out: &mut Vec<Prepared>) {
    out.push((
        "insert into identity (canonical_id, system, object, external_id) values ($1, $2, $3, $4)
         on conflict (system, object, canonical_id) do update set external_id = excluded.external_id",
        parameters![id.clone(), target.clone(), object.clone(), external_id],
    ));
    out.push((
        "insert into applied (target, object, canonical_id, state) values ($1, $2, $3, 'present')
         on conflict (target, object, canonical_id) do update set state = 'present', sha256 = null",
        parameters![target.clone(), object.clone(), id.clone()],
    ));
    // A request in doubt holds up its lane; which object it would have made is known now.
    out.push((
        "update delivery p set state = case when p.fact then 'pending' else 'superseded' end, request = null,
                reason = 'linked by an operator', round = round + 1, idempotency_key = null
         where target = $1 and object = $2 and canonical_id = $3 and state = 'parked' and request is not null
           and exists (select from delivery n where n.target = $1 and n.object = $2 and n.canonical_id = $3
                       and n.id > p.id)",
        parameters![target.clone(), object.clone(), id.clone()],
    ));
    // What waited for a person to choose goes on.
    out.push((
        "update delivery set state = 'pending', reason = null, request = null, due_at = now(), round = round + 1,
                idempotency_key = null
         where target = $1 and object = $2 and canonical_id = $3 and state = 'parked' and id = (
           select max(id) from delivery where target = $1 and object = $2 and canonical_id = $3)",
        parameters![target.clone(), object.clone(), id.clone()],
    ));
    rehead_lane(&Lane { target, object, canonical_id: id }, out);
}
