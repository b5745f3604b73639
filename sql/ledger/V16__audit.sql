-- The auditor's ledger: by month, with proofs, and append-only by rights.

-- Entries lie in one partition for each month of the daemon's clock; a month never comes before that of the entry before it.
-- Everything that was written before this version counts to the month in which it is brought up to date.
alter table tree
  add column month date not null default date_trunc('month', now() at time zone 'UTC')::date,
  -- Keys of data subjects that have been destroyed: whoever remembers keys forgets them when there is one more.
  add column erasures bigint not null default 0;
alter table entry
  add column month date not null default date_trunc('month', now() at time zone 'UTC')::date,
  -- What the entry is about, for look-ups: canonical ids, table/key of rows, target/id there.
  add column refs text[] not null default '{}';
alter table entry alter column month drop default, alter column refs drop default;
alter table entry drop constraint entry_kind_check, drop constraint entry_pkey;
alter index entry_correlation rename to entry_first_correlation;

do $$
declare
  first date := (select month from tree);
begin
  execute format('alter table entry rename to %I', to_char(first, '"entry_"YYYY_MM'));
  create table entry (
    seq            bigint not null constraint entry_seq_check check (seq > 0),
    month          date not null,
    kind           text not null,
    recorded_at    timestamptz not null,
    correlation_id text,
    refs           text[] not null,
    body           bytea not null,
    leaf           bytea not null constraint entry_leaf_check check (length(leaf) = 32),
    primary key (seq, month)
  ) partition by range (month);
  create index entry_correlation on entry (correlation_id, seq) where correlation_id is not null;
  create index entry_recorded on entry using brin (recorded_at) with (autosummarize = on);
  -- What people did and read is little among what flows.
  create index entry_rare on entry (kind, seq) where kind <> 'event' and kind <> 'attempt' and kind <> 'outcome';
  create index entry_refs on entry using gin (refs);
  execute format('alter table entry attach partition %I for values from (%L) to (%L)',
                 to_char(first, '"entry_"YYYY_MM'), first, (first + interval '1 month')::date);
  execute format('alter table %I alter column body set statistics 0, alter column leaf set statistics 0',
                 to_char(first, '"entry_"YYYY_MM'));
  execute format('alter table delivery add column event_month date not null default %L', first);
end $$;
-- The month of the entry that a delivery is of: it is looked for in one partition only.
alter table delivery alter column event_month drop default;

-- Hashes of complete subtrees, so that a proof reads a few hundred hashes of any ledger. Level 1: 256 leaves; level 2: 256 of these.
create table subtree (
  level smallint not null check (level > 0),
  index bigint not null,
  hash  bytea not null check (length(hash) = 32),
  primary key (level, index)
);

-- Half of the key of each data subject: see `ledger/keyring.rs`. Apart from everything else, so that it can be left out of backups that
-- are kept for long: a key that is destroyed here must not come back from one.
create schema if not exists tailwater_keys;
create table tailwater_keys.subject_key (
  subject    text primary key,
  salt       bytea not null check (length(salt) = 32),
  created_at timestamptz not null default now()
);

-- Which views and rights are in force: digest of their SQL.
alter table installation add column views text;
-- What tells the secret that personal data is sealed with from any other; null until something was sealed.
alter table installation add column sealing text;
-- The log that was published last, and how many entries its newest checkpoint covers: where that log is not found, no other one is begun
-- in its place.
alter table installation
  add column published_log text,
  add column published_size bigint not null default 0;

-- An operator on this machine is known by what the kernel says of the process that asks; anybody else by the database role.
alter table command
  add column peer_uid bigint,
  add column role text not null default session_user;

-- Nothing in the ledger is changed or taken away. Whoever owns it can drop these triggers; what is done then is found by comparing with
-- the checkpoints that are kept elsewhere.
create function refuse() returns trigger language plpgsql as $$
begin
  raise exception '% of the ledger is refused: it is append-only', lower(tg_op)
    using hint = 'What was written stays; `tailwater ledger archive` takes whole months away.', errcode = 'insufficient_privilege';
end $$;
create trigger append_only before update or delete on entry for each row execute function refuse();
create trigger append_only_table before truncate on entry for each statement execute function refuse();
create trigger append_only before update or delete or truncate on subtree for each statement execute function refuse();
create trigger append_only_table before delete or truncate on tree for each statement execute function refuse();
create function refuse_shrinking() returns trigger language plpgsql as $$
begin
  if new.size < old.size or new.erasures < old.erasures or new.month < old.month
    or (new.size = old.size and (new.root, new.frontier, new.month) is distinct from (old.root, old.frontier, old.month)) then
    raise exception 'the tree of the ledger only grows' using errcode = 'insufficient_privilege';
  end if;
  -- No entry could be written into an earlier month ever after.
  if new.month > old.month and new.month > (now() + interval '1 day') at time zone 'UTC' then
    raise exception 'the clock of tailwater says %, that of the server %', to_char(new.month, 'YYYY-MM'), now()
      using hint = 'Set the clock, and start tailwater again.', errcode = 'invalid_datetime_format';
  end if;
  return new;
end $$;
create trigger append_only before update on tree for each row execute function refuse_shrinking();

-- What the writer may do without owning the tables: each of these does one thing.

-- Makes the partition of a month.
create function open_month(wanted date) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
declare
  name text := to_char(wanted, '"entry_"YYYY_MM');
begin
  if extract(day from wanted) <> 1 then
    raise exception '% is not the first of a month', wanted;
  end if;
  if to_regclass(format('tailwater.%I', name)) is not null then
    return;
  end if;
  execute format('create table %I (like entry including defaults including constraints including statistics)', name);
  execute format('alter table %I alter column body set statistics 0, alter column leaf set statistics 0', name);
  execute format('create trigger append_only_table before truncate on %I for each statement execute function refuse()', name);
  -- Readers and writers of the other partitions are not held up.
  execute format('alter table entry attach partition %I for values from (%L) to (%L)',
                 name, wanted, (wanted + interval '1 month')::date);
end $$;

-- Makes the index by which images of a table are looked up by a column.
create function index_images(name text, table_name text, column_name text) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
begin
  if name !~ '^image_by_[0-9a-f]{16}$' then
    raise exception 'no name of an index on images';
  end if;
  execute format('create index if not exists %I on image ((row ->> %L)) where relation = %L', name, column_name, table_name);
end $$;

-- Counts rows anew for the planner.
create function count_rows() returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
begin
  analyze (skip_locked) image, delivery, applied, identity, reservation, wish, spill, load_part;
end $$;

do $$
begin
  perform open_month((select (month + interval '1 month')::date from tree));
  execute format('create trigger append_only_table before truncate on %I for each statement execute function refuse()',
                 to_char((select month from tree), '"entry_"YYYY_MM'));
end $$;

revoke execute on function open_month(date), index_images(text, text, text), count_rows() from public;
