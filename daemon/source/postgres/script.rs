//! The SQL that a DBA runs on the ERP, for this mapping and these names. The texts stand, explained, in `sql/source/`.

use super::catalog::{qualified, quote};
use crate::mapping::{SourceMapping, TableSpec};

/// Names in the settings.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// Role that tailwater connects as.
    pub role: &'a str,
    /// The ERP's database.
    pub database: &'a str,
    /// Publication.
    pub publication: &'a str,
    /// Slot.
    pub slot: &'a str,
}

/// What is to be run: SQL, with the settings files as comments. What only some databases have is granted and published where
/// it is there.
#[must_use]
pub fn source_sql(mapping: &SourceMapping, names: &Names<'_>) -> String {
    let role = quote(names.role);
    let always = mapping.narrowed(|part| part.only_with.is_empty());
    let perhaps = mapping.narrowed(|part| !part.only_with.is_empty());
    let mut schemas: Vec<&str> = mapping.tables.iter().map(|table| &*table.schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let schema_grants =
        schemas.iter().map(|schema| format!("grant usage on schema {} to {role};", quote(schema)));
    let column_grants = always.tables.iter().map(|table| {
        let columns: Vec<String> = table.columns.iter().map(|column| quote(column)).collect();
        format!("grant select ({}) on {} to {role};", columns.join(", "), qualified(table))
    });
    let tables: Vec<String> = always.tables.iter().map(qualified).collect();
    let more = perhaps.tables.iter().filter(|table| always.table_named(&table.name).is_none());
    let more: Vec<String> =
        more.map(|table| postgres_protocol::escape::escape_literal(&qualified(table))).collect();
    let with_perhaps = |text: &str| {
        let (always, _) = text.split_once("-- What only some databases have").unwrap_or((text, ""));
        if perhaps.tables.is_empty() { always.to_owned() } else { text.to_owned() }
    };
    let parts = [
        with_perhaps(include_str!("../../../sql/source/1_role.sql")),
        with_perhaps(include_str!("../../../sql/source/2_publication.sql")),
        commented(include_str!("../../../sql/source/3_settings.conf")),
        commented(include_str!("../../../sql/source/4_pg_hba.conf")),
    ];
    filled(&parts.join("\n"), names)
        .replace("{schema_grants}", &schema_grants.collect::<Vec<_>>().join("\n"))
        .replace("{column_grants}", &column_grants.collect::<Vec<_>>().join("\n"))
        .replace(
            "{more_columns}",
            &perhaps.tables.iter().map(columns_wanted).collect::<Vec<_>>().join(",\n    "),
        )
        .replace("{tables}", &tables.join(", "))
        .replace("{more_tables}", &more.join(", "))
}

/// `('"public"."sale_order"', array['id', 'name'])`
fn columns_wanted(table: &TableSpec) -> String {
    let literal = postgres_protocol::escape::escape_literal;
    let columns: Vec<String> = table.columns.iter().map(|column| literal(column)).collect();
    format!("({}, array[{}])", literal(&qualified(table)), columns.join(", "))
}

/// What removes everything again.
#[must_use]
pub fn uninstall_sql(names: &Names<'_>) -> String {
    filled(include_str!("../../../sql/source/9_uninstall.sql"), names)
}

fn filled(text: &str, names: &Names<'_>) -> String {
    text.replace("{role}", &quote(names.role))
        .replace("{database}", &quote(names.database))
        .replace("{publication_literal}", &postgres_protocol::escape::escape_literal(names.publication))
        .replace("{publication}", &quote(names.publication))
        .replace("{slot_literal}", &postgres_protocol::escape::escape_literal(names.slot))
}

/// Lines of another file, so that the whole can be run as SQL.
fn commented(text: &str) -> String {
    text.lines().map(|line| format!("-- {}\n", line.trim_start_matches("# "))).collect()
}
