//! What has to be true of the ERP's PostgreSQL before anything is read, checked by catalogue queries.
//!
//! The five shapes that make the application's own UPDATE fail are found here: no key, identity NOTHING, a dropped
//! identity index, a column list or a row filter that does not cover the identity.

use serde::Serialize;
use tokio_postgres::Client;

use super::settings;
use crate::mapping::{SourceMapping, TableSpec};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Start is refused.
    Error,
    /// Worth mending.
    Warning,
}

/// Something a DBA should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Table or setting.
    pub subject: String,
    /// What is wrong, and what it would do.
    pub what: String,
    /// SQL or setting that cures it.
    pub remedy: String,
    /// A running source goes on without what is missing: events that need it are parked.
    #[serde(skip)]
    pub parks: bool,
}

/// A finding that concerns the start.
#[must_use]
pub fn finding(
    severity: Severity,
    subject: &str,
    what: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { severity, subject: subject.to_owned(), what: what.into(), remedy: remedy.into(), parks: false }
}

const PUBLICATION: &str =
    "select puballtables, pubinsert and pubupdate and pubdelete and pubtruncate, pubviaroot,
  to_regclass('pg_catalog.pg_publication_namespace') is not null from pg_publication p where pubname = $1";

/// From PostgreSQL 15 on.
const SCHEMAS: &str =
    "select exists (select from pg_publication_namespace n join pg_publication p on p.oid = n.pnpubid
  where p.pubname = $1)";

/// Checks settings, publication and tables.
pub async fn check(
    client: &Client,
    mapping: &SourceMapping,
    publication: &str,
    slot: &str,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = settings::check(client, slot).await?;
    let known = client.query_opt(PUBLICATION, &[&publication]).await?;
    let Some(row) = known else {
        findings.push(finding(
            Severity::Error,
            &format!("publication \"{publication}\""),
            "does not exist",
            create_publication(mapping, publication),
        ));
        findings.extend(columns(client, mapping).await?);
        return Ok(findings);
    };
    if row.try_get(0)? {
        findings.push(finding(
            Severity::Error,
            &format!("publication \"{publication}\""),
            "is FOR ALL TABLES: the first table without a key would make the ERP's own UPDATEs on it fail",
            format!(
                "drop publication {0}; {1}",
                quote(publication),
                create_publication(mapping, publication)
            ),
        ));
    } else if row.try_get(3)? && client.query_one(SCHEMAS, &[&publication]).await?.try_get(0)? {
        findings.push(finding(
            Severity::Error,
            &format!("publication \"{publication}\""),
            "takes in whole schemas: the first table without a key would make the ERP's own UPDATEs on it fail",
            format!(
                "drop publication {0}; {1}",
                quote(publication),
                create_publication(mapping, publication)
            ),
        ));
    }
    if !row.try_get::<_, bool>(1)? {
        findings.push(finding(
            Severity::Error,
            &format!("publication \"{publication}\""),
            "does not publish inserts, updates, deletes and truncates alike: changes would be missing",
            format!(
                "alter publication {} set (publish = 'insert, update, delete, truncate')",
                quote(publication)
            ),
        ));
    }
    findings.extend(partitions(client, mapping, publication, row.try_get(2)?).await?);
    findings.extend(published(client, mapping, publication).await?);
    findings.extend(identities(client, publication).await?);
    findings.extend(columns(client, mapping).await?);
    Ok(findings)
}

/// Tables that the mapping reads and the publication lacks, or publishes in part.
async fn published(
    client: &Client,
    mapping: &SourceMapping,
    publication: &str,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    // Column lists and row filters exist from PostgreSQL 15 on.
    let partial: bool = client
        .query_one("select current_setting('server_version_num')::int >= 150000", &[])
        .await?
        .try_get(0)?;
    let sql = if partial {
        "select p.schemaname, p.tablename, p.rowfilter is not null,
                cardinality(p.attnames) < (select count(*) from pg_attribute a
                  where a.attrelid = format('%I.%I', p.schemaname, p.tablename)::regclass
                  and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
         from pg_publication_tables p where p.pubname = $1"
    } else {
        "select schemaname, tablename, false, false from pg_publication_tables where pubname = $1"
    };
    let mut found = Vec::new();
    let mut findings = Vec::new();
    for row in client.query(sql, &[&publication]).await? {
        let (schema, table): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let name = format!("{}.{}", quote(&schema), quote(&table));
        let whole = format!(
            "alter publication {0} drop table {name}; alter publication {0} add table {name}",
            quote(publication)
        );
        if row.try_get(2)? {
            let what = "is published with a row filter: an UPDATE of the ERP fails when it uses other columns than the key";
            findings.push(finding(Severity::Error, &name, what, whole.clone()));
        }
        if row.try_get(3)? {
            let what = "is published with a column list: when the ERP drops a listed column with CASCADE, the table \
                        silently leaves the publication";
            findings.push(finding(Severity::Error, &name, what, whole));
        }
        found.push((schema, table));
    }
    for table in &mapping.tables {
        if !found.contains(&(table.schema.to_string(), table.name.to_string())) {
            findings.push(finding(
                Severity::Error,
                &qualified(table),
                "the mapping reads it, the publication does not have it",
                format!("alter publication {} add table {}", quote(publication), qualified(table)),
            ));
        }
    }
    Ok(findings)
}

/// Partitioned tables have to come under their own name.
async fn partitions(
    client: &Client,
    mapping: &SourceMapping,
    publication: &str,
    via_root: bool,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = Vec::new();
    for table in mapping.tables.iter().filter(|_| !via_root) {
        let sql = "select relkind = 'p' from pg_class where oid = to_regclass($1)";
        let partitioned = client.query_opt(sql, &[&qualified(table)]).await?;
        if partitioned.is_some_and(|row| row.try_get(0).unwrap_or(false)) {
            findings.push(finding(
                Severity::Error,
                &qualified(table),
                "is partitioned, and its rows are published under the names of the partitions",
                format!("alter publication {} set (publish_via_partition_root = true)", quote(publication)),
            ));
        }
    }
    Ok(findings)
}

/// Published tables, and their partitions, whose UPDATE and DELETE would fail.
async fn identities(client: &Client, publication: &str) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let sql = "select format('%I.%I', p.schemaname, p.tablename), c.relreplident::text,
                 exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indisvalid),
                 exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident and i.indisvalid),
                 (select format('%I', x.relname) from pg_index i join pg_class x on x.oid = i.indexrelid
                   where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null
                   and i.indexprs is null
                   and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attnum = any (i.indkey)
                                   and not a.attnotnull) limit 1)
               from (select distinct n.nspname as schemaname, c.relname as tablename, c.oid
                     from (select g.relid from pg_get_publication_tables($1) g
                           union select t.relid from pg_get_publication_tables($1) g, pg_partition_tree(g.relid) t) r
                     join pg_class c on c.oid = r.relid join pg_namespace n on n.oid = c.relnamespace) p
               join pg_class c on c.oid = p.oid
               where c.relkind = 'r'";
    let mut findings = Vec::new();
    for row in client.query(sql, &[&publication]).await? {
        let (name, identity): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (primary, index): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
        let usable: Option<String> = row.try_get(4)?;
        let why = match identity.as_str() {
            "f" => continue,
            "d" if primary => continue,
            "i" if index => continue,
            "n" => "has REPLICA IDENTITY NOTHING",
            "i" => "has a replica identity index that no longer exists",
            _ => "has no primary key and so no replica identity",
        };
        let way = usable.map_or_else(
            || format!("alter table {name} replica identity full"),
            |index| format!("alter table {name} replica identity using index {index}"),
        );
        findings.push(finding(
            Severity::Error,
            &name,
            format!("{why}: while it is published, every UPDATE and DELETE of the ERP on it fails"),
            format!("{way};  -- or: alter publication {} drop table {name}", quote(publication)),
        ));
    }
    Ok(findings)
}

/// Mapped columns that do not exist, and keys that are not the primary key.
pub async fn columns(
    client: &Client,
    mapping: &SourceMapping,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = generated(client, mapping).await?;
    findings.extend(hidden(client, mapping).await?);
    let sql = "select a.attname::text, coalesce(a.attnum = any (i.indkey), false), has_column_privilege(c.oid, a.attnum, 'select')
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
               join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
               left join pg_index i on i.indrelid = c.oid
                 and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end
               where n.nspname = $1 and c.relname = $2";
    for table in &mapping.tables {
        let rows = client.query(sql, &[&&*table.schema, &&*table.name]).await?;
        let mut existing = Vec::new();
        for row in &rows {
            existing.push((
                row.try_get::<_, String>(0)?,
                row.try_get::<_, bool>(1)?,
                row.try_get::<_, bool>(2)?,
            ));
        }
        findings.extend(table_findings(table, &existing));
    }
    Ok(findings)
}

/// Row-level security hides rows from loads, which must not pass for deleted.
async fn hidden(client: &Client, mapping: &SourceMapping) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let sql =
        "select current_user::text from pg_class where oid = to_regclass($1) and row_security_active(oid)";
    let mut findings = Vec::new();
    for table in &mapping.tables {
        if let Some(row) = client.query_opt(sql, &[&qualified(table)]).await? {
            let role: String = row.try_get(0)?;
            findings.push(finding(
                Severity::Error,
                &qualified(table),
                "row-level security applies to our role: rows that it hides could not be read",
                format!("alter role {} bypassrls", quote(&role)),
            ));
        }
    }
    Ok(findings)
}

/// Generated columns are not in the stream, before PostgreSQL 18 never.
async fn generated(client: &Client, mapping: &SourceMapping) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = Vec::new();
    let sql = "select attname::text from pg_attribute
               where attrelid = to_regclass($1) and attgenerated <> '' and not attisdropped";
    for table in &mapping.tables {
        for row in client.query(sql, &[&qualified(table)]).await? {
            let column: String = row.try_get(0)?;
            if table.columns.iter().any(|mapped| **mapped == *column) {
                let what =
                    format!("column \"{column}\" is generated, and generated columns are not streamed");
                let remedy =
                    "take it out of the mapping, and work it out there from the columns it is made of";
                let found = finding(Severity::Error, &qualified(table), what, remedy);
                findings.push(Finding { parks: true, ..found });
            }
        }
    }
    Ok(findings)
}

fn table_findings(table: &TableSpec, existing: &[(String, bool, bool)]) -> Vec<Finding> {
    let name = qualified(table);
    if existing.is_empty() {
        return vec![finding(
            Severity::Error,
            &name,
            "the mapping reads it, and it does not exist (or the role may not see it)",
            "install the ERP module that owns it, or take it out of the mapping",
        )];
    }
    let mut findings = Vec::new();
    let mut unreadable = Vec::new();
    for column in &table.columns {
        match existing.iter().find(|(known, _, _)| *known == **column) {
            None => findings.push(Finding {
                parks: !table.key.contains(column),
                ..finding(
                    Severity::Error,
                    &name,
                    format!(
                        "has no column \"{column}\", which the mapping reads: events that need it are parked"
                    ),
                    "take the column out of the mapping",
                )
            }),
            Some((_, _, false)) => unreadable.push(quote(column)),
            Some(_) => {}
        }
    }
    if !unreadable.is_empty() {
        findings.push(finding(
            Severity::Error,
            &name,
            "the role may not read mapped columns, so the first load would fail",
            format!(
                "grant select ({}) on {name} to tailwater_src  -- with the name of the role in use",
                unreadable.join(", ")
            ),
        ));
    }
    for column in &table.key {
        if existing.iter().any(|(known, key, _)| *known == **column && !key) {
            findings.push(finding(
                Severity::Error,
                &name,
                format!("key column \"{column}\" of the mapping is not part of the replica identity"),
                "name the primary key in the mapping's `key`",
            ));
        }
    }
    findings
}

/// `create publication … for table …`.
#[must_use]
pub fn create_publication(mapping: &SourceMapping, publication: &str) -> String {
    let tables: Vec<String> = mapping.tables.iter().map(qualified).collect();
    format!(
        "create publication {} for table {} with (publish_via_partition_root = true)",
        quote(publication),
        tables.join(", ")
    )
}

/// Schema and table, quoted.
#[must_use]
pub fn qualified(table: &TableSpec) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.name))
}

/// A quoted identifier.
#[must_use]
pub fn quote(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}
