//! Which nodes hold the shards of a new colocation group.
//!
//! ```text
//!   6 shards, 3 empty nodes        leader    1 2 3 1 2 3
//!                                  follower  2 3 1 3 1 2      no node follows only one other: its death spreads
//! ```
//!
//! Greedy: each shard's leader goes where fewest lead, its follower where fewest copies are, counting what the cluster has
//! already. Pure: the same input gives the same placement.

use std::collections::BTreeMap;
use tessera_meta::view::ClusterView;
use tessera_proto::shard_map::{NodeInfo, ShardConfig};
use tessera_proto::{Epoch, Error, NodeId, Result};

/// Copies of a shard where there are nodes for it.
const COPIES: usize = 2;

/// Copies that nodes hold already.
#[derive(Debug, Clone, Default)]
struct Load {
    leads: BTreeMap<NodeId, usize>,
    holds: BTreeMap<NodeId, usize>,
    /// How often a follower stands behind a leader.
    pairs: BTreeMap<(NodeId, NodeId), usize>,
}

impl Load {
    fn of(view: &ClusterView) -> Self {
        let mut load = Self::default();
        for entry in view.shards.values() {
            load.add(&entry.config);
        }
        load
    }

    fn add(&mut self, config: &ShardConfig) {
        let leader = config.leader.node;
        *self.leads.entry(leader).or_default() += 1;
        for replica in config.replicas() {
            *self.holds.entry(replica.node).or_default() += 1;
            *self.pairs.entry((leader, replica.node)).or_default() += 1;
        }
    }

    fn leads(&self, node: NodeId) -> usize {
        self.leads.get(&node).copied().unwrap_or(0)
    }

    fn holds(&self, node: NodeId) -> usize {
        self.holds.get(&node).copied().unwrap_or(0)
    }

    fn pairs(&self, leader: NodeId, node: NodeId) -> usize {
        self.pairs.get(&(leader, node)).copied().unwrap_or(0)
    }
}

/// Configurations at epoch 1 of `shards` shards on `nodes`, which are those alive.
///
/// # Errors
/// 55000 without nodes.
pub fn place(view: &ClusterView, nodes: &[NodeInfo], shards: u32) -> Result<Vec<ShardConfig>> {
    let mut load = Load::of(view);
    let mut configs = Vec::with_capacity(shards as usize);
    for _ in 0..shards {
        let leader = nodes
            .iter()
            .min_by_key(|n| (load.leads(n.id), load.holds(n.id), n.id))
            .ok_or_else(no_nodes)?;
        let mut in_sync = vec![leader.replica()];
        let mut others: Vec<&NodeInfo> = nodes.iter().filter(|n| n.id != leader.id).collect();
        others.sort_by_key(|n| (load.pairs(leader.id, n.id), load.holds(n.id), n.id));
        in_sync.extend(others.iter().take(COPIES - 1).map(|n| n.replica()));
        let config = ShardConfig {
            epoch: Epoch(1),
            leader: leader.replica(),
            in_sync,
            learners: vec![],
        };
        load.add(&config);
        configs.push(config);
    }
    Ok(configs)
}

/// The configuration at epoch 1 of a reference group: a copy on every node.
///
/// # Errors
/// 55000 without nodes.
pub fn place_reference(view: &ClusterView, nodes: &[NodeInfo]) -> Result<ShardConfig> {
    let load = Load::of(view);
    let leader = nodes
        .iter()
        .min_by_key(|n| (load.leads(n.id), load.holds(n.id), n.id))
        .ok_or_else(no_nodes)?;
    let others = nodes.iter().filter(|n| n.id != leader.id);
    let in_sync = std::iter::once(leader).chain(others).map(NodeInfo::replica).collect();
    Ok(ShardConfig {
        epoch: Epoch(1),
        leader: leader.replica(),
        in_sync,
        learners: vec![],
    })
}

fn no_nodes() -> Error {
    Error::new("55000", "no shard node is reachable, so a table would have no place")
        .with_hint("start a shard node, then try again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn nodes(count: u32) -> Vec<NodeInfo> {
        let node = |id| NodeInfo {
            id: NodeId(id),
            disk: Uuid::from_u128(id.into()),
            address: String::new(),
            boot: Uuid::nil(),
        };
        (1..=count).map(node).collect()
    }

    #[test]
    fn leaders_and_followers_spread_evenly_and_never_share_a_node() {
        for (count, shards) in [(1, 4), (2, 5), (3, 16), (5, 64)] {
            let placed = place(&ClusterView::default(), &nodes(count), shards).unwrap();
            let mut load = Load::default();
            for config in &placed {
                assert_eq!(config.in_sync.len(), COPIES.min(count as usize));
                assert!(config.in_sync.windows(2).all(|w| w[0].node != w[1].node));
                load.add(config);
            }
            let spread = |of: &BTreeMap<NodeId, usize>| of.values().max().unwrap() - of.values().min().unwrap();
            assert!(spread(&load.leads) <= 1, "{count} nodes: leaders {:?}", load.leads);
            assert!(spread(&load.holds) <= 2, "{count} nodes: copies {:?}", load.holds);
        }
        assert_eq!(place(&ClusterView::default(), &[], 1).unwrap_err().code, "55000");
    }
}
