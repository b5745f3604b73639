//! Every mistake of every file at once, with file, line, what is wrong and what to write instead (INV-11).

use std::path::{Path, PathBuf};

use tailwater::config::load;
use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::shipped;

const GOOD: &str = r#"[ledger]
url = "postgres://tailwater@127.0.0.1:5432/tailwater"
[redis]
url = "redis://127.0.0.1:6379/0"
[sources.erp]
kind = "postgres"
url = "postgres://tailwater_src@127.0.0.1:5432/erp"
slot = "tailwater"
publication = "tailwater"
mapping = "odoo"
[targets.stripe]
connector = "stripe"
api_key = { file = "/etc/tailwater/secrets/stripe" }
quota = "80/s"
"#;

struct Files {
    directory: TemporaryDirectory,
}

impl Files {
    fn new(settings: &str) -> Self {
        let directory = TemporaryDirectory::new("tailwater-settings").unwrap();
        shipped::write(&directory.path().join("mappings")).unwrap();
        std::fs::write(directory.path().join("tailwater.toml"), settings).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} does not contain {from}");
        std::fs::write(self.path(name), text.replacen(from, to, 1)).unwrap();
    }

    /// Problems as `file:line: what | instead`, file names short.
    fn problems(&self, environment: &[(&str, &str)]) -> Vec<String> {
        let variables = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let problems = load(&self.path("tailwater.toml"), variables).err().unwrap_or_default();
        let short = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        problems
            .iter()
            .map(|problem| {
                format!("{}:{}: {} | {}", short(&problem.file), problem.line, problem.what, problem.instead)
            })
            .collect()
    }
}

#[track_caller]
fn check(problems: &[String], expected: &[&str]) {
    for (index, expected) in expected.iter().enumerate() {
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{index}: {expected} not in {problems:#?}"
        );
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn the_shipped_files_and_good_settings_have_no_mistakes() {
    check(&Files::new(GOOD).problems(&[]), &[]);
}

#[test]
fn every_mistake_in_the_settings_is_reported_at_once() {
    let files = Files::new(
        r#"[ledger]
url = "postgres://tailwater:hunter2@127.0.0.1:5432/tailwater"
[redis]
ulr = "redis://127.0.0.1:6379/0"
[sources.erp]
kind = "mysql"
url = "postgres://tailwater_src@db.example.com/erp?sslmode=prefer"
slot = "Tail-Water"
publication = "tailwater"
mapping = "odoo"
[targets.stripe]
connector = "stripe"
base_url = "http://api.stripe.example"
api_key = "sk_live_1"
quota = "eighty"
[targets.zendesk]
connector = "zendsk"
api_key = { file = "/x", credential = "y" }
quota = "600/min"
"#,
    );
    check(
        &files.problems(&[]),
        &[
            "tailwater.toml:2: a password does not belong into the settings",
            "tailwater.toml:3: `url` is missing",
            "tailwater.toml:4: unknown key `ulr` | did you mean `url`?",
            "tailwater.toml:6: unknown kind of source | kind = \"postgres\"",
            "tailwater.toml:7: sslmode=disable and prefer are for local servers only",
            "tailwater.toml:5: a slot name has lower-case letters",
            "tailwater.toml:13: `http://api.stripe.example` is not an https address",
            "tailwater.toml:14: a secret does not belong into the settings",
            "tailwater.toml:15: not a rate | \"80/s\"",
            "zendsk.yaml:0: cannot be read",
            "tailwater.toml:18: a secret has either `file` or `credential`",
        ],
    );
}

#[test]
fn every_mistake_in_a_mapping_is_reported_at_once() {
    let files = Files::new(GOOD);
    let name = "mappings/sources/odoo/partners.yaml";
    files.edit(name, "columns: [id, code]", "columns: [id, kode]");
    files.edit(name, "by: country_id", "by: countri_id");
    files.edit(name, "reference: row.ref", "reference: row.reff");
    files.edit(name, "vat: row.vat", "vatt: row.vat");
    files.edit(name, "language: row.lang", "language: \"row.lang +\"");
    files.edit(name, "kind: state", "kind: stat");
    let problems = files.problems(&[]);
    check(
        &problems,
        &[
            "declares no column `countri_id` | did you mean `country_id`?",
            "`row` has no member `reff` | did you mean `ref`?",
            "the canonical schema has no field `vatt` | did you mean `vat`?",
            "`row.lang +` is not a CEL expression",
            "unknown kind `stat` | state or fact",
            "`country` has no member `code` | did you mean `kode`?",
        ],
    );
}

#[test]
fn every_mistake_in_connectors_and_routes_is_reported_at_once() {
    let files = Files::new(GOOD);
    let stripe = "mappings/connectors/stripe.yaml";
    files.edit(stripe, "encoding: form", "encoding: from");
    files.edit(stripe, "outcome: throttled", "outcome: throtled");
    files.edit(stripe, "create: { request: POST /v1/customers", "create: { request: SEND /v1/customers");
    files.edit(stripe, "timeout_s: 30", "timeout: 30");
    let routes = "mappings/routes/default.yaml";
    files.edit(routes, "object: customer", "object: custmer");
    files.edit(routes, "event: contact.v1", "event: contract.v1");
    check(
        &files.problems(&[]),
        &[
            "stripe.yaml:8: unknown encoding `from` | did you mean `form`?",
            "unknown outcome `throtled` | did you mean `throttled`?",
            "`SEND /v1/customers` is not a method and a path",
            "stripe.yaml:9: unknown key `timeout` | did you mean `timeout_s`?",
            "needs either `upsert`, or `create` and `update`",
        ],
    );
    files.edit(stripe, "encoding: from", "encoding: form");
    files.edit(stripe, "outcome: throtled", "outcome: throttled");
    files.edit(stripe, "create: { request: SEND /v1/customers", "create: { request: POST /v1/customers");
    files.edit(stripe, "timeout: 30", "timeout_s: 30");
    check(
        &files.problems(&[]),
        &[
            "a route names object `custmer`, which connector `stripe` does not have",
            "a route names event `contract.v1`, which no mapping makes",
        ],
    );
}

#[test]
fn the_environment_overrides_and_its_mistakes_name_the_variable() {
    let files = Files::new(GOOD);
    check(&files.problems(&[("TAILWATER__TARGETS__STRIPE__QUOTA", "50/s")]), &[]);
    check(
        &files.problems(&[("TAILWATER__TARGETS__STRIPE__QUOTA", "fast"), ("TAILWATER__LEDGER__URI", "x")]),
        &[
            "environment variable TAILWATER__TARGETS__STRIPE__QUOTA:0: not a rate",
            "unknown key `uri` | did you mean `url`?",
        ],
    );
}

#[test]
fn syntax_errors_name_their_line() {
    let files = Files::new(&GOOD.replace("slot = \"tailwater\"", "slot = tailwater"));
    check(&files.problems(&[]), &["tailwater.toml:8: not valid TOML"]);
    let files = Files::new(GOOD);
    files.edit("mappings/routes/default.yaml", "format: 1", "format: [1");
    check(&files.problems(&[]), &["default.yaml"]);
}

#[test]
fn the_binary_carries_exactly_the_shipped_mapping_files() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mappings");
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.push(path.strip_prefix(&root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, shipped::FILES.map(|(name, _)| name.to_owned()));
}

#[test]
fn a_flow_that_needs_a_setting_of_its_target_is_refused_without_it() {
    let settings = format!(
        "flows = [\"time\", \"cases\"]\n{GOOD}\n[targets.odoo]\nconnector = \"odoo\"\nbase_url = \"http://127.0.0.1:8069\"\n\
         api_key = {{ file = \"/etc/tailwater/secrets/odoo\" }}\nsettings = {{ database = \"odoo\", timesheet_project = 1 }}\n"
    );
    let files = Files::new(&settings);
    let problems = files.problems(&[]);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("flows.yaml:"), "{problems:?}");
    assert!(
        problems[0].ends_with(
            "[targets.odoo]: `timesheet`, which this route makes, needs the setting `timesheet_employee` | \
             settings = { timesheet_employee = 1 }, or leave its flow out"
        ),
        "{problems:?}"
    );
    files.edit("tailwater.toml", "timesheet_project = 1", "timesheet_project = 1, timesheet_employee = 2");
    assert_eq!(files.problems(&[]), Vec::<String>::new());
    files.edit("tailwater.toml", ", timesheet_employee = 2", "");
    files.edit("tailwater.toml", "[\"time\", \"cases\"]", "[\"cases\"]");
    assert_eq!(files.problems(&[]), Vec::<String>::new());
}
