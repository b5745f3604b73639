//! Bulk requests of the simulated Zendesk: accepted at once, carried out in jobs, with a result for each object.
//!
//! As documented: at most 100 objects in a request and 30 jobs at once; a job is `queued`, then `completed`, with results in the
//! order of the request. <https://developer.zendesk.com/api-reference/ticketing/ticket-management/job_statuses/>

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Reply;

/// Objects in a request.
const MOST_OBJECTS: usize = 100;
/// Jobs queued or running.
const MOST_JOBS: usize = 30;

/// What a job does to one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `organizations/create_many`.
    CreateOrganization,
    /// `organizations/update_many`.
    UpdateOrganization,
    /// `users/create_or_update_many`.
    UpsertUser,
}

#[derive(Debug)]
struct Job {
    action: Action,
    items: Vec<Value>,
    due_s: f64,
    results: Option<Vec<Value>>,
}

/// Jobs by number.
#[derive(Debug, Default)]
pub struct Jobs {
    jobs: BTreeMap<String, Job>,
    /// Seconds until a job is carried out.
    pub takes_s: f64,
    /// Objects that jobs have changed, and written without changing anything.
    pub effects: (usize, usize),
    /// Bulk requests that were accepted.
    pub accepted: usize,
    /// The account may make bulk requests.
    pub are_allowed: bool,
    /// It cannot be asked what became of them.
    pub are_silent: bool,
}

impl Jobs {
    /// Jobs that are carried out after so many seconds.
    #[must_use]
    pub fn taking(takes_s: f64) -> Self {
        Self { takes_s, are_allowed: true, ..Self::default() }
    }

    /// Accepts a request, or refuses it.
    pub fn accept(&mut self, action: Action, list: Option<&Vec<Value>>, now_s: f64) -> Reply {
        if !self.are_allowed {
            return Reply::plain(
                403,
                json!({"error": "Forbidden", "description": "bulk imports are not enabled"}),
            );
        }
        let Some(items) = list else {
            return Reply::plain(400, json!({"error": "InvalidRequest", "description": "malformed"}));
        };
        if items.len() > MOST_OBJECTS {
            return Reply::plain(400, json!({"error": "TooManyRecords", "description": "at most 100"}));
        }
        if self.jobs.values().filter(|job| job.results.is_none()).count() >= MOST_JOBS {
            return Reply::plain(429, json!({"error": "TooManyJobs", "description": "at most 30 jobs"}));
        }
        self.accepted += 1;
        let id = format!("job{:08}", self.accepted);
        let job = Job { action, items: items.clone(), due_s: now_s + self.takes_s, results: None };
        self.jobs.insert(id.clone(), job);
        Reply::plain(200, json!({"job_status": self.show(&id)}))
    }

    /// The next job that is due: its number, and what it does.
    pub fn due(&self, now_s: f64) -> Option<(String, Action, Vec<Value>)> {
        let due = self.jobs.iter().find(|(_, job)| job.results.is_none() && job.due_s <= now_s);
        due.map(|(id, job)| (id.clone(), job.action.clone(), job.items.clone()))
    }

    /// Notes what became of a job.
    pub fn done(&mut self, id: &str, results: Vec<Value>) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.results = Some(results);
        }
    }

    /// `job_statuses/show_many`.
    pub fn show_many(&self, ids: &str) -> Reply {
        if self.are_silent {
            return Reply::plain(500, json!({"error": "InternalError", "description": "try again"}));
        }
        let known = ids.split(',').filter(|id| self.jobs.contains_key(*id));
        let shown: Vec<Value> = known.map(|id| self.show(id)).collect();
        Reply::plain(200, json!({"job_statuses": shown, "count": shown.len()}))
    }

    fn show(&self, id: &str) -> Value {
        let job = self.jobs.get(id);
        let results = job.and_then(|job| job.results.as_ref());
        let total = job.map_or(0, |job| job.items.len());
        json!({
            "id": id, "job_type": "Bulk", "url": format!("https://example.zendesk.com/api/v2/job_statuses/{id}.json"),
            "total": total, "progress": results.map(Vec::len),
            "status": if results.is_some() { "completed" } else { "queued" }, "message": null, "results": results,
        })
    }
}

/// What is said of one object, by the answer its single request would have had.
pub fn result_of(index: usize, reply: &Reply, kind: &str) -> Value {
    let id = reply.body.get(kind).and_then(|object| object.get("id")).cloned().unwrap_or_default();
    match reply.status {
        201 => json!({"index": index, "id": id, "action": "create", "status": "Created", "success": true}),
        200 => json!({"index": index, "id": id, "action": "update", "status": "Updated", "success": true}),
        _ => {
            let error = reply.body.get("error").cloned().unwrap_or_default();
            json!({"index": index, "error": error, "details": reply.body.get("description"), "success": false})
        }
    }
}
