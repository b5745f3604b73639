//! Reads the ledger as it grows and turns its entries into lines: row change, event, call, result.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Client;

/// What was counted so far.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Canonical events.
    pub events: u64,
    /// Requests sent.
    pub attempts: u64,
    /// Deliveries carried out.
    pub applied: u64,
    /// Deliveries replaced by newer ones before they were sent.
    pub superseded: u64,
    /// Deliveries that would have changed nothing.
    pub unchanged: u64,
    /// Answers other than success, later made good.
    pub setbacks: u64,
    /// Milliseconds from commit to result, of everything applied.
    pub lags_ms: Vec<f64>,
}

/// See the module's text.
#[derive(Default)]
pub struct Feed {
    seen: i64,
    events: HashMap<String, (String, Timestamp)>,
    steps: HashMap<i64, String>,
    /// What was counted so far.
    pub counts: Counts,
}

impl Feed {
    /// Lines for what was written since the last call.
    pub async fn read(&mut self, client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
        let sql = "select seq, kind, recorded_at, correlation_id, body from entry where seq > $1 order by seq limit 2000";
        let mut lines = Vec::new();
        for row in client.query(sql, &[&self.seen]).await? {
            self.seen = row.try_get(0)?;
            let kind: String = row.try_get(1)?;
            let at: Timestamp = row.try_get(2)?;
            let correlation: Option<String> = row.try_get(3)?;
            let body: Vec<u8> = row.try_get(4)?;
            let Ok(body) = serde_json::from_slice::<Value>(&body) else { continue };
            let correlation = correlation.unwrap_or_default();
            match kind.as_str() {
                "event" => self.event(correlation, &body),
                "attempt" => {
                    self.counts.attempts += 1;
                    self.steps.insert(self.seen, text(&body, "step"));
                }
                "outcome" => lines.extend(self.outcome(&correlation, at, &body)),
                _ => {}
            }
        }
        Ok(lines)
    }

    fn event(&mut self, correlation: String, body: &Value) {
        self.counts.events += 1;
        let changes = body.get("changes").and_then(Value::as_array).cloned().unwrap_or_default();
        let rows = match changes.first() {
            Some(change) if changes.len() == 1 => {
                format!("{} {} {}", text(change, "op"), text(change, "relation"), text(change, "key"))
            }
            Some(change) => format!("{} and {} more rows", text(change, "relation"), changes.len() - 1),
            None => "first load".to_owned(),
        };
        let line = format!("{rows} -> {} {} {}", text(body, "op"), text(body, "type"), text(body, "id"));
        let committed_at = body.get("source").map(|source| text(source, "committed_at")).unwrap_or_default();
        self.events.insert(correlation, (line, committed_at.parse().unwrap_or_default()));
    }

    fn outcome(&mut self, correlation: &str, at: Timestamp, body: &Value) -> Option<String> {
        let class = text(body, "class");
        match class.as_str() {
            "superseded" => self.counts.superseded += 1,
            "duplicate" if body.get("attempt_seq").is_none() => self.counts.unchanged += 1,
            "applied" | "duplicate" => self.counts.applied += 1,
            _ => self.counts.setbacks += 1,
        }
        let (event, committed_at) = self.events.get(correlation)?;
        let lag_ms = at.duration_since(*committed_at).as_secs_f64() * 1000.0;
        if class == "applied" {
            self.counts.lags_ms.push(lag_ms);
        }
        let step = body.get("attempt_seq").and_then(Value::as_i64).and_then(|seq| self.steps.get(&seq));
        let call =
            step.map_or_else(|| "no call".to_owned(), |step| format!("{step} {}", text(body, "object")));
        let status =
            body.get("status").and_then(Value::as_u64).map(|status| format!(" {status}")).unwrap_or_default();
        Some(format!("{event} -> {} {call} -> {class}{status}  {lag_ms:.0} ms", text(body, "target")))
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
