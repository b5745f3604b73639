-- 1. A role that may replicate and read the mapped columns, nothing else. Run as a superuser.
create role {role} login replication connection limit 24;
-- Give it a password (\password in psql keeps it out of the logs):
--   \password {role}
grant connect on database {database} to {role};
{schema_grants}
-- Read access is for loads and for values that the stream leaves out (unchanged TOAST).
{column_grants}
-- What only some databases have (invoicing, sales, subscriptions, a help desk): as far as it is there.
do $$
declare statement text;
begin
  for statement in
    select format('grant select (%s) on %s to {role}', string_agg(quote_ident(a.attname), ', '), w.name)
    from (values
    {more_columns}
    ) as w(name, columns)
    join pg_attribute a on a.attrelid = to_regclass(w.name) and a.attname = any (w.columns)
      and a.attnum > 0 and not a.attisdropped
    group by w.name
  loop
    execute statement;
  end loop;
end $$;
