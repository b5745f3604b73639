-- 1. A role that may replicate and read the mapped columns, nothing else. Run as a superuser.
create role {role} login replication connection limit 24;
-- Give it a password (\password in psql keeps it out of the logs):
--   \password {role}
grant connect on database {database} to {role};
{schema_grants}
-- Read access is for loads and for values that the stream leaves out (unchanged TOAST).
{column_grants}
