//! Where shards live: one configuration per shard, changed only by compare-and-swap in the meta store, epoch +1 each time.

use crate::ids::{Epoch, NodeId, ReplicaId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Configuration of one shard (PacificA's replica group; `facts` §3.2: `Cfg`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardConfig {
    /// +1 at every change.
    pub epoch: Epoch,
    /// The only replica that appends in this epoch. Always a member of `in_sync`.
    pub leader: ReplicaId,
    /// Replicas that hold every acknowledged entry.
    pub in_sync: Vec<ReplicaId>,
    /// Replicas catching up; they acknowledge nothing that counts.
    pub learners: Vec<ReplicaId>,
}

impl ShardConfig {
    /// All copies.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.in_sync.iter().chain(&self.learners).copied()
    }

    /// The copy on a node, whatever its role.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.replicas().find(|r| r.node == node)
    }
}

/// A shard node as it registered itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Id.
    pub id: NodeId,
    /// Identity of its data directory.
    #[serde(with = "crate::ids::uuid_text")]
    pub disk: Uuid,
    /// gRPC address `host:port`; empty for a node in the router's own process.
    pub address: String,
    /// Changes at every start.
    #[serde(with = "crate::ids::uuid_text")]
    pub boot: Uuid,
}

impl NodeInfo {
    /// The replica id of copies on this node.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId {
            node: self.id,
            disk: self.disk,
        }
    }
}

/// Written once, at the first start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Every data directory and handshake carries it.
    #[serde(with = "crate::ids::uuid_text")]
    pub cluster_id: Uuid,
    /// [`crate::FORMAT_VERSION`] at creation.
    pub format_version: u32,
}
