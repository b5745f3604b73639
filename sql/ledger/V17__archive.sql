-- Months that were written to files and taken out of the database. Their leaves stay, so that every proof can still be made; so do the
-- events that tell what objects at targets should be.
create table archive (
  month       date primary key,
  first_seq   bigint not null,
  last_seq    bigint not null,
  file        text not null,
  sha256      text not null,                       -- of the file
  archived_at timestamptz not null default now()
);
create table archived_leaves (
  first_seq bigint primary key,
  last_seq  bigint not null,
  hashes    bytea not null check (length(hashes) = 32 * (last_seq - first_seq + 1)),
  unique (last_seq)
);
create table kept_event (
  seq   bigint primary key,
  month date not null,
  body  bytea not null
);

-- Whose data is sealed in archived events, so that they are found when they are to be forgotten: rows these came from, and names.
create table archived_subject (
  subject    text not null,
  seq        bigint not null,
  month      date not null,
  source     text,
  event_type text,
  id         text,
  relation   text,
  key        text
);
create index archived_subject_subject on archived_subject (subject);
create index archived_subject_row on archived_subject (source, relation, key);
create index archived_subject_month on archived_subject using brin (month);

-- What must not be taken away or erased, whatever else is decided: whole months, or everything about a subject or an object.
create table hold (
  name       text primary key,
  months     date[] not null,
  refs       text[] not null,
  reason     text not null,
  held_by    text not null,
  held_at    timestamptz not null default now()
);
create trigger append_only before update on archived_leaves for each row execute function refuse();
