//! Mapping files: mistakes, expressions, and what any order and any slicing of changes ends in. No database.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tailwater::config::node::{At, Content, Node, Problem, Problems};
use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::shipped;
use tailwater::event::{Change, Operation, Row};
use tailwater::image::Emitted;
use tailwater::mapping::expression::Expression;
use tailwater::mapping::scope::{Joined, JoinedRow, Scope, Variable};
use tailwater::mapping::shape::{Shape, Variables};
use tailwater::mapping::{Constants, SourceMapping, file};
use tailwater::trial::Store;
use tailwater::workbench::mappings::read;

fn mapping() -> &'static SourceMapping {
    static MAPPING: OnceLock<SourceMapping> = OnceLock::new();
    MAPPING.get_or_init(|| {
        let directory = TemporaryDirectory::new("tailwater-mapping").unwrap();
        shipped::write(directory.path()).unwrap();
        let mut problems = Problems::default();
        let mapping = file::load(directory.path(), "odoo", Constants::of("erp"), &mut problems);
        assert!(problems.is_empty(), "{:?}", problems.sorted());
        mapping.unwrap()
    })
}

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

/// Rows of a few tables with small keys, so that they meet.
fn change() -> impl Strategy<Value = (&'static str, Map<String, Value>, bool)> {
    let id = || 1..4_i64;
    let key = || prop_oneof![Just(Value::Null), (1..4_i64).prop_map(Value::from)];
    let amount = || prop_oneof![Just("0.00"), Just("10.00"), Just("20.00")];
    let name = || {
        prop_oneof![Just(json!(null)), Just(json!({"en_US": "A"})), Just(json!({"en_US": "B", "fr_FR": "C"}))]
    };
    let row = prop_oneof![
        (id(), key(), prop_oneof![Just("draft"), Just("posted")], prop_oneof![Just("out_invoice"), Just("out_refund"), Just("entry")],
         amount(), key())
            .prop_map(|(id, partner, state, kind, total, terms)| ("account_move", json!({
                "id": id, "commercial_partner_id": partner, "partner_id": partner, "state": state, "move_type": kind, "payment_state": "not_paid",
                "company_id": 1, "currency_id": 1, "amount_untaxed": total, "amount_tax": "0.00", "amount_total": total,
                "amount_residual": total, "invoice_payment_term_id": terms}))),
        (id(), key(), key(), amount(), 0..3_i64).prop_map(|(id, invoice, product, amount, place)| ("account_move_line", json!({
                "id": id, "move_id": invoice, "product_id": product, "display_type": "product", "sequence": place,
                "amount_currency": format!("-{amount}"), "quantity": "1.0"}))),
        (id(), key()).prop_map(|(id, template)| ("product_product", json!({"id": id, "product_tmpl_id": template}))),
        (id(), name()).prop_map(|(id, name)| ("product_template", json!({"id": id, "name": name}))),
        (id(), name()).prop_map(|(id, name)| ("account_payment_term", json!({"id": id, "name": name}))),
        (id(), id()).prop_map(|(line, tax)| ("account_move_line_account_tax_rel", json!({"account_move_line_id": line, "account_tax_id": tax}))),
        (id(), name()).prop_map(|(id, name)| ("account_tax", json!({"id": id, "name": name}))),
        id().prop_map(|id| ("res_partner", json!({"id": id, "name": format!("P{id}"), "commercial_partner_id": id, "active": true}))),
        (id(), key()).prop_map(|(id, parent)| ("res_partner", json!({"id": id, "name": format!("P{id}"), "parent_id": parent,
                "commercial_partner_id": parent}))),
        Just(("res_currency", json!({"id": 1, "name": "EUR", "decimal_places": 2}))),
    ];
    (row, prop::bool::weighted(0.2))
        .prop_map(|((table, row), delete)| (table, row.as_object().unwrap().clone(), delete))
}

/// The fold: of each row the last change.
fn folded(store: &Store<'_>, changes: &[(&'static str, Map<String, Value>, bool)]) -> Vec<Change> {
    let mut last: Vec<Change> = Vec::new();
    for (table, row, delete) in changes {
        let change = store.change(table, row, *delete).unwrap();
        last.retain(|known| (&known.table, &known.key) != (&change.table, &change.key));
        last.push(change);
    }
    last
}

type Held = BTreeMap<(String, String), (Value, Option<String>)>;

/// What somebody holds who reads every event.
fn hold(held: &mut Held, events: Vec<Emitted>) {
    for Emitted { event, fault, .. } in events {
        let key = (event.event_type.clone(), event.id.clone());
        if event.operation == Operation::Delete {
            assert!(held.remove(&key).is_some(), "{key:?} leaves, and was not there");
        } else {
            let before = held.insert(key.clone(), (event.data, fault));
            assert_eq!(before.is_some(), event.operation == Operation::Update, "{key:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_interleaving_and_any_slicing_of_changes_ends_in_the_same_documents(
        transactions in prop::collection::vec(prop::collection::vec(change(), 1..8), 1..10),
        slice in 1..5_usize,
    ) {
        let mut at_once = Store::new(mapping(), "erp");
        let mut sliced = Store::new(mapping(), "erp");
        let (mut held, mut held_of_slices) = (Held::new(), Held::new());
        for changes in &transactions {
            let folded = folded(&at_once, changes);
            let transaction = at_once.transaction(folded);
            hold(&mut held, at_once.commit(&transaction));
            hold(&mut held_of_slices, sliced.commit_in_slices(&transaction, slice));
        }
        prop_assert_eq!(&held, &held_of_slices);
        // One by one, in the order of the last change of each row: other transactions, the same rows at the end.
        let mut one_by_one = Store::new(mapping(), "erp");
        let mut held_of_single = Held::new();
        for change in transactions.iter().flatten() {
            let folded = folded(&one_by_one, std::slice::from_ref(change));
            let transaction = one_by_one.transaction(folded);
            hold(&mut held_of_single, one_by_one.commit(&transaction));
        }
        prop_assert_eq!(&held, &held_of_single);
        let mut fresh = Held::new();
        hold(&mut fresh, at_once.from_scratch());
        prop_assert_eq!(&held, &fresh);
    }

    #[test]
    fn the_compiled_form_of_an_expression_says_what_the_interpreter_says(values in prop::collection::vec(value(), 4)) {
        let row: Row = ["a", "b", "c", "d"].into_iter().map(Into::into).zip(values.clone()).collect();
        let under = JoinedRow { row: std::sync::Arc::new(row.clone()), joins: Vec::new() };
        let joins = vec![("one".into(), Joined::One(std::sync::Arc::new(under.clone()))), ("many".into(), Joined::Many(vec![under; 2]))];
        let joined = JoinedRow { row: std::sync::Arc::new(row.clone()), joins };
        for expression in expressions() {
            // The interpreter goes through the keys of an object in an order of its own, another one each time.
            if row.get("a").unwrap().is_object() && expression.text().starts_with("row.a.") {
                continue;
            }
            let scope = || Scope::over([("row", Variable::Row(&row)), ("line", Variable::Joined(&joined))]);
            let (compiled, interpreted) = (expression.evaluate(&scope()), expression.interpret(&scope()));
            prop_assert_eq!(compiled, interpreted, "{}", expression.text());
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5..5_i64).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-100.0..100.0_f64).prop_map(Value::from),
        "[ -9.ab@é]{0,6}".prop_map(Value::from),
        prop_oneof!["12.50", "-0.005", "1e3", "a@b.co", "2026-11-21 05:53:54.394166", "<p>x</p>"]
            .prop_map(Value::from),
        Just(json!({"en_US": "Plan", "fr_FR": null, "1": "7.5"})),
        Just(json!(["1.5", null, 2])),
    ]
}

fn expressions() -> &'static [Expression] {
    static EXPRESSIONS: OnceLock<Vec<Expression>> = OnceLock::new();
    EXPRESSIONS.get_or_init(|| {
        let texts = [
            "row.a",
            "line.one.b",
            "line.one.b == row.b",
            "size(line.many)",
            "line.many[0].a",
            "row.a['en_US']",
            "string(row.a) + string(row.b)",
            "string(row.a)",
            "string(row.a) + '-'",
            "row.a == row.b",
            "row.a != null && row.b != null",
            "!(row.a == true)",
            "row.a == true || row.b == true",
            "row.a == null ? row.b : row.c",
            "row.a in [1, 'x', null]",
            "[row.a, row.b]",
            "translated(row.a, 'fr_FR')",
            "of_company(row.a, 1)",
            "decimal(row.a)",
            "money(row.a, 2)",
            "money(row.a, row.b)",
            "minor_units(row.a, 2)",
            "plus(row.a, row.b)",
            "minus(row.a, row.b)",
            "times(row.a, row.b)",
            "compare(row.a, row.b)",
            "sum(row.a)",
            "sum([row.a, row.b])",
            "first([row.a, row.b])",
            "filled(row.a)",
            "cut(row.a, 3)",
            "email(row.a)",
            "utc(row.a)",
            "plain_text(row.a)",
            "entries(row.a)",
            "bucket(row.a, 100)",
            "size(row.a)",
            "row.a.map(x, x)",
            "row.a.filter(x, x != null)",
            "row.a.filter(x, x == null).map(x, [x, row.b])",
            "line.many.map(m, m.a)",
            "line.many.filter(m, m.a == row.a).map(m, m.b)",
            "sum(line.many.map(m, m.a))",
            "line.many.map(m, m)",
            "row.a.map(x, x)",
            "row.a.filter(x, x != null)",
            "row.a.filter(x, x == null).map(x, [x, row.b])",
            "line.many.map(m, m.a)",
            "line.many.filter(m, m.a == row.a).map(m, m.b)",
            "sum(line.many.map(m, m.a))",
            "line.many.map(m, m)",
            "line.one",
        ];
        let variables: Variables = [("row".to_owned(), Shape::Any), ("line".to_owned(), Shape::Any)].into();
        let compile = |text: &&str| {
            let mut problems = Problems::default();
            let node = Node { at: At::file(Path::new("x")), content: Content::Scalar((*text).into()) };
            let expression = Expression::compile(&node, &variables, &mut problems);
            assert!(problems.is_empty(), "{text}: {:?}", problems.sorted());
            expression.unwrap()
        };
        texts.iter().map(compile).collect()
    })
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
    assert_eq!(asyncapi["channels"].as_object().unwrap().len(), 13);
}
