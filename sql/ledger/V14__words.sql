-- What several sources say of one object, and what the targets hold of it.

create table said (
  event_type   text not null,
  canonical_id text not null,
  source       text not null,
  seq          bigint not null,                  -- entry of its last event
  data         jsonb not null,                   -- only what it has a say in
  changed      jsonb not null,                   -- since when it says so, by field, in milliseconds since 1970; 0: always
  primary key (event_type, canonical_id, source)
);

alter table applied
  add column body json,                          -- what the target holds of what we write: as told, and as seen since then
  add column told_at timestamptz;                -- when it last took something of ours

alter table entry drop constraint entry_kind_check;
alter table entry add constraint entry_kind_check check (kind in
  ('event', 'attempt', 'outcome', 'operator', 'config', 'gap', 'tx_end', 'start', 'stop', 'erase', 'drift', 'conflict',
   'reconcile'));
