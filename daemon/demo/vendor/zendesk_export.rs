//! What a simulated Zendesk shows of its changes: incremental exports by cursor and by time, single objects, and lists.
//!
//! <https://developer.zendesk.com/api-reference/ticketing/ticket-management/incremental_exports/>: rows come by the time at which they were
//! last generated, in whole seconds; those of the last moments are withheld; by time, rows of the last second come again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Incoming, Reply};

/// Rows of a page.
const PAGE: usize = 1_000;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Exports {
    /// By kind, in the plural, and number: since when it is so, and what it is.
    rows: BTreeMap<(&'static str, u64), (i64, Value)>,
    /// So many seconds are withheld, besides the one that is going on.
    pub withheld_s: i64,
    /// Number of the last ticket.
    pub last_ticket: u64,
}

impl Exports {
    /// An object is now so.
    pub fn note(&mut self, kind: &'static str, id: u64, mut object: Value) {
        let now = Timestamp::now().as_second();
        if let Value::Object(map) = &mut object {
            map.insert("generated_timestamp".into(), now.into());
            let at = Timestamp::from_second(now).unwrap_or(Timestamp::UNIX_EPOCH).to_string();
            map.entry("created_at").or_insert_with(|| at.clone().into());
            map.insert("updated_at".into(), at.into());
        }
        self.rows.insert((kind, id), (now, object));
    }

    /// A customer asks for help; gives the number of the ticket.
    pub fn ticket(
        &mut self,
        organization: u64,
        requester: Option<u64>,
        subject: &str,
        priority: &str,
    ) -> u64 {
        self.last_ticket += 1;
        let id = self.last_ticket;
        let ticket = json!({
            "id": id, "external_id": null, "subject": subject, "description": subject, "status": "open", "priority": priority,
            "type": "incident", "organization_id": organization, "requester_id": requester, "tags": [], "custom_fields": [],
            "satisfaction_rating": {"score": "unoffered"}, "via": {"channel": "email"},
        });
        self.note("tickets", id, ticket);
        id
    }

    /// An agent changes members of a ticket.
    pub fn change_ticket(&mut self, id: u64, members: Value) {
        let ticket = self.rows.get(&("tickets", id)).map(|(_, ticket)| ticket.clone());
        if let (Some(Value::Object(mut ticket)), Value::Object(members)) = (ticket, members) {
            ticket.extend(members);
            self.note("tickets", id, Value::Object(ticket));
        }
    }

    /// `/incremental/…`, `/tickets/{id}`, `/organizations`, …; `None`: not of ours.
    #[must_use]
    pub fn read(&self, request: &Incoming, parts: &[&str]) -> Option<Reply> {
        let query = |name: &str| request.query.get(name).map(String::as_str);
        match parts {
            ["incremental", kind @ ("tickets" | "users"), "cursor"] => {
                let since = match query("cursor") {
                    Some(cursor) => cursor_of(cursor)?,
                    None => (query("start_time")?.parse().ok()?, 0),
                };
                Some(self.by_cursor(kind, since))
            }
            ["incremental", "organizations"] => {
                Some(self.by_time("organizations", query("start_time")?.parse().ok()?))
            }
            [kind @ ("tickets" | "users" | "organizations")] => Some(self.list(kind, query("page[after]"))),
            [kind @ ("tickets" | "users" | "organizations"), id] => {
                let found =
                    self.rows.iter().find(|((of, number), _)| of == kind && *id == number.to_string());
                let singular = kind.trim_end_matches('s');
                let missing = json!({"error": "RecordNotFound", "description": "Not found"});
                let gone = |object: &Value| object.get("deleted_at").is_some_and(|at| !at.is_null());
                let found = found.map(|(_, (_, object))| object).filter(|object| !gone(object));
                Some(found.map_or(Reply::plain(404, missing), |object| {
                    Reply::plain(200, json!({singular: object}))
                }))
            }
            _ => None,
        }
    }

    fn of<'a>(&'a self, kind: &'a str) -> Vec<(i64, u64, &'a Value)> {
        // Never a second that has not ended: a row that changes in it again would stand before the cursor. The real one withholds a minute.
        let until = Timestamp::now().as_second() - self.withheld_s;
        let rows = self.rows.iter().filter(|((of, _), (at, _))| *of == kind && *at < until);
        let mut rows: Vec<_> = rows.map(|((_, id), (at, object))| (*at, *id, object)).collect();
        rows.sort_by_key(|(at, id, _)| (*at, *id));
        rows
    }

    fn by_cursor(&self, kind: &str, since: (i64, u64)) -> Reply {
        let rows = self.of(kind);
        let behind: Vec<_> = rows.iter().filter(|(at, id, _)| (*at, *id) > since).collect();
        let page: Vec<&Value> = behind.iter().take(PAGE).map(|(_, _, object)| *object).collect();
        let last = behind.get(page.len().wrapping_sub(1)).map_or(since, |(at, id, _)| (*at, *id));
        let body = json!({kind: page, "after_cursor": format!("{}-{}", last.0, last.1), "end_of_stream": behind.len() <= PAGE});
        Reply::plain(200, body)
    }

    fn by_time(&self, kind: &str, since: i64) -> Reply {
        let rows = self.of(kind);
        let behind: Vec<_> = rows.iter().filter(|(at, _, _)| *at >= since).collect();
        let page: Vec<&Value> = behind.iter().take(PAGE).map(|(_, _, object)| *object).collect();
        let end = behind.get(page.len().wrapping_sub(1)).map_or(since, |(at, _, _)| *at);
        Reply::plain(
            200,
            json!({kind: page, "count": page.len(), "end_time": end, "end_of_stream": behind.len() <= PAGE}),
        )
    }

    fn list(&self, kind: &str, after: Option<&str>) -> Reply {
        let after = after.and_then(|after| after.parse().ok()).unwrap_or(0);
        let gone = |object: &Value| object.get("deleted_at").is_some_and(|at| !at.is_null());
        let all =
            self.rows.iter().filter(|((of, id), (_, object))| *of == kind && *id > after && !gone(object));
        let page: Vec<(u64, &Value)> = all.take(101).map(|((_, id), (_, object))| (*id, object)).collect();
        let shown: Vec<&Value> = page.iter().take(100).map(|(_, object)| *object).collect();
        let last = page.get(shown.len().wrapping_sub(1)).map_or(after, |(id, _)| *id);
        let meta = json!({"has_more": page.len() > 100, "after_cursor": last.to_string()});
        Reply::plain(200, json!({kind: shown, "meta": meta}))
    }
}

fn cursor_of(text: &str) -> Option<(i64, u64)> {
    let (at, id) = text.split_once('-')?;
    Some((at.parse().ok()?, id.parse().ok()?))
}
