//! A vendor of four kinds in one: what it does about a request that comes twice is all that tells them apart.
//!
//! `/keyed`: replays the answer for a key it knows. `/upsert`: the caller chooses the id. `/found`: makes another one, but can be
//! asked what is there, a moment later. `/bare`: makes another one, and cannot be asked.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use tailwater::demo::vendor::{Effect, Incoming, Reply, Vendor};

/// How long `/found` does not show what is new, in seconds.
const LAG_S: f64 = 0.3;

#[derive(Default)]
pub struct Plain {
    /// How often each thing was made, by kind and our id.
    pub made: BTreeMap<(String, String), usize>,
    keys: HashMap<String, Value>,
    shown_at: HashMap<String, f64>,
    next: usize,
}

impl Plain {
    /// Things of a kind that were made more than once.
    pub fn doubled(&self, kind: &str) -> Vec<String> {
        let doubled = self.made.iter().filter(|((of, _), count)| of == kind && **count > 1);
        doubled.map(|((_, id), _)| id.clone()).collect()
    }

    /// How many things of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.made.keys().filter(|(of, _)| of == kind).count()
    }

    fn make(&mut self, kind: &str, body: &Value, now_s: f64) -> Reply {
        let ours = body["ref"].as_str().unwrap_or_default().to_owned();
        *self.made.entry((kind.to_owned(), ours.clone())).or_default() += 1;
        self.next += 1;
        if kind == "found" {
            self.shown_at.insert(ours.clone(), now_s + LAG_S);
        }
        // Where the caller chooses the id, it is that.
        let id = if kind == "upsert" { ours.clone() } else { format!("{kind}-{}", self.next) };
        Reply { effect: Effect::Changed(ours), ..Reply::plain(201, json!({"id": id})) }
    }
}

impl Vendor for Plain {
    fn handle(&mut self, request: &Incoming, now_s: f64) -> Reply {
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        match (request.method.as_str(), parts.as_slice()) {
            ("POST", ["keyed", "things"]) => {
                let key = request.headers.get("idempotency-key").cloned().unwrap_or_default();
                if let Some(known) = self.keys.get(&key) {
                    return Reply::plain(201, known.clone());
                }
                let reply = self.make("keyed", &body, now_s);
                self.keys.insert(key, reply.body.clone());
                reply
            }
            ("PUT", ["upsert", "things", id]) => {
                let known = self.made.contains_key(&("upsert".to_owned(), (*id).to_owned()));
                match known {
                    true => Reply {
                        effect: Effect::Nil((*id).to_owned()),
                        ..Reply::plain(200, json!({"id": id}))
                    },
                    false => self.make("upsert", &json!({"ref": id}), now_s),
                }
            }
            ("POST", [kind @ ("found" | "bare"), "things"]) => self.make(kind, &body, now_s),
            ("GET", ["found", "things"]) => {
                let ours = request.query.get("ref").cloned().unwrap_or_default();
                let there = self.shown_at.get(&ours).is_some_and(|at| *at <= now_s);
                let things: Vec<Value> =
                    there.then(|| json!({"id": format!("found-{ours}")})).into_iter().collect();
                Reply::plain(200, json!({"things": things}))
            }
            _ => Reply::plain(404, json!({"error": "not found"})),
        }
    }

    fn throttled(&self) -> Value {
        json!({"error": "slow down"})
    }

    fn refuse(&self, _request: &Incoming) -> Option<Reply> {
        None
    }
}

const RULES: &str = "
outcomes:
  - { when: 'status >= 200 && status < 300', outcome: applied }
  - { when: 'status >= 500', outcome: uncertain }
  - { when: 'status >= 400', outcome: rejected }
";

/// Connector files of the four kinds.
pub fn connectors() -> Vec<(&'static str, String)> {
    let head = |kind: &str, more: &str| {
        format!(
            "format: 1\nsystem: {kind}\nauth: {{ kind: bearer }}\nencoding: json\ntimeout_s: 5\nconcurrency: 16\n{more}{RULES}"
        )
    };
    let create = |kind: &str, find: &str| {
        format!(
            "objects:
  thing:
    body: {{ ref: event.id, name: event.name }}
    create: {{ request: POST /{kind}/things, id: answer.id }}
    update: {{ request: 'PUT /{kind}/things/{{external_id}}', id: answer.id }}
{find}    delete: 'DELETE /{kind}/things/{{external_id}}'
"
        )
    };
    let key = "idempotency: { header: Idempotency-Key, window_s: 3600 }\n";
    let find = "    find: { request: 'GET /found/things?ref={event.id}', ids: 'answer.things.map(t, t.id)', fresh_after_s: 1 }\n";
    let upsert = "objects:
  thing:
    body: { name: event.name }
    upsert: { request: 'PUT /upsert/things/{event.id}', id: answer.id }
    delete: 'DELETE /upsert/things/{event.id}'
";
    vec![
        ("keyed", head("keyed", key) + &create("keyed", "")),
        ("upsert", head("upsert", "") + upsert),
        ("found", head("found", "") + &create("found", find)),
        ("bare", head("bare", "") + &create("bare", "")),
    ]
}
