-- Where the streams of polled systems stand: what each goes on by, written with the events of each page.

create table poll (
  source     text not null,
  stream     text not null,                      -- of the connector; `list TABLE` for a list that is being read
  cursor     jsonb not null,
  updated_at timestamptz not null default now(),
  primary key (source, stream)
);
