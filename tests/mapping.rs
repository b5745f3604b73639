//! Mapping files: mistakes, examples, differences, and what is written about them. No database.

use std::path::Path;

use serde_json::{Value, json};
use tailwater::config::node::Problem;
use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::shipped;
use tailwater::workbench::mappings::read;

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn ten_mistakes_in_two_hundred_lines_give_ten_messages_with_line_column_and_remedy() {
    let directory = TemporaryDirectory::new("tailwater-mapping").unwrap();
    shipped::write(directory.path()).unwrap();
    let path = directory.path().join("sources/odoo/invoices.yaml");
    let orders = std::fs::read_to_string(directory.path().join("sources/odoo/orders.yaml")).unwrap();
    let (_, more) = orders.split_once("tables:\n").unwrap();
    let (more_tables, more_events) = more.split_once("events:\n").unwrap();
    let own: Vec<&str> =
        more_tables.split_inclusive('\n').take_while(|line| !line.contains("account_tax:")).collect();
    std::fs::remove_file(directory.path().join("sources/odoo/orders.yaml")).unwrap();
    edit(&path, "tables:\n", &format!("tables:\n{}", own.concat()));
    let text = std::fs::read_to_string(&path).unwrap() + more_events;
    std::fs::write(&path, text).unwrap();
    for (from, to) in [
        ("    kind: fact\n", "    kind: facts\n"),
        ("by: currency_id }", "by: curency_id }"),
        ("table: account_payment_term, by", "table: account_paymentterm, by"),
        ("order: [sequence, id]\n", "ordr: [sequence, id]\n"),
        (
            "translated(line.product.template.name, language)",
            "translated(line.product.template.nam, language)",
        ),
        ("quantity: decimal(line.quantity)", "quantity: decimals(line.quantity)"),
        ("untaxed: money(row.amount_untaxed, currency.decimal_places)", "untaxed: money(row.amount_untaxed)"),
        ("      due_on: row.invoice_date_due\n", "      due_at: row.invoice_date_due\n"),
        ("origin: filled(row.invoice_origin)\n", "origin: filled(row.invoice_origin\n"),
        ("          - { otherwise: \"'posted'\" }\n", "          - { when: \"true\" }\n"),
    ] {
        edit(&path, from, to);
    }
    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
    assert!(lines >= 200, "{lines} lines");
    let problems = read(directory.path()).err().unwrap();
    let printed: Vec<String> = problems.iter().map(ToString::to_string).collect();
    println!("{}", printed.join("\n"));
    for expected in [
        "unknown kind `facts`",
        "declares no column `curency_id`",
        "table `account_paymentterm` is not declared",
        "unknown key `ordr`",
        "`line.product.template` has no member `nam`",
        "there is no function `decimals()`",
        "`money` is given 1 values",
        "has no field `due_at`",
        "`filled(row.invoice_origin` is not a CEL expression",
        "a rule has `when` and `then`",
    ] {
        assert_eq!(
            printed.iter().filter(|line| line.contains(expected)).count(),
            1,
            "{expected}: {printed:#?}"
        );
    }
    assert_eq!(printed.len(), 10, "{printed:#?}");
    for problem in &problems {
        assert!(problem.line > 0 && problem.column > 0 && !problem.instead.is_empty(), "{problem}");
        let rust = [
            "Option", "Some(", "Err(", "Result<", "&str", "Vec<", "::", "panic", "unwrap", "struct", "serde",
        ];
        assert!(rust.iter().all(|word| !problem.to_string().contains(word)), "{problem}");
    }
}

#[test]
fn each_mistake_is_told_where_it_stands_and_nothing_hostile_ends_the_process() {
    let deep = format!(
        "  - {{ event: invoice.v1, system: stripe, object: {}x{} }}\n",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    let indented: String = (0..2_000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let brackets = format!("origin: {}row.id{}", "(".repeat(5_000), ")".repeat(5_000));
    let sum = format!("origin: row.id{}", " + row.id".repeat(200));
    let cases = [
        (
            "sources/odoo/invoices.yaml",
            "untaxed: money(times",
            "untaxd: money(times",
            "has no field `untaxd`",
            "untaxed",
        ),
        (
            "sources/odoo/invoices.yaml",
            "origin: filled(row.invoice_origin)",
            &brackets,
            "longer than 2,000",
            "let",
        ),
        (
            "sources/odoo/invoices.yaml",
            "origin: filled(row.invoice_origin)",
            &sum,
            "more than 120 operators",
            "let",
        ),
        (
            "sources/odoo/invoices.yaml",
            "origin: filled(row.invoice_origin)",
            "origin: row.id = 1",
            "is not a CEL expression",
            "==",
        ),
        (
            "sources/odoo/invoices.yaml",
            "origin: filled(row.invoice_origin)",
            "origin: row.id > 0 and row.id < 5",
            "is not a CEL expression",
            "&&",
        ),
        ("sources/odoo/invoices.yaml", "tables:\n", &indented, "nested too deeply", "levels"),
        (
            "routes/default.yaml",
            "event: customer.v1",
            "event: custmer.v1",
            "event `custmer.v1`, which no mapping makes",
            "event",
        ),
        ("routes/default.yaml", "system: stripe", "system: strip", "no connector `strip`", "stripe"),
        ("routes/default.yaml", "object: customer", "object: custmer", "names object `custmer`", "customer"),
        ("routes/default.yaml", "routes:\n", &format!("routes:\n{deep}"), "", ""),
        (
            "sources/odoo/examples/merge.yaml",
            "res_partner:",
            "res_partnr:",
            "reads no table `res_partnr`",
            "res_partner",
        ),
        (
            "canonical/invoice.v1.json",
            "\"x-invariants\"",
            "\"x-invariant\"",
            "unknown key `x-invariant`",
            "x-invariants",
        ),
    ];
    for (file, from, to, what, instead) in cases {
        let directory = TemporaryDirectory::new("tailwater-mapping").unwrap();
        shipped::write(directory.path()).unwrap();
        edit(&directory.path().join(file), from, to);
        let problems =
            read(directory.path()).err().unwrap_or_else(|| panic!("{file}: `{to:.60}` is accepted"));
        let told = |problem: &&Problem| {
            problem.what.contains(what) && problem.instead.contains(instead) && problem.file.ends_with(file)
        };
        let printed: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(problems.iter().any(|problem| told(&problem)), "{what}: {printed:#?}");
    }
}

#[test]
fn each_join_with_a_name_that_is_taken_is_told_at_its_own_line() {
    let directory = TemporaryDirectory::new("tailwater-mapping").unwrap();
    shipped::write(directory.path()).unwrap();
    let path = directory.path().join("sources/odoo/partners.yaml");
    edit(&path, "      country: { table", "      language: { table");
    edit(&path, "      state: { table", "      company: { table");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = |name: &str| {
        text.lines().position(|line| line.contains(&format!("      {name}: {{ table"))).unwrap() + 1
    };
    let problems = read(directory.path()).err().unwrap_or_default();
    for name in ["language", "company"] {
        let told: Vec<&Problem> = problems
            .iter()
            .filter(|problem| problem.what == format!("a join cannot be called `{name}`"))
            .collect();
        assert_eq!(told.len(), 1, "{problems:?}");
        assert_eq!(told[0].line, line(name), "{}", told[0]);
    }
}

#[test]
fn the_shipped_examples_come_out_as_they_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["mappings", "test", "--dir"])
        .arg(&directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("invoice_life.yaml") && text.contains("0 failed"), "{text}");
}

#[test]
fn an_example_that_does_not_come_out_prints_a_diff_and_fails() {
    let directory = TemporaryDirectory::new("tailwater-mapping").unwrap();
    shipped::write(directory.path()).unwrap();
    let examples = directory.path().join("sources/odoo/examples");
    std::fs::create_dir_all(&examples).unwrap();
    let text = "format: 1\nrows: { res_partner: [{ id: 8, name: Alps, commercial_partner_id: 8, active: true }] }\nexpect:\n  - { event: customer.v1, id: ERP-P-8, data: { name: Alpine } }\n";
    std::fs::write(examples.join("wrong.yaml"), text).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["mappings", "test", "--dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = |sign: &str, name: &str| {
        text.lines().any(|line| {
            line.trim_start().starts_with(sign) && line.contains(&format!("\"name\": \"{name}\""))
        })
    };
    assert!(line("-", "Alpine") && line("+", "Alps") && text.contains("wrong.yaml:4"), "{text}");
}

#[test]
fn a_difference_that_readers_may_stumble_over_is_named_and_fails() {
    let directory = TemporaryDirectory::new("tailwater-mapping").unwrap();
    shipped::write(directory.path()).unwrap();
    let path = directory.path().join("canonical/product.v1.json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    schema["properties"].as_object_mut().unwrap().remove("barcode");
    schema["properties"]["kind"]["enum"] = json!(["goods", "service", "bundle", "event"]);
    schema["properties"]["weight"] = json!({"type": "string"});
    std::fs::write(&path, schema.to_string()).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["mappings", "diff", "--dir"])
        .arg(directory.path())
        .arg("--against")
        .arg(&shipped)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for expected in [
        "breaking    product.v1.barcode: the field is gone",
        "breaking    product.v1.kind: may be \"event\" now",
        "compatible  product.v1.weight: the field is new",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// Code blocks of a page: language and text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let fenced = page.split("\n```").enumerate().filter(|(index, _)| index % 2 == 1).map(|(_, block)| block);
    let split = |block: &str| {
        let (language, text) = block.split_once('\n').unwrap();
        (language.to_owned(), format!("{text}\n"))
    };
    fenced.map(split).collect()
}

#[test]
fn the_first_mapping_of_the_guide_works_as_it_is_written() {
    let guide =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings/README.md")).unwrap();
    let directory = TemporaryDirectory::new("tailwater-guide").unwrap();
    shipped::write(directory.path()).unwrap();
    let blocks = blocks(&guide);
    let with = |language: &str, text: &str| {
        let found = blocks.iter().find(|(known, block)| known == language && block.contains(text));
        found.unwrap_or_else(|| panic!("{text}")).1.clone()
    };
    std::fs::write(directory.path().join("canonical/lead.v1.json"), with("json", "Lead, version 1")).unwrap();
    std::fs::write(
        directory.path().join("sources/odoo/leads.yaml"),
        with("yaml", "lead.v1:\n    table: crm_lead"),
    )
    .unwrap();
    std::fs::write(directory.path().join("sources/odoo/examples/lead.yaml"), with("yaml", "only: [lead.v1]"))
        .unwrap();
    for command in ["check", "test"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["mappings", command, "--dir"])
            .arg(directory.path())
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}");
        assert!(command == "check" || text.contains("ok      lead.yaml"), "{text}");
    }
    // Other pieces of the guide are whole files, too.
    std::fs::write(directory.path().join("ownership.yaml"), with("yaml", "owners:")).unwrap();
    let routes = with("yaml", "waves:");
    std::fs::write(directory.path().join("routes/default.yaml"), routes).unwrap();
    let problems = read(directory.path()).err().unwrap_or_default();
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn the_reference_of_events_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["mappings", "docs", "--dir"])
        .arg(root.join("mappings"))
        .output()
        .unwrap();
    let written = std::fs::read_to_string(root.join("docs/events.md")).unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout) == written,
        "tailwater mappings docs --dir mappings > docs/events.md"
    );
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["mappings", "docs", "--format", "asyncapi", "--dir"])
        .arg(root.join("mappings"))
        .output()
        .unwrap();
    let asyncapi: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(asyncapi["asyncapi"], "3.0.0");
    assert_eq!(asyncapi["channels"].as_object().unwrap().len(), 15);
}
