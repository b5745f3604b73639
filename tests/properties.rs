//! What any order and any slicing of changes ends in, and expressions compiled and interpreted. No database.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tailwater::config::node::{At, Content, Node, Problems};
use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::shipped;
use tailwater::event::{Change, Operation, Row};
use tailwater::image::Emitted;
use tailwater::mapping::expression::Expression;
use tailwater::mapping::scope::{Joined, JoinedRow, Scope, Variable};
use tailwater::mapping::shape::{Shape, Variables};
use tailwater::mapping::{Constants, SourceMapping, file};
use tailwater::trial::Store;

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
