-- What targets hold, compared with what they should.

create table reconcile (
  id           bigint generated always as identity primary key,
  target       text not null,
  objects      text[] not null,
  repair       boolean not null,
  state        text not null check (state in ('requested', 'reading', 'done', 'failed')),
  requested_by text not null,
  requested_at timestamptz not null default now(),
  started_at   timestamptz,
  ended_at     timestamptz,
  report       jsonb
);
create index reconcile_target on reconcile (target, id);

create table difference (
  reconcile    bigint not null references reconcile,
  object       text not null,
  kind         text not null check (kind in ('missing', 'extra', 'different', 'doubled')),
  canonical_id text not null,                     -- empty: nothing of ours
  external_id  text not null,
  fields       jsonb not null,                    -- [{field, ours, theirs}, …]
  repaired     boolean not null default false,
  primary key (reconcile, object, kind, canonical_id, external_id)
);

-- The last comparison that found the object at the target.
alter table identity add column seen bigint;
