//! The SQL of what dispatching changes: attempts, outcomes, what a target holds, and what people ask for.

use std::collections::HashMap;

use jiff::Timestamp;

use super::batch::{
    AppliedWrite, Batch, Cause, ClaimWrite, ClosedWrite, EntryIndex, Lane, RetryWrite, SendingWrite,
    WaitWrite,
};
use super::calls::call;
use super::command_statements::statements as command;
use super::deliveries::decide;
use super::granting::Granting;
use super::statements::{Prepared, parameters};

/// What dispatching changes.
pub fn dispatch_statements(batch: Batch, seq_of: &dyn Fn(EntryIndex) -> i64, out: &mut Vec<Prepared>) {
    for (lane, want, delivery) in batch.foreign {
        out.push((
            "insert into reservation (target, want, object, canonical_id) select $1::text, $2::text, '', ''
             where not exists (select from delivery d where d.id = $5 and d.reason = 'erased by an operator')
             on conflict (target, want_md5) do update set object = '', canonical_id = ''
             where reservation.object = $3 and reservation.canonical_id = $4",
            parameters![lane.target, want, lane.object, lane.canonical_id, delivery],
        ));
    }
    claim(batch.claims, out);
    for asked in batch.commands {
        command(asked, out);
    }
    for (id, why) in batch.refused {
        out.push(("update command set done_at = now(), outcome = $2 where id = $1", parameters![id, why]));
    }
    for (verb, ids) in batch.decided {
        decide(verb, ids, out);
    }
    for (target, epoch, state) in batch.states {
        out.push((
            "insert into target_state (target, epoch, state) values ($1, $2, $3)
             on conflict (target, epoch) do update set state = excluded.state, updated_at = now()",
            parameters![target, epoch, state],
        ));
    }
    for target in batch.live {
        out.push((
            "update delivery set state = 'pending', reason = null where target = $1 and state = 'shadowed' and aside",
            parameters![target.clone()],
        ));
        rehead(Some(target), out);
    }
    sending(batch.sending, out);
    batch.calls.into_iter().for_each(|write| call(write, out));
    close(batch.closed, out);
    retry(batch.retries, out);
    applied(batch.applied, seq_of, out);
    // Judged by what stands after all of this.
    wait(batch.waits, out);
}

/// Takes unique values, first come first served, and notes what each object has to do without; nothing of a subject that was forgotten.
fn claim(writes: Vec<ClaimWrite>, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    let (mut targets, mut objects, mut ids) = (vec![], vec![], vec![]);
    let mut taken = (vec![], vec![], vec![], vec![], vec![]);
    let mut wished = (vec![], vec![], vec![], vec![], vec![], vec![]);
    for ClaimWrite { lane, reserve, wishes, event_seq, requires } in writes {
        for want in reserve {
            taken.0.push(lane.target.clone());
            taken.1.push(lane.object.clone());
            taken.2.push(lane.canonical_id.clone());
            taken.3.push(want);
            taken.4.push(event_seq);
        }
        for want in wishes {
            wished.0.push(lane.target.clone());
            wished.1.push(lane.object.clone());
            wished.2.push(lane.canonical_id.clone());
            wished.3.push(want);
            wished.4.push(event_seq);
            wished.5.push(requires.join("\n"));
        }
        targets.push(lane.target);
        objects.push(lane.object);
        ids.push(lane.canonical_id);
    }
    if !taken.0.is_empty() {
        out.push((
            "insert into reservation (target, object, canonical_id, want)
             select target, object, canonical_id, want
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
                  as w(target, object, canonical_id, want, event_seq)
             where not exists (select from delivery d where d.target = w.target and d.object = w.object
                               and d.canonical_id = w.canonical_id and d.event_seq = w.event_seq and d.reason = 'erased by an operator')
             on conflict do nothing",
            parameters![taken.0, taken.1, taken.2, taken.3, taken.4],
        ));
    }
    out.push((
        "delete from wish s using unnest($1::text[], $2::text[], $3::text[]) as w(target, object, canonical_id)
         where s.target = w.target and s.object = w.object and s.canonical_id = w.canonical_id",
        parameters![targets, objects, ids],
    ));
    if !wished.0.is_empty() {
        out.push((
            "insert into wish (target, object, canonical_id, want, event_seq, requires)
             select target, object, canonical_id, want, event_seq,
                    case when requires = '' then '{}' else string_to_array(requires, E'\\n') end
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
                  as w(target, object, canonical_id, want, event_seq, requires)
             where not exists (select from delivery d where d.target = w.target and d.object = w.object
                               and d.canonical_id = w.canonical_id and d.event_seq = w.event_seq and d.reason = 'erased by an operator')
             on conflict do nothing",
            parameters![wished.0, wished.1, wished.2, wished.3, wished.4, wished.5],
        ));
    }
}

fn sending(writes: Vec<SendingWrite>, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    let (mut ids, mut keys, mut requests, mut times, mut settled) = (vec![], vec![], vec![], vec![], vec![]);
    for write in writes {
        ids.push(write.id);
        keys.push(write.idempotency_key);
        requests.push(write.request.to_string());
        times.push(write.attempted_at);
        settled.push(write.settled_after.map(|after| after.as_secs_f64()));
    }
    out.push((
        "update delivery d set state = 'sending', idempotency_key = w.key, request = w.request::json,
                attempts = d.attempts + 1, last_attempt_at = w.at,
                due_at = coalesce(now() + make_interval(secs => w.settled), d.due_at),
                attempted_at = case when d.idempotency_key is distinct from w.key then w.at else d.attempted_at end
         from unnest($1::bigint[], $2::text[], $3::text[], $4::timestamptz[], $5::float8[]) as w(id, key, request, at, settled)
         where d.id = w.id and d.open",
        parameters![ids, keys, requests, times, settled],
    ));
}

fn retry(writes: Vec<RetryWrite>, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    let (mut ids, mut times, mut reasons, mut uncertain) = (vec![], vec![], vec![], vec![]);
    let (mut renewed, mut since, mut counted, mut alone) = (vec![], vec![], vec![], vec![]);
    for write in writes {
        ids.push(write.id);
        times.push(write.due_at);
        reasons.push(write.reason);
        uncertain.push(write.uncertain);
        renewed.push(write.new_round);
        since.push(write.replayed_since);
        counted.push(write.counted);
        alone.push(write.alone);
    }
    out.push((
        "update delivery d set state = case when w.uncertain then 'sending' else 'pending' end, due_at = w.due_at,
                reason = w.reason, round = d.round + w.renewed::int,
                idempotency_key = case when w.renewed then null else d.idempotency_key end,
                last_attempt_at = coalesce(w.since, d.last_attempt_at), attempts = d.attempts + w.counted::int,
                alone = d.alone or w.alone
         from unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::boolean[], $5::boolean[], $6::timestamptz[],
                     $7::boolean[], $8::boolean[]) as w(id, due_at, reason, uncertain, renewed, since, counted, alone)
         where d.id = w.id and d.open",
        parameters![ids, times, reasons, uncertain, renewed, since, counted, alone],
    ));
}

fn close(writes: Vec<ClosedWrite>, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    let (mut ids, mut states, mut reasons, mut causes) = (vec![], vec![], vec![], vec![]);
    for write in writes {
        ids.push(write.id);
        states.push(write.state);
        reasons.push(write.reason);
        causes.push(write.cause.map(Cause::as_str));
    }
    // A request in doubt that is parked goes on holding up its lane.
    out.push((
        "update delivery d set state = w.state, reason = w.reason, cause = w.cause, waits_for = null,
                head = d.head and w.state = 'parked' and d.state = 'sending' and d.request is not null,
                request = case when w.state = 'parked' and d.state = 'sending' then d.request end
         from unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) as w(id, state, reason, cause) where d.id = w.id and d.open",
        parameters![ids.clone(), states, reasons, causes],
    ));
    requeue(ids, out);
}

/// Lets the lanes of deliveries that do not hold them up any more go on, and what waits for their objects look again.
pub fn requeue(ids: Vec<i64>, out: &mut Vec<Prepared>) {
    out.push((
        "update delivery n set head = true
         from (select target, object, canonical_id, min(id) as first from delivery where id = any ($1) group by 1, 2, 3) c
         where n.id = (select o.id from delivery o where o.target = c.target and o.object = c.object
                         and o.canonical_id = c.canonical_id and o.id > c.first and o.occupies order by o.id limit 1)
           and not exists (select from delivery h where h.target = c.target and h.object = c.object
                           and h.canonical_id = c.canonical_id and h.head)",
        parameters![ids.clone()],
    ));
    out.push((
        "update delivery d set waits_for = null
         from (select distinct target, object || '/' || canonical_id as reference from delivery where id = any ($1)) c
         where d.target = c.target and d.waits_for = c.reference",
        parameters![ids],
    ));
}

/// Decided once more here, where nothing else moves: what is waited for may have come meanwhile. What is waited for becomes as
/// urgent as what waits.
fn wait(writes: Vec<WaitWrite>, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    let (mut ids, mut references, mut needed) = (vec![], vec![], vec![]);
    for write in writes {
        ids.push(write.id);
        references.push(write.reference);
        needed.push(write.needed);
    }
    out.push((
        "update delivery d set waits_for = w.reference
         from unnest($1::bigint[], $2::text[], $3::boolean[]) as w(id, reference, needed)
         where d.id = w.id and d.head
           and (is_on_its_way(d.target, w.reference) or (w.needed and not is_there(d.target, w.reference)))",
        parameters![ids.clone(), references.clone(), needed],
    ));
    out.push((
        "update delivery q set class = d.class
         from unnest($1::bigint[], $2::text[]) as w(id, reference) join delivery d on d.id = w.id
         where q.target = d.target and q.object = split_part(w.reference, '/', 1)
           and q.canonical_id = substr(w.reference, strpos(w.reference, '/') + 1) and q.head and q.class > d.class",
        parameters![ids, references],
    ));
}

/// Finds the heads of all lanes of a target, or of all targets, anew: for what changes deliveries in the midst of their lanes.
pub fn rehead(target: Option<String>, out: &mut Vec<Prepared>) {
    out.push((
        "update delivery d set head = false
         where ($1::text is null or target = $1) and head
           and (not occupies or exists (select from delivery o where o.target = d.target and o.object = d.object
                                        and o.canonical_id = d.canonical_id and o.id < d.id and o.occupies))",
        parameters![target.clone()],
    ));
    out.push((
        "update delivery d set head = true
         from (select min(id) as id from delivery where ($1::text is null or target = $1) and occupies
               group by target, object, canonical_id) first
         where d.id = first.id and not d.head",
        parameters![target.clone()],
    ));
    out.push((
        "update delivery set waits_for = null where ($1::text is null or target = $1) and waits_for is not null",
        parameters![target],
    ));
}

/// The same for one lane.
pub fn rehead_lane(lane: &Lane, out: &mut Vec<Prepared>) {
    let of_lane = || parameters![lane.target.clone(), lane.object.clone(), lane.canonical_id.clone()];
    out.push((
        "update delivery set head = false where target = $1 and object = $2 and canonical_id = $3 and head",
        of_lane(),
    ));
    out.push((
        "update delivery set head = true where id = (
           select id from delivery where target = $1 and object = $2 and canonical_id = $3 and occupies
           order by id limit 1)",
        of_lane(),
    ));
    out.push((
        "update delivery set waits_for = null where target = $1 and waits_for = $2 || '/' || $3",
        of_lane(),
    ));
}

/// What was in a request that was under way when its subject was forgotten is not kept.
const APPLIED: &str = "insert into applied (target, object, canonical_id, state, sha256, seq, body, told_at)
     select target, object, canonical_id, case when present then 'present' else 'absent' end, sha256, seq,
            case when exists (select from delivery d where d.id = w.delivery and d.reason = 'erased by an operator') then null
                 else body::json end, $8
     from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[], $6::bigint[], $7::text[], $9::bigint[])
          as w(target, object, canonical_id, present, sha256, seq, body, delivery)
     on conflict (target, object, canonical_id) do update set
       state = excluded.state, sha256 = excluded.sha256, seq = excluded.seq, body = excluded.body, told_at = excluded.told_at";

fn applied(writes: Vec<AppliedWrite>, seq_of: &dyn Fn(EntryIndex) -> i64, out: &mut Vec<Prepared>) {
    if writes.is_empty() {
        return;
    }
    // Of each object what was learnt last counts.
    let last: HashMap<Lane, AppliedWrite> =
        writes.into_iter().map(|write| (write.lane.clone(), write)).collect();
    let (mut targets, mut objects, mut ids) = (vec![], vec![], vec![]);
    let (mut sha256s, mut seqs, mut external_ids, mut deliveries) = (vec![], vec![], vec![], vec![]);
    let mut bodies = vec![];
    let mut granting = Granting::default();
    for (lane, write) in last {
        if write.grants {
            granting.push(&lane, &write);
        }
        targets.push(lane.target);
        objects.push(lane.object);
        ids.push(lane.canonical_id);
        sha256s.push(write.sha256);
        bodies.push(write.body.map(|body| body.to_string()));
        seqs.push(seq_of(write.outcome));
        external_ids.push(write.external_id);
        deliveries.push(write.delivery);
    }
    out.push((
        APPLIED,
        parameters![
            targets.clone(),
            objects.clone(),
            ids.clone(),
            external_ids.iter().map(Option::is_some).collect::<Vec<_>>(),
            sha256s,
            seqs,
            bodies,
            Timestamp::now(),
            deliveries.clone()
        ],
    ));
    if external_ids.iter().any(Option::is_none) {
        out.push((
            "delete from identity i
             using unnest($1::text[], $2::text[], $3::text[], $4::text[]) as w(target, object, canonical_id, external_id)
             where w.external_id is null and i.system = w.target and i.object = w.object
               and i.canonical_id = w.canonical_id",
            parameters![targets.clone(), objects.clone(), ids.clone(), external_ids.clone()],
        ));
    }
    settle_older(targets.clone(), objects.clone(), ids.clone(), deliveries, out);
    out.push((
        "insert into identity (canonical_id, system, object, external_id)
         select canonical_id, target, object, external_id
         from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as w(target, object, canonical_id, external_id)
         where external_id is not null
         on conflict (system, object, canonical_id) do update set external_id = excluded.external_id
         where identity.external_id <> excluded.external_id",
        parameters![targets, objects, ids, external_ids],
    ));
    granting.statements(out);
}

/// What was refused or parked of an older state is settled by a newer one that stands, and what was of the same event by its
/// success.
fn settle_older(
    targets: Vec<String>,
    objects: Vec<String>,
    ids: Vec<String>,
    deliveries: Vec<i64>,
    out: &mut Vec<Prepared>,
) {
    out.push((
        "update delivery d set state = 'superseded', reason = 'a newer state was delivered'
         from unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as w(target, object, canonical_id, delivery)
         where d.target = w.target and d.object = w.object and d.canonical_id = w.canonical_id and d.aside
           and not d.occupies and d.state in ('parked', 'rejected') and d.id < w.delivery
           and (not d.fact or d.event_seq = (select n.event_seq from delivery n where n.id = w.delivery))",
        parameters![targets, objects, ids, deliveries],
    ));
}
