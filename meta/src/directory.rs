//! Finds the service of a shard node: the one in this process, else a gRPC channel to the address in the cluster view.
//!
//! ```text
//!   node(2) ──▶ registered here?  ──yes──▶ the ShardNode itself, no serialization
//!                    │ no
//!                    └─▶ /node/2 in the current view: "10.0.0.2:7001" ──▶ cached GrpcShard, replaced if the address moves
//! ```
//!
//! Does not check whether the node is alive: a call that fails says so, with `Retry::Elsewhere`.

use crate::view::ViewKeeper;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tessera_proto::client::GrpcShard;
use tessera_proto::service::{NodeDirectory, ShardService};
use tessera_proto::{Error, NodeId, Result};
use tokio::runtime::Handle;

/// All shard nodes of the cluster, as one process sees them.
pub struct ClusterDirectory {
    views: Arc<ViewKeeper>,
    /// Weak, because the nodes hold the directory to reach their peers.
    local: RwLock<HashMap<NodeId, Weak<dyn ShardService>>>,
    /// At most one channel per registered node.
    remote: Mutex<HashMap<NodeId, Remote>>,
    /// Where channels read and write. Not the threads of queries, which ask for them: a long computation there would hold up
    /// whatever else goes to the same node.
    connections: Handle,
}

/// A channel and the address it goes to.
struct Remote {
    address: String,
    shard: Arc<GrpcShard>,
}

impl ClusterDirectory {
    /// Knows nobody but the nodes of the keeper's view; serves its channels on `connections`.
    pub fn new(views: Arc<ViewKeeper>, connections: Handle) -> Self {
        Self {
            views,
            local: RwLock::default(),
            remote: Mutex::default(),
            connections,
        }
    }

    /// Makes a node of this process known. It is forgotten when the last `Arc` of it is dropped.
    pub fn register(&self, node: NodeId, service: Weak<dyn ShardService>) {
        self.local.write().insert(node, service);
    }

    fn local(&self, node: NodeId) -> Option<Arc<dyn ShardService>> {
        let found = self.local.read().get(&node)?.upgrade();
        if found.is_none() {
            // Only a dead entry: the node may have been registered anew since.
            let mut local = self.local.write();
            if local.get(&node).is_some_and(|service| service.strong_count() == 0) {
                local.remove(&node);
            }
        }
        found
    }

    fn remote(&self, node: NodeId) -> Result<Arc<GrpcShard>> {
        let view = self.views.current();
        let mut remote = self.remote.lock();
        let Some(info) = view.nodes.get(&node).filter(|info| !info.address.is_empty()) else {
            remote.remove(&node);
            return Err(unknown(node, view.nodes.contains_key(&node)));
        };
        if let Some(known) = remote.get(&node).filter(|known| known.address == info.address) {
            return Ok(known.shard.clone());
        }
        // A channel lives on the runtime it is made in.
        let _entered = self.connections.enter();
        let shard = Arc::new(GrpcShard::new(node, &info.address)?);
        remote.insert(
            node,
            Remote {
                address: info.address.clone(),
                shard: shard.clone(),
            },
        );
        Ok(shard)
    }
}

impl NodeDirectory for ClusterDirectory {
    fn node(&self, node: NodeId) -> Result<Arc<dyn ShardService>> {
        if let Some(service) = self.local(node) {
            return Ok(service);
        }
        Ok(self.remote(node)?)
    }
}

impl std::fmt::Debug for ClusterDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let local: Vec<NodeId> = self.local.read().keys().copied().collect();
        let remote: Vec<NodeId> = self.remote.lock().keys().copied().collect();
        f.debug_struct("ClusterDirectory")
            .field("local", &local)
            .field("remote", &remote)
            .finish_non_exhaustive()
    }
}

fn unknown(node: NodeId, registered: bool) -> Error {
    let why = if registered {
        "does not run at the moment"
    } else {
        "is not registered in the cluster"
    };
    Error::unavailable(format!("node {node} {why}"))
}
