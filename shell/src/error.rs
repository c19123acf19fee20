//! How a statement or command can fail, by what the shell does next.

use std::io;

/// Why something was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused a statement: the text to print, with line feeds. The session goes on.
    #[error("{0}")]
    Statement(String),
    /// A backslash command is wrong or failed on this side. The session goes on.
    #[error("{0}")]
    Command(String),
    /// The connection is gone; statements need a new one.
    #[error("the connection to the server was lost: {0}")]
    Lost(String),
    /// Nobody reads our output any more: nothing sensible can follow.
    #[error("cannot write output")]
    Output(#[from] io::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The program's exit code, as psql's manual defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Ended normally; a script whose statements failed without ON_ERROR_STOP counts as normal.
    Done = 0,
    /// A fatal error of the shell's own, or a failed `-c`.
    Failed = 1,
    /// The connection went bad and the session was not interactive.
    BadConnection = 2,
    /// A script failed and ON_ERROR_STOP was set.
    Stopped = 3,
}
