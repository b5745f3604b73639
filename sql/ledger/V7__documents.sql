-- Objects touched by a transaction that is too large to be worked out at once. Its rows go into the images slice by slice;
-- its events are made when all of it is there, so that none tells of half a transaction.
create table spill (
  source     text not null,
  event_type text not null,
  root       text not null,                      -- table of the row that the object is
  key        text not null,
  ordinal    bigint not null,                    -- of the last change in a slice; one line for each slice
  causes     jsonb not null,                     -- [{table, key, before, after}, …]
  primary key (source, event_type, root, key, ordinal)
);

-- `shadowed`: worked out and recorded in every respect, and not sent, because the target is in shadow mode. `held`: part of a mass
-- change that waits for a person.
alter table delivery drop constraint delivery_state_check;
alter table delivery add constraint delivery_state_check check (state in
  ('pending', 'sending', 'applied', 'duplicate', 'superseded', 'rejected', 'parked', 'shadowed', 'held'));
create index delivery_aside on delivery (target, object, id) where state in ('shadowed', 'held');

-- What people ask of a running daemon. It carries it out, writes who asked into the ledger, and notes here that it is done.
create table command (
  id           bigint generated always as identity primary key,
  kind         text not null,
  arguments    jsonb not null,
  requested_by text not null,
  requested_at timestamptz not null default now(),
  done_at      timestamptz,
  outcome      text
);
create index command_open on command (id) where done_at is null;

-- Which groups of customers have been moved from one system to another: see mappings/routes. A wave that is not here has not.
create table wave (
  name       text primary key,
  moved      boolean not null,
  changed_by text not null,
  changed_at timestamptz not null default now()
);

-- Whom an object at a target stands for.
create index identity_external on identity (system, external_id);

-- `drift`: a source changed a field that another system owns.
alter table entry drop constraint entry_kind_check;
alter table entry add constraint entry_kind_check check (kind in
  ('event', 'attempt', 'outcome', 'operator', 'config', 'gap', 'tx_end', 'start', 'stop', 'erase', 'drift'));
