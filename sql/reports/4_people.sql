-- Everything a person did: commands, and what else is written with who asked for it.
create or replace view tailwater_audit.intervention as
select e.seq, e.recorded_at, b.body ->> 'action' as action, b.body ->> 'requested_by' as requested_by,
       (b.body ->> 'peer_uid')::bigint as peer_uid, b.body ->> 'role' as role, b.body ->> 'reason' as reason,
       b.body - '{action,correlation_id,kind,peer_uid,reason,recorded_at,requested_by,role,seq,v}'::text[] as details, e.refs
from tailwater.entry e
cross join lateral (select convert_from(e.body, 'UTF8')::jsonb as body offset 0) b
where e.kind in ('operator', 'erase', 'archive', 'gap') and b.body ? 'requested_by' and (select tailwater_audit.noted('intervention'));

-- Deliveries that a person decided about: again, given up, or how a doubt ended.
create or replace view tailwater_audit.touched_delivery as
select i.seq, i.recorded_at, i.action, i.requested_by, i.peer_uid, i.role, i.reason, d.delivery::bigint as delivery,
       i.details
from tailwater_audit.intervention i
cross join lateral (
  select jsonb_array_elements_text(case jsonb_typeof(i.details -> 'deliveries') when 'array' then i.details -> 'deliveries' end)
  union
  select i.details ->> 'id' where i.action = 'resolve') d(delivery)
where d.delivery is not null;

-- Four eyes: what one person did to what no other person has had a hand in. For each person and thing (a target, an object at it)
-- the number of interventions, and by how many people in all.
create or replace view tailwater_audit.four_eyes as
select coalesce(i.details ->> 'target', i.details #>> '{which,target}', '') as target,
       coalesce(i.details ->> 'object', i.details #>> '{which,object}', '') as object,
       coalesce(i.details ->> 'canonical_id', i.details ->> 'id', i.details ->> 'name', '') as id,
       count(*) as interventions, count(distinct i.requested_by) as people,
       array_agg(distinct i.action) as actions, array_agg(distinct i.requested_by) as who,
       min(i.recorded_at) as first_at, max(i.recorded_at) as last_at, array_agg(i.seq order by i.seq) as entries
from tailwater_audit.intervention i
group by 1, 2, 3;

-- Who read the ledger, or took a copy of it.
create or replace view tailwater_audit.reading as
select e.seq, e.recorded_at, e.kind, b.body ->> 'requested_by' as requested_by, b.body ->> 'role' as role,
       b.body ->> 'what' as what, b.body ->> 'details' as details
from tailwater.entry e
cross join lateral (select convert_from(e.body, 'UTF8')::jsonb as body offset 0) b
where e.kind in ('read', 'export') and (select tailwater_audit.noted('reading'));
