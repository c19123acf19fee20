//! The meta store: a small, linearizable, versioned key-value store that holds the catalog and the shard map.
//!
//! ```text
//!   router ── LocalMeta (sled) ◀── RemoteMeta ── shard nodes in other processes
//!                 │
//!             ClusterView: an immutable snapshot of everything below the keys of `tessera_proto::keys`
//! ```
//!
//! Everything that must not split-brain (shard configurations, names, ids) changes here by compare-and-swap over several
//! keys. We write no consensus protocol: `LocalMeta` lives in one router; an etcd implementation makes it highly available.

pub mod directory;
pub mod leaf;
pub mod limits;
pub mod local;
pub mod remote;
pub mod secret;
pub mod server;
pub mod view;
mod wire;

use std::time::Duration;
use tessera_proto::Result;

/// One stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Store revision at which it was last written; never 0.
    pub revision: u64,
}

/// What a key must look like before a [`MetaStore::cas`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Not compared.
    Any,
    /// Must not exist.
    Absent,
    /// Last written at this revision.
    Revision(u64),
}

/// What a [`MetaStore::cas`] does with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only compare.
    Check,
    /// Write.
    Put(Vec<u8>),
    /// Remove.
    Delete,
}

/// One key of a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// The key.
    pub key: String,
    /// Comparison.
    pub expect: Expect,
    /// Change.
    pub change: Change,
}

/// Most operations in one compare-and-swap.
pub const OPS_MAX: usize = 4_096;

/// Result of a compare-and-swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether all comparisons held, and so all changes were made.
    pub applied: bool,
    /// Store revision afterwards; the changes have it as their revision.
    pub revision: u64,
}

/// The store. Two implementations: [`local::LocalMeta`] and [`remote::RemoteMeta`].
///
/// # Errors
/// `Retry::Elsewhere` when the store cannot be reached and nothing happened; `Retry::OutcomeUnknown` when a
/// compare-and-swap was sent and no answer came (read the keys again to find out).
#[async_trait::async_trait]
pub trait MetaStore: Send + Sync + std::fmt::Debug {
    /// All entries whose key starts with `prefix`, ascending, and the store's revision they were read at.
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, u64)>;
    /// All or nothing; durable on return. At most [`OPS_MAX`] operations.
    async fn cas(&self, ops: Vec<Op>) -> Result<Outcome>;
    /// Returns the revision as soon as it is above `after`, or the current one at the timeout (at most 30 s).
    async fn wait(&self, after: u64, timeout: Duration) -> Result<u64>;
}

#[cfg(test)]
mod tests;
