-- One request for many deliveries. Each has its own attempt and outcome; here is what was sent for all of them, and the job in
-- which the vendor works it off, to be followed to its end whoever has begun it.
create table bulk_call (
  key        text primary key,
  target     text not null,
  object     text not null,
  way        smallint not null,                  -- which of the connector's bulk requests of the object
  deliveries bigint[] not null,                  -- in the order of the request
  request    json,                               -- exact bytes, until the outcome of each is known
  state      text not null check (state in ('sending', 'running', 'done')),
  job        text,
  epoch      bigint not null references process,
  sent_at    timestamptz not null default now(),
  ended_at   timestamptz
);
create index bulk_call_open on bulk_call (target) where state <> 'done';

-- It was part of a bulk request that did not do: it goes by itself.
alter table delivery add column alone boolean not null default false;
