//! The error that crosses crates and processes: an SQLSTATE, texts for the user, and what the caller may do about it.
//!
//! It travels in `tonic::Status` details as JSON, and inside DataFusion as `DataFusionError::External`, and comes out of
//! both unchanged.

use crate::exchange::Carried;
use crate::ids::Timestamp;
use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retry {
    /// Report it: the statement, the data or a limit is at fault.
    No,
    /// Fetch the shard map and try again: the request was refused before it had any effect.
    RefreshMap,
    /// Try again, elsewhere if possible: no effect happened.
    Elsewhere,
    /// Nobody knows whether it happened; never retry blindly, ask for the outcome.
    OutcomeUnknown,
    /// Run the whole statement again at a new snapshot: rows it read have changed since. No effect happened.
    Restart,
}

/// An error with everything a PostgreSQL client shows.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// SQLSTATE, five characters.
    pub code: String,
    /// Lower case, no full stop.
    pub message: String,
    /// More about this case.
    pub detail: Option<String>,
    /// What the user can do next.
    pub hint: Option<String>,
    /// 1-based character position in the statement.
    pub position: Option<usize>,
    /// What the caller may do.
    pub retry: Retry,
}

impl Error {
    /// An error that the statement's author must fix or accept.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            retry: Retry::No,
        }
    }

    /// Adds a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets what the caller may do.
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// 0A000: not supported, and what to do instead.
    pub fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new("0A000", what).with_hint(hint)
    }

    /// XX000: a bug of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("XX000", message)
    }

    /// 08P01: a peer sent something malformed.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::new("08P01", message)
    }

    /// 08006: a node cannot be reached; nothing happened.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new("08006", message).with_retry(Retry::Elsewhere)
    }

    /// TS001: the request's epoch or owner is not the current one; nothing happened.
    pub fn stale_map(message: impl Into<String>) -> Self {
        Self::new("TS001", message).with_retry(Retry::RefreshMap)
    }

    /// 72000: rows that a snapshot sees may be removed; `oldest` can still be read. PostgreSQL's code for it.
    pub fn snapshot_too_old(snapshot: Timestamp, oldest: Timestamp) -> Self {
        let age = oldest.millis().saturating_sub(snapshot.millis());
        Self::new("72000", "snapshot too old")
            .with_detail(format!(
                "it is {age} ms older than the oldest one whose rows are all there"
            ))
            .with_hint("run the statement or the transaction again; nodes keep removed rows for their retention")
    }

    /// 57014: cancelled, or the deadline passed.
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::new("57014", message)
    }

    /// 40003: sent, but no answer.
    pub fn outcome_unknown(message: impl Into<String>) -> Self {
        Self::new("40003", message).with_retry(Retry::OutcomeUnknown)
    }

    /// 40001: a row that was to be changed has changed since it was read; nothing happened.
    pub fn changed(message: impl Into<String>) -> Self {
        Self::new("40001", message)
            .with_hint("run the statement again")
            .with_retry(Retry::Restart)
    }

    /// 23505: a key that exists already.
    pub fn duplicate_key(table: &str, detail: impl Into<String>) -> Self {
        Self::new(
            "23505",
            format!("duplicate key value violates the primary key of table \"{table}\""),
        )
        .with_detail(detail)
    }

    /// 53100: no space left on a node's disk.
    pub fn disk_full(message: impl Into<String>) -> Self {
        Self::new("53100", message)
            .with_hint("free space on the node's data directory; reads go on, writes resume by themselves")
    }

    /// XX001: damaged data on disk.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new("XX001", message)
    }

    /// From an I/O error, with what was being done.
    pub fn io(doing: &str, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::disk_full(format!("{doing}: {error}"))
            }
            _ => Self::new("58030", format!("{doing}: {error}")),
        }
    }

    /// Our own error inside DataFusion's, wherever it sits in the chain and however it came there.
    pub(crate) fn find(error: &DataFusionError) -> Option<Self> {
        let mut current: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(e) = current {
            if let Some(ours) = e.downcast_ref::<Self>() {
                return Some(ours.clone());
            }
            match e.downcast_ref::<DataFusionError>() {
                Some(DataFusionError::Shared(inner)) => return Self::find(inner),
                Some(DataFusionError::External(inner)) => {
                    if let Some(ours) = Self::from_external(inner.as_ref()) {
                        return Some(ours);
                    }
                }
                _ => {}
            }
            current = e.source();
        }
        None
    }

    fn from_external(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<Self> {
        if let Some(ours) = error.downcast_ref::<Self>() {
            return Some(ours.clone());
        }
        if let Some(status) = error.downcast_ref::<tonic::Status>() {
            return Some(status.clone().into());
        }
        Carried::read(&error.to_string())
    }

    /// Whether the caller may send the same request again.
    pub fn is_retryable(&self) -> bool {
        matches!(self.retry, Retry::RefreshMap | Retry::Elsewhere)
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let code = match error.retry {
            Retry::No => tonic::Code::FailedPrecondition,
            Retry::RefreshMap | Retry::Restart => tonic::Code::Aborted,
            Retry::Elsewhere => tonic::Code::Unavailable,
            Retry::OutcomeUnknown => tonic::Code::Unknown,
        };
        let details = serde_json::to_vec(&error).unwrap_or_default();
        tonic::Status::with_details(code, error.message, details.into())
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        if let Ok(error) = serde_json::from_slice(status.details()) {
            return error;
        }
        match status.code() {
            tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => {
                Self::cancelled(format!("call to a node ended: {}", status.message()))
            }
            tonic::Code::Unavailable | tonic::Code::Unknown => {
                Self::unavailable(format!("node unreachable: {}", status.message()))
            }
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
                Self::new("53400", format!("message limit reached: {}", status.message()))
            }
            code => Self::internal(format!("call to a node failed ({code}): {}", status.message())),
        }
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        if let Some(ours) = Self::find(&error) {
            return ours;
        }
        let text = error.strip_backtrace();
        let (code, message) = match error.find_root() {
            DataFusionError::ResourcesExhausted(m) => ("53200", m.clone()),
            // A nested-loop join that runs out of memory reads its input once more; what comes from other nodes comes once.
            DataFusionError::Internal(m) if m.contains("was already consumed") && m.contains("WorkerConnection") => {
                ("53200", "a nested-loop join ran out of memory".to_owned())
            }
            DataFusionError::NotImplemented(m) => ("0A000", m.clone()),
            DataFusionError::SQL(e, _) => ("42601", e.to_string()),
            DataFusionError::Plan(m) => ("42000", m.clone()),
            DataFusionError::SchemaError(e, _) => ("42703", e.to_string()),
            DataFusionError::ArrowError(e, _) => arrow_code(e),
            DataFusionError::Execution(m) => (execution_code(m), m.clone()),
            _ => ("XX000", text),
        };
        let error = Self::new(code, message);
        match code {
            "53200" => error.with_hint("start the server with more --memory-mib, or let the statement read less"),
            _ => error,
        }
    }
}

/// SQLSTATE of a function that refuses its arguments.
fn execution_code(message: &str) -> &'static str {
    match message {
        m if m.starts_with("Unable to parse date from") => "22008",
        m if m.starts_with("field position must not be zero") => "22023",
        m if m.starts_with("null character not permitted") => "54000",
        _ => "22000",
    }
}

/// SQLSTATE of an arithmetic or cast failure inside Arrow.
fn arrow_code(error: &datafusion::arrow::error::ArrowError) -> (&'static str, String) {
    use datafusion::arrow::error::ArrowError as A;
    match error {
        A::DivideByZero => ("22012", "division by zero".into()),
        A::ArithmeticOverflow(m) => ("22003", m.clone()),
        A::CastError(m) if m.starts_with("Can't cast value") || m.contains("is out of range") => ("22003", m.clone()),
        A::CastError(m) | A::ParseError(m) => ("22P02", m.clone()),
        A::InvalidArgumentError(m) if m.contains(" to store in a Decimal") => {
            ("22003", "numeric field overflow".to_owned())
        }
        A::InvalidArgumentError(m) => ("22023", m.clone()),
        other => ("XX000", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_grpc_and_datafusion() {
        let error = Error::duplicate_key("t", "key (id)=(1)").with_hint("h");
        let back = Error::from(tonic::Status::from(error.clone()));
        assert_eq!(
            (back.code.as_str(), back.hint.as_deref(), back.retry),
            ("23505", Some("h"), Retry::No)
        );
        let nested = DataFusionError::from(error).context("while inserting");
        assert_eq!(Error::from(nested).code, "23505");
    }
}
