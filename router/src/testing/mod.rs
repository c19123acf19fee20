//! Stand-ins for this crate's tests: a meta store and shard nodes in memory.
//!
//! The nodes share one set of rows, as if replication were perfect and instant; what is tested is the router.

mod meta;
mod node;

pub(crate) use meta::MemoryMeta;
pub(crate) use node::FakeCluster;
