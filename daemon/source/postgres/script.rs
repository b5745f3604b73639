//! The SQL that a DBA runs on the ERP, for this mapping and these names. The texts stand, explained, in `sql/source/`.

use super::catalog::{qualified, quote};
use crate::mapping::SourceMapping;

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

/// What is to be run: SQL, with the settings files as comments.
#[must_use]
pub fn source_sql(mapping: &SourceMapping, names: &Names<'_>) -> String {
    let role = quote(names.role);
    let mut schemas: Vec<&str> = mapping.tables.iter().map(|table| &*table.schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let schema_grants =
        schemas.iter().map(|schema| format!("grant usage on schema {} to {role};", quote(schema)));
    let column_grants = mapping.tables.iter().map(|table| {
        let columns: Vec<String> = table.columns.iter().map(|column| quote(column)).collect();
        format!("grant select ({}) on {} to {role};", columns.join(", "), qualified(table))
    });
    let tables: Vec<String> = mapping.tables.iter().map(qualified).collect();
    let parts = [
        include_str!("../../../sql/source/1_role.sql").to_owned(),
        include_str!("../../../sql/source/2_publication.sql").to_owned(),
        commented(include_str!("../../../sql/source/3_settings.conf")),
        commented(include_str!("../../../sql/source/4_pg_hba.conf")),
    ];
    filled(&parts.join("\n"), names)
        .replace("{schema_grants}", &schema_grants.collect::<Vec<_>>().join("\n"))
        .replace("{column_grants}", &column_grants.collect::<Vec<_>>().join("\n"))
        .replace("{tables}", &tables.join(", "))
}

/// What removes everything again.
#[must_use]
pub fn uninstall_sql(names: &Names<'_>) -> String {
    filled(include_str!("../../../sql/source/9_uninstall.sql"), names)
}

fn filled(text: &str, names: &Names<'_>) -> String {
    text.replace("{role}", &quote(names.role))
        .replace("{database}", &quote(names.database))
        .replace("{publication}", &quote(names.publication))
        .replace("{slot_literal}", &postgres_protocol::escape::escape_literal(names.slot))
}

/// Lines of another file, so that the whole can be run as SQL.
fn commented(text: &str) -> String {
    text.lines().map(|line| format!("-- {}\n", line.trim_start_matches("# "))).collect()
}
