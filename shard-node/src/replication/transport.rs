//! Carries messages and files between nodes. Two implementations: the same process, and gRPC.
//!
//! ```text
//!   node 1 ──send(2, message)──▶ queue ──▶ one stream per ordered pair ──▶ deliver(from 1, message) at node 2
//! ```
//!
//! Messages are best effort: over a full queue or a broken stream they are dropped, and the machine asks again. Order
//! between two nodes holds while a stream lives. Every queue is bounded.

mod grpc;
mod in_process;

pub use grpc::GrpcTransport;
pub use in_process::InProcessNetwork;

use bytes::Bytes;
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::sync::Weak;
use tessera_proto::shard_map::NodeInfo;
use tessera_proto::{Error, FORMAT_VERSION, NodeId, ReplicaId, Result, v1};

/// Bytes of a file, in order.
pub type Chunks = BoxStream<'static, Result<Bytes>>;

/// Largest message: the largest log entry (a commit group of 64 MiB and one more) and its envelope.
pub const REPLICATION_BYTES_MAX: usize = 192 << 20;
/// SQLSTATE of a file that the asked node has no more.
pub const FILE_GONE: &str = "58P01";
/// Largest chunk of a file.
pub const CHUNK_BYTES: usize = 1 << 20;

/// What a node does for its peers.
#[async_trait::async_trait]
pub trait PeerHandler: Send + Sync {
    /// Who this is.
    fn hello(&self) -> v1::Hello;
    /// Takes a message; never blocks, drops it when there is no room.
    fn deliver(&self, from: ReplicaId, message: v1::PeerMessage);
    /// The connection to a node broke: messages may be lost.
    fn lost(&self, node: NodeId);
    /// A segment file of this node; [`FILE_GONE`] when it was removed.
    async fn read_file(&self, request: v1::FetchFileRequest) -> Result<Chunks>;
    /// The state of a shard led here.
    async fn read_snapshot(&self, request: v1::FetchSnapshotRequest) -> Result<Chunks>;
    /// Fetches staged files from the sender; durable on return.
    async fn prefetch(&self, request: v1::PrefetchRequest) -> Result<()>;
    /// Drops staged files.
    async fn discard(&self, request: v1::DiscardRequest) -> Result<()>;
}

/// Reaches peers.
#[async_trait::async_trait]
pub trait PeerTransport: Send + Sync + std::fmt::Debug {
    /// Connects the local node; messages before this are dropped.
    fn attach(&self, handler: Weak<dyn PeerHandler>);
    /// The nodes of the cluster and their addresses, whenever they change.
    fn set_peers(&self, nodes: &BTreeMap<NodeId, NodeInfo>);
    /// Best effort, never blocks.
    fn send(&self, to: NodeId, message: v1::PeerMessage);
    /// See [`PeerHandler::read_file`].
    async fn fetch_file(&self, from: NodeId, request: v1::FetchFileRequest) -> Result<Chunks>;
    /// See [`PeerHandler::read_snapshot`].
    async fn fetch_snapshot(&self, from: NodeId, request: v1::FetchSnapshotRequest) -> Result<Chunks>;
    /// See [`PeerHandler::prefetch`].
    async fn prefetch(&self, to: NodeId, request: v1::PrefetchRequest) -> Result<()>;
    /// See [`PeerHandler::discard`].
    async fn discard(&self, to: NodeId, request: v1::DiscardRequest) -> Result<()>;
    /// Ends all connections and joins their tasks.
    async fn shutdown(&self);
}

/// Checks the first message of a stream against this node's own, and says who the peer is.
///
/// # Errors
/// 08P01: another cluster, another format version, or no sound identity.
pub fn check_hello(mine: &v1::Hello, theirs: &v1::Hello) -> Result<ReplicaId> {
    if theirs.cluster_id != mine.cluster_id {
        return Err(Error::protocol(format!(
            "peer node {} belongs to cluster \"{}\"",
            theirs.node, theirs.cluster_id
        )));
    }
    if theirs.format_version != FORMAT_VERSION {
        let found = theirs.format_version;
        return Err(Error::protocol(format!(
            "peer node {} speaks format version {found}, this one {FORMAT_VERSION}",
            theirs.node
        )));
    }
    let disk = uuid::Uuid::from_slice(&theirs.disk).map_err(|_| Error::protocol("peer has no sound disk id"))?;
    Ok(ReplicaId {
        node: NodeId(theirs.node),
        disk,
    })
}
