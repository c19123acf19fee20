//! Nodes of one process: a message is a function call. Can cut pairs of nodes apart, for tests.

use super::{Chunks, PeerHandler, PeerTransport, check_hello};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Weak};
use tessera_proto::shard_map::NodeInfo;
use tessera_proto::{Error, NodeId, ReplicaId, Result, v1};

/// A node's replica and what takes its messages.
type Handler = (ReplicaId, Weak<dyn PeerHandler>);

/// The nodes of one cluster in this process.
#[derive(Default)]
pub struct InProcessNetwork {
    handlers: RwLock<BTreeMap<NodeId, Handler>>,
    cuts: RwLock<BTreeSet<(NodeId, NodeId)>>,
}

/// One network per cluster id, as long as anyone uses it.
static NETWORKS: LazyLock<RwLock<BTreeMap<String, Weak<InProcessNetwork>>>> = LazyLock::new(RwLock::default);

impl InProcessNetwork {
    /// The network of a cluster in this process.
    pub fn of_cluster(cluster_id: &str) -> Arc<Self> {
        let mut networks = NETWORKS.write();
        networks.retain(|_, network| network.strong_count() > 0);
        if let Some(network) = networks.get(cluster_id).and_then(Weak::upgrade) {
            return network;
        }
        let network = Arc::new(Self::default());
        networks.insert(cluster_id.to_owned(), Arc::downgrade(&network));
        network
    }

    /// One node's access to it.
    pub fn endpoint(self: &Arc<Self>, node: NodeId) -> Arc<dyn PeerTransport> {
        Arc::new(Endpoint {
            node,
            network: self.clone(),
        })
    }

    /// Cuts two nodes apart, both ways.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.cuts.write().extend([(a, b), (b, a)]);
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.cuts.write().clear();
    }

    /// Tells everyone that messages to or from a node may have been lost.
    fn lose(&self, node: NodeId) {
        let peers: Vec<_> = self.handlers.read().values().filter_map(|(_, h)| h.upgrade()).collect();
        peers.iter().for_each(|p| p.lost(node));
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Option<Arc<dyn PeerHandler>> {
        if self.cuts.read().contains(&(from, to)) {
            return None;
        }
        self.handlers.read().get(&to)?.1.upgrade()
    }
}

impl std::fmt::Debug for InProcessNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcessNetwork")
            .field("cuts", &*self.cuts.read())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Endpoint {
    node: NodeId,
    network: Arc<InProcessNetwork>,
}

impl Endpoint {
    fn peer(&self, to: NodeId) -> Result<Arc<dyn PeerHandler>> {
        self.network
            .reach(self.node, to)
            .ok_or_else(|| Error::unavailable(format!("node {to} cannot be reached")))
    }
}

#[async_trait::async_trait]
impl PeerTransport for Endpoint {
    fn attach(&self, handler: Weak<dyn PeerHandler>) {
        let Some(node) = handler.upgrade() else { return };
        match check_hello(&node.hello(), &node.hello()) {
            Ok(id) => drop(self.network.handlers.write().insert(self.node, (id, handler))),
            Err(error) => tracing::error!(%error, "this node has no sound identity"),
        }
        self.network.lose(self.node);
    }

    fn set_peers(&self, _nodes: &BTreeMap<NodeId, NodeInfo>) {}

    fn send(&self, to: NodeId, message: v1::PeerMessage) {
        let from = self.network.handlers.read().get(&self.node).map(|(id, _)| *id);
        if let (Some(from), Some(peer)) = (from, self.network.reach(self.node, to)) {
            peer.deliver(from, message);
        }
    }

    async fn fetch_file(&self, from: NodeId, request: v1::FetchFileRequest) -> Result<Chunks> {
        self.peer(from)?.read_file(request).await
    }

    async fn fetch_snapshot(&self, from: NodeId, request: v1::FetchSnapshotRequest) -> Result<Chunks> {
        self.peer(from)?.read_snapshot(request).await
    }

    async fn prefetch(&self, to: NodeId, request: v1::PrefetchRequest) -> Result<()> {
        self.peer(to)?.prefetch(request).await
    }

    async fn discard(&self, to: NodeId, request: v1::DiscardRequest) -> Result<()> {
        self.peer(to)?.discard(request).await
    }

    async fn shutdown(&self) {
        self.network.handlers.write().remove(&self.node);
        self.network.lose(self.node);
    }
}
