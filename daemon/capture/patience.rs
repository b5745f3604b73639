//! Work on the ledger while the source's server waits: it is never kept waiting for long (INV-9).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::CaptureError;
use super::follow::Follower;
use super::tail::{STALLED, Tail};
use crate::ledger::LedgerError;
use crate::source::postgres::stream::Stream;

/// How long a server that wants to stop waits for the ledger before its connection is closed.
const PATIENCE: Duration = Duration::from_millis(1_000);

impl Follower {
    /// Works off some of what was taken over. That may be the objects of a large transaction, and then take longer than a
    /// server that wants to stop may be kept waiting; the rest of them is gone through once it is back.
    pub(super) async fn work_off(
        &self,
        stream: &mut Option<Stream>,
        tail: &mut Tail,
        urgent_since: &mut Option<Instant>,
    ) -> Result<(), CaptureError> {
        let mut work = std::pin::pin!(tail.go_on());
        if let (None, Some(open)) = (&urgent_since, stream.as_ref()) {
            tokio::select! {
                done = self.pulse.during(&mut work) => return done,
                () = open.urgent() => *urgent_since = Some(Instant::now()),
                () = sleep(STALLED) => {}
            }
        }
        self.yielding(stream, true, work).await?;
        if urgent_since.is_some_and(|since| since.elapsed() > PATIENCE) {
            return Err(CaptureError::Away("the server wants to stop".into()));
        }
        Ok(())
    }

    /// Carries out `work` on the ledger. When the server wants to stop, or might, and the work takes too long, the connection is
    /// closed first (INV-9); the work still comes to its end, so that nothing is half known.
    pub(super) async fn yielding(
        &self,
        stream: &mut Option<Stream>,
        urgent: bool,
        work: impl Future<Output = Result<(), CaptureError>>,
    ) -> Result<(), CaptureError> {
        let mut work = std::pin::pin!(self.pulse.during(work));
        let wanted = async {
            match stream.as_ref() {
                // Whatever the server wants cannot be heard while nothing is read.
                Some(stream) if !urgent => tokio::select! {
                    () = stream.urgent() => {}
                    () = sleep(STALLED) => {}
                },
                _ => {}
            }
            sleep(PATIENCE).await;
        };
        tokio::select! {
            done = &mut work => return done,
            () = wanted => {}
        }
        tracing::warn!(source_name = %self.source.flow.name, "the ledger is slow; the connection is closed, so that the server need not wait");
        *stream = None;
        tokio::select! {
            done = work => done,
            () = self.ledger.lost() => Err(LedgerError::WriterGone.into()),
        }
    }
}
