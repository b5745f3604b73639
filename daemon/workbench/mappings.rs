//! `tailwater mappings check|test`: the files alone, without settings or servers; and with the ERP's columns where it is known.

use std::path::Path;
use std::process::ExitCode;

use similar::{ChangeTag, TextDiff};

use super::diff::{self, Weight};
use super::docs;
use super::rehearsal::Rehearsal;
use crate::app::{EX_CONFIG, EX_USAGE, fail, say};
use crate::cli::DocsFormat;
use crate::config::node::{Problem, Problems};
use crate::config::settings::check_ownership;
use crate::connector::{self, Connector};
use crate::mapping::file::yaml_files;
use crate::mapping::route::{self, Route};
use crate::mapping::schema::written;
use crate::mapping::shape::suggestion;
use crate::mapping::upcast::Upcasters;
use crate::mapping::{Constants, SourceMapping, file};
use crate::trial::example::{self, Example, Failure};

/// All files below a directory of mappings.
pub struct Files {
    /// Sources with their examples.
    pub sources: Vec<(SourceMapping, Vec<Example>)>,
    /// Connectors.
    pub connectors: Vec<Connector>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Older events in the form of newer versions.
    pub upcasters: Upcasters,
}

/// Reads everything below `directory`; all mistakes at once.
pub fn read(directory: &Path) -> Result<Files, Vec<Problem>> {
    let mut problems = Problems::default();
    let mut sources = Vec::new();
    for name in directories(&directory.join("sources"), &mut problems) {
        let mapping = file::load(directory, &name, constants(directory, &name), &mut problems);
        sources.extend(mapping.map(|mapping| {
            let examples = example::load(directory, &name, &mapping, &mut problems);
            (mapping, examples)
        }));
    }
    let paths = yaml_files(&directory.join("connectors"), &mut problems);
    let names = paths.iter().filter_map(|path| path.file_stem()?.to_str());
    let connectors = names.filter_map(|name| connector::file::load(directory, name, &mut problems)).collect();
    let routes = route::load(directory, &mut problems);
    let connectors: Vec<Connector> = connectors;
    let mappings: Vec<&SourceMapping> = sources.iter().map(|(mapping, _)| mapping).collect();
    check_ownership(&mappings, &mut problems);
    let upcasters = Upcasters::load(directory, &mut problems);
    if problems.is_empty() {
        check_routes(&routes, &sources, &connectors, &upcasters, &mut problems);
    }
    if problems.is_empty() {
        return Ok(Files { sources, connectors, routes, upcasters });
    }
    Err(problems.sorted())
}

/// What a source with this mapping is called: a system that can be polled as its connector, an ERP as in the manual.
fn source_of<'a>(directory: &Path, mapping: &'a str) -> &'a str {
    let polled = directory.join("connectors").join(format!("{mapping}.yaml")).exists();
    if polled && mapping != "odoo" { mapping } else { "erp" }
}

/// With settings of which none is set: a mapping must do without them.
fn constants(directory: &Path, mapping: &str) -> Constants {
    let connector = connector::file::load(directory, mapping, &mut Problems::default());
    let names = connector
        .into_iter()
        .flat_map(|connector| connector.settings)
        .map(|spec| (spec.name, serde_json::Value::Null));
    Constants {
        settings: serde_json::Value::Object(names.collect()),
        ..Constants::of(source_of(directory, mapping))
    }
}

fn check_routes(
    routes: &[Route],
    sources: &[(SourceMapping, Vec<Example>)],
    connectors: &[Connector],
    upcasters: &Upcasters,
    problems: &mut Problems,
) {
    let events = || sources.iter().flat_map(|(mapping, _)| &mapping.events);
    let made = |event_type: &str| events().any(|spec| upcasters.reaches(&spec.event_type, event_type));
    let connector = |system: &str| connectors.iter().find(|connector| connector.name == system);
    let systems: Vec<&str> = connectors.iter().map(|connector| connector.name.as_str()).collect();
    for route in routes.iter().filter(|route| connector(&route.system).is_none()) {
        let what = format!("there is no connector `{}`", route.system);
        problems.add(&route.at, what, suggestion(&route.system, &systems, "one of"));
    }
    let objects = |system: &str| {
        let objects = &connector(system)?.objects;
        Some(objects.iter().map(|object| object.name.clone()).collect())
    };
    route::check(routes, &made, &objects, problems);
}

fn directories(path: &Path, problems: &mut Problems) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        let at = crate::config::node::At::file(path);
        problems.add(
            &at,
            "is not a directory",
            "the directory `mappings`, which holds sources/, connectors/, routes/",
        );
        return Vec::new();
    };
    let found = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Prints the mistakes, each with its place and what to write instead.
pub fn refuse(problems: &[Problem]) -> ExitCode {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let count =
        if problems.len() == 1 { "1 mistake".to_owned() } else { format!("{} mistakes", problems.len()) };
    fail(EX_CONFIG, &format!("{count} in the mapping files:\n{}", lines.join("\n")))
}

/// `tailwater mappings check`, the files alone.
pub fn check(directory: &Path) -> ExitCode {
    let files = match read(directory) {
        Ok(files) => files,
        Err(problems) => return refuse(&problems),
    };
    for (mapping, examples) in &files.sources {
        say(&format!(
            "source {}: {} files, {} tables, {} events, {} examples\n",
            mapping.name,
            mapping.parts.len(),
            mapping.tables.len(),
            mapping.events.len(),
            examples.len()
        ));
    }
    say(&format!("{} connectors, {} routes: in order\n", files.connectors.len(), files.routes.len()));
    ExitCode::SUCCESS
}

/// `tailwater mappings test`.
pub fn test(directory: &Path) -> ExitCode {
    let files = match read(directory) {
        Ok(files) => files,
        Err(problems) => return refuse(&problems),
    };
    let (mut passed, mut failed) = (0, 0);
    for (mapping, examples) in &files.sources {
        for example in examples {
            let mut rehearsal =
                Rehearsal::new(&mapping.name, &files.routes, &files.connectors, &files.upcasters);
            let source = source_of(directory, &mapping.name);
            let failures = example.run(mapping, source, &mut |emitted| rehearsal.requests(emitted));
            let name = example.path.file_name().unwrap_or_default().to_string_lossy();
            match failures {
                Ok(failures) if failures.is_empty() => {
                    passed += 1;
                    say(&format!("ok      {name}\n"));
                }
                Ok(failures) => {
                    failed += 1;
                    say(&format!("FAILED  {name}\n"));
                    failures.iter().for_each(|failure| say(&difference(failure)));
                }
                Err(reason) => {
                    failed += 1;
                    say(&format!("FAILED  {name}: {reason}\n"));
                }
            }
        }
    }
    say(&format!("{passed} passed, {failed} failed\n"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `tailwater mappings diff`.
pub fn diff(directory: &Path, against: &str) -> ExitCode {
    let old = match diff::against(directory, against) {
        Ok(schemas) => schemas,
        Err(error) => {
            return fail(
                EX_USAGE,
                &format!("`{against}` is neither a directory of mappings nor a revision: {error}"),
            );
        }
    };
    let found = diff::differences(&old, &written(directory));
    for difference in &found {
        let word = if difference.weight == Weight::Breaking { "breaking  " } else { "compatible" };
        say(&format!("{word}  {}: {}\n", difference.path, difference.what));
    }
    if found.iter().any(|difference| difference.weight == Weight::Breaking) {
        say(
            "next: keep what readers rely on, or make a new version of the event with an upcaster (`x-upcast`)\n",
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// `tailwater mappings docs`.
pub fn docs(directory: &Path, format: DocsFormat) -> ExitCode {
    let files = match read(directory) {
        Ok(files) => files,
        Err(problems) => return refuse(&problems),
    };
    let schemas = written(directory);
    match format {
        DocsFormat::Markdown => say(&docs::markdown(&schemas, &files)),
        DocsFormat::Asyncapi => say(&format!("{:#}\n", docs::asyncapi(&schemas))),
    }
    ExitCode::SUCCESS
}

/// Line by line: `-` what was expected, `+` what came.
fn difference(failure: &Failure) -> String {
    let mut text = format!("  {}:{}: - expected, + found\n", failure.at.file.display(), failure.at.line);
    for change in TextDiff::from_lines(&failure.expected, &failure.found).iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        text.push_str(&format!("  {sign} {}\n", change.value().trim_end_matches('\n')));
    }
    text
}
