//! The router: owns statements. Protocols and sessions, the catalog, scatter and gather, the coordinator side of
//! transactions.
//!
//! ```text
//!   pg/ http/  ──▶  session.rs  ──▶  execute/   SELECT, EXPLAIN, SHOW, VERIFY          ──▶ planner, shard nodes
//!                       │       ──▶  ingest/    INSERT, COPY: rows to shards           ──▶ txn/coordinator
//!                       │       ──▶  locking/   SELECT ... FOR UPDATE                   ──▶ txn/open
//!                       │       ──▶  ddl/       CREATE, DROP  ──▶ cluster/             ──▶ meta store
//!                   engine.rs: everything sessions share (catalog view, oracle, runtime, memory, statistics)
//! ```
//!
//! Nothing here touches rows on disk; `shard-node` is never seen, only `tessera_proto::service::ShardService`.

pub mod cluster;
pub mod copy;
pub mod ddl;
pub mod engine;
pub mod error;
pub mod execute;
pub mod explain;
pub mod flight;
pub mod http;
pub mod ingest;
mod locking;
pub mod outcome;
pub mod pg;
pub mod session;
pub mod settings;
mod stack;
pub mod txn;
pub mod views;

pub use engine::{Engine, RouterOptions};
pub use ingest::CopyIn;
pub use outcome::{Described, Outcome, RowsTag};
pub use session::{Session, SessionParams};

/// Stack of threads that plan and run statements: address space, of which only what is used costs memory. Planning the
/// deepest expression that the parser lets through takes 4 MiB in a debug build.
pub const STACK_BYTES: usize = 16 << 20;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
