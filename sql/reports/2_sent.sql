-- Every request that left for a system, with what became of it; `class` is null while that is not known.
create or replace view tailwater_audit.sent as
select a.seq, a.recorded_at as sent_at, b.body ->> 'target' as target, b.body ->> 'object' as object, b.body ->> 'id' as id,
       b.body ->> 'step' as step, b.body ->> 'method' as method, (b.body ->> 'delivery')::bigint as delivery,
       (b.body ->> 'event_seq')::bigint as event_seq, b.body ->> 'idempotency_key' as idempotency_key,
       (b.body ->> 'attempt')::int as attempt, b.body ->> 'request_sha256' as request_sha256,
       o.seq as outcome_seq, o.recorded_at as answered_at, o.body ->> 'class' as class, (o.body ->> 'status')::int as status,
       o.body ->> 'external_id' as external_id, o.body ->> 'response_sha256' as response_sha256, o.body ->> 'reason' as reason,
       a.correlation_id, a.refs
from tailwater.entry a
cross join lateral (select convert_from(a.body, 'UTF8')::jsonb as body offset 0) b
left join lateral (
  select e.seq, e.recorded_at, x.body
  from tailwater.entry e cross join lateral (select convert_from(e.body, 'UTF8')::jsonb as body offset 0) x
  where e.correlation_id = a.correlation_id and e.kind = 'outcome' and (x.body ->> 'attempt_seq')::bigint = a.seq
  order by e.seq limit 1) o on true
where a.kind = 'attempt' and (select tailwater_audit.noted('sent'));
