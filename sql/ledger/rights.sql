-- Rights of the roles, as far as there are any: made anew with every version, by the owner.
do $$
declare
  item record;
begin
  revoke all on all tables in schema tailwater, tailwater_audit from public;
  revoke all on all functions in schema tailwater_audit from public;
  if exists (select from pg_roles where rolname = 'tailwater_writer') then
    grant usage on schema tailwater, tailwater_audit to tailwater_writer;
    grant select on all tables in schema tailwater, tailwater_audit to tailwater_writer;
    grant usage on all sequences in schema tailwater to tailwater_writer;
    grant execute on all functions in schema tailwater, tailwater_audit to tailwater_writer;
    grant usage on schema tailwater_keys to tailwater_writer;
    grant select, insert on tailwater_keys.subject_key to tailwater_writer;
    -- Keys and holds go by functions that want an entry about it.
    revoke update, delete, truncate on tailwater_keys.subject_key from tailwater_writer;
    revoke insert, update, delete on tailwater.hold from tailwater_writer;
    revoke delete on tailwater.command from tailwater_writer;
    grant insert on tailwater.entry, tailwater.subtree to tailwater_writer;
    grant update on tailwater.tree to tailwater_writer;
    grant update (sealing, published_log, published_size) on tailwater.installation to tailwater_writer;
    grant insert, update on tailwater.command to tailwater_writer;
    -- Everything else is state.
    for item in
      select c.oid::regclass as name
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'tailwater' and c.relkind = 'r' and not c.relispartition
        and c.relname not in ('entry', 'subtree', 'tree', 'installation', 'refinery_schema_history', 'archive', 'archived_leaves',
                              'kept_event', 'archived_subject', 'hold', 'command')
    loop
      execute format('grant insert, update, delete on %s to tailwater_writer', item.name);
    end loop;
  end if;
  if exists (select from pg_roles where rolname = 'tailwater_auditor') then
    grant usage on schema tailwater_audit to tailwater_auditor;
    grant select on all tables in schema tailwater_audit to tailwater_auditor;
    grant execute on all functions in schema tailwater_audit to tailwater_auditor;
  end if;
end $$;
