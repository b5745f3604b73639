//! Two vendors that are read by lists: Chargebee (offsets, wrapped objects, forms) and Freshdesk (page numbers, plain lists, JSON).
//! <https://apidocs.chargebee.com/docs/api/list-ops>, <https://developers.freshdesk.com/api/>

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use tailwater::demo::vendor::{Effect, Incoming, Reply, Vendor, form};

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Chargebee,
    Freshdesk,
}

pub struct Lists {
    kind: Kind,
    authorization: String,
    /// Objects by kind in the plural and id, each with the time of its change in milliseconds.
    objects: BTreeMap<(String, String), (i64, Value)>,
    next: u64,
}

impl Lists {
    pub fn new(kind: Kind, key: &str) -> Self {
        use base64::Engine as _;
        let pair = format!("{key}:{}", if kind == Kind::Freshdesk { "X" } else { "" });
        let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        Self { kind, authorization, objects: BTreeMap::new(), next: 100 }
    }

    /// An object is now so; what it was before stays where nothing is said of it.
    pub fn set(&mut self, plural: &str, id: &str, members: Value) -> Value {
        let now = Timestamp::now();
        let key = (plural.to_owned(), id.to_owned());
        let mut object = self.objects.get(&key).map_or_else(|| json!({}), |(_, object)| object.clone());
        let map = object.as_object_mut().unwrap();
        map.extend(members.as_object().unwrap().clone());
        match self.kind {
            Kind::Chargebee => {
                map.insert("id".into(), id.into());
                map.insert("updated_at".into(), now.as_second().into());
            }
            Kind::Freshdesk => {
                map.insert("id".into(), id.parse::<u64>().unwrap().into());
                map.entry("created_at").or_insert_with(|| now.to_string().into());
                map.insert("updated_at".into(), now.to_string().into());
            }
        }
        self.objects.insert(key, (now.as_millisecond(), object.clone()));
        object
    }

    pub fn get(&self, plural: &str, id: &str) -> Option<Value> {
        self.objects.get(&(plural.to_owned(), id.to_owned())).map(|(_, object)| object.clone())
    }

    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.objects
            .iter()
            .filter(|((of, _), _)| of == plural)
            .map(|(_, (_, object))| object.clone())
            .collect()
    }

    fn listed(&self, plural: &str, since_ms: i64) -> Vec<Value> {
        let mut found: Vec<&(i64, Value)> = self
            .objects
            .iter()
            .filter(|((of, _), (at, _))| of == plural && *at >= since_ms)
            .map(|(_, object)| object)
            .collect();
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, object)| object.clone()).collect()
    }

    fn wrapped(&self, plural: &str, object: Value) -> Value {
        if self.kind == Kind::Chargebee { json!({plural.trim_end_matches('s'): object}) } else { object }
    }

    fn list(&self, request: &Incoming, plural: &str) -> Reply {
        let number = |name: &str| request.query.get(name).and_then(|text| text.parse::<usize>().ok());
        if self.kind == Kind::Chargebee {
            let after = number("updated_at[after]").map_or(0, |after| (after as i64 + 1) * 1_000);
            let mut found = self.listed(plural, after);
            if let Some(id) = request.query.get("id[is]") {
                found.retain(|object| object["id"] == **id);
            }
            let (start, limit) = (number("offset").unwrap_or(0), number("limit").unwrap_or(10));
            let more = start + limit < found.len();
            let list: Vec<Value> = found
                .into_iter()
                .skip(start)
                .take(limit)
                .map(|object| self.wrapped(plural, object))
                .collect();
            let mut body = json!({"list": list});
            if more {
                body["next_offset"] = (start + limit).to_string().into();
            }
            return Reply::plain(200, body);
        }
        let since = request
            .query
            .get("updated_since")
            .map_or(0, |at| at.parse::<Timestamp>().unwrap().as_millisecond());
        let page = number("page").unwrap_or(1);
        if page > 300 {
            return Reply::plain(
                400,
                json!({"description": "You cannot access tickets beyond the 300th page"}),
            );
        }
        let rows = self.listed(plural, since).into_iter().skip((page - 1) * 100).take(100);
        Reply::plain(200, rows.collect())
    }

    fn write(&mut self, request: &Incoming, plural: &str, id: Option<&str>) -> Reply {
        let text = String::from_utf8_lossy(&request.body);
        let members = if self.kind == Kind::Chargebee {
            Value::Object(form::decode(&text))
        } else {
            serde_json::from_str(&text).unwrap()
        };
        let id = id.map(str::to_owned).or_else(|| request.query.get("id").cloned()).unwrap_or_else(|| {
            self.next += 1;
            self.next.to_string()
        });
        let before = self.get(plural, &id);
        let after = self.set(plural, &id, members);
        let same = before.is_some_and(|before| {
            let plain = |object: &Value| {
                let mut object = object.clone();
                object.as_object_mut().unwrap().remove("updated_at");
                object
            };
            plain(&before) == plain(&after)
        });
        let effect = if same { Effect::Nil(id) } else { Effect::Changed(id) };
        Reply { effect, ..Reply::plain(200, self.wrapped(plural, after)) }
    }
}

impl Vendor for Lists {
    fn handle(&mut self, request: &Incoming, _: f64) -> Reply {
        let parts: Vec<&str> = request.path.trim_start_matches("/api/v2/").split('/').collect();
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", [plural]) => self.list(request, plural),
            ("GET", [plural, id]) => match self.get(plural, id) {
                Some(object) => Reply::plain(200, self.wrapped(plural, object)),
                None => Reply::plain(404, json!({"api_error_code": "resource_not_found"})),
            },
            ("POST" | "PUT", [plural]) => self.write(request, plural, None),
            ("POST" | "PUT", [plural, id]) => self.write(request, plural, Some(id)),
            _ => Reply::plain(404, json!({"api_error_code": "site_not_found"})),
        }
    }

    fn throttled(&self) -> Value {
        json!({"api_error_code": "api_request_limit_exceeded"})
    }

    fn refuse(&self, request: &Incoming) -> Option<Reply> {
        let right = request.headers.get("authorization") == Some(&self.authorization);
        (!right).then(|| Reply::plain(401, json!({"api_error_code": "api_authentication_failed"})))
    }
}
