//! The part of the catalog that one plan needs, fetched once: groups, owners, copies of reference tables.
//!
//! ```text
//!   tables of the plan -> groups -> sharded: ranges + [(shard, owner)]     reference: copies in order of preference
//! ```

use crate::catalog::{Catalog, ReferenceCopy, Relation};
use crate::prune::ShardSet;
use crate::shard_local::locality::Reads;
use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::{LogicalPlan, TableSource};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tessera_proto::fragment::StubTable;
use tessera_proto::table::{ColocationGroup, TableDef};
use tessera_proto::{Error, GroupId, NodeId, Result, v1};

/// A sharded group.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Key classes and token ranges.
    pub group: Arc<ColocationGroup>,
    /// Present leader of each shard that has one.
    pub owners: BTreeMap<u32, (v1::ShardRef, NodeId)>,
}

/// What one plan needs to know about the cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    sharded: HashMap<GroupId, Placement>,
    references: HashMap<GroupId, Vec<ReferenceCopy>>,
}

impl Cluster {
    /// Looks up the groups of all tables in `plan`.
    ///
    /// # Errors
    /// A table that the catalog no longer has in the version the plan was bound to.
    pub fn of_plan(plan: &LogicalPlan, catalog: &dyn Catalog) -> Result<Self> {
        let mut cluster = Cluster::default();
        let mut failed = None;
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && let Some(def) = table_of(&scan.source)
                && let Err(error) = cluster.add(&def, catalog)
            {
                failed = Some(error);
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(cluster),
        }
    }

    fn add(&mut self, def: &TableDef, catalog: &dyn Catalog) -> Result<()> {
        let group = match catalog.resolve(Some(&def.schema), &def.name) {
            Some(Relation::Table(now, group)) if now.id == def.id && now.version == def.version => group,
            _ => {
                let message = format!("table \"{}\" was changed while the statement was planned", def.name);
                return Err(Error::stale_map(message));
            }
        };
        if group.reference {
            self.references
                .entry(group.id)
                .or_insert_with(|| catalog.reference_copies(group.id));
        } else {
            self.sharded.entry(group.id).or_insert_with(|| Placement {
                owners: catalog
                    .placement(group.id)
                    .into_iter()
                    .map(|(s, n)| (s.index, (s, n)))
                    .collect(),
                group: group.clone(),
            });
        }
        Ok(())
    }

    /// A sharded group of the plan.
    pub fn placement(&self, group: GroupId) -> Option<&Placement> {
        self.sharded.get(&group)
    }

    /// All shards of a sharded group.
    pub fn all_shards(&self, group: GroupId) -> ShardSet {
        let shards = self.sharded.get(&group).map_or(0, |p| p.group.ranges.len() as u32);
        (0..shards).collect()
    }

    /// Copies of a reference group.
    pub fn copies(&self, group: GroupId) -> &[ReferenceCopy] {
        self.references.get(&group).map_or(&[], Vec::as_slice)
    }

    /// Nodes that lead the given shards; `None` when a shard has no leader.
    pub fn owners(&self, shards: &BTreeMap<GroupId, ShardSet>) -> Option<BTreeSet<NodeId>> {
        let mut nodes = BTreeSet::new();
        for (group, set) in shards {
            let placement = self.sharded.get(group)?;
            for shard in set {
                nodes.insert(placement.owners.get(shard)?.1);
            }
        }
        Some(nodes)
    }

    /// The only node that leads all the given shards.
    pub fn single_owner(&self, shards: &BTreeMap<GroupId, ShardSet>) -> Option<NodeId> {
        let nodes = self.owners(shards)?;
        if nodes.len() == 1 { nodes.first().copied() } else { None }
    }

    /// Nodes with a copy of every given reference group, in the first group's order of preference. `None`: any node.
    pub fn copy_nodes(&self, references: &BTreeSet<GroupId>) -> Option<Vec<NodeId>> {
        let first = references.first()?;
        let mut nodes: Vec<NodeId> = self.copies(*first).iter().map(|c| c.node).collect();
        nodes.retain(|n| references.iter().all(|g| self.copies(*g).iter().any(|c| c.node == *n)));
        Some(nodes)
    }

    /// Whether one node, or every node that owns some of the shards, can read all of `reads` itself.
    pub fn can_serve(&self, reads: &Reads) -> bool {
        let copies = self.copy_nodes(&reads.references);
        if reads.shards.is_empty() {
            return copies.is_none_or(|nodes| !nodes.is_empty());
        }
        match (self.owners(&reads.shards), copies) {
            (Some(owners), Some(nodes)) => owners.iter().all(|owner| nodes.contains(owner)),
            // Which shard has no leader is reported when the leaf is built.
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }
}

/// The stub behind a scan, when it is a table of the cluster.
pub fn table_of(source: &Arc<dyn TableSource>) -> Option<Arc<TableDef>> {
    let provider = source_as_provider(source).ok()?;
    (provider.as_ref() as &dyn Any)
        .downcast_ref::<StubTable>()
        .map(|stub| stub.def.clone())
}
