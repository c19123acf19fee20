//! Timestamps, and the coordinator's side of transactions.
//!
//! ```text
//!   oracle.rs        draws timestamps
//!   coordinator.rs   two-phase commit as a step function: event in, effects out
//!   open.rs          transactions of several statements       watch.rs   keeps them alive, finds deadlocks
//!   snapshots.rs     what is read at just now, for the nodes to keep
//!   driver.rs        carries the effects out over ShardService, with deadlines and retries
//! ```

pub mod coordinator;
pub mod driver;
pub(crate) mod open;
pub mod oracle;
pub(crate) mod snapshots;
pub(crate) mod watch;
