-- Three roles, so that nobody who writes the ledger can change what is written, and nobody who reads it can write:
--   tailwater_owner    owns the tables; nobody logs in as it
--   tailwater_writer   the daemon: adds entries, keeps the tables that are state
--   tailwater_auditor  reads the views in schema tailwater_audit; each reading is an entry
-- Run by a superuser, or one with CREATEROLE who owns the database. May be run again.
do $$
declare
  wanted text;
  item record;
begin
  foreach wanted in array array['tailwater_owner', 'tailwater_writer', 'tailwater_auditor'] loop
    if not exists (select from pg_roles where rolname = wanted) then
      execute format('create role %I nologin', wanted);
    end if;
  end loop;
  -- From 16 on, who makes a role is a member of it, and yet may not act as it.
  if not pg_has_role(current_user, 'tailwater_owner', case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end)
  then
    execute format('grant tailwater_owner to %I', current_user);
  end if;
  execute format('alter database %I owner to tailwater_owner', current_database());
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to tailwater_writer, tailwater_auditor', current_database());
  -- What an earlier version of this ledger was owned by.
  for item in select nspname from pg_namespace where nspname in ('tailwater', 'tailwater_audit', 'tailwater_keys') loop
    execute format('alter schema %I owner to tailwater_owner', item.nspname);
  end loop;
  for item in
    select c.oid::regclass as name, case c.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end as kind
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('tailwater', 'tailwater_audit', 'tailwater_keys') and c.relkind in ('r', 'p', 'v')
  loop
    execute format('alter %s %s owner to tailwater_owner', item.kind, item.name);
  end loop;
  for item in
    select p.oid::regprocedure as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('tailwater', 'tailwater_audit')
  loop
    execute format('alter function %s owner to tailwater_owner', item.name);
  end loop;
end $$;
