//! A simulated Stripe: customers, as <https://docs.stripe.com/api/customers> describes them.
//!
//! Idempotency keys replay the first answer, errors after execution began included; other parameters under a used key
//! are an `idempotency_error`; throttled, unauthenticated and invalid requests are not stored. Search lags behind.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::stripe_books::{Books, page};
use super::{Effect, Incoming, Reply, Vendor, form};

/// Fields of a customer that a request may set; others are `parameter_unknown`.
const PARAMETERS: [&str; 12] = [
    "name",
    "email",
    "phone",
    "address",
    "metadata",
    "description",
    "preferred_locales",
    "shipping",
    "tax_exempt",
    "invoice_prefix",
    "invoice_settings",
    "balance",
];

/// See the module's text.
#[derive(Debug)]
pub struct Stripe {
    api_key: String,
    /// Customers by id, deleted ones as null.
    customers: BTreeMap<String, Value>,
    created_at: HashMap<String, f64>,
    /// Answers by idempotency key: parameters, status, body.
    keys: HashMap<String, (String, u16, Value)>,
    search_lag_s: f64,
    next: u64,
    /// Creations by `metadata[tailwater_id]`.
    creations: BTreeMap<String, u32>,
    deletions: BTreeMap<String, u32>,
    stored_errors: u32,
    refused_name: Option<String>,
    /// Invoices made, by `metadata[tailwater_id]`: how often, and when last.
    pub invoices: BTreeMap<String, (u32, f64)>,
    /// What there is beside customers, and what happened.
    pub books: Books,
}

impl Stripe {
    /// An account without customers; search shows a new customer after `search_lag_s` seconds.
    #[must_use]
    pub fn new(api_key: &str, search_lag_s: f64) -> Self {
        Self {
            api_key: api_key.to_owned(),
            customers: BTreeMap::new(),
            created_at: HashMap::new(),
            keys: HashMap::new(),
            search_lag_s,
            next: 1,
            creations: BTreeMap::new(),
            deletions: BTreeMap::new(),
            stored_errors: 0,
            refused_name: None,
            invoices: BTreeMap::new(),
            books: Books::default(),
        }
    }

    /// Customers that stand, by `metadata[tailwater_id]`; of several the first.
    #[must_use]
    pub fn customers(&self) -> BTreeMap<String, Value> {
        let standing = self.customers.values().rev().filter(|customer| !customer.is_null());
        standing.map(|customer| (tailwater_id(customer), customer.clone())).collect()
    }

    /// Ids for which more customers were created than are explained by deletions in between.
    #[must_use]
    pub fn doubled(&self) -> Vec<String> {
        let doubled = self
            .creations
            .iter()
            .filter(|(id, created)| **created > 1 + self.deletions.get(*id).copied().unwrap_or_default());
        doubled.map(|(id, _)| id.clone()).collect()
    }

    /// The next `count` writes are carried out and answered with a 500 that is stored under their key, as Stripe does once
    /// execution has begun.
    pub fn store_errors(&mut self, count: u32) {
        self.stored_errors = count;
    }

    /// A customer of this name is refused as invalid.
    pub fn refuse_name(&mut self, name: &str) {
        self.refused_name = Some(name.to_owned());
    }

    /// Forgets all idempotency keys, as Stripe does after a day.
    pub fn prune_keys(&mut self) {
        self.keys.clear();
    }

    fn keyed(&mut self, request: &Incoming, now_s: f64) -> Reply {
        let parameters = format!("{} {}", request.path, String::from_utf8_lossy(&request.body));
        let key = request.headers.get("idempotency-key").cloned();
        if let Some((used_for, status, body)) = key.as_ref().and_then(|key| self.keys.get(key)) {
            if *used_for != parameters {
                return error(400, "idempotency_error", "idempotency_key_in_use");
            }
            let headers = vec![("idempotent-replayed".to_owned(), "true".to_owned())];
            return Reply { headers, ..Reply::plain(*status, body.clone()) };
        }
        let mut reply = self.write(request, now_s);
        if self.stored_errors > 0 {
            self.stored_errors -= 1;
            reply = Reply { effect: reply.effect, ..error(500, "api_error", "internal") };
        }
        if let Some(key) = key
            && reply.status != 400
        {
            self.keys.insert(key, (parameters, reply.status, reply.body.clone()));
        }
        reply
    }

    fn write(&mut self, request: &Incoming, now_s: f64) -> Reply {
        let parameters = form::decode(&String::from_utf8_lossy(&request.body));
        if request.path == "/v1/invoices" {
            return self.invoice(&parameters, now_s);
        }
        if let Some(refused) = invalid(&parameters) {
            return refused;
        }
        if self.refused_name.is_some()
            && parameters.get("name").and_then(Value::as_str) == self.refused_name.as_deref()
        {
            return error(400, "invalid_request_error", "parameter_invalid");
        }
        if request.path == "/v1/customers" {
            return self.create(&parameters, now_s);
        }
        let id = request.path.trim_start_matches("/v1/customers/").to_owned();
        match self.customers.get_mut(&id) {
            None => error(404, "invalid_request_error", "resource_missing"),
            Some(Value::Null) => Reply::plain(200, json!({"id": id, "object": "customer", "deleted": true})),
            Some(customer) => {
                let before = customer.clone();
                apply(customer, &parameters);
                let external = tailwater_id(customer);
                let effect =
                    if *customer == before { Effect::Nil(external) } else { Effect::Changed(external) };
                if *customer != before {
                    self.books.events.note("customer.updated", customer);
                }
                Reply { effect, ..Reply::plain(200, customer.clone()) }
            }
        }
    }

    fn create(&mut self, parameters: &Map<String, Value>, now_s: f64) -> Reply {
        let id = format!("cus_{:08}", self.next);
        self.next += 1;
        let mut customer = json!({
            "id": id, "object": "customer", "name": null, "email": null, "phone": null, "address": null, "metadata": {},
        });
        apply(&mut customer, parameters);
        let external = tailwater_id(&customer);
        *self.creations.entry(external.clone()).or_default() += 1;
        self.created_at.insert(id.clone(), now_s);
        self.books.events.note("customer.created", &customer);
        self.customers.insert(id, customer.clone());
        Reply { effect: Effect::Changed(external), ..Reply::plain(200, customer) }
    }

    /// A draft invoice of a customer that is there.
    fn invoice(&mut self, parameters: &Map<String, Value>, now_s: f64) -> Reply {
        let customer = parameters.get("customer").and_then(Value::as_str).unwrap_or_default();
        if self.customers.get(customer).is_none_or(Value::is_null) {
            return error(400, "invalid_request_error", "resource_missing");
        }
        let ours =
            parameters.get("metadata").map(|metadata| json!({"metadata": metadata})).unwrap_or_default();
        let external = tailwater_id(&ours);
        let made = self.invoices.entry(external.clone()).or_default();
        *made = (made.0 + 1, now_s);
        self.next += 1;
        let body = json!({"id": format!("in_{:08}", self.next), "object": "invoice", "customer": customer, "status": "draft"});
        Reply { effect: Effect::Changed(external), ..Reply::plain(200, body) }
    }

    fn delete(&mut self, id: &str) -> Reply {
        match self.customers.get_mut(id) {
            None => error(404, "invalid_request_error", "resource_missing"),
            Some(Value::Null) => error(404, "invalid_request_error", "resource_missing"),
            Some(customer) => {
                let external = tailwater_id(customer);
                *self.deletions.entry(external.clone()).or_default() += 1;
                *customer = Value::Null;
                let body = json!({"id": id, "object": "customer", "deleted": true});
                self.books.events.note("customer.deleted", &body);
                Reply { effect: Effect::Changed(external), ..Reply::plain(200, body) }
            }
        }
    }

    /// By e-mail, which is compared as it is written; lists do not lag.
    fn list(&self, request: &Incoming) -> Reply {
        let email = request.query.get("email");
        let found = self.customers.values().filter(|customer| {
            !customer.is_null()
                && email.is_none_or(|email| customer.get("email").and_then(Value::as_str) == Some(email))
        });
        page(found, &request.query)
    }

    /// Somebody changes members of a customer in Stripe's own pages.
    pub fn edit(&mut self, id: &str, members: &Value) {
        if let (Some(customer), Value::Object(members)) = (self.customers.get_mut(id), members) {
            apply(customer, members);
            self.books.events.note("customer.updated", customer);
        }
    }

    /// A customer that somebody makes by hand; gives its id.
    pub fn made_by_hand(&mut self, email: &str) -> String {
        let id = format!("cus_{:08}", self.next);
        self.next += 1;
        let customer = json!({
            "id": id, "object": "customer", "name": "By hand", "email": email, "phone": null, "address": null, "metadata": {},
        });
        self.books.events.note("customer.created", &customer);
        self.customers.insert(id.clone(), customer);
        id
    }

    /// These customers as they stand, none where there is none any more.
    #[must_use]
    pub fn raw(&self, ids: &[&str]) -> Vec<Option<Value>> {
        ids.iter().map(|id| self.customers.get(*id).cloned()).collect()
    }

    /// A customer is gone without a trace, as after a mistake of support.
    pub fn lose(&mut self, id: &str) {
        self.customers.remove(id);
    }

    /// Somebody makes a customer that carries an id of ours.
    pub fn made_with(&mut self, ours: &str) -> String {
        let id = self.made_by_hand("copy@example.test");
        if let Some(Value::Object(customer)) = self.customers.get_mut(&id) {
            customer.insert("metadata".into(), json!({"tailwater_id": ours}));
        }
        id
    }

    /// `metadata['key']:'value'` and `email:'value'`, the forms used here; case is disregarded, and a backslash escapes.
    /// <https://docs.stripe.com/search#search-query-language>
    fn search(&self, request: &Incoming, now_s: f64) -> Reply {
        let query = request.query.get("query").cloned().unwrap_or_default();
        let Some((key, wanted)) = searched(&query) else {
            return error(400, "invalid_request_error", "parse_query_error");
        };
        let found = self.customers.iter().rev().filter(|(id, customer)| {
            let visible = self.created_at.get(*id).is_none_or(|at| now_s - at >= self.search_lag_s);
            let value = match &key {
                Some(key) => customer.get("metadata").and_then(|metadata| metadata.get(key)),
                None => customer.get("email"),
            };
            visible
                && value
                    .and_then(Value::as_str)
                    .is_some_and(|value| value.to_lowercase() == wanted.to_lowercase())
        });
        let data: Vec<Value> = found.map(|(_, customer)| customer.clone()).collect();
        Reply::plain(200, json!({"object": "search_result", "data": data, "has_more": false}))
    }
}

/// The metadata key, none for the e-mail, and the value of a search; `None` where it cannot be parsed.
fn searched(query: &str) -> Option<(Option<String>, String)> {
    let (key, rest) = match query.strip_prefix("metadata['") {
        Some(rest) => {
            let (key, rest) = rest.split_once("']:'")?;
            (Some(key.to_owned()), rest)
        }
        None => (None, query.strip_prefix("email:'")?),
    };
    let mut value = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '\\' => value.push(chars.next()?),
            '\'' => break,
            other => value.push(other),
        }
    }
    chars.as_str().is_empty().then_some((key, value))
}

impl Vendor for Stripe {
    fn handle(&mut self, request: &Incoming, now_s: f64) -> Reply {
        if request.method == "GET"
            && let Some(reply) = self.books.read(request)
        {
            return reply;
        }
        let id = request.path.strip_prefix("/v1/customers/").map(str::to_owned);
        match (request.method.as_str(), request.path.as_str(), id) {
            ("GET", "/v1/customers/search", _) => self.search(request, now_s),
            ("GET", "/v1/customers", _) => self.list(request),
            ("POST", _, _) if request.path.starts_with("/v1/customers") || request.path == "/v1/invoices" => {
                self.keyed(request, now_s)
            }
            ("GET", _, Some(id)) => match self.customers.get(&id) {
                None => error(404, "invalid_request_error", "resource_missing"),
                Some(Value::Null) => {
                    Reply::plain(200, json!({"id": id, "object": "customer", "deleted": true}))
                }
                Some(customer) => Reply::plain(200, customer.clone()),
            },
            ("DELETE", _, Some(id)) => self.delete(&id),
            _ => error(404, "invalid_request_error", "url_invalid"),
        }
    }

    fn throttled(&self) -> Value {
        json!({"error": {"type": "invalid_request_error", "code": "rate_limit"}})
    }

    fn refuse(&self, request: &Incoming) -> Option<Reply> {
        let right = request
            .headers
            .get("authorization")
            .is_some_and(|value| *value == format!("Bearer {}", self.api_key));
        (!right).then(|| {
            Reply::plain(401, json!({"error": {"type": "invalid_request_error", "code": "api_key_invalid"}}))
        })
    }
}

fn error(status: u16, kind: &str, code: &str) -> Reply {
    Reply::plain(status, json!({"error": {"type": kind, "code": code}}))
}

fn tailwater_id(customer: &Value) -> String {
    let id =
        customer.get("metadata").and_then(|metadata| metadata.get("tailwater_id")).and_then(Value::as_str);
    id.unwrap_or_default().to_owned()
}

/// The limits of the reference pages, as far as a customer has them.
fn invalid(parameters: &Map<String, Value>) -> Option<Reply> {
    let too_long = |key: &str, most: usize| {
        parameters.get(key).and_then(Value::as_str).is_some_and(|text| text.chars().count() > most)
    };
    if parameters.keys().any(|key| !PARAMETERS.contains(&key.as_str())) {
        return Some(error(400, "invalid_request_error", "parameter_unknown"));
    }
    if too_long("name", 256) || too_long("email", 512) || too_long("phone", 20) {
        return Some(error(400, "invalid_request_error", "parameter_invalid_string_too_long"));
    }
    let email = parameters.get("email").and_then(Value::as_str).unwrap_or_default();
    if !email.is_empty() && !email.contains('@') {
        return Some(error(400, "invalid_request_error", "email_invalid"));
    }
    let metadata = parameters.get("metadata").and_then(Value::as_object);
    let bad_metadata = metadata.is_some_and(|map| {
        map.len() > 50
            || map.iter().any(|(key, value)| {
                key.chars().count() > 40 || value.as_str().is_some_and(|text| text.chars().count() > 500)
            })
    });
    bad_metadata.then(|| error(400, "invalid_request_error", "parameter_invalid"))
}

/// Sets what the request names; an empty text unsets.
fn apply(customer: &mut Value, parameters: &Map<String, Value>) {
    let Value::Object(customer) = customer else { return };
    for (key, value) in parameters {
        match value {
            Value::Object(children) => {
                let child = customer.entry(key.clone()).or_insert_with(|| json!({}));
                if child.is_null() {
                    *child = json!({});
                }
                merge(child, children, key == "metadata");
            }
            Value::String(text) if text.is_empty() => {
                customer.insert(key.clone(), Value::Null);
            }
            other => {
                customer.insert(key.clone(), other.clone());
            }
        }
    }
}

fn merge(child: &mut Value, children: &Map<String, Value>, removes: bool) {
    let Value::Object(child) = child else { return };
    for (key, value) in children {
        let empty = value.as_str().is_some_and(str::is_empty);
        if empty && removes {
            child.remove(key);
        } else {
            child.insert(key.clone(), if empty { Value::Null } else { value.clone() });
        }
    }
}
