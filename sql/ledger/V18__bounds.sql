-- Whatever cannot become a delivery, and waits by name for a person or for its cure: a row of the source, a polled record, a stream or
-- list that cannot be read, an image that cannot be read back, a command.
create table parked (
  id        bigint generated always as identity primary key,
  kind      text not null check (kind in ('row', 'record', 'stream', 'image', 'command')),
  source    text not null,                  -- source, or empty for what is of none
  place     text not null,                  -- table, stream, kind of command
  key       text not null,                  -- as people know it; cut where it is too long
  rereads   boolean not null default false, -- the key is whole: it can be read again by it
  reason    text not null,
  bytes     bigint,                         -- size of what is too large
  parked_at timestamptz not null default now(),
  seen_at   timestamptz not null default now(),
  times     bigint not null default 1,
  state     text not null default 'parked' check (state in ('parked', 'retry', 'healed', 'resolved', 'discarded')),
  ended_at  timestamptz,
  ended_by  text
);
create unique index parked_open on parked (kind, source, place, md5(key)) where state in ('parked', 'retry');

-- When the last entry was recorded. Entries go by the daemon's clock; one that is off is found by the server's.
alter table tree add column recorded_at timestamptz not null default '-infinity';
create or replace function refuse_shrinking() returns trigger language plpgsql as $$
begin
  if new.size < old.size or new.erasures < old.erasures or new.month < old.month or new.recorded_at < old.recorded_at
    or (new.size = old.size and (new.root, new.frontier, new.month) is distinct from (old.root, old.frontier, old.month)) then
    raise exception 'the tree of the ledger only grows' using errcode = 'insufficient_privilege';
  end if;
  -- Nothing could be written at an earlier time, or into an earlier month, ever after.
  if (new.recorded_at <> old.recorded_at and abs(extract(epoch from new.recorded_at - clock_timestamp())) > 300)
    or (new.month > old.month and new.month > (now() + interval '1 day') at time zone 'UTC') then
    raise exception 'the clock of tailwater says %, that of the ledger''s server %',
        case when new.recorded_at <> old.recorded_at then new.recorded_at::text else to_char(new.month, 'YYYY-MM') end, now()
      using hint = 'Set the clock of the machine that is off; tailwater goes on by itself.', errcode = 'TWCLK';
  end if;
  return new;
end $$;

-- Who asks for a command is said by the server, and what was asked stays as it was.
create function stamp_command() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    new.role := session_user;
    new.requested_at := now();
    new.done_at := null;
    new.outcome := null;
  elsif (new.id, new.kind, new.arguments::text, new.requested_by, new.requested_at, new.peer_uid, new.role)
      is distinct from (old.id, old.kind, old.arguments::text, old.requested_by, old.requested_at, old.peer_uid, old.role) then
    raise exception 'what was asked for is not changed afterwards' using errcode = 'insufficient_privilege';
  end if;
  return new;
end $$;
create trigger stamped before insert or update on command for each row execute function stamp_command();

-- Keys and holds go only with an entry that says so, in the same transaction.
create function entry_of_now(wanted text) returns setof jsonb
language sql stable set search_path = tailwater, pg_temp as $$
  select convert_from(e.body, 'UTF8')::jsonb from entry e
  where e.kind = wanted and e.seq > (select t.size - 100000 from tree t) and e.xmin = pg_current_xact_id()::xid
$$;
create function destroy_keys(subjects text[]) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
begin
  if exists (select unnest(subjects) except
             select s from entry_of_now('erase') b cross join lateral (
               select b ->> 'subject' union all
               select jsonb_array_elements_text(case jsonb_typeof(b -> 'also') when 'array' then b -> 'also' else '[]' end)) as x(s)) then
    raise exception 'a key is destroyed only with an entry of kind erase about its subject' using errcode = 'insufficient_privilege';
  end if;
  delete from tailwater_keys.subject_key where subject = any (subjects);
end $$;
create function lift_hold(held text) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
begin
  if not exists (select from entry_of_now('operator') b where b ->> 'action' = 'unhold' and b ->> 'name' = held) then
    raise exception 'a hold is lifted only with an entry about it' using errcode = 'insufficient_privilege';
  end if;
  delete from hold where name = held;
end $$;
create function place_hold(held text, of_months date[], of_refs text[], why text, by_whom text) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
begin
  if not exists (select from entry_of_now('operator') b where b ->> 'action' = 'hold' and b ->> 'name' = held) then
    raise exception 'a hold is placed only with an entry about it' using errcode = 'insufficient_privilege';
  end if;
  insert into hold (name, months, refs, reason, held_by) values (held, of_months, of_refs, why, by_whom)
  on conflict (name) do update set months = excluded.months, refs = excluded.refs, reason = excluded.reason,
    held_by = excluded.held_by, held_at = now();
end $$;

-- Partitions are made for the month of the server's clock or of the tree, and the next one; indexes for a table's column, a few.
create or replace function open_month(wanted date) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
declare
  name text := to_char(wanted, '"entry_"YYYY_MM');
begin
  if extract(day from wanted) <> 1 then
    raise exception '% is not the first of a month', wanted using errcode = 'TWARG';
  end if;
  if to_regclass(format('tailwater.%I', name)) is not null then
    return;
  end if;
  if (wanted < (select month from tree) and not exists (select from archive a where a.month = wanted))
    or wanted > greatest((select month from tree), date_trunc('month', now() at time zone 'UTC')::date) + interval '2 months' then
    raise exception 'the clock of tailwater says %, that of the ledger''s server %', to_char(wanted, 'YYYY-MM'), now()
      using hint = 'Set the clock of the machine that is off; tailwater goes on by itself.', errcode = 'TWCLK';
  end if;
  execute format('create table %I (like entry including defaults including constraints including statistics)', name);
  execute format('alter table %I alter column body set statistics 0, alter column leaf set statistics 0', name);
  execute format('create trigger append_only_table before truncate on %I for each statement execute function refuse()', name);
  -- Readers and writers of the other partitions are not held up.
  execute format('alter table entry attach partition %I for values from (%L) to (%L)',
                 name, wanted, (wanted + interval '1 month')::date);
end $$;
create or replace function index_images(name text, table_name text, column_name text) returns void
language plpgsql security definer set search_path = tailwater, pg_temp as $$
begin
  if name <> 'image_by_' || left(encode(sha256(convert_to(table_name || '.' || column_name, 'UTF8')), 'hex'), 16) then
    raise exception 'no name of an index on images' using errcode = 'TWARG';
  end if;
  if to_regclass(format('tailwater.%I', name)) is not null then
    return;
  end if;
  if (select count(*) from pg_indexes where schemaname = 'tailwater' and indexname like 'image\_by\_%') >= 500 then
    raise exception 'there are 500 indexes on images already' using errcode = 'TWARG';
  end if;
  execute format('create index %I on image ((row ->> %L)) where relation = %L', name, column_name, table_name);
end $$;
revoke execute on function open_month(date), index_images(text, text, text), entry_of_now(text), destroy_keys(text[]), lift_hold(text),
  place_hold(text, date[], text[], text, text) from public;
