//! A system that tells of its changes in three ways, none of which is easy to read: events, newest first, that come into view late,
//! twice and in no certain order within a second; an export by cursor; and pages by time that shift while they are read.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use rand::RngExt;
use serde_json::{Value, json};
use tailwater::demo::vendor::{Incoming, Reply, Vendor};

/// Rows of a page.
const PAGE: usize = 100;

#[derive(Clone)]
struct Thing {
    revision: u64,
    updated_ms: i64,
}

struct Told {
    id: String,
    created: i64,
    visible_at_ms: i64,
    thing: Value,
}

#[derive(Default)]
pub struct Feed {
    /// Things by the way they are told of, and by number.
    things: [BTreeMap<u64, Thing>; 3],
    told: Vec<Told>,
    /// Events come into view after as much as this.
    pub late_ms: i64,
    /// The cursor is not known any more.
    pub expired: bool,
    next: u64,
}

impl Feed {
    /// Something happens to a thing that is told of in this way: 0 events, 1 cursor, 2 time.
    pub fn touch(&mut self, way: usize, id: u64) {
        let now = Timestamp::now().as_millisecond();
        let thing = self.things[way].entry(id).or_insert(Thing { revision: 0, updated_ms: now });
        (thing.revision, thing.updated_ms) = (thing.revision + 1, now);
        if way == 0 {
            let object = json!({"id": id, "revision": thing.revision});
            // One in ten is told twice.
            let times = if rand::rng().random_bool(0.1) { 2 } else { 1 };
            for _ in 0..times {
                self.next += 1;
                let late = rand::rng().random_range(0..=self.late_ms);
                let id = format!("evt_{}", self.next);
                let visible_at_ms = now + late;
                self.told.push(Told { id, created: now / 1_000, visible_at_ms, thing: object.clone() });
            }
        }
    }

    /// A thing goes without a word.
    pub fn lose(&mut self, way: usize, id: u64) {
        self.things[way].remove(&id);
    }

    /// Things that there are, with their revisions.
    pub fn things(&self, way: usize) -> BTreeMap<u64, u64> {
        self.things[way].iter().map(|(id, thing)| (*id, thing.revision)).collect()
    }

    fn events(&self, request: &Incoming) -> Reply {
        let since: i64 = request.query["created[gte]"].parse().unwrap();
        let now = Timestamp::now().as_millisecond();
        let mut shown: Vec<&Told> =
            self.told.iter().filter(|told| told.created >= since && told.visible_at_ms <= now).collect();
        shown.sort_by_key(|told| (std::cmp::Reverse(told.created), any_order(&told.id)));
        let row =
            |told: &&Told| json!({"id": told.id, "created": told.created, "data": {"object": told.thing}});
        page(shown.iter().map(row).collect(), request)
    }

    fn cursor(&self, request: &Incoming) -> Reply {
        if self.expired && request.query.contains_key("cursor") {
            return Reply::plain(410, json!({"error": "expired"}));
        }
        let since = request.query.get("cursor").map_or((0, 0), |cursor| {
            let (at, id) = cursor.split_once('-').unwrap();
            (at.parse().unwrap(), id.parse().unwrap())
        });
        let until = Timestamp::now().as_second() - 1;
        let seconds = |thing: &Thing| thing.updated_ms.div_euclid(1_000);
        let mut rows: Vec<(i64, u64, &Thing)> =
            self.things[1].iter().map(|(id, thing)| (seconds(thing), *id, thing)).collect();
        rows.retain(|(at, id, _)| (*at, *id) > since && *at <= until);
        rows.sort_by_key(|(at, id, _)| (*at, *id));
        let more = rows.len() > PAGE;
        rows.truncate(PAGE);
        let last = rows.last().map_or(since, |(at, id, _)| (*at, *id));
        let rows: Vec<Value> = rows
            .iter()
            .map(|(at, id, thing)| json!({"id": id, "revision": thing.revision, "updated_at": at}))
            .collect();
        let body =
            json!({"rows": rows, "after_cursor": format!("{}-{}", last.0, last.1), "end_of_stream": !more});
        Reply::plain(200, body)
    }

    fn time(&self, request: &Incoming) -> Reply {
        let number = |name: &str| request.query[name].parse::<i64>().unwrap();
        let (since, page) = (number("updated_since") * 1_000, usize::try_from(number("page")).unwrap());
        let mut rows: Vec<(&u64, &Thing)> =
            self.things[2].iter().filter(|(_, thing)| thing.updated_ms >= since).collect();
        rows.sort_by_key(|(id, thing)| (thing.updated_ms, **id));
        let rows = rows.into_iter().skip((page - 1) * PAGE).take(PAGE);
        let row = |(id, thing): (&u64, &Thing)| {
            let at = Timestamp::from_millisecond(thing.updated_ms).unwrap().to_string();
            json!({"id": id, "revision": thing.revision, "updated_at": at})
        };
        Reply::plain(200, rows.map(row).collect())
    }
}

impl Vendor for Feed {
    fn handle(&mut self, request: &Incoming, _: f64) -> Reply {
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        let thing = |id: &u64, thing: &Thing| json!({"id": id, "revision": thing.revision});
        match parts.as_slice() {
            ["events"] => self.events(request),
            ["cursor"] => self.cursor(request),
            ["time"] => self.time(request),
            ["event_things"] => {
                let rows: Vec<Value> = self.things[0].iter().rev().map(|(id, of)| thing(id, of)).collect();
                page(rows, request)
            }
            [kind, id] => {
                let way =
                    ["event_things", "cursor_things", "time_things"].iter().position(|known| known == kind);
                let id: u64 = id.parse().unwrap();
                match way.and_then(|way| self.things[way].get(&id)) {
                    Some(found) => Reply::plain(200, thing(&id, found)),
                    None => Reply::plain(404, json!({"error": "gone"})),
                }
            }
            _ => Reply::plain(404, json!({"error": "no such path"})),
        }
    }

    fn throttled(&self) -> Value {
        json!({"error": "slow down"})
    }

    fn refuse(&self, _: &Incoming) -> Option<Reply> {
        None
    }
}

fn any_order(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

fn page(rows: Vec<Value>, request: &Incoming) -> Reply {
    let text = |row: &Value| row["id"].as_str().map_or_else(|| row["id"].to_string(), str::to_owned);
    let start = request.query.get("starting_after").map_or(0, |last| {
        rows.iter().position(|row| text(row) == *last).map_or(rows.len(), |place| place + 1)
    });
    let more = start + PAGE < rows.len();
    let data: Vec<Value> = rows.into_iter().skip(start).take(PAGE).collect();
    Reply::plain(200, json!({"data": data, "has_more": more}))
}
