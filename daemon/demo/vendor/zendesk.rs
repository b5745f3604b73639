//! A simulated Zendesk Support: organizations, users and their e-mail identities.
//!
//! As documented: `create_or_update` of users matches by external id (whatever its case) or by any e-mail of a user;
//! the e-mail of a known user is not replaced, a second one is added; organizations match by id or external id, and
//! their names are unique. <https://developer.zendesk.com/api-reference/ticketing/users/users/>

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::zendesk_export::Exports;
use super::zendesk_jobs::{Action, Jobs, result_of};
use super::{Effect, Incoming, Reply, Vendor};

/// See the module's text.
#[derive(Debug)]
pub struct Zendesk {
    authorization: String,
    organizations: BTreeMap<u64, Value>,
    /// Organizations by external id and by name, folded.
    by_external: HashMap<String, u64>,
    by_name: HashMap<String, u64>,
    users: BTreeMap<u64, Value>,
    /// E-mail identities: id to (user, address, primary).
    identities: BTreeMap<u64, (u64, String, bool)>,
    next: u64,
    /// Users whose external id was replaced by another one: two people who became one.
    pub merged: Vec<String>,
    /// Verification mails that went out to people.
    pub mails: usize,
    /// Bulk requests.
    pub jobs: Jobs,
    /// Tickets, and what is shown of changes.
    pub exports: Exports,
}

impl Zendesk {
    /// An account with one agent, known by `user` and `token`.
    #[must_use]
    pub fn new(user: &str, token: &str) -> Self {
        use base64::Engine as _;
        let pair = format!("{user}/token:{token}");
        Self {
            authorization: format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)),
            organizations: BTreeMap::new(),
            by_external: HashMap::new(),
            by_name: HashMap::new(),
            users: BTreeMap::new(),
            identities: BTreeMap::new(),
            next: 1000,
            merged: Vec::new(),
            mails: 0,
            jobs: Jobs::taking(0.3),
            exports: Exports::default(),
        }
    }

    /// Organizations by external id.
    #[must_use]
    pub fn organizations(&self) -> BTreeMap<String, Value> {
        self.organizations.values().map(|object| (text(object, "external_id"), object.clone())).collect()
    }

    /// Active users by external id, with their primary e-mail.
    #[must_use]
    pub fn users(&self) -> BTreeMap<String, Value> {
        let active = self.users.iter().filter(|(_, user)| user.get("active") != Some(&Value::Bool(false)));
        active.map(|(id, user)| (text(user, "external_id"), self.shown(*id, user))).collect()
    }

    /// Adds an organization that somebody made by hand.
    pub fn add_foreign_organization(&mut self, name: &str) {
        let id = self.new_id();
        self.by_name.insert(name.trim().to_lowercase(), id);
        self.organizations.insert(id, json!({"id": id, "name": name, "external_id": null}));
    }

    /// Jobs are carried out when their time has come, object by object.
    fn work_jobs_off(&mut self, now_s: f64) {
        while let Some((id, action, items)) = self.jobs.due(now_s) {
            let mut results = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                let (kind, reply) = self.work_off(&action, item);
                match &reply.effect {
                    Effect::Changed(_) => self.jobs.effects.0 += 1,
                    Effect::Nil(_) => self.jobs.effects.1 += 1,
                    Effect::None => {}
                }
                results.push(result_of(index, &reply, kind));
            }
            self.jobs.done(&id, results);
        }
    }

    fn work_off(&mut self, action: &Action, item: Value) -> (&'static str, Reply) {
        match action {
            Action::UpsertUser => ("user", self.upsert_user(&json!({"user": item}))),
            Action::UpdateOrganization => {
                let known = item.get("id").and_then(Value::as_u64);
                if !known.is_some_and(|id| self.organizations.contains_key(&id)) {
                    return ("organization", missing());
                }
                ("organization", self.upsert_organization(&json!({"organization": item})))
            }
            Action::CreateOrganization => {
                let external =
                    item.get("external_id").and_then(Value::as_str).unwrap_or_default().to_lowercase();
                if self.by_external.contains_key(&external) {
                    return ("organization", invalid("external_id", "DuplicateValue"));
                }
                ("organization", self.upsert_organization(&json!({"organization": item})))
            }
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn upsert_organization(&mut self, body: &Value) -> Reply {
        let Some(fields) = body.get("organization").and_then(Value::as_object) else { return malformed() };
        let external = fields.get("external_id").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        let by_id = fields.get("id").and_then(Value::as_u64).filter(|id| self.organizations.contains_key(id));
        let known =
            by_id.or_else(|| self.by_external.get(&external).copied().filter(|_| !external.is_empty()));
        let name = fields.get("name").and_then(Value::as_str).map(|name| name.trim().to_lowercase());
        if known.is_none() && name.as_deref().unwrap_or_default().is_empty() {
            return invalid("name", "BlankValue");
        }
        let holder = name.as_ref().and_then(|name| self.by_name.get(name).copied());
        if holder.is_some() && holder != known {
            return invalid("name", "DuplicateValue");
        }
        let id = known.unwrap_or_else(|| self.new_id());
        let before = self.organizations.get(&id).cloned();
        let mut object = before.clone().unwrap_or_else(|| {
            json!({"id": id, "name": null, "external_id": null, "details": null, "notes": null, "tags": []})
        });
        merge(&mut object, fields, &["id"]);
        if let Some(before) = &before {
            self.by_name.remove(&text(before, "name").trim().to_lowercase());
            self.by_external.remove(&text(before, "external_id").to_lowercase());
        }
        self.by_name.insert(text(&object, "name").trim().to_lowercase(), id);
        self.by_external.insert(text(&object, "external_id").to_lowercase(), id);
        self.organizations.insert(id, object.clone());
        if before.as_ref() != Some(&object) {
            self.exports.note("organizations", id, object.clone());
        }
        written("organization", before, object)
    }

    /// `PUT /organizations/{id}`: fields of `organization_fields` are set one by one.
    fn set_organization(&mut self, id: u64, body: &[u8]) -> Reply {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(before) = self.organizations.get(&id).cloned() else { return missing() };
        let mut object = before.clone();
        let fields = body.get("organization").and_then(Value::as_object);
        let (Some(fields), Value::Object(map)) = (fields, &mut object) else { return malformed() };
        for (key, value) in fields {
            match (value, map.get_mut(key)) {
                (Value::Object(more), Some(Value::Object(known))) => known.extend(more.clone()),
                _ => {
                    map.insert(key.clone(), value.clone());
                }
            }
        }
        self.organizations.insert(id, object.clone());
        if before != object {
            self.exports.note("organizations", id, object.clone());
        }
        written("organization", Some(before), object)
    }

    fn upsert_user(&mut self, body: &Value) -> Reply {
        let Some(fields) = body.get("user").and_then(Value::as_object) else { return malformed() };
        let external = fields.get("external_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let email = fields.get("email").and_then(Value::as_str).map(str::to_lowercase);
        let by_external = self.users.iter().find(|(_, user)| {
            !external.is_empty()
                && text(user, "external_id").to_lowercase() == external.to_lowercase()
                && is_active(user)
        });
        let by_external = by_external.map(|(id, _)| *id);
        let by_email = email.as_ref().and_then(|email| self.owner_of(email));
        let known = by_external.or(by_email);
        if let (Some(found), Some(owner)) = (by_external, by_email)
            && found != owner
        {
            return invalid("email", "DuplicateValue");
        }
        if known.is_none() && fields.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() {
            return invalid("name", "BlankValue");
        }
        let id = known.unwrap_or_else(|| self.new_id());
        let before = self.users.get(&id).cloned();
        let shown_before = before.as_ref().map(|user| self.shown(id, user));
        if let Some(user) = &before
            && !external.is_empty()
            && !text(user, "external_id").is_empty()
            && text(user, "external_id").to_lowercase() != external.to_lowercase()
        {
            self.merged.push(external.clone());
        }
        let mut user = before.unwrap_or_else(|| {
            json!({"id": id, "name": null, "external_id": null, "phone": null, "organization_id": null, "tags": [],
                   "role": "end-user", "active": true})
        });
        merge(&mut user, fields, &["id", "email", "skip_verify_email"]);
        self.users.insert(id, user.clone());
        let added = email.filter(|email| self.owner_of(email).is_none());
        if let Some(email) = &added {
            let first = !self.identities.values().any(|(owner, _, _)| *owner == id);
            let identity = self.new_id();
            self.identities.insert(identity, (id, email.clone(), first));
            if fields.get("skip_verify_email") != Some(&Value::Bool(true)) {
                self.mails += 1;
            }
        }
        let shown = self.shown(id, &user);
        if shown_before.as_ref() != Some(&shown) {
            self.exports.note("users", id, shown.clone());
        }
        let mut reply = written("user", shown_before, shown);
        if added.is_some() {
            reply.effect = Effect::Changed(external);
        }
        reply
    }

    fn owner_of(&self, email: &str) -> Option<u64> {
        self.identities.values().find(|(_, address, _)| address == email).map(|(user, _, _)| *user)
    }

    /// The user as the API shows it: with the primary e-mail.
    fn shown(&self, id: u64, user: &Value) -> Value {
        let mut user = user.clone();
        let primary = self.identities.values().find(|(owner, _, primary)| *owner == id && *primary);
        if let Value::Object(map) = &mut user {
            map.insert(
                "email".into(),
                primary.map_or(Value::Null, |(_, address, _)| Value::String(address.clone())),
            );
        }
        user
    }

    /// An e-mail of the user has changed.
    fn show_user(&mut self, id: u64) {
        if let Some(user) = self.users.get(&id) {
            let shown = self.shown(id, user);
            self.exports.note("users", id, shown);
        }
    }

    /// An agent changes members of an organization.
    pub fn edit_organization(&mut self, external_id: &str, members: &Value) {
        let Some(id) = self.by_external.get(&external_id.to_lowercase()).copied() else { return };
        let body = json!({"organization": members});
        self.set_organization(id, body.to_string().as_bytes());
    }

    /// An agent changes members of a user.
    pub fn edit_user(&mut self, external_id: &str, members: &Value) {
        let known = self.users.iter_mut().find(|(_, user)| text(user, "external_id") == external_id);
        if let (Some((id, Value::Object(user))), Value::Object(members)) = (known, members) {
            user.extend(members.clone());
            let id = *id;
            self.show_user(id);
        }
    }

    fn delete_user(&mut self, id: u64) -> Reply {
        match self.users.get_mut(&id) {
            Some(user) if is_active(user) => {
                let external = text(user, "external_id");
                if let Value::Object(map) = user {
                    map.insert("active".into(), Value::Bool(false));
                }
                self.identities.retain(|_, (owner, _, _)| *owner != id);
                let body = json!({"user": user});
                self.exports.note("users", id, user.clone());
                Reply { effect: Effect::Changed(external), ..Reply::plain(200, body) }
            }
            _ => missing(),
        }
    }

    fn delete_organization(&mut self, id: u64) -> Reply {
        match self.organizations.remove(&id) {
            Some(object) => {
                self.by_name.remove(&text(&object, "name").trim().to_lowercase());
                self.by_external.remove(&text(&object, "external_id").to_lowercase());
                let mut gone = object.clone();
                if let Value::Object(map) = &mut gone {
                    map.insert("deleted_at".into(), "2026-01-01T00:00:00Z".into());
                }
                self.exports.note("organizations", id, gone);
                for user in self.users.values_mut() {
                    if user.get("organization_id").and_then(Value::as_u64) == Some(id)
                        && let Value::Object(map) = user
                    {
                        map.insert("organization_id".into(), Value::Null);
                    }
                }
                Reply {
                    effect: Effect::Changed(text(&object, "external_id")),
                    ..Reply::plain(204, Value::Null)
                }
            }
            None => missing(),
        }
    }

    /// `/users/{user}/identities[/{identity}[/make_primary]]`.
    fn identity(&mut self, method: &str, user: u64, rest: &[&str]) -> Reply {
        let external = self.users.get(&user).map(|user| text(user, "external_id")).unwrap_or_default();
        match (method, rest) {
            ("GET", []) => {
                let own = self.identities.iter().filter(|(_, (owner, _, _))| *owner == user);
                let list: Vec<Value> = own
                    .map(|(id, (_, address, primary))| {
                        json!({"id": id, "user_id": user, "type": "email", "value": address, "primary": primary})
                    })
                    .collect();
                Reply::plain(200, json!({"identities": list}))
            }
            ("PUT", [identity, "make_primary"]) => {
                let wanted: u64 = identity.parse().unwrap_or_default();
                if !self.identities.contains_key(&wanted) {
                    return missing();
                }
                for (id, (owner, _, primary)) in &mut self.identities {
                    if *owner == user {
                        *primary = *id == wanted;
                    }
                }
                self.show_user(user);
                Reply { effect: Effect::Changed(external), ..Reply::plain(200, json!({"identities": []})) }
            }
            ("DELETE", [identity]) => match self.identities.remove(&identity.parse().unwrap_or_default()) {
                Some(_) => Reply { effect: Effect::Changed(external), ..Reply::plain(204, Value::Null) },
                None => missing(),
            },
            _ => missing(),
        }
    }
}

impl Vendor for Zendesk {
    fn handle(&mut self, request: &Incoming, now_s: f64) -> Reply {
        self.work_jobs_off(now_s);
        let path = request.path.trim_start_matches("/api/v2/").trim_end_matches(".json").to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let id = |part: &str| part.parse::<u64>().unwrap_or_default();
        if request.method == "GET"
            && let Some(reply) = self.exports.read(request, &parts)
            && parts != ["users", "me"]
        {
            return reply;
        }
        match (request.method.as_str(), parts.as_slice()) {
            ("POST", [kind, "create_or_update"]) => match serde_json::from_slice(&request.body) {
                Ok(body) if *kind == "organizations" => self.upsert_organization(&body),
                Ok(body) if *kind == "users" => self.upsert_user(&body),
                _ => malformed(),
            },
            ("POST" | "PUT", [kind, many]) if many.ends_with("_many") => {
                let action = match (*kind, *many) {
                    ("organizations", "create_many") => Action::CreateOrganization,
                    ("organizations", "update_many") => Action::UpdateOrganization,
                    ("users", "create_or_update_many") => Action::UpsertUser,
                    _ => return missing(),
                };
                let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                self.jobs.accept(action, body.get(*kind).and_then(Value::as_array), now_s)
            }
            ("GET", ["job_statuses", "show_many"]) => {
                self.jobs.show_many(request.query.get("ids").map_or("", String::as_str))
            }
            ("PUT", ["organizations", organization]) => {
                self.set_organization(id(organization), &request.body)
            }
            ("DELETE", ["organizations", organization]) => self.delete_organization(id(organization)),
            ("DELETE", ["users", user]) => self.delete_user(id(user)),
            (method, ["users", user, "identities", rest @ ..]) => self.identity(method, id(user), rest),
            ("GET", ["users", "me"]) => Reply::plain(200, json!({"user": {"id": 1, "role": "admin"}})),
            _ => missing(),
        }
    }

    fn limit_headers(&self, allowed: usize, left: usize, reset_s: f64) -> Vec<(String, String)> {
        let numbers = [
            ("x-rate-limit", allowed.to_string()),
            ("x-rate-limit-remaining", left.to_string()),
            ("ratelimit-limit", allowed.to_string()),
            ("ratelimit-remaining", left.to_string()),
            ("ratelimit-reset", format!("{:.0}", reset_s.ceil())),
        ];
        numbers.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn throttled(&self) -> Value {
        json!({"error": "APIRateLimitExceeded", "description": "Number of allowed API requests per minute exceeded"})
    }

    fn refuse(&self, request: &Incoming) -> Option<Reply> {
        let right = request.headers.get("authorization") == Some(&self.authorization);
        (!right).then(|| Reply::plain(401, json!({"error": "Couldn't authenticate you"})))
    }
}

fn is_active(user: &Value) -> bool {
    user.get("active") != Some(&Value::Bool(false))
}

fn text(object: &Value, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn merge(object: &mut Value, fields: &Map<String, Value>, except: &[&str]) {
    let Value::Object(map) = object else { return };
    for (key, value) in fields.iter().filter(|(key, _)| !except.contains(&key.as_str())) {
        map.insert(key.clone(), value.clone());
    }
}

fn written(kind: &str, before: Option<Value>, after: Value) -> Reply {
    let external = text(&after, "external_id");
    let status = if before.is_none() { 201 } else { 200 };
    let effect =
        if before.as_ref() == Some(&after) { Effect::Nil(external) } else { Effect::Changed(external) };
    Reply { effect, ..Reply::plain(status, json!({kind: after})) }
}

fn missing() -> Reply {
    Reply::plain(404, json!({"error": "RecordNotFound", "description": "Not found"}))
}

fn malformed() -> Reply {
    Reply::plain(400, json!({"error": "InvalidRequest", "description": "malformed"}))
}

fn invalid(field: &str, error: &str) -> Reply {
    let details = json!({field: [{"description": format!("{field} is not acceptable"), "error": error}]});
    let body =
        json!({"error": "RecordInvalid", "description": "Record validation errors", "details": details});
    Reply::plain(422, body)
}
