//! Which mapping files count for this database: those whose tables and columns it has, and whose tables are published.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::catalog::{self, Finding, Severity, qualified, quote};
use crate::mapping::{Part, SourceMapping, TableSpec};

/// What of the mapping the source has.
#[derive(Debug, Default)]
pub struct Presence {
    columns: BTreeMap<(String, String), BTreeSet<String>>,
    /// `None` when there is no such publication: then nothing can be left out for not being in it.
    published: Option<BTreeSet<(String, String)>>,
    /// Tables that were read before: what was delivered once is not left out in silence.
    known: BTreeSet<String>,
}

const COLUMNS: &str = "
  select n.nspname::text, c.relname::text, array_agg(a.attname::text)
  from unnest($1::text[], $2::text[]) as w(schema, name)
  join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  group by 1, 2";

const PUBLISHED: &str = "
  select t.schemaname::text, t.tablename::text from pg_publication p
  left join pg_publication_tables t on t.pubname = p.pubname where p.pubname = $1";

impl Presence {
    /// Looks; `known` are the tables that the ledger has images of.
    pub async fn of(
        client: &Client,
        mapping: &SourceMapping,
        publication: &str,
        known: BTreeSet<String>,
    ) -> Result<Self, tokio_postgres::Error> {
        let wanted = mapping.parts.iter().flat_map(|part| &part.only_with);
        let (schemas, names): (Vec<&str>, Vec<&str>) =
            wanted.map(|table| (&*table.schema, &*table.name)).unzip();
        let mut presence = Self { known, ..Self::default() };
        for row in client.query(COLUMNS, &[&schemas, &names]).await? {
            let columns: Vec<String> = row.try_get(2)?;
            presence.columns.insert((row.try_get(0)?, row.try_get(1)?), columns.into_iter().collect());
        }
        let rows = client.query(PUBLISHED, &[&publication]).await?;
        if !rows.is_empty() {
            let mut published = BTreeSet::new();
            for row in rows {
                if let (Some(schema), Some(table)) = (row.try_get(0)?, row.try_get(1)?) {
                    published.insert((schema, table));
                }
            }
            presence.published = Some(published);
        }
        Ok(presence)
    }

    /// The mapping with only the files that count.
    #[must_use]
    pub fn narrow(&self, mapping: &SourceMapping) -> SourceMapping {
        mapping.narrowed(|part| self.counts(part))
    }

    /// The mapping with only the files whose tables the database has, published or not.
    #[must_use]
    pub fn wanted(&self, mapping: &SourceMapping) -> SourceMapping {
        mapping.narrowed(|part| part.only_with.is_empty() || self.exists(part))
    }

    /// Files that the database has tables for, and that wait to be published.
    #[must_use]
    pub fn findings(&self, mapping: &SourceMapping, publication: &str) -> Vec<Finding> {
        let waiting = mapping.parts.iter().filter(|part| self.exists(part) && !self.counts(part));
        let finding = |part: &Part| {
            let missing: Vec<String> =
                part.tables.iter().filter(|table| !self.reads(table)).map(qualified).collect();
            catalog::finding(
                Severity::Warning,
                &format!("mapping file {}", part.file),
                format!("the database has its tables, but they are not published: {}", missing.join(", ")),
                format!(
                    "alter publication {} add table {}, and the grants of `tailwater source sql`; then restart",
                    quote(publication),
                    missing.join(", ")
                ),
            )
        };
        waiting.map(finding).collect()
    }

    fn counts(&self, part: &Part) -> bool {
        // All of them: one alone may be read for another file.
        let was_read = part.only_with.iter().all(|table| self.known.contains(&*table.name));
        // What was delivered once is not left out in silence: the checks say what has become of its tables.
        part.only_with.is_empty()
            || was_read
            || (self.exists(part) && part.tables.iter().all(|table| self.reads(table)))
    }

    fn exists(&self, part: &Part) -> bool {
        let has = |table: &TableSpec| {
            let columns = self.columns.get(&(table.schema.to_string(), table.name.to_string()));
            columns.is_some_and(|known| table.columns.iter().all(|column| known.contains(&**column)))
        };
        !part.only_with.is_empty() && part.only_with.iter().all(has)
    }

    fn reads(&self, table: &TableSpec) -> bool {
        let id = (table.schema.to_string(), table.name.to_string());
        self.known.contains(&*table.name)
            || self.published.as_ref().is_none_or(|published| published.contains(&id))
    }
}
