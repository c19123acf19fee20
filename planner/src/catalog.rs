//! All that the planner may ask about tables, placement and statistics: one immutable snapshot per statement.
//!
//! ```text
//!   resolve("orders")      -> Table(definition, colocation group)
//!   placement(group)       -> [(shard 0 at epoch 7, leader on node 2), (shard 1 ..), ..]     sharded tables
//!   reference_copies(group)-> [(node 1, shard at epoch 3, applied up to 118), ..]            reference tables
//! ```
//!
//! Answers come from memory: the planner does no I/O and calls these from synchronous code.

use datafusion::catalog::TableProvider;
use datafusion::common::Statistics;
use std::fmt::Debug;
use std::sync::Arc;
use tessera_proto::common_values::TableCommonValues;
use tessera_proto::table::{ColocationGroup, TableDef, ViewDef};
use tessera_proto::{GroupId, LogIndex, NodeId, TableId, v1};

/// What a name in FROM may stand for.
#[derive(Debug, Clone)]
pub enum Relation {
    /// A stored table and its colocation group.
    Table(Arc<TableDef>, Arc<ColocationGroup>),
    /// A view, expanded at every use.
    View(Arc<ViewDef>),
    /// A table computed in the router (`pg_catalog`, `tessera.nodes`, ...); never part of a leaf.
    System(Arc<dyn TableProvider>),
    /// Rows of the table that the statement changes: a stub that shows the hidden row id too, or rows held in the router.
    Target(Arc<dyn TableProvider>),
}

/// A copy of a reference table that may answer a leaf.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceCopy {
    /// Where the copy is.
    pub node: NodeId,
    /// The group's only shard, at its present epoch.
    pub shard: v1::ShardRef,
    /// The copy must have applied so much before it answers; 0 on the leader, which knows by itself.
    pub log_index: LogIndex,
}

/// A snapshot of the cluster's catalog and shard map, as one statement sees it.
pub trait Catalog: Send + Sync + Debug {
    /// What `name` stands for; without a schema the search path decides. Names are compared exactly.
    fn resolve(&self, schema: Option<&str>, name: &str) -> Option<Relation>;
    /// Names of all relations in the search path, for "did you mean".
    fn names(&self) -> Vec<String>;
    /// Every shard of a sharded group, ascending by index, with the node of its leader.
    fn placement(&self, group: GroupId) -> Vec<(v1::ShardRef, NodeId)>;
    /// Copies of a reference group that may be read, the preferred one for a read on its own first. Never empty for a
    /// group that is online.
    fn reference_copies(&self, group: GroupId) -> Vec<ReferenceCopy>;
    /// Nodes that serve, ascending.
    fn nodes(&self) -> Vec<NodeId>;
    /// Statistics of a table's visible columns over all its shards, inexact; `None` when nobody knows.
    fn statistics(&self, table: TableId) -> Option<Statistics>;
    /// The most common values of its visible columns; empty when nobody knows.
    fn common_values(&self, table: TableId) -> TableCommonValues;
    /// Revision of the meta store that this snapshot shows; nodes must be at least as new to run its plans.
    fn revision(&self) -> u64;
}
