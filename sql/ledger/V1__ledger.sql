-- The ledger: what happened, what is owed, where each source stands. Everything lives in schema `tailwater`.

-- Append-only, gapless, one leaf of the tree per line. `body` is RFC 8785 JSON, kept as bytes because the tree hashes
-- bytes: jsonb would reorder keys and rewrite numbers.
create table entry (
  seq            bigint primary key check (seq > 0),
  kind           text not null check (kind in
                   ('event', 'attempt', 'outcome', 'operator', 'config', 'gap', 'tx_end', 'start', 'stop', 'erase')),
  recorded_at    timestamptz not null,
  correlation_id text,
  body           bytea not null,
  leaf           bytea not null check (length(leaf) = 32)
);
create index entry_correlation on entry (correlation_id, seq) where correlation_id is not null;

-- RFC 6962 tree over entry.body: one row, advanced in the transaction that writes the entries.
create table tree (
  one      boolean primary key default true check (one),
  size     bigint not null,
  frontier bytea[] not null,
  root     bytea not null check (length(root) = 32)
);
insert into tree (size, frontier, root) values (0, '{}', sha256(''));

-- Where each source stands.
create table position (
  source             text primary key,
  system_identifier  text not null,
  timeline           integer not null,
  slot               text not null,
  phase              text not null check (phase in ('creating', 'copying', 'mapping', 'streaming')),
  commit_lsn         pg_lsn not null default '0/0',
  ordinal            bigint,                 -- last ordinal ledgered of the transaction at commit_lsn; null: all of it
  end_lsn            pg_lsn not null default '0/0',
  snapshot_cursor    jsonb,
  committed_at       timestamptz,
  updated_at         timestamptz not null default now()
);

-- The last image of each mapped source row.
create table image (
  source   text not null,
  relation text not null,
  key      text not null,
  row      jsonb not null,
  primary key (source, relation, key)
);

-- What was last emitted for each object.
create table document (
  source       text not null,
  event_type   text not null,
  canonical_id text not null,
  sha256       text not null,
  event_seq    bigint not null,
  primary key (source, event_type, canonical_id)
);

-- What is owed: the only busy table.
create table delivery (
  id              bigint generated always as identity primary key,
  event_seq       bigint not null,
  target          text not null,
  object          text not null,
  canonical_id    text not null,
  operation       text not null check (operation in ('upsert', 'delete')),
  fact            boolean not null,
  requires        text[] not null default '{}',
  state           text not null check (state in
                    ('pending', 'sending', 'applied', 'duplicate', 'superseded', 'rejected', 'parked')),
  due_at          timestamptz not null default now(),
  created_at      timestamptz not null default now(),
  round           integer not null default 0,     -- counts deliberate new requests of the same delivery
  attempts        integer not null default 0,
  idempotency_key text,
  request         jsonb,                          -- exactly what was sent last, until its outcome is known
  attempted_at    timestamptz,                    -- first attempt with this key
  last_attempt_at timestamptz,
  reason          text
) with (fillfactor = 70);
create index delivery_open on delivery (target, id) where state in ('pending', 'sending');
create index delivery_lane on delivery (target, object, canonical_id, id) where state in ('pending', 'sending', 'parked');
create index delivery_history on delivery (target, object, canonical_id, event_seq);
create index delivery_held on delivery (target, state) where state in ('rejected', 'parked');

-- What each target holds of each object. `owed`: not there yet; `absent`: deleted there.
create table applied (
  target       text not null,
  object       text not null,
  canonical_id text not null,
  state        text not null check (state in ('owed', 'present', 'absent')),
  sha256       text,                              -- of the body last accepted
  seq          bigint,                            -- entry of the outcome
  primary key (target, object, canonical_id)
);

-- The cross-reference.
create table identity (
  canonical_id text not null,
  system       text not null,                     -- target name
  object       text not null,
  external_id  text not null,
  primary key (system, object, canonical_id)
);

-- Values a target wants unique (an organization's name), and who holds them there. An empty holder is somebody else.
create table reservation (
  target       text not null,
  want         text not null,                     -- object:field=folded value, of any length
  want_md5     text not null generated always as (md5(want)) stored,
  object       text not null,
  canonical_id text not null,
  primary key (target, want_md5)
);
create index reservation_holder on reservation (target, object, canonical_id);

-- What objects at a target wait for: a unique value held by another (object:field=value), a reference that is not there
-- (ref:object/id), or one that is there and might go and come back (back:object/id). Then they are delivered again.
create table wish (
  target       text not null,
  object       text not null,
  canonical_id text not null,
  want         text not null,
  want_md5     text not null generated always as (md5(want)) stored,
  event_seq    bigint not null,                   -- what was sent without it
  requires     text[] not null,
  primary key (target, object, canonical_id, want_md5)
);
create index wish_want on wish (target, want_md5);
