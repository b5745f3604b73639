-- Deliveries that a system took more than once. There should be none.
create or replace view tailwater_audit.sent_twice as
select b.body ->> 'target' as target, b.body ->> 'object' as object, b.body ->> 'id' as id,
       (b.body ->> 'delivery')::bigint as delivery, count(*) as times, array_agg(e.seq order by e.seq) as outcomes
from tailwater.entry e
cross join lateral (select convert_from(e.body, 'UTF8')::jsonb as body offset 0) b
where e.kind = 'outcome' and b.body ->> 'class' = 'applied' and (select tailwater_audit.noted('sent_twice'))
group by 1, 2, 3, 4
having count(*) > 1;

-- What would have arrived twice and did not: answers that were lost and resolved, deliveries that would have changed nothing, states
-- that a newer one replaced before they were sent.
create or replace view tailwater_audit.duplicate_prevented as
select e.seq, e.recorded_at, b.body ->> 'target' as target, b.body ->> 'object' as object, b.body ->> 'id' as id,
       (b.body ->> 'delivery')::bigint as delivery, b.body ->> 'class' as class, b.body ->> 'reason' as reason,
       e.correlation_id, e.refs
from tailwater.entry e
cross join lateral (select convert_from(e.body, 'UTF8')::jsonb as body offset 0) b
where e.kind = 'outcome' and b.body ->> 'class' in ('duplicate', 'superseded')
  and (select tailwater_audit.noted('duplicate_prevented'));
