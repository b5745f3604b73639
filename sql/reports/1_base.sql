-- What auditors see: views, and nothing else. Whoever reads them is written into the ledger.

create schema if not exists tailwater_audit;

-- Notes who reads what; true. The daemon makes an entry of it, once for each transaction and view. Where nothing can be written, such as on a
-- replica, nothing can be read: it would leave no trace. What is rolled back leaves its trace in the server's log.
create or replace function tailwater_audit.noted(what text, details text default null, kind text default 'read')
returns boolean
language plpgsql volatile security definer set search_path = tailwater, pg_temp as $$
begin
  if what is null or kind is null or kind not in ('read', 'export') then
    raise exception 'only readings are noted here';
  end if;
  if details is null and exists (
    select from command c where c.done_at is null and c.xmin = pg_current_xact_id()::xid and c.role = session_user
      and c.arguments ->> 'what' = noted.what)
  then
    return true;
  end if;
  raise log 'tailwater: % reads % %', session_user, what, coalesce(details, '');
  insert into command (kind, arguments, requested_by)
  values (kind, jsonb_strip_nulls(jsonb_build_object('kind', kind, 'what', what, 'details', details)),
          session_user || coalesce(' at ' || host(inet_client_addr()), ' at this machine')
            || coalesce(' with ' || nullif(current_setting('application_name', true), ''), ''));
  return true;
end $$;

-- Every line of the ledger. `body` is exactly what the tree covers, `json` the same to be read.
create or replace view tailwater_audit.entry as
select e.seq, e.month, e.kind, e.recorded_at, e.correlation_id, e.refs, e.body, e.leaf,
       convert_from(e.body, 'UTF8')::jsonb as json
from tailwater.entry e
where (select tailwater_audit.noted('entry'));

-- Hashes, of which nothing can be learnt but whether what one has is complete and unaltered.
create or replace view tailwater_audit.tree as select size, frontier, root, month, erasures from tailwater.tree;
create or replace view tailwater_audit.subtree as select level, index, hash from tailwater.subtree;

create or replace view tailwater_audit.archived_leaves as select first_seq, last_seq, hashes from tailwater.archived_leaves;

-- The log that was published last.
create or replace view tailwater_audit.installation as select published_log, published_size from tailwater.installation;

-- Of archived entries what had to be kept.
create or replace view tailwater_audit.kept_event as select seq, month, body from tailwater.kept_event where (select tailwater_audit.noted('entry'));

-- Months that lie in files, and what is held.
create or replace view tailwater_audit.archive as select * from tailwater.archive;
create or replace view tailwater_audit.hold as select * from tailwater.hold;

-- Which object at a system is which of ours.
create or replace view tailwater_audit.identity as
select canonical_id, system, object, external_id from tailwater.identity where (select tailwater_audit.noted('identity'));

-- Every row of the ERP that led to an event: who wrote it, what it was before and after.
create or replace view tailwater_audit.change as
select e.seq, e.recorded_at, (b.body #>> '{source,committed_at}')::timestamptz as committed_at,
       c.change ->> 'relation' as table_name, c.change ->> 'key' as key, c.change ->> 'op' as operation,
       c.change ->> 'by' as changed_by, c.change -> 'before' as before, c.change -> 'after' as after,
       c.change -> 'sealed' as sealed,
       b.body ->> 'type' as event_type, b.body ->> 'id' as id, b.body #>> '{source,name}' as source,
       (b.body #>> '{source,xid}')::bigint as xid, b.body #>> '{source,commit_lsn}' as commit_lsn,
       (b.body #>> '{source,ordinal}')::numeric as ordinal, b.body #>> '{source,system_identifier}' as system_identifier,
       (b.body #>> '{source,timeline}')::int as timeline, b.body ->> 'mapping_sha256' as mapping_sha256,
       e.correlation_id, e.refs
from tailwater.entry e
cross join lateral (select convert_from(e.body, 'UTF8')::jsonb as body offset 0) b
cross join lateral jsonb_array_elements(b.body -> 'changes') c(change)
where e.kind = 'event' and (select tailwater_audit.noted('change'));

-- The same, a line for each field that is another one than before.
create or replace view tailwater_audit.field_change as
select c.seq, c.recorded_at, c.committed_at, c.table_name, c.key, c.operation, c.changed_by, f.field,
       case when c.sealed ? f.field then '(sealed)' else nullif(c.before, 'null'::jsonb) ->> f.field end as old_value,
       case when c.sealed ? f.field then '(sealed)' else nullif(c.after, 'null'::jsonb) ->> f.field end as new_value,
       c.event_type, c.id, c.source, c.correlation_id, c.refs
from tailwater_audit.change c
cross join lateral (
  select k.field from (
    select jsonb_object_keys(c.before) where jsonb_typeof(c.before) = 'object'
    union
    select jsonb_object_keys(c.after) where jsonb_typeof(c.after) = 'object') k(field)
  where (nullif(c.before, 'null'::jsonb) -> k.field) is distinct from (nullif(c.after, 'null'::jsonb) -> k.field)
    and k.field <> '~sealed'
  union all
  select jsonb_array_elements_text(case jsonb_typeof(c.sealed) when 'array' then c.sealed end)) f;
