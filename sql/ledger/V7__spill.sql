-- Objects touched by a transaction that is too large to be worked out at once. Its rows go into the images slice by slice;
-- its events are made when all of it is there, so that none tells of half a transaction.
create table spill (
  source     text not null,
  event_type text not null,
  root       text not null,                      -- table of the row that the object is
  key        text not null,
  ordinal    bigint not null,                    -- of the last change
  causes     jsonb not null,                     -- [{table, key, before, after}, …]
  primary key (source, event_type, root, key)
);
