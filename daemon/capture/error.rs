//! Why capturing stopped, by remedy.

use crate::ledger::LedgerError;
use crate::pg::{ConnectError, describe};
use crate::source::postgres::catalog::Finding;
use crate::source::postgres::chunk::ChunkError;
use crate::source::postgres::connection::ConnectionError;
use crate::source::postgres::slot::Discontinuity;
use crate::source::postgres::stream::StreamEnd;
use crate::source::postgres::transaction::StreamError;

use super::intake::IntakeError;

/// See the module's text.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The ledger: everything starts again once it is back.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The source cannot be read safely: a person has to act.
    #[error(transparent)]
    Discontinuity(#[from] Discontinuity),
    /// The catalogue forbids it.
    #[error("source \"{source_name}\" is not safe to read:\n{}", list(.findings))]
    Unsafe {
        /// Source.
        source_name: String,
        /// What was found.
        findings: Vec<Finding>,
    },
    /// The content cannot be read: going on would lose rows.
    #[error("{0}")]
    Content(String),
    /// The source is away: tried again.
    #[error("{0}")]
    Away(String),
}

fn list(findings: &[Finding]) -> String {
    let lines = findings
        .iter()
        .map(|finding| format!("  {}: {}\n    next: {}", finding.subject, finding.what, finding.remedy));
    lines.collect::<Vec<_>>().join("\n")
}

impl From<tokio_postgres::Error> for CaptureError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Away(format!("source: {}", describe(&error)))
    }
}

impl From<ConnectError> for CaptureError {
    fn from(error: ConnectError) -> Self {
        Self::Away(format!("source: {error}"))
    }
}

impl From<ConnectionError> for CaptureError {
    fn from(error: ConnectionError) -> Self {
        Self::Away(format!("source: {error}"))
    }
}

impl From<ChunkError> for CaptureError {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Source(error) => error.into(),
            ChunkError::Connect(error) => error.into(),
            other => Self::Content(other.to_string()),
        }
    }
}

impl From<StreamEnd> for CaptureError {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Connection(error) => error.into(),
            StreamEnd::Content(error @ StreamError::NewType(_)) => Self::Away(format!("source: {error}")),
            StreamEnd::Content(error) => Self::Content(format!("source stream: {error}")),
        }
    }
}

impl From<IntakeError> for CaptureError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Ledger(error) => error.into(),
            IntakeError::Source(error) => error.into(),
            other => Self::Content(other.to_string()),
        }
    }
}
