-- 2. The publication, as the owner of the tables. Whole tables, each by name. Partitions come under their root's name.
create publication {publication} for table {tables} with (publish_via_partition_root = true);
-- What only some databases have, as far as it is there. After a module was installed: this again.
do $tailwater$
declare name text;
begin
  foreach name in array array[{more_tables}]::text[] loop
    if to_regclass(name) is not null and not exists (
      select from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
      where p.pubname = {publication_literal} and r.prrelid = to_regclass(name))
    then
      execute format('alter publication %I add table %s', {publication_literal}, to_regclass(name));
    end if;
  end loop;
end $tailwater$;
