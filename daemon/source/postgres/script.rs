//! The SQL that a DBA runs on the ERP, for this mapping and these names.

use super::catalog::{create_publication, qualified, quote};
use crate::mapping::SourceMapping;

/// See the module's text.
#[must_use]
pub fn source_sql(mapping: &SourceMapping, role: &str, database: &str, publication: &str) -> String {
    let role = quote(role);
    let mut sql = format!(
        "-- What tailwater needs on the ERP's PostgreSQL: one role, one publication. The slot it makes itself.
-- Run the first part as a superuser, once.

-- 1. A role that may replicate and read the mapped columns, nothing else.
create role {role} login replication connection limit 4;
-- Give it a password (\\password in psql keeps it out of the logs):
--   \\password {role}
grant connect on database {database} to {role};
",
        database = quote(database)
    );
    let mut schemas: Vec<&str> = mapping.tables.iter().map(|table| &*table.schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    for schema in schemas {
        sql.push_str(&format!("grant usage on schema {} to {role};\n", quote(schema)));
    }
    sql.push_str("-- Read access is used for the first load only.\n");
    for table in &mapping.tables {
        let columns: Vec<String> = table.columns.iter().map(|column| quote(column)).collect();
        sql.push_str(&format!("grant select ({}) on {} to {role};\n", columns.join(", "), qualified(table)));
    }
    sql.push_str(&format!(
        "
-- 2. The publication, as the owner of the tables. Whole tables by name: a column list or a row filter can make the
--    ERP's own UPDATEs fail, and FOR ALL TABLES would take in the first table without a key.
{};

-- 3. Settings (postgresql.conf).
--    wal_level = logical                      -- needs a restart
--    max_slot_wal_keep_size = '50GB'          -- a share of the disk: what a stopped tailwater may hold back
--    output_plugin_libraries = 'pgoutput'     -- where the server knows it: closes test_decoding to this role

-- 4. pg_hba.conf: logical replication matches the database's name, physical the word `replication`.
--    hostssl {database}    {role}  <address of tailwater>/32  scram-sha-256
--    host    replication   {role}  all                        reject
--    host    all           {role}  all                        reject

-- The way out, after tailwater has been stopped:
--    select pg_drop_replication_slot('tailwater');
--    drop publication {};
--    drop owned by {role}; drop role {role};
",
        create_publication(mapping, publication),
        quote(publication)
    ));
    sql
}
