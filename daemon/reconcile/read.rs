//! Reading a target back, within a share of its quota.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::sleep;

use super::Reconciler;
use super::tally::is_gone;
use crate::connector::classify::{Answer, Class};
use crate::connector::request::Request;
use crate::connector::stream::{Listing, Table};
use crate::dispatch::retry::backoff;
use crate::ledger::LedgerError;
use crate::source::poll::page::read_record;
use crate::source::poll::{Page, Pass};

/// Part of the target's quota that a comparison takes at the most.
const SHARE: f64 = 0.1;
/// What cannot be had is given up after so many tries.
const TRIES: i32 = 10;

/// What reading one object gave.
pub(super) enum Reading {
    There(Value),
    Gone,
    /// It may be there.
    Refused,
}

impl Reconciler<'_> {
    /// Asks the target within the share of its quota that is for this.
    async fn ask(&self, request: &Request) -> Result<Option<(Class, Answer)>, LedgerError> {
        self.pace.wait(self.target, SHARE).await;
        (self.beat)();
        self.target.ask("reconcile", request, self.ledger.tenure()).await
    }

    /// The next page, or why it cannot be had.
    pub(super) async fn page(
        &self,
        table: &Table,
        listing: &Listing,
        pass: &mut Pass,
    ) -> Result<Result<Page, String>, LedgerError> {
        let request = match pass.request("reconcile", listing, &self.target.connector) {
            Ok(request) => request,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut tries = 0;
        loop {
            let asked = self.ask(&request).await?;
            if let Some((Class::Applied, answer)) = asked {
                let clock = answer.clock_ms(Timestamp::now());
                let place = (clock, self.target.way.base_url());
                return Ok(pass
                    .take_listed(table, listing, &answer, place)
                    .map_err(|error| error.to_string()));
            }
            if let Some((Class::Unauthorised | Class::Rejected, answer)) = asked {
                return Ok(Err(format!("the target refuses it with status {}", answer.status)));
            }
            tries += 1;
            if tries >= TRIES {
                return Ok(Err("the target does not answer with a page".into()));
            }
            sleep(backoff(tries, rand::random()).min(Duration::from_secs(30))).await;
        }
    }

    /// One object as it is now, or why nobody can say.
    pub(super) async fn read(
        &self,
        table: &Table,
        key: &str,
    ) -> Result<Result<Reading, String>, LedgerError> {
        let Some(Ok(request)) = self.target.connector.read(table, key) else {
            return Ok(Ok(Reading::Refused));
        };
        for tries in 1..=TRIES {
            let reading = match self.ask(&request).await? {
                Some((Class::Applied, answer)) => {
                    match read_record(table, &answer, answer.clock_ms(Timestamp::now())) {
                        Ok(record) if is_gone(&record.object) => Reading::Gone,
                        Ok(record) => Reading::There(record.object),
                        Err(_) => Reading::Refused,
                    }
                }
                Some((Class::Missing, _)) => Reading::Gone,
                Some((Class::Rejected | Class::Conflict, _)) => Reading::Refused,
                Some((Class::Unauthorised, answer)) => {
                    return Ok(Err(format!(
                        "the target refuses to show an object, with status {}",
                        answer.status
                    )));
                }
                _ => {
                    sleep(backoff(tries, rand::random()).min(Duration::from_secs(30))).await;
                    continue;
                }
            };
            return Ok(Ok(reading));
        }
        Ok(Err("the target does not answer when it is asked for an object".into()))
    }
}
