//! Replication of one shard's log: primary/backup with an external configuration (PacificA, Vertical Paxos II).
//!
//! ```text
//!   client ──propose──▶ leader ──Append──▶ follower          meta: {epoch, leader, in-sync, learners}, changed by
//!                         │ fdatasync        │ fdatasync            compare-and-swap only, epoch +1 each time
//!                         ◀───────Ack────────┘
//!                  committed = durable on every in-sync member; only committed entries are applied
//! ```
//!
//! The rules live in [`state`] (with `leader` and `follower`), which owns no clock, socket or disk; [`driver`] runs one
//! such machine per shard; [`lease`] says which peers are alive; [`transport`] carries messages; [`catch_up`] moves files.
//! Not here: consensus. Who leads is decided by the meta store alone.

pub mod catch_up;
pub mod driver;
pub mod lease;
pub mod log_shape;
pub mod message;
pub mod state;
pub mod transport;
pub mod wire;

mod follower;
mod leader;
mod recovery;
#[cfg(test)]
mod simulation;
