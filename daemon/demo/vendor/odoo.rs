//! A simulated Odoo's API over an Odoo-shaped database: what is written through it comes back in the WAL, as with the real one.
//!
//! As measured on a real Odoo 19: `write` updates also what is the same; `load` matches by external id and says no in a 200;
//! `message_post` makes another note each time; a wizard is made before a payment is; an unknown field is a 500.
// A JSON value gives null for what it does not have.
#![allow(clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::mpsc;

use serde_json::{Map, Value, json};
use tokio_postgres::SimpleQueryMessage;

use super::{Effect, Incoming, Reply, Vendor};

/// Columns of partners that are written as text; `is_company` and `active` are booleans.
const TEXTS: [&str; 11] =
    ["name", "ref", "vat", "email", "phone", "website", "street", "street2", "zip", "city", "function"];

/// An invoice, as far as paying it goes.
#[derive(Debug, Clone, Default)]
pub struct Invoice {
    /// What is left to pay, in cents.
    pub open: i64,
    /// Payments by memo.
    pub payments: Vec<String>,
}

/// See the module's text.
pub struct OdooApi {
    session: Session,
    key: String,
    /// User whom the key belongs to.
    user: i32,
    external: BTreeMap<String, i64>,
    next: i64,
    /// Notes by message id: how often each was made.
    pub notes: BTreeMap<String, u32>,
    /// Activities and timesheet lines by external id.
    pub lines: BTreeMap<String, Value>,
    /// Invoices by number.
    pub invoices: BTreeMap<i64, Invoice>,
    wizards: BTreeMap<i64, (i64, i64, String)>,
}

/// A statement, and where its first value goes.
type Asked = (String, mpsc::Sender<Result<Option<String>, String>>);

/// A session with a thread of its own: a vendor answers without going back to the runtime.
struct Session(mpsc::Sender<Asked>);

impl Session {
    fn start(url: &str) -> Result<Self, tokio_postgres::Error> {
        let config: tokio_postgres::Config = url.parse()?;
        let (asks, asked) = mpsc::channel::<Asked>();
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async move {
                let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else { return };
                tokio::spawn(connection);
                while let Ok((text, answer)) = asked.recv() {
                    let rows = client.simple_query(&text).await;
                    let first = |rows: Vec<SimpleQueryMessage>| {
                        rows.into_iter().find_map(|message| match message {
                            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                            _ => None,
                        })
                    };
                    // Who asked may be gone.
                    let _ = answer.send(rows.map(first).map_err(|error| crate::pg::describe(&error)));
                }
            });
        });
        Ok(Self(asks))
    }

    fn run(&self, text: &str) -> Result<Option<String>, String> {
        let (answer, answered) = mpsc::channel();
        self.0.send((text.to_owned(), answer)).map_err(|_| "the session has ended".to_owned())?;
        answered.recv().map_err(|_| "the session has ended".to_owned())?
    }
}

impl OdooApi {
    /// Works on the database at this URL as somebody who may change the ERP's tables.
    pub fn new(url: &str, key: &str, user: i32) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            session: Session::start(url)?,
            key: key.to_owned(),
            user,
            external: BTreeMap::new(),
            next: 1_000,
            notes: BTreeMap::new(),
            lines: BTreeMap::new(),
            invoices: BTreeMap::new(),
            wizards: BTreeMap::new(),
        })
    }

    fn new_id(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    /// Runs a statement on the ERP's database; gives its first value as text.
    fn sql(&self, text: &str) -> Result<Option<String>, String> {
        self.session.run(text)
    }

    fn partner(&mut self, id: i64, values: &Map<String, Value>) -> Reply {
        let mut sets = Vec::new();
        for (name, value) in values {
            match (name.as_str(), value) {
                ("is_company" | "active", Value::Bool(value)) => sets.push(format!("{name} = {value}")),
                ("is_company" | "active", Value::String(text)) => {
                    sets.push(format!("{name} = {}", text == "true"))
                }
                ("is_company" | "active", Value::Null) => {}
                (text, value) if TEXTS.contains(&text) => {
                    let value = value.as_str().filter(|value| !value.is_empty());
                    sets.push(format!("{name} = {}", value.map_or("null".to_owned(), literal)));
                }
                _ => return error(500, "builtins.KeyError", name),
            }
        }
        let before = self.sql(&format!("select row_to_json(p)::text from res_partner p where id = {id}"));
        let Ok(Some(before)) = before else { return error(404, "odoo.exceptions.MissingError", "gone") };
        let sets = sets.join(", ");
        let update = format!(
            "update res_partner set {sets}{} complete_name = coalesce(complete_name, name), write_uid = {}, write_date = now() where id = {id};
             update res_partner set complete_name = name, email_normalized = lower(email) where id = {id}",
            if sets.is_empty() { "" } else { "," },
            self.user
        );
        if let Err(reason) = self.sql(&update) {
            return error(422, "odoo.exceptions.ValidationError", &reason);
        }
        let after = self.sql(&format!("select row_to_json(p)::text from res_partner p where id = {id}"));
        let kept = |row: &str| {
            let mut row: Value = serde_json::from_str(row).unwrap_or_default();
            if let Value::Object(map) = &mut row {
                // What follows from the rest is no change of its own.
                let derived = ["write_date", "write_uid", "complete_name", "email_normalized"];
                derived.iter().for_each(|name| drop(map.remove(*name)));
            }
            row
        };
        let same = after.ok().flatten().is_some_and(|after| kept(&after) == kept(&before));
        let what = format!("res.partner {id}");
        let effect = if same { Effect::Nil(what) } else { Effect::Changed(what) };
        Reply { effect, ..Reply::plain(200, Value::Bool(true)) }
    }

    /// A page of partners in the order of their numbers. What a partner does not have is false, as with the real one.
    fn partners(&self, body: &Value) -> Reply {
        let condition = &body["domain"][0];
        let operator = if condition[1] == ">" { ">" } else { "=" };
        let id = condition[2].as_i64().unwrap_or_default();
        let fields = texts(&body["fields"]).unwrap_or_default();
        let known = |field: &String| {
            TEXTS.contains(&field.as_str()) || ["is_company", "active"].contains(&field.as_str())
        };
        if let Some(unknown) = fields.iter().find(|field| !known(field)) {
            return error(500, "builtins.ValueError", &format!("Invalid field '{unknown}' on 'res.partner'"));
        }
        let limit = body["limit"].as_i64().unwrap_or(i64::MAX);
        let found = self.sql(&format!(
            "select coalesce(json_agg(r), '[]')::text from (
               select id, {} from res_partner where id {operator} {id} order by id limit {limit}) r",
            fields.join(", ")
        ));
        let mut rows: Vec<Map<String, Value>> =
            found.ok().flatten().and_then(|rows| serde_json::from_str(&rows).ok()).unwrap_or_default();
        for value in rows.iter_mut().flat_map(Map::values_mut).filter(|value| value.is_null()) {
            *value = Value::Bool(false);
        }
        Reply::plain(200, json!(rows))
    }

    fn load_partner(&mut self, body: &Value) -> Reply {
        let (Some(fields), Some(row)) = (texts(&body["fields"]), texts(&body["data"][0])) else {
            return error(422, "odoo.exceptions.UserError", "no rows");
        };
        let mut values: Map<String, Value> =
            fields.into_iter().zip(row.into_iter().map(Value::String)).collect();
        let external = values.remove("id").and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default();
        let parent = values.remove("parent_id/.id").and_then(|id| id.as_str().map(str::to_owned));
        if values.is_empty() {
            let found = self.external.get(&external);
            let messages =
                json!([{"type": "error", "message": "Missing required value for the field 'Name' (name)"}]);
            return Reply::plain(
                200,
                match found {
                    Some(id) => json!({"ids": [id], "messages": [], "nextrow": 0}),
                    None => json!({"ids": false, "messages": messages, "nextrow": 0}),
                },
            );
        }
        let known = self.external.get(&external).copied();
        let id = match known {
            Some(id) => id,
            None => {
                let parent = parent.unwrap_or_else(|| "null".to_owned());
                let insert = format!(
                    "insert into res_partner (name, parent_id, is_company, create_date, write_date) values ('-', {parent}, false, now(), now())
                     returning id"
                );
                let Ok(Some(id)) = self.sql(&insert) else {
                    return Reply::plain(
                        200,
                        json!({"ids": false, "messages": [{"type": "error", "message": "refused"}]}),
                    );
                };
                let id: i64 = id.parse().unwrap_or_default();
                let head = if parent == "null" { id.to_string() } else { parent };
                let _ = self
                    .sql(&format!("update res_partner set commercial_partner_id = {head} where id = {id}"));
                self.external.insert(external, id);
                id
            }
        };
        let written = self.partner(id, &values);
        if written.status != 200 {
            return written;
        }
        Reply { body: json!({"ids": [id], "messages": [], "nextrow": 0}), ..written }
    }

    fn load_line(&mut self, body: &Value) -> Reply {
        let (Some(fields), Some(row)) = (texts(&body["fields"]), texts(&body["data"][0])) else {
            return error(422, "odoo.exceptions.UserError", "no rows");
        };
        let line: Value = Value::Object(fields.into_iter().zip(row.into_iter().map(Value::String)).collect());
        let external = line["id"].as_str().unwrap_or_default().to_owned();
        let before = self.lines.insert(external.clone(), line.clone());
        let id = match self.external.get(&external) {
            Some(id) => *id,
            None => {
                let id = self.new_id();
                self.external.insert(external.clone(), id);
                id
            }
        };
        let effect = if before == Some(line) { Effect::Nil(external) } else { Effect::Changed(external) };
        Reply { effect, ..Reply::plain(200, json!({"ids": [id], "messages": [], "nextrow": 0})) }
    }

    fn note(&mut self, body: &Value) -> Reply {
        let id = body["message_id"].as_str().unwrap_or_default().to_owned();
        *self.notes.entry(id.clone()).or_default() += 1;
        let number = self.new_id();
        self.external.insert(id.clone(), number);
        Reply { effect: Effect::Changed(id), ..Reply::plain(200, json!([number])) }
    }

    fn wizard(&mut self, body: &Value) -> Reply {
        let invoice = body["context"]["active_ids"][0].as_i64().unwrap_or_default();
        let values = &body["vals_list"][0];
        if self.invoices.get(&invoice).is_none_or(|invoice| invoice.open <= 0) {
            return error(422, "odoo.exceptions.UserError", "There's nothing left to pay");
        }
        let cents = cents(&values["amount"]);
        let memo = values["communication"].as_str().unwrap_or_default().to_owned();
        let id = self.new_id();
        self.wizards.insert(id, (invoice, cents, memo));
        Reply::plain(200, json!([id]))
    }

    fn pay(&mut self, body: &Value) -> Reply {
        let id = body["ids"][0].as_i64().unwrap_or_default();
        let Some((number, cents, memo)) = self.wizards.get(&id).cloned() else {
            return error(404, "odoo.exceptions.MissingError", "gone");
        };
        let Some(invoice) = self.invoices.get_mut(&number) else {
            return error(404, "odoo.exceptions.MissingError", "gone");
        };
        invoice.open -= cents;
        invoice.payments.push(memo.clone());
        let payment = self.new_id();
        let body =
            json!({"type": "ir.actions.act_window", "res_model": "account.payment", "res_id": payment});
        self.external.insert(memo.clone(), payment);
        Reply { effect: Effect::Changed(memo), ..Reply::plain(200, body) }
    }

    /// What has the third item of the first condition for its name.
    fn search(&self, body: &Value) -> Reply {
        let wanted = body["domain"][0][2].as_str().unwrap_or_default();
        Reply::plain(200, json!(self.external.get(wanted).into_iter().collect::<Vec<_>>()))
    }
}

impl Vendor for OdooApi {
    const WAITS: bool = true;

    fn handle(&mut self, request: &Incoming, _: f64) -> Reply {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let id = body["ids"][0].as_i64().unwrap_or_default();
        match request.path.trim_start_matches("/json/2/") {
            "res.partner/write" => self.partner(id, body["vals"].as_object().unwrap_or(&Map::new())),
            "res.partner/load" => self.load_partner(&body),
            "res.partner/search_read" => self.partners(&body),
            "res.partner/message_post" => self.note(&body),
            "mail.activity/load" | "account.analytic.line/load" => self.load_line(&body),
            "mail.message/search" | "account.payment/search" | "mail.activity/search" => self.search(&body),
            "res.currency/search" => Reply::plain(200, json!([1])),
            "account.move/read" => {
                let state = |invoice: &Invoice| if invoice.open > 0 { "not_paid" } else { "paid" };
                let found =
                    self.invoices.get(&id).map(|invoice| json!({"id": id, "payment_state": state(invoice)}));
                Reply::plain(200, json!(found.into_iter().collect::<Vec<_>>()))
            }
            "account.payment.register/create" => self.wizard(&body),
            "account.payment.register/action_create_payments" => self.pay(&body),
            _ => Reply::plain(404, json!({"name": "werkzeug.exceptions.NotFound"})),
        }
    }

    fn throttled(&self) -> Value {
        json!({"name": "werkzeug.exceptions.TooManyRequests"})
    }

    fn refuse(&self, request: &Incoming) -> Option<Reply> {
        let right = request.headers.get("authorization") == Some(&format!("Bearer {}", self.key));
        (!right).then(|| error(401, "werkzeug.exceptions.Unauthorized", "Invalid apikey"))
    }
}

fn error(status: u16, name: &str, message: &str) -> Reply {
    Reply::plain(status, json!({"name": name, "message": message}))
}

fn texts(list: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Some(list.as_array()?.iter().map(text).collect())
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// An amount in cents; what a person has entered is never a fraction of one.
fn cents(amount: &Value) -> i64 {
    let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let part: String = part.chars().chain("00".chars()).take(2).collect();
    format!("{whole}{part}").parse().unwrap_or_default()
}
