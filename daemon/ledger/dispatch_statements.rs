//! The SQL of what dispatching changes: attempts, outcomes, what a target holds, and what people ask for.

use super::batch::{AppliedWrite, Batch, EntryIndex, Lane, RetryWrite, SendingWrite};
use super::command::statements as command;
use super::statements::{Prepared, parameters};

/// What dispatching changes.
pub fn dispatch_statements(batch: Batch, seq_of: &dyn Fn(EntryIndex) -> i64, out: &mut Vec<Prepared>) {
    for (lane, want) in batch.foreign {
        out.push((
            "insert into reservation (target, want, object, canonical_id) values ($1, $2, '', '')
             on conflict (target, want_md5) do update set object = '', canonical_id = ''
             where reservation.object = $3 and reservation.canonical_id = $4",
            parameters![lane.target, want, lane.object, lane.canonical_id],
        ));
    }
    for claim in batch.claims {
        let Lane { target, object, canonical_id } = claim.lane;
        out.push((
            "insert into reservation (target, want, object, canonical_id)
             select $1, want, $2, $3 from unnest($4::text[]) as w(want) on conflict do nothing",
            parameters![target.clone(), object.clone(), canonical_id.clone(), claim.reserve],
        ));
        out.push((
            "delete from wish where target = $1 and object = $2 and canonical_id = $3",
            parameters![target.clone(), object.clone(), canonical_id.clone()],
        ));
        out.push((
            "insert into wish (target, object, canonical_id, want, event_seq, requires)
             select $1, $2, $3, want, $5, $6 from unnest($4::text[]) as w(want)",
            parameters![target, object, canonical_id, claim.wishes, claim.event_seq, claim.requires],
        ));
    }
    for asked in batch.commands {
        command(asked, out);
    }
    for target in batch.live {
        out.push((
            "update delivery set state = 'pending', reason = null where target = $1 and state = 'shadowed'",
            parameters![target.clone()],
        ));
        out.push((
            "update delivery set due_at = now() where target = $1 and state = 'sending' and due_at > now()",
            parameters![target],
        ));
    }
    out.extend(batch.sending.into_iter().map(sending));
    close(batch.closed, out);
    out.extend(batch.retries.into_iter().map(retry));
    for write in batch.applied {
        applied(write, seq_of, out);
    }
}

fn sending(write: SendingWrite) -> Prepared {
    (
        "update delivery set state = 'sending', idempotency_key = $2, request = $3, attempts = attempts + 1,
                    last_attempt_at = $4,
                    attempted_at = case when idempotency_key is distinct from $2 then $4 else attempted_at end
             where id = $1",
        parameters![write.id, write.idempotency_key, write.request, write.attempted_at],
    )
}

fn retry(write: RetryWrite) -> Prepared {
    (
            "update delivery set state = case when $4 then 'sending' else 'pending' end, due_at = $2, reason = $3,
                    round = round + case when $5 then 1 else 0 end,
                    idempotency_key = case when $5 then null else idempotency_key end, last_attempt_at = coalesce($6, last_attempt_at),
                    attempts = attempts + case when $7 then 1 else 0 end
             where id = $1",
            parameters![
                write.id,
                write.due_at,
                write.reason,
                write.uncertain,
                write.new_round,
                write.replayed_since,
                write.counted
            ],
        )
}

fn close(writes: Vec<super::batch::ClosedWrite>, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    let (mut ids, mut states, mut reasons) = (vec![], vec![], vec![]);
    for write in writes {
        ids.push(write.id);
        states.push(write.state);
        reasons.push(write.reason);
    }
    out.push((
        "update delivery d set state = w.state, reason = w.reason,
                request = case when w.state = 'parked' and d.state = 'sending' then d.request end
         from unnest($1::bigint[], $2::text[], $3::text[]) as w(id, state, reason) where d.id = w.id",
        parameters![ids, states, reasons],
    ));
}

fn applied(write: AppliedWrite, seq_of: &dyn Fn(EntryIndex) -> i64, out: &mut Vec<Prepared>) {
    let Lane { target, object, canonical_id } = write.lane;
    let state = if write.external_id.is_some() { "present" } else { "absent" };
    out.push((
        "insert into applied (target, object, canonical_id, state, sha256, seq) values ($1, $2, $3, $4, $5, $6)
         on conflict (target, object, canonical_id) do update set
           state = excluded.state, sha256 = excluded.sha256, seq = excluded.seq",
        parameters![target.clone(), object.clone(), canonical_id.clone(), state, write.sha256, seq_of(write.outcome)],
    ));
    match write.external_id {
        Some(external_id) => out.push((
            "insert into identity (canonical_id, system, object, external_id) values ($1, $2, $3, $4)
             on conflict (system, object, canonical_id) do update set external_id = excluded.external_id",
            parameters![canonical_id.clone(), target.clone(), object.clone(), external_id],
        )),
        None => out.push((
            "delete from identity where system = $1 and object = $2 and canonical_id = $3",
            parameters![target.clone(), object.clone(), canonical_id.clone()],
        )),
    }
    if !write.grants {
        return;
    }
    if state == "absent" {
        // What refers to it was cut off at the target; it is delivered again when the object comes back.
        out.push((
            "update wish set want = 'ref:' || $2 || '/' || $3
             where target = $1 and want = 'back:' || $2 || '/' || $3",
            parameters![target.clone(), object.clone(), canonical_id.clone()],
        ));
    }
    out.push((
        "delete from reservation where target = $1 and object = $2 and canonical_id = $3 and want <> all ($4::text[])",
        parameters![target.clone(), object.clone(), canonical_id.clone(), write.holds],
    ));
    // Wishes are rare; whatever has become possible at this target is delivered again. An object with a newer event
    // gets nothing: that event brings wishes of its own, and may be the object's end.
    out.push((
        "with granted as (
           delete from wish w where w.target = $1 and
             case when w.want like 'back:%' then false
                  when w.want like 'ref:%'
                  then exists (select from applied a where a.target = w.target and a.state = 'present'
                               and 'ref:' || a.object || '/' || a.canonical_id = w.want)
                  else not exists (select from reservation r where r.target = w.target and r.want_md5 = w.want_md5) end
           returning w.*)
         insert into delivery (event_seq, target, object, canonical_id, operation, fact, requires, state, round)
         select g.event_seq, g.target, g.object, g.canonical_id, 'upsert', false, g.requires, 'pending',
                1 + coalesce((select max(d.round) from delivery d where d.target = g.target and d.object = g.object
                              and d.canonical_id = g.canonical_id and d.event_seq = g.event_seq), 0)
         from (select distinct event_seq, target, object, canonical_id, requires from granted) g
         where not exists (select from delivery d where d.target = g.target and d.object = g.object
                           and d.canonical_id = g.canonical_id and d.event_seq > g.event_seq)",
        parameters![target],
    ));
}
