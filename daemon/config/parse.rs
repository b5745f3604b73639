//! TOML and YAML into one tree of nodes, each with its line.

use std::path::Path;

use saphyr::{LoadableYamlNode, MarkedYaml, Marker, Scalar, YamlData};
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::node::{At, Content, Node, Problems};

/// Columns before the first word of a line.
const MAX_INDENT: usize = 200;

impl Node {
    /// Parses TOML; every syntax error becomes a problem.
    pub fn from_toml(path: &Path, text: &str, problems: &mut Problems) -> Option<Self> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let at = error.span().map_or_else(|| At::file(path), |span| place(path, text, span.start));
            problems.add(
                &at,
                format!("not valid TOML: {}", error.message().lines().next().unwrap_or_default()),
                "see https://toml.io/en/v1.0.0",
            );
        }
        if !errors.is_empty() {
            return None;
        }
        let at = place(path, text, table.span().start);
        Some(toml_table(path, text, at, table.get_ref()))
    }

    /// Parses one YAML document.
    pub fn from_yaml(path: &Path, text: &str, problems: &mut Problems) -> Option<Self> {
        // The parser goes down one level for each: what nobody could read is refused before the stack is at its end.
        let indent = |line: &str| line.chars().take_while(|c| matches!(c, ' ' | '-' | '?')).count();
        if let Some(line) =
            text.lines().position(|line| indent(line) > MAX_INDENT && indent(line) < line.len())
        {
            let at = At { file: path.to_path_buf(), line: line + 1, column: 1 };
            problems.add(&at, "is nested too deeply", "at most a hundred levels");
            return None;
        }
        match MarkedYaml::load_from_str(text) {
            Ok(documents) if documents.len() == 1 => {
                documents.first().map(|doc| yaml_node(path, doc, problems))
            }
            Ok(documents) => {
                let what = if documents.is_empty() {
                    "the file is empty"
                } else {
                    "the file holds several YAML documents"
                };
                problems.add(&At::file(path), what, "one document, without `---` between its parts");
                None
            }
            Err(error) => {
                let at = marked(path, error.marker());
                problems.add(
                    &at,
                    format!("not valid YAML: {}", error.info()),
                    "check indentation and quoting of this line",
                );
                None
            }
        }
    }
}

fn place(path: &Path, text: &str, offset: usize) -> At {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
    At { file: path.to_path_buf(), line, column }
}

fn marked(path: &Path, marker: &Marker) -> At {
    At { file: path.to_path_buf(), line: marker.line(), column: marker.col() + 1 }
}

fn toml_table(path: &Path, text: &str, at: At, table: &DeTable<'_>) -> Node {
    let entries = table.iter().map(|(key, value)| {
        let at = place(path, text, key.span().start);
        (key.get_ref().to_string(), toml_value(path, text, at, value.get_ref()))
    });
    Node { content: Content::Map(entries.collect()), at }
}

fn toml_value(path: &Path, text: &str, at: At, value: &DeValue<'_>) -> Node {
    let scalar = |value| Node { at: at.clone(), content: Content::Scalar(value) };
    match value {
        DeValue::String(text) => scalar(Value::String(text.to_string())),
        DeValue::Boolean(value) => scalar(Value::Bool(*value)),
        DeValue::Integer(number) => scalar(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Value::String(number.to_string()), Value::from),
        ),
        DeValue::Float(number) => scalar(
            number.as_str().parse::<f64>().map_or_else(|_| Value::String(number.to_string()), Value::from),
        ),
        DeValue::Datetime(instant) => scalar(Value::String(instant.to_string())),
        DeValue::Table(table) => toml_table(path, text, at, table),
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| {
                toml_value(path, text, place(path, text, item.span().start), item.get_ref())
            };
            Node { content: Content::List(items.iter().map(item).collect()), at }
        }
    }
}

fn yaml_node(path: &Path, node: &MarkedYaml<'_>, problems: &mut Problems) -> Node {
    let at = marked(path, &node.span.start);
    let content = match &node.data {
        YamlData::Value(scalar) => Content::Scalar(yaml_scalar(scalar)),
        YamlData::Sequence(items) => {
            Content::List(items.iter().map(|item| yaml_node(path, item, problems)).collect())
        }
        YamlData::Mapping(entries) => {
            let mut list = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let at = marked(path, &key.span.start);
                if let YamlData::Value(Scalar::String(name)) = &key.data {
                    let mut child = yaml_node(path, value, problems);
                    child.at = at;
                    list.push((name.to_string(), child));
                } else {
                    problems.add(&at, "a key must be a plain string", "quote the key");
                }
            }
            Content::Map(list)
        }
        _ => {
            let instead = "put an expression that begins with ! or * in quotes; an alias needs its anchor (&name) before it";
            problems.add(&at, "a tag or an alias without its anchor stands here", instead);
            Content::Scalar(Value::Null)
        }
    };
    Node { at, content }
}

fn yaml_scalar(scalar: &Scalar<'_>) -> Value {
    match scalar {
        Scalar::Null => Value::Null,
        Scalar::Boolean(value) => Value::Bool(*value),
        Scalar::Integer(number) => Value::from(*number),
        Scalar::FloatingPoint(number) => Value::from(number.into_inner()),
        Scalar::String(text) => Value::String(text.to_string()),
    }
}
