//! Reads `mappings/sources/<name>/*.yaml` into a [`SourceMapping`].
//!
//! ```yaml
//! format: 1
//! author: write_uid                                      # column of all tables below, where they have it, that says who wrote a row
//! only_with: { contract_contract: [recurring_next_date] }  # the file counts only where the source has these
//! tables:
//!   res_partner: { key: [id], columns: [id, name] }        # `schema.table` for other schemas than public
//! events:
//!   customer.v1:
//!     table: res_partner
//!     kind: state                                          # or fact
//!     on: delete                                           # the event is made when the row goes; default: change
//!     id: "source + '-P-' + string(row.id)"
//!     company: row.company_id                              # which company's it is, null for all
//!     joins: { country: { table: res_country, by: country_id } }     # see `join`
//!     let: { known: "row.name != null" }                   # values that several expressions use
//!     when: "row.active && known"
//!     says: [name]                                         # all that the source knows of the object; left out: everything
//!     data: { name: row.name, country: country.code }      # see `template`
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::expression::Expression;
use super::join::{self, row_shape};
use super::personal::Policy;
use super::schema::Schema;
use super::shape::{Shape, Variables};
use super::template::Template;
use super::{
    Constants, EventKind, EventSpec, Ownership, Part, SourceMapping, TableSpec, Tables, ValueBounds, merged,
};
use crate::config::files;
use crate::config::node::{At, Fields, Node, Problems};
use crate::event::sha256_hex;

/// Loads every YAML file of `mappings/sources/<name>`.
pub fn load(
    mappings: &Path,
    name: &str,
    constants: Constants,
    problems: &mut Problems,
) -> Option<SourceMapping> {
    let directory = mappings.join("sources").join(name);
    let mut all_text = String::new();
    let mut read_files = Vec::new();
    let paths = yaml_files(&directory, problems);
    for path in &paths {
        let text = read(path, problems)?;
        all_text.push_str(&text);
        let Some(node) = Node::from_yaml(path, &text, problems) else { continue };
        let mut fields = node.fields(problems);
        check_format(&mut fields, problems);
        let only_with = fields.optional("only_with").map(|node| node.entries(problems)).unwrap_or_default();
        read_files.push((path, only_with, fields));
    }
    // What is always there comes first, as customers do.
    read_files.sort_by_key(|(_, only_with, _)| !only_with.is_empty());
    let (mut parts, mut sections) = (Vec::new(), Vec::new());
    for (path, only_with, mut fields) in read_files {
        let only_with = only_with.iter().map(|(table, body)| required_table(table, body, problems)).collect();
        let declared = fields.optional("tables").map(|node| node.entries(problems)).unwrap_or_default();
        let author = fields.optional("author").and_then(|node| node.string(problems)).map(Arc::from);
        let tables = read_tables(&declared, &parts, author, problems);
        let events = fields.optional("events").map(|node| node.entries(problems)).unwrap_or_default();
        fields.finish(problems);
        sections.extend(events.into_iter().map(|(event_type, body)| (parts.len(), event_type, body)));
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.push(Part { file, only_with, tables });
    }
    let mut events = Vec::new();
    for (part, event_type, body) in &sections {
        // A file that always counts cannot lean on one that may not.
        let seen = parts.iter().enumerate().filter(|(other, of)| other == part || of.only_with.is_empty());
        let tables = merged(seen.map(|(_, part)| part));
        let mut reader = EventReader { mappings, tables: Tables(&tables), part: *part, problems };
        events.extend(reader.read(event_type, body).map(Arc::new));
    }
    let ownership = Ownership::load(mappings, problems);
    let (name, sha256) = (name.to_owned(), sha256_hex(all_text.as_bytes()));
    Some(SourceMapping { name, sha256, tables: merged(parts.iter()), parts, events, constants, ownership })
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
    match files::read_text(path) {
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

fn table_spec(name: &str, key: Vec<Arc<str>>, mut columns: Vec<Arc<str>>) -> TableSpec {
    let (schema, table) = name.split_once('.').unwrap_or(("public", name));
    columns.sort_unstable();
    columns.dedup();
    TableSpec {
        schema: schema.into(),
        name: table.into(),
        key,
        columns,
        author: None,
        personal: Policy::default(),
        digest_key: None,
        bounds: ValueBounds::default(),
    }
}

fn required_table(name: &str, body: &Node, problems: &mut Problems) -> TableSpec {
    table_spec(name, Vec::new(), names(Some(body.clone()), problems))
}

/// Tables of one file. A table may be declared in several files, each with the columns it needs.
fn read_tables(
    declared: &[(String, Node)],
    earlier: &[Part],
    author: Option<Arc<str>>,
    problems: &mut Problems,
) -> Vec<TableSpec> {
    let mut tables: Vec<TableSpec> = Vec::new();
    for (name, body) in declared {
        let mut fields = body.fields(problems);
        let key = names(fields.required("key", "[id]", problems), problems);
        let columns = names(fields.required("columns", "[id, name]", problems), problems);
        let personal = fields.optional("personal");
        fields.finish(problems);
        for column in key.iter().filter(|column| !columns.contains(column)) {
            let what = format!("key column `{column}` is not among the columns");
            problems.add(&body.at, what, "add it to `columns`");
        }
        let mut spec = TableSpec { author: author.clone(), ..table_spec(name, key, columns) };
        if let Some(node) = personal {
            // A key is in the clear wherever a row is spoken of.
            let known = spec.columns.iter().filter(|column| !spec.key.contains(column));
            let known: Vec<&str> = known.map(|column| &**column).collect();
            spec.personal = Policy::read(&node, (&known, true), &own_variables(&spec), problems);
        }
        if tables.iter().any(|table| table.name == spec.name) {
            let what = format!("table `{name}` is declared twice");
            problems.add(&body.at, what, "one declaration with all columns");
            continue;
        }
        let elsewhere = earlier.iter().flat_map(|part| &part.tables).find(|table| table.name == spec.name);
        if elsewhere.is_some_and(|table| table.key != spec.key || table.schema != spec.schema) {
            let what = format!("table `{name}` has another key or schema in another file");
            problems.add(&body.at, what, "the same key in all files");
        }
        tables.push(spec);
    }
    tables
}

fn names(node: Option<Node>, problems: &mut Problems) -> Vec<Arc<str>> {
    let strings = node.map(|node| node.strings(problems)).unwrap_or_default();
    strings.into_iter().map(Arc::from).collect()
}

/// Reads the events of one file.
struct EventReader<'a> {
    mappings: &'a Path,
    tables: Tables<'a>,
    part: usize,
    problems: &'a mut Problems,
}

impl EventReader<'_> {
    fn read(&mut self, event_type: &str, body: &Node) -> Option<EventSpec> {
        let problems = &mut *self.problems;
        let mut fields = body.fields(problems);
        let table = fields.required("table", "res_partner", problems);
        let table = table.and_then(|node| self.tables.find(&node, problems));
        let kind = fields.required("kind", "state", problems);
        let kind = kind.and_then(|node| {
            one_of("kind", &node, &[("state", EventKind::State), ("fact", EventKind::Fact)], problems)
        });
        let on = fields.optional("on");
        let on = on.and_then(|node| one_of("on", &node, &[("change", false), ("delete", true)], problems));
        let joins = fields.optional("joins").map(|node| node.entries(problems)).unwrap_or_default();
        let id = fields.required("id", "\"source + '-P-' + string(row.id)\"", problems);
        let lets = fields.optional("let").map(|node| node.entries(problems)).unwrap_or_default();
        let when = fields.required("when", "\"true\"", problems);
        let data = fields.required("data", "{ name: row.name }", problems);
        let [company, says, personal] = ["company", "says", "personal"].map(|key| fields.optional(key));
        fields.finish(problems);
        let schema = Schema::load(self.mappings, event_type, &body.at, problems);
        let personal = event_policy(personal, schema.as_ref(), problems);
        let says = says.map(|node| known_fields(&node, schema.as_ref(), problems));
        let object = object_of(event_type, body, problems)?;
        let table = table?;
        let mut variables = own_variables(table);
        let id = id.and_then(|node| Expression::compile(&node, &variables, problems));
        for (alias, node) in joins.iter().filter(|(alias, _)| variables.contains_key(alias)) {
            problems.add(&node.at, format!("a join cannot be called `{alias}`"), "another name");
        }
        let (joins, shapes) = join::read(&joins, table, &self.tables, 0, problems);
        variables.extend(shapes);
        let company = company.and_then(|node| Expression::compile(&node, &variables, problems));
        let lets = self.lets(&lets, &mut variables);
        let problems = &mut *self.problems;
        let when = when.and_then(|node| Expression::compile(&node, &variables, problems));
        if let (Some(schema), Some(node)) = (&schema, &data) {
            schema.check_fields(node, problems);
        }
        let data = data.and_then(|node| Template::compile(&node, &variables, problems));
        let when = when?;
        let needs =
            |name: &str| when.names(name) || company.as_ref().is_some_and(|company| company.names(name));
        let inner = joins.iter().map(|join| &*join.alias).chain(lets.iter().map(|(name, _)| name.as_str()));
        let early = !inner.into_iter().any(needs);
        Some(EventSpec {
            event_type: event_type.to_owned(),
            object,
            part: self.part,
            table: table.name.clone(),
            kind: kind?,
            on_delete: on.unwrap_or(false),
            joins,
            id: id?,
            company,
            lets,
            when,
            early,
            data: data?,
            schema: schema?,
            says,
            personal,
        })
    }

    /// Each value may use those before it.
    fn lets(&mut self, entries: &[(String, Node)], variables: &mut Variables) -> Vec<(String, Template)> {
        let mut lets = Vec::with_capacity(entries.len());
        for (name, node) in entries {
            if variables.contains_key(name) {
                self.problems.add(&node.at, format!("`{name}` is taken already"), "another name");
            }
            if let Some(template) = Template::compile(node, variables, self.problems) {
                lets.push((name.clone(), template));
            }
            variables.insert(name.clone(), Shape::Any);
        }
        lets
    }
}

/// What of an event is personal.
fn event_policy(node: Option<Node>, schema: Option<&Schema>, problems: &mut Problems) -> Policy {
    let Some(node) = node else { return Policy::default() };
    let fields: Vec<&str> = schema.into_iter().flat_map(Schema::fields).map(String::as_str).collect();
    let known = ["event", "source", "language", "company", "settings"];
    let variables = known.map(|name| (name.to_owned(), Shape::Any)).into_iter().collect();
    Policy::read(&node, (&fields, false), &variables, problems)
}

/// Fields of the schema, or problems.
fn known_fields(node: &Node, schema: Option<&Schema>, problems: &mut Problems) -> Vec<String> {
    let named = node.strings(problems);
    let known: Vec<&str> =
        schema.into_iter().flat_map(|schema| schema.fields()).map(String::as_str).collect();
    for field in named.iter().filter(|field| !known.is_empty() && !known.contains(&field.as_str())) {
        let what = format!("the event has no field `{field}`");
        problems.add(&node.at, what, super::shape::suggestion(field, &known, "one of"));
    }
    named
}

/// `customer` of `customer.v1`.
fn object_of(event_type: &str, body: &Node, problems: &mut Problems) -> Option<String> {
    let object = event_type.rsplit_once(".v").map(|(object, _)| object.to_owned());
    if object.is_none() {
        let what = format!("event type `{event_type}` has no version");
        problems.add(&body.at, what, format!("{event_type}.v1"));
    }
    object
}

/// What an expression knows before any join.
fn own_variables(table: &TableSpec) -> Variables {
    let names = ["source", "language", "company", "settings"].map(|name| (name.to_owned(), Shape::Any));
    let row = ("row".to_owned(), row_shape(table, BTreeMap::new()));
    names.into_iter().chain([row]).collect()
}

/// One of several words, or a problem.
fn one_of<T: Copy>(key: &str, node: &Node, choices: &[(&str, T)], problems: &mut Problems) -> Option<T> {
    let text = node.string(problems)?;
    let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    if found.is_none() {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        problems.add(&node.at, format!("unknown {key} `{text}`"), names.join(" or "));
    }
    found
}
