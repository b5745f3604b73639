//! Reads `mappings/sources/<name>/*.yaml` into a [`SourceMapping`].
//!
//! ```yaml
//! format: 1
//! tables:
//!   res_partner: { key: [id], columns: [id, name] }       # `schema.table` for other schemas than public
//! events:
//!   customer.v1:
//!     table: res_partner
//!     kind: state                                         # or fact
//!     id: "source + '-P-' + string(row.id)"
//!     joins:
//!       country: { table: res_country, by: country_id }
//!       links: { table: res_partner_tag_rel, children: partner_id }
//!       tags: { table: res_tag, through: links.tag_id }
//!     when: "row.active"
//!     data: { name: row.name }
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::expression::{Expression, Variables};
use super::schema::Schema;
use super::template::Template;
use super::{EventKind, EventSpec, Join, JoinKind, SourceMapping, TableSpec};
use crate::config::node::{At, Fields, Node, Problems, nearest};
use crate::event::sha256_hex;

/// Loads every YAML file of `mappings/sources/<name>`.
pub fn load(mappings: &Path, name: &str, problems: &mut Problems) -> Option<SourceMapping> {
    let directory = mappings.join("sources").join(name);
    let files = yaml_files(&directory, problems);
    let mut mapping = SourceMapping {
        name: name.to_owned(),
        sha256: String::new(),
        tables: Vec::new(),
        events: Vec::new(),
    };
    let mut all_text = String::new();
    let mut nodes = Vec::new();
    for path in &files {
        let text = read(path, problems)?;
        all_text.push_str(&text);
        nodes.extend(Node::from_yaml(path, &text, problems));
    }
    let mut sections = Vec::new();
    for node in &nodes {
        let mut fields = node.fields(problems);
        check_format(&mut fields, problems);
        for (table, body) in fields.optional("tables").map(|node| node.entries(problems)).unwrap_or_default()
        {
            read_table(&table, &body, &mut mapping, problems);
        }
        sections.extend(fields.optional("events").map(|node| node.entries(problems)).unwrap_or_default());
        fields.finish(problems);
    }
    for (event_type, body) in &sections {
        if let Some(spec) = read_event(mappings, event_type, body, &mapping, problems) {
            mapping.events.push(spec);
        }
    }
    mapping.sha256 = sha256_hex(all_text.as_bytes());
    Some(mapping)
}

/// YAML files of a directory, by name.
pub fn yaml_files(directory: &Path, problems: &mut Problems) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            problems.add(
                &At::file(directory),
                format!("cannot be read: {error}"),
                "a directory with YAML files",
            );
            return Vec::new();
        }
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml")).collect();
    files.sort();
    if files.is_empty() {
        problems.add(&At::file(directory), "holds no .yaml file", "at least one file");
    }
    files
}

/// The text of a file, or a problem.
pub fn read(path: &Path, problems: &mut Problems) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            problems.add(&At::file(path), format!("cannot be read: {error}"), "a readable UTF-8 file");
            None
        }
    }
}

/// Every file begins with `format: 1`.
pub fn check_format(fields: &mut Fields, problems: &mut Problems) {
    if let Some(node) = fields.required("format", "1", problems)
        && node.whole(1, problems).is_some_and(|version| version != 1)
    {
        problems.add(&node.at, "this version reads format 1 only", "format: 1");
    }
}

fn read_table(name: &str, body: &Node, mapping: &mut SourceMapping, problems: &mut Problems) {
    let mut fields = body.fields(problems);
    let key = names(fields.required("key", "[id]", problems), problems);
    let mut columns = names(fields.required("columns", "[id, name]", problems), problems);
    fields.finish(problems);
    for column in &key {
        if !columns.contains(column) {
            problems.add(
                &body.at,
                format!("key column `{column}` is not among the columns"),
                "add it to `columns`",
            );
        }
    }
    let (schema, table) = name.split_once('.').unwrap_or(("public", name));
    if mapping.table(schema, table).is_some() {
        problems.add(
            &body.at,
            format!("table `{name}` is declared twice"),
            "one declaration with all columns",
        );
        return;
    }
    columns.sort_unstable();
    columns.dedup();
    mapping.tables.push(TableSpec { schema: schema.into(), name: table.into(), key, columns });
}

fn names(node: Option<Node>, problems: &mut Problems) -> Vec<Arc<str>> {
    let strings = node.map(|node| node.strings(problems)).unwrap_or_default();
    strings.into_iter().map(Arc::from).collect()
}

fn read_event(
    mappings: &Path,
    event_type: &str,
    body: &Node,
    mapping: &SourceMapping,
    problems: &mut Problems,
) -> Option<EventSpec> {
    let mut fields = body.fields(problems);
    let table = fields.required("table", "res_partner", problems);
    let table = table.and_then(|node| find_table(&node, mapping, problems));
    let kind =
        fields.required("kind", "state", problems).and_then(|node| match node.string(problems)?.as_str() {
            "state" => Some(EventKind::State),
            "fact" => Some(EventKind::Fact),
            other => {
                problems.add(&node.at, format!("unknown kind `{other}`"), "state or fact");
                None
            }
        });
    let joins = fields.optional("joins").map(|node| node.entries(problems)).unwrap_or_default();
    let id = fields.required("id", "\"source + '-P-' + string(row.id)\"", problems);
    let when = fields.required("when", "\"true\"", problems);
    let data = fields.required("data", "{ name: row.name }", problems);
    fields.finish(problems);
    let schema = Schema::load(mappings, event_type, &body.at, problems);
    let Some((object, _)) = event_type.rsplit_once(".v") else {
        problems.add(
            &body.at,
            format!("event type `{event_type}` has no version"),
            format!("{event_type}.v1"),
        );
        return None;
    };
    let table = table?;
    let mut variables = Variables::new();
    variables.insert("source".into(), None);
    variables.insert("row".into(), Some(table.columns.iter().map(ToString::to_string).collect()));
    let id = id.and_then(|node| Expression::compile(&node, &variables, problems));
    let joins = read_joins(&joins, table, mapping, &mut variables, problems);
    let when = when.and_then(|node| Expression::compile(&node, &variables, problems));
    let data_at = data.as_ref().map(|node| node.at.clone());
    let data = data.and_then(|node| Template::compile(&node, &variables, problems));
    if let (Some(schema), Some(data), Some(at)) = (&schema, &data, &data_at) {
        schema.check_fields(data.keys(), at, problems);
    }
    Some(EventSpec {
        event_type: event_type.to_owned(),
        object: object.to_owned(),
        table: table.name.clone(),
        kind: kind?,
        joins,
        id: id?,
        when: when?,
        data: data?,
        schema: schema?,
    })
}

fn find_table<'a>(node: &Node, mapping: &'a SourceMapping, problems: &mut Problems) -> Option<&'a TableSpec> {
    let name = node.string(problems)?;
    let found = mapping.table_named(&name);
    if found.is_none() {
        let known: Vec<&str> = mapping.tables.iter().map(|table| &*table.name).collect();
        let instead = nearest(&name, &known)
            .map_or_else(|| "declare it under `tables`".to_owned(), |near| format!("did you mean `{near}`?"));
        problems.add(&node.at, format!("table `{name}` is not declared"), instead);
    }
    found
}

fn read_joins(
    entries: &[(String, Node)],
    root: &TableSpec,
    mapping: &SourceMapping,
    variables: &mut Variables,
    problems: &mut Problems,
) -> Vec<Join> {
    let mut joins: Vec<Join> = Vec::new();
    for (alias, body) in entries {
        let mut fields = body.fields(problems);
        let table = fields.required("table", "res_country", problems);
        let table = table.and_then(|node| find_table(&node, mapping, problems));
        let ways = ["by", "children", "through"].map(|way| (way, fields.optional(way)));
        fields.finish(problems);
        let Some(table) = table else { continue };
        let mut given = ways.into_iter().filter_map(|(way, node)| node.map(|node| (way, node)));
        let (Some((way, node)), None) = (given.next(), given.next()) else {
            problems.add(&body.at, "a join has exactly one of `by`, `children`, `through`", "by: country_id");
            continue;
        };
        let Some(text) = node.string(problems) else { continue };
        let members = table.columns.iter().map(ToString::to_string).collect();
        let kind = match way {
            "by" => has_column(root, &text, &node.at, problems).map(JoinKind::By),
            "children" => has_column(table, &text, &node.at, problems).map(JoinKind::Children),
            _ => through(&text, &joins, mapping, &node.at, problems),
        };
        let Some(kind) = kind else { continue };
        variables.insert(alias.clone(), matches!(kind, JoinKind::By(_)).then_some(members));
        let (alias, columns) = (alias.as_str().into(), table.columns.clone());
        joins.push(Join { alias, table: table.name.clone(), columns, kind });
    }
    joins
}

fn through(
    text: &str,
    joins: &[Join],
    mapping: &SourceMapping,
    at: &At,
    problems: &mut Problems,
) -> Option<JoinKind> {
    let links = text.split_once('.').and_then(|(alias, column)| {
        let join =
            joins.iter().find(|join| &*join.alias == alias && matches!(join.kind, JoinKind::Children(_)))?;
        Some((join, mapping.table_named(&join.table)?, column))
    });
    let Some((join, table, column)) = links else {
        problems.add(
            at,
            format!("`{text}` does not name a `children` join above"),
            "through: links.category_id",
        );
        return None;
    };
    let column = has_column(table, column, at, problems)?;
    Some(JoinKind::Through { alias: join.alias.clone(), column })
}

fn has_column(table: &TableSpec, name: &str, at: &At, problems: &mut Problems) -> Option<Arc<str>> {
    let found = table.columns.iter().find(|column| &***column == name).cloned();
    if found.is_none() {
        let known: Vec<&str> = table.columns.iter().map(|column| &**column).collect();
        let instead = nearest(name, &known).map_or_else(
            || format!("one of: {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        problems.add(at, format!("table `{}` declares no column `{name}`", table.name), instead);
    }
    found
}
