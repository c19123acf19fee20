//! An immutable snapshot of everything the meta store says about the cluster, decoded once and shared by all readers.
//!
//! ```text
//!   /table/…  /view/…  /name/…  /group/…  /shard/…  /node/…      one range read, at one revision
//!        └────────────── decode ──────────────┘
//!                  Arc<ClusterView> { revision: 42 }   ◀── current()        statements plan against it
//!                          ▲
//!                     ViewKeeper: replaces it whenever the store's revision grows
//! ```
//!
//! A view never changes after it was published: a statement that keeps its `Arc` sees one catalog and one shard map from
//! beginning to end. Being stale is harmless, because shard nodes compare epochs; see [`ViewKeeper::at_least`] for
//! reading one's own definitions. Keys that no one here knows are skipped, so a newer process may add some.

mod decode;
mod keeper;
mod retries;

pub use keeper::ViewKeeper;
pub use retries::Retries;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tessera_proto::shard_map::{ClusterInfo, NodeInfo, ShardConfig};
use tessera_proto::table::{ColocationGroup, PendingTable, TableDef, ViewDef};
use tessera_proto::{GroupId, NodeId, ShardId, TableId};

/// The cluster as of one revision of the meta store.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    /// Revision of the store at which everything here was read; 0 only in an empty view.
    pub revision: u64,
    /// The cluster's identity; `None` before its first start is complete.
    pub cluster: Option<ClusterInfo>,
    /// Names of the schemas.
    pub schemas: BTreeSet<String>,
    /// Tables by id, those without a name included.
    pub tables: HashMap<TableId, Arc<TableDef>>,
    /// Views by id; tables and views draw from the same ids.
    pub views: HashMap<TableId, Arc<ViewDef>>,
    /// Id of the table or view with this schema and name.
    pub names: HashMap<(String, String), TableId>,
    /// Tables that are being filled.
    pub pending: BTreeMap<TableId, PendingTable>,
    /// Colocation groups.
    pub groups: HashMap<GroupId, Arc<ColocationGroup>>,
    /// Configurations of all shards, those of one group next to each other.
    pub shards: BTreeMap<ShardId, ShardEntry>,
    /// Shard nodes that ever registered.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
}

/// A shard's configuration and what is needed to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardEntry {
    /// The configuration.
    pub config: ShardConfig,
    /// Revision of its key in the store: what a compare-and-swap expects.
    pub revision: u64,
}

impl ClusterView {
    /// The table with this schema and name; `None` also when the name is a view's.
    pub fn table(&self, schema: &str, name: &str) -> Option<&Arc<TableDef>> {
        self.tables.get(self.relation(schema, name)?)
    }

    /// The view with this schema and name; `None` also when the name is a table's.
    pub fn view(&self, schema: &str, name: &str) -> Option<&Arc<ViewDef>> {
        self.views.get(self.relation(schema, name)?)
    }

    /// The tables that have a name: what is shown of the catalog.
    pub fn named_tables(&self) -> impl Iterator<Item = &Arc<TableDef>> {
        let named = |table: &&Arc<TableDef>| !self.pending.contains_key(&table.id);
        self.tables.values().filter(named)
    }

    /// The shards of a group, ascending by index.
    pub fn group_shards(&self, group: GroupId) -> impl Iterator<Item = (ShardId, &ShardEntry)> {
        let shard = |index| ShardId { group, index };
        self.shards
            .range(shard(0)..=shard(u32::MAX))
            .map(|(id, entry)| (*id, entry))
    }

    fn relation(&self, schema: &str, name: &str) -> Option<&TableId> {
        self.names.get(&(schema.to_owned(), name.to_owned()))
    }
}
