-- Loads: tables read from the source, once at first, again after a gap, or because somebody asked. A load is read in chunks
-- between watermarks while the stream runs, so it may stop at any point and go on.
create table load (
  id           bigint generated always as identity primary key,
  source       text not null,
  kind         text not null check (kind in ('first', 'recover', 'reread')),
  state        text not null check (state in ('requested', 'reading', 'done', 'refused')),
  relations    text[] not null,
  lower        text,                             -- of the key, exclusive; one relation with one key column only
  upper        text,                             -- inclusive
  reason       text,
  requested_by text not null,
  requested_at timestamptz not null default now(),
  started_at   timestamptz,
  finished_at  timestamptz
);
create unique index load_open on load (source) where state = 'reading';

-- Key ranges of a load. Everything up to `cursor` is in the images.
create table load_part (
  load      bigint not null references load,
  relation  text not null,
  part      integer not null,
  lower     text[],                              -- key columns as text; null: from the first row
  upper     text[],                              -- null: to the last row
  cursor    text[],
  rows      bigint not null default 0,
  estimated bigint not null,
  done      boolean not null default false,
  primary key (load, relation, part)
);

-- The load that saw the row last; rows that a whole load did not see are gone at the source.
alter table image add column load bigint;

-- What of each table is in the images. A column or a table that the mapping has new is read by itself; another OID means
-- that the table was dropped and made again, another membership that it had left the publication.
create table relation (
  source   text not null,
  relation text not null,
  oid      bigint not null,                      -- pg_class
  member   bigint not null,                      -- pg_publication_rel
  columns  text[] not null,
  primary key (source, relation)
);

alter table position rename column snapshot_cursor to mapped; -- how far the events of a load have been made
