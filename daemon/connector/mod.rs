//! Connector files: how to talk to one system. A new system is a YAML file, not a line of Rust.
//!
//! Pure: turns an event into a [`request::Request`] and an [`classify::Answer`] into an outcome.

pub mod bulk;
pub mod classify;
pub mod file;
pub mod lenient;
pub mod limit;
mod object;
mod reading;
pub mod request;
pub mod stream;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::bounds::WAIT_S;
use crate::mapping::expression::{EvaluationError, Expression};
use crate::mapping::scope::Scope;
use crate::mapping::template::Template;
use bulk::{Bulk, Jobs};
use classify::OutcomeRule;
use limit::Limit;
use request::{Request, RequestLine};
use stream::{Reading, Table};

/// How requests get to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP requests.
    Http,
    /// Messages into a stream of NATS JetStream.
    Nats,
    /// Messages into a stream of Redis.
    RedisStream,
    /// Nowhere: everything is done but the request, and counts as accepted. For measuring.
    Discard,
}

/// How requests are authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer <api_key>`.
    Bearer,
    /// Basic, the target's `user` with a suffix, and its `api_key`.
    Basic,
    /// Basic, the `api_key` as the user, with a password that is the same for all.
    Key,
    /// In the body, at [`Connector::key_at`] and nowhere else.
    Body,
}

/// How bodies are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/x-www-form-urlencoded` with brackets: `address[city]=…`.
    Form,
    /// `application/json`.
    Json,
}

/// What the vendor promises about repeated keys.
#[derive(Debug)]
pub struct Idempotency {
    /// Request header that carries the key.
    pub header: String,
    /// How long a repeated key is recognised; after that it would execute again.
    pub window: Duration,
    /// Answer header that is `true` when the answer is a stored one, in lower case.
    pub replayed_header: Option<String>,
}

/// Stands for the key in a body, at the one place that the connector file names: what is kept of a request never holds it. Data that
/// happens to say the same stays data.
pub const KEY_IN_BODY: &str = "$api_key";

/// Something that only the settings of a target know: the name of a database, the number of a project.
#[derive(Debug)]
pub struct SettingSpec {
    /// Its name there, and in expressions below `settings`.
    pub name: String,
    /// What it may look like.
    pub example: String,
    /// There is no way without it.
    pub needed: bool,
    /// Object that cannot be made without it.
    pub needed_for: Option<String>,
}

/// How an object is found by our own id.
#[derive(Debug)]
pub struct Find {
    /// Request.
    pub line: RequestLine,
    /// Its body.
    pub body: Option<Template>,
    /// Ids found, a list, over `answer`, `event` and `meta`: of those that carry our id and no other.
    pub ids: Expression,
    /// How long after a write a search may not show it yet.
    pub fresh_after: Duration,
}

/// How an object that somebody else made at the target is recognised as one of ours.
#[derive(Debug)]
pub struct Adoption {
    /// What it goes by, for people: `e-mail`.
    pub by: String,
    /// Whether it can be asked for.
    pub when: Expression,
    /// Request.
    pub line: RequestLine,
    /// Ids found, a list.
    pub ids: Expression,
}

/// A request that writes an object.
#[derive(Debug)]
pub struct Write {
    /// Method and path.
    pub line: RequestLine,
    /// What is sent, over `body` (the object's) and what was asked `before`; the object's body as it is when `None`.
    pub body: Option<Template>,
    /// What is asked before, in this order.
    pub before: Vec<Before>,
    /// The target's own id, from the answer, or the one that is known.
    pub id: Expression,
    /// Our id as the answer carries it; null where it does not.
    pub ours: Option<Expression>,
    /// The answer shows that it was carried out, over `answer`, `status`, `external_id`: of a write whose answer has no id.
    pub proof: Option<Expression>,
}

/// A request before the one that writes: it changes nothing that matters, and its answer goes into what is written.
#[derive(Debug)]
pub struct Before {
    /// Name of its answer.
    pub name: String,
    /// Method and path.
    pub line: RequestLine,
    /// Its body.
    pub body: Option<Template>,
    /// The target has it so already, over `answer`.
    pub done: Option<Expression>,
}

/// How an object goes.
#[derive(Debug)]
pub struct Removal {
    /// Method and path.
    pub line: RequestLine,
    /// Its body.
    pub body: Option<Template>,
    /// The answer shows that it is gone, over `answer`, `status`, `external_id`; any answer that is JSON, and 204, when `None`.
    pub proof: Option<Expression>,
}

impl Transport {
    /// Events are told as they happen; nothing stands at the target.
    #[must_use]
    pub fn publishes(self) -> bool {
        matches!(self, Self::Nats | Self::RedisStream)
    }
}

/// How an object comes to stand at the target.
#[derive(Debug)]
pub enum Strategy {
    /// The vendor matches by our id itself.
    Upsert(Write),
    /// Each event is a message of its own, an end as well; consumers know one that comes again by its id.
    Publish(Write),
    /// Each event is something of its own that is made once: a note, a payment; in doubt it is found.
    Post {
        /// Request.
        post: Write,
        /// How to find one whose making is in doubt.
        find: Option<Box<Find>>,
    },
    /// Create when the target's id is not known, update when it is; in doubt about a create, find.
    CreateOrUpdate {
        /// Request for a new object.
        create: Write,
        /// Request for a known one.
        update: Box<Write>,
        /// How to find one whose creation is in doubt.
        find: Option<Box<Find>>,
    },
}

/// A value that the vendor wants unique.
#[derive(Debug)]
pub struct Unique {
    /// Path in the body: `organization.name`.
    pub path: Vec<String>,
    /// What to send instead when another object holds the value.
    pub otherwise: Expression,
}

/// Requests that complete a write whose answer shows that it did not take in full.
#[derive(Debug)]
pub struct FollowUp {
    /// Condition over `sent` (the body), `answer` and `released` (unique values, folded, that the object lets go of).
    pub when: Expression,
    /// Reads what is there.
    pub list: RequestLine,
    /// Then, for each item, one request.
    pub then: Vec<FollowUpStep>,
}

/// See [`FollowUp`].
#[derive(Debug)]
pub struct FollowUpStep {
    /// Items, from `sent`, `released` and `list`.
    pub each: Expression,
    /// Request with `item`.
    pub line: RequestLine,
}

/// How an object looks when it is read.
#[derive(Debug)]
pub struct Shown {
    /// Table of the source that is the same system, whose key is the target's own id.
    pub table: String,
    /// The body that would make it what it is, over `record` (the mapped columns).
    pub body: Expression,
    /// Our name of it, over `record`, where it carries one.
    pub ours: Option<Expression>,
    /// What of a body is never shown: paths with dots.
    pub except: Vec<String>,
}

impl Shown {
    /// A record in the form of a body; what cannot be told of it is null.
    #[must_use]
    pub fn as_body(&self, record: &Value) -> Value {
        self.body.evaluate(&Scope::new([("record", record)])).unwrap_or_default()
    }
}

/// One kind of object of a system.
#[derive(Debug)]
pub struct ObjectSpec {
    /// Its name in routes and the ledger.
    pub name: String,
    /// Whether an event is about this very system, over `event` and `settings`; all are when `None`.
    pub concerns: Option<Expression>,
    /// Body of writes.
    pub body: Template,
    /// How it comes to stand.
    pub strategy: Strategy,
    /// The target's own id of it, where that follows from the event; null where it does not.
    pub own_id: Option<Expression>,
    /// How it goes; it stays when `None`.
    pub delete: Option<Removal>,
    /// What the vendor wants unique.
    pub unique: Vec<Unique>,
    /// Objects without which it cannot be sent: it waits until they stand, not only while they are on their way.
    pub needs: Vec<String>,
    /// How many are written in one request.
    pub bulk: Vec<Bulk>,
    /// How it looks when it is read.
    pub shown: Option<Shown>,
    /// What completes a write that did not take in full.
    pub follow_up: Option<FollowUp>,
    /// How an object that was there before us is recognised, surest way first.
    pub adopt: Vec<Adoption>,
}

/// One system.
#[derive(Debug)]
pub struct Connector {
    /// File name and name in settings.
    pub name: String,
    /// The system that routes name: the same for each way of talking to it.
    pub system: String,
    /// How requests get there.
    pub transport: Transport,
    /// The vendor's address, when it is the same for all accounts.
    pub base_url: Option<String>,
    /// Authentication, over HTTP.
    pub auth: Option<Auth>,
    /// Where in a body the key stands (RFC 6901), for [`Auth::Body`].
    pub key_at: Option<String>,
    /// Appended to the user in Basic authentication; the password, where the key is the user.
    pub user_suffix: String,
    /// What only the settings of a target know.
    pub settings: Vec<SettingSpec>,
    /// What they say.
    pub set: Value,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// Body encoding.
    pub encoding: Encoding,
    /// After which an answer is given up.
    pub timeout: Duration,
    /// Requests in flight at the most.
    pub concurrency: usize,
    /// What the vendor allows; the first is what a target's `quota` sets.
    pub limits: Vec<Arc<Limit>>,
    /// Idempotency keys, when the vendor has them.
    pub idempotency: Option<Idempotency>,
    /// How jobs of bulk requests are followed.
    pub jobs: Option<Jobs>,
    /// Answers to outcomes, first match wins.
    pub outcomes: Vec<OutcomeRule>,
    /// Objects by name.
    pub objects: Vec<ObjectSpec>,
    /// What can be read of the system.
    pub reading: Reading,
}

impl Connector {
    /// The longest wait that an answer can ask for: a quarter of an hour, or the longest window of a limit.
    #[must_use]
    pub fn longest_wait(&self) -> Duration {
        let windows = self.limits.iter().flat_map(|limit| &limit.rates).map(|rate| rate.window);
        windows.max().unwrap_or_default().max(Duration::from_secs(WAIT_S))
    }

    /// The object with this name.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<&ObjectSpec> {
        self.objects.iter().find(|object| object.name == name)
    }

    /// The request that reads an object of a table as it is now; `None` where the table has none.
    #[must_use]
    pub fn read(&self, table: &Table, key: &str) -> Option<Result<Request, EvaluationError>> {
        let key = Value::from(key);
        let scope = Scope::new([("key", &key), ("settings", &self.set)]);
        table.read.as_ref().map(|read| read.request("read", self.encoding, &scope))
    }
}
