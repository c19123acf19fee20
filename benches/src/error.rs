//! What can go wrong in a workload, by what its user can do about it.

use std::path::PathBuf;

use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;

/// Why a workload stopped. A wrong answer is not an error but a finding in the report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself makes no sense; fix it.
    #[error("{0}")]
    Usage(String),
    /// No connection to the server; is it running?
    #[error("cannot connect to \"{url}\"")]
    Connect {
        /// The address, without its password.
        url: String,
        /// What the driver said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server refused a statement, or the connection broke while it ran.
    #[error("{doing}: {}", server_message(.source))]
    Server {
        /// What was being done, such as `load of table "orders"`.
        doing: String,
        /// What the server or the driver said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The comparison engine failed.
    #[error("datafusion, {doing}")]
    Oracle {
        /// What was being done, such as `query 7`.
        doing: String,
        /// The engine's error.
        #[source]
        source: DataFusionError,
    },
    /// The generator or an encoder failed.
    #[error("cannot generate rows")]
    Generate(#[from] ArrowError),
    /// A Parquet file could not be written.
    #[error("cannot write parquet file")]
    Parquet(#[from] ParquetError),
    /// A file could not be read or written.
    #[error("file \"{}\"", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// An answer file does not have the expected form.
    #[error("answer file \"{}\" line {line}: {problem}", path.display())]
    Answer {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A task of this program ended early: a bug.
    #[error("internal task ended early: {0}")]
    Task(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: the file a failed operation was about.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }

    /// For `map_err`: what was asked of the server.
    pub(crate) fn server(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Server { doing, source }
    }

    /// For `map_err`: what was asked of the comparison engine.
    pub(crate) fn oracle(doing: impl Into<String>) -> impl FnOnce(DataFusionError) -> Error {
        let doing = doing.into();
        move |source| Error::Oracle { doing, source }
    }
}

/// The server's own words with its code and hint; the driver's `Display` says no more than "db error".
fn server_message(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return error.to_string();
    };
    let mut text = format!("{} ({})", db.message(), db.code().code());
    for (label, extra) in [("detail", db.detail()), ("hint", db.hint())] {
        if let Some(extra) = extra {
            text.push_str(&format!("; {label}: {extra}"));
        }
    }
    text
}
