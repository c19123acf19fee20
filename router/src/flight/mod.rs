//! Arrow Flight SQL: statements, parameters, metadata and bulk ingest over gRPC, columns all the way.
//!
//! ```text
//!   GetFlightInfo(statement) ──▶ plan at one snapshot ──▶ endpoints: one per node with rows, or one here
//!   DoGet(ticket)            ──▶ rows; at a node its own shards, at the router everything else
//!
//!   service.rs   the calls, to where they are done      listener.rs  connections, bounds, shutdown
//!   sessions.rs  settings and prepared statements       endpoints.rs a leaf's owners as endpoints
//!   statement.rs FlightInfo and rows of statements      params.rs    parameter rows to values
//!   prepared.rs  prepared statements                    ingest.rs    rows into tables, atomically
//!   metadata.rs  catalogs, schemas, tables, keys        sql_info.rs  what the server can do
//!   options.rs   session options                       markers.rs   `?` as `$1`
//! ```
//!
//! Commands are dispatched here and not by arrow-flight's `FlightSqlService`: that answers GetSchema and PollFlightInfo with
//! "unimplemented", calls malformed commands internal errors, and lists actions nobody implements.
//!
//! A statement that returns no rows runs when its FlightInfo is asked for, once, and has no endpoint: a ticket may be redeemed
//! several times. Not here: transactions, Substrait plans, DoExchange, PollFlightInfo, TLS and passwords.

mod endpoints;
mod ingest;
mod listener;
mod markers;
mod metadata;
mod options;
mod params;
mod prepared;
mod service;
mod sessions;
mod sql_info;
mod statement;

use crate::Engine;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::Result;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Bounds of the Flight SQL port.
#[derive(Debug, Clone)]
pub struct FlightLimits {
    /// Most connections at a time; more are closed at once.
    pub connections_max: usize,
    /// Most calls that run on one connection at a time; more wait.
    pub calls_per_connection: usize,
    /// Most statements that run at a time, streams of rows and ingests included; one more is refused with 53300.
    pub statements_max: usize,
    /// Longest message a client may send: one batch of an ingest, or one statement.
    pub message_bytes_max: usize,
    /// Most sessions with settings or prepared statements; beyond it the longest idle one is forgotten.
    pub sessions_max: usize,
    /// A session idle for less is never forgotten.
    pub session_idle_min: Duration,
    /// Most prepared statements of a session.
    pub prepared_max: usize,
    /// Most bytes of text and bound parameters in the prepared statements of a session.
    pub prepared_bytes_max: usize,
    /// Time for calls to end after shutdown began; what is left then is dropped.
    pub shutdown_grace: Duration,
}

impl Default for FlightLimits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            calls_per_connection: 64,
            statements_max: 128,
            message_bytes_max: 64 << 20,
            sessions_max: 1_024,
            session_idle_min: Duration::from_secs(300),
            prepared_max: 1_024,
            prepared_bytes_max: 64 << 20,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Serves clients until `stop` fires and every call has ended, or `shutdown_grace` later.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    limits: FlightLimits,
    stop: CancellationToken,
) -> Result<()> {
    listener::serve(listener, engine, Arc::new(limits), stop).await
}
