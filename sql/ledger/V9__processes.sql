-- What tells this ledger from others that share a Redis.
create table installation (
  one boolean primary key default true check (one),
  id  uuid not null default gen_random_uuid()
);
insert into installation default values;

-- Who works on this ledger. Each start is an epoch of its own; one that has ended, by itself or because it was found dead, never
-- comes back.
create table process (
  epoch         bigint generated always as identity primary key,
  role          text not null check (role in ('all', 'capture', 'dispatch', 'command')),
  version       text not null,
  host          text not null,
  backend_pid   integer not null,                -- of its writing session
  backend_start timestamptz not null,
  started_at    timestamptz not null default now(),
  expires_at    timestamptz not null,            -- unless it says meanwhile that it lives
  ended_at      timestamptz
);
create index process_living on process (epoch) where ended_at is null;

-- Which process does what: `source/NAME`, `lanes/TARGET/SHARD`, `commands`. Of one that has ended anybody may take them.
create table lease (
  name  text primary key,
  epoch bigint not null references process
);

-- Rates that operators have set while the daemon runs; what is not here is as the settings have it.
create table quota (
  target     text not null,
  limit_name text not null,
  rates      text[] not null,
  changed_by text not null,
  changed_at timestamptz not null default now(),
  primary key (target, limit_name)
);

-- How each target looks to the process that speaks to it: rates in force, pauses. For people.
create table target_state (
  target     text not null,
  epoch      bigint not null references process,
  state      jsonb not null,
  updated_at timestamptz not null default now(),
  primary key (target, epoch)
);
