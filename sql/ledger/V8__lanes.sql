-- What may be sent next is found without looking at what may not: only the oldest delivery of a lane is its head, heads are
-- kept apart by priority class, and what waits for another object is left alone until that one has moved.
alter table delivery
  add column class smallint not null default 2 check (class between 0 and 3), -- money, entitlement, profile, backfill
  add column head boolean not null default false, -- the first of its lane that is open or holds it up
  add column waits_for text,                      -- object/canonical id that must come first
  -- Lanes are shared out among processes by shard.
  add column shard smallint not null generated always as
    ((hashtextextended(object || '/' || canonical_id, 0) & 7)::smallint) stored,
  -- What holds its lane up: see the heads.
  add column occupies boolean not null generated always as
    (state in ('pending', 'sending', 'held') or (state = 'parked' and request is not null)) stored,
  add column ready boolean not null generated always as
    (head and state in ('pending', 'sending') and waits_for is null) stored,
  add column aside boolean not null generated always as
    (state in ('parked', 'rejected', 'shadowed', 'held')) stored,
  -- Kept and read whole, never looked into.
  alter column request type json using request::json;

-- No index names `state`: a change from pending to sending, which each delivery goes through, touches none of them.
drop index delivery_held, delivery_aside, delivery_waiting;
create unique index delivery_head on delivery (target, object, canonical_id) where head;
create index delivery_ready on delivery (target, object, shard, class, due_at, id) where ready;
create index delivery_waits on delivery (target, waits_for) where waits_for is not null;
create index delivery_aside on delivery (target, object, canonical_id, id) where aside;

-- Why a delivery waits for a person: refused, mapping, doubt, ambiguous, unique, mass.
alter table delivery add column cause text;

update delivery set cause = case state when 'rejected' then 'refused' when 'held' then 'mass'
  else case when request is null then 'mapping' else 'doubt' end end
where state in ('parked', 'rejected', 'held');
update delivery set head = true where id in (
  select min(id) from delivery where occupies group by target, object, canonical_id);

-- What an object requires stands at the target.
create function is_there(at text, reference text) returns boolean stable language sql as $$
  select exists (select from applied a where a.target = at and a.object = split_part(reference, '/', 1)
                 and a.canonical_id = substr(reference, strpos(reference, '/') + 1) and a.state = 'present')
$$;

-- What an object requires is on its way to the target and not there yet.
create function is_on_its_way(at text, reference text) returns boolean stable language sql as $$
  select exists (select from delivery q where q.target = at and q.object = split_part(reference, '/', 1)
                 and q.canonical_id = substr(reference, strpos(reference, '/') + 1)
                 and q.state in ('pending', 'sending', 'held') and q.operation = 'upsert')
     and not is_there(at, reference)
$$;
