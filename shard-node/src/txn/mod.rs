//! The participant's side of transactions: one log entry commits a transaction, two phases span shards.
//!
//! ```text
//!   router        participant                      home
//!     Prepare ──────▶ lock, check, log Prepare
//!     Commit ────────────────────────────────────▶ lock, check, join a commit group ─▶ draw ts ─▶ log CommitRecord
//!     Finish(ts) ───▶ log Commit: visible, unlocked                       (the commit point: Percolator's primary)
//!                                                  all finished ─▶ log End
//!   in doubt:        ask home ────────────────────▶ Committed(ts) | Aborted | Pending | Committing
//! ```
//!
//! [`ledger`] is what the log says (the same on every copy), [`participant`] what only the leader knows, [`locks`] the rows
//! in use and who waits for them. All three are plain state machines. Presumed abort after Mohan et al. 1986, except that home writes an abort
//! record before it answers a recovery: a late commit must find it. Not here: circles of transactions that wait for each other;
//! routers look for them.

pub mod entry;
pub mod failpoint;
pub mod ledger;
pub mod locks;
pub mod participant;
