//! The PostgreSQL wire protocol, version 3.0.
//!
//! ```text
//!   server.rs      accept, bounds, shutdown      startup.rs   first packets, settings      cancel.rs    cancel requests
//!   channel.rs     socket and buffers            message.rs   bytes from clients           report.rs    errors, notices
//!   connection.rs  the loop of one client        simple.rs, extended.rs, copy_in.rs        what it asks for
//!   rows.rs        batches to the socket         encode/      values out                   params.rs    values in
//!   types.rs       OIDs and modifiers            calendar.rs  dates and times              session.rs   the seam to the engine
//! ```
//!
//! Messages to clients are pgwire's; reading messages, the loop and the values are our own. pgwire's loop starts every statement
//! of `a; b; c` before the first row is sent, does not cancel while rows stream, and reads the socket only between
//! messages, so a vanished client goes unnoticed; each of these is a promise here.
//!
//! Not here: TLS and passwords (trust only), transactions (status is always idle), COPY TO, cursors by SQL, LISTEN.

pub(crate) mod calendar;
mod cancel;
mod channel;
mod connection;
mod copy_in;
mod copy_out;
mod encode;
mod extended;
mod message;
mod params;
mod report;
mod rows;
mod server;
mod session;
mod simple;
mod startup;
#[cfg(test)]
mod tests;
mod types;

pub(crate) use connection::parse;
pub(crate) use encode::{TextRows, array_text, read_numeric};

use crate::Engine;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::Result;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Bounds of the PostgreSQL port.
#[derive(Debug, Clone)]
pub struct PgLimits {
    /// Most sessions at a time; one more is refused with 53300.
    pub connections_max: usize,
    /// Longest message a client may send. A statement's text may have 16 MiB; the rest is for the values of one Bind.
    pub message_bytes_max: usize,
    /// Time from accept to the end of the startup packet.
    pub startup_timeout: Duration,
    /// Time without a message after which a session ends; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// Most prepared statements of a session.
    pub statements_max: usize,
    /// Most bytes of text in the prepared statements of a session.
    pub statement_bytes_max: usize,
    /// Most portals between two Syncs.
    pub portals_max: usize,
    /// Time for connections to end after shutdown began; what is left then is dropped.
    pub shutdown_grace: Duration,
}

impl Default for PgLimits {
    fn default() -> Self {
        Self {
            connections_max: 100,
            message_bytes_max: 64 << 20,
            startup_timeout: Duration::from_secs(30),
            idle_timeout: None,
            statements_max: 4_096,
            statement_bytes_max: 64 << 20,
            portals_max: 256,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Serves clients until `shutdown` fires and every connection has ended, or `shutdown_grace` later.
///
/// # Errors
/// None at present: a connection that cannot be accepted or served is logged, and the others go on.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    limits: PgLimits,
    shutdown: CancellationToken,
) -> Result<()> {
    server::serve(listener, engine, limits, shutdown).await
}
