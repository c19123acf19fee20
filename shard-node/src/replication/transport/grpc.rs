//! Nodes of other processes: one gRPC stream per ordered pair for messages, and unary or streaming calls for files.
//!
//! ```text
//!   send() ─▶ queue of a peer ─▶ task: connect ─▶ Hello ─▶ messages ... broken? wait 0.1-2 s, drop the queue, again
//! ```

use super::{Chunks, PeerHandler, PeerTransport, REPLICATION_BYTES_MAX, check_hello};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tessera_proto::client::channel;
use tessera_proto::shard_map::NodeInfo;
use tessera_proto::v1::peer_message::Message;
use tessera_proto::v1::replication_client::ReplicationClient;
use tessera_proto::{Error, NodeId, Result, v1};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Messages waiting for a peer; beyond, they are dropped and asked for again. With 4 MiB windows most are small.
const QUEUE_MESSAGES: usize = 4_096;
/// Messages handed to the connection.
const STREAM_MESSAGES: usize = 64;
/// Longest wait for a call's first answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a broken stream: doubles between these.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

type Client = ReplicationClient<Channel>;

/// See the module.
#[derive(Debug)]
pub struct GrpcTransport {
    me: NodeId,
    handler: Arc<RwLock<Option<Weak<dyn PeerHandler>>>>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Peer {
    address: String,
    client: Client,
    queue: mpsc::Sender<v1::PeerMessage>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for dyn PeerHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerHandler({:?})", self.hello())
    }
}

impl GrpcTransport {
    /// Knows no peers yet.
    pub fn new(me: NodeId) -> Arc<Self> {
        Arc::new(Self {
            me,
            handler: Arc::default(),
            peers: Mutex::default(),
            stop: CancellationToken::new(),
        })
    }

    fn client(&self, node: NodeId) -> Result<Client> {
        let client = self.peers.lock().get(&node).map(|p| p.client.clone());
        client.ok_or_else(|| Error::unavailable(format!("node {node} has no known address")))
    }

    fn connect(&self, node: NodeId, address: &str) -> Result<Peer> {
        let client = Client::new(channel(address)?)
            .max_decoding_message_size(REPLICATION_BYTES_MAX)
            .max_encoding_message_size(REPLICATION_BYTES_MAX);
        let (queue, messages) = mpsc::channel(QUEUE_MESSAGES);
        let stop = self.stop.child_token();
        let link = Link {
            node,
            client: client.clone(),
            handler: self.handler.clone(),
        };
        let task = tokio::spawn(link.run(messages, stop.clone()));
        Ok(Peer {
            address: address.to_owned(),
            client,
            queue,
            stop,
            task,
        })
    }
}

#[async_trait::async_trait]
impl PeerTransport for GrpcTransport {
    fn attach(&self, handler: Weak<dyn PeerHandler>) {
        *self.handler.write() = Some(handler);
    }

    fn set_peers(&self, nodes: &BTreeMap<NodeId, NodeInfo>) {
        let mut peers = self.peers.lock();
        for info in nodes.values().filter(|n| n.id != self.me && !n.address.is_empty()) {
            if peers.get(&info.id).is_some_and(|p| p.address == info.address) || self.stop.is_cancelled() {
                continue;
            }
            match self.connect(info.id, &info.address) {
                Ok(peer) => {
                    if let Some(old) = peers.insert(info.id, peer) {
                        old.stop.cancel();
                    }
                }
                Err(error) => tracing::error!(%error, node = %info.id, "a node's address cannot be used"),
            }
        }
    }

    fn send(&self, to: NodeId, message: v1::PeerMessage) {
        if let Some(peer) = self.peers.lock().get(&to) {
            // Full: the peer is slow or away, and the sender asks again after a while.
            let _ = peer.queue.try_send(message);
        }
    }

    async fn fetch_file(&self, from: NodeId, request: v1::FetchFileRequest) -> Result<Chunks> {
        let mut client = self.client(from)?;
        let chunks = timely(client.fetch_file(request)).await?;
        Ok(bounded(chunks))
    }

    async fn fetch_snapshot(&self, from: NodeId, request: v1::FetchSnapshotRequest) -> Result<Chunks> {
        let mut client = self.client(from)?;
        // The leader seals first, which may take a while.
        let call = tokio::time::timeout(CALL_TIMEOUT * 30, client.fetch_snapshot(request));
        let chunks = call
            .await
            .map_err(|_| Error::unavailable("the leader's snapshot did not come"))?
            .map_err(Error::from)?
            .into_inner();
        Ok(bounded(chunks))
    }

    async fn prefetch(&self, to: NodeId, request: v1::PrefetchRequest) -> Result<()> {
        let limit = tessera_proto::service::deadline(request.deadline_ms)?;
        let mut client = self.client(to)?;
        let call = tokio::time::timeout(limit, client.prefetch(request));
        call.await
            .map_err(|_| Error::unavailable(format!("node {to} did not fetch staged files in time")))??;
        Ok(())
    }

    async fn discard(&self, to: NodeId, request: v1::DiscardRequest) -> Result<()> {
        let mut client = self.client(to)?;
        timely(client.discard(request)).await.map(drop)
    }

    async fn shutdown(&self) {
        self.stop.cancel();
        let peers = std::mem::take(&mut *self.peers.lock());
        for peer in peers.into_values() {
            if let Err(error) = peer.task.await {
                tracing::error!(%error, "a peer's task failed");
            }
        }
    }
}

async fn timely<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Error::unavailable("a peer did not answer in time")),
    }
}

/// Chunks, each of which must come in time.
fn bounded(chunks: tonic::Streaming<v1::FileChunk>) -> Chunks {
    let timed = futures::stream::unfold(Some(chunks), |chunks| async {
        let mut chunks = chunks?;
        match tokio::time::timeout(CALL_TIMEOUT, chunks.next()).await {
            Ok(Some(item)) => Some((item.map(|c| c.data).map_err(Error::from), Some(chunks))),
            Ok(None) => None,
            Err(_) => Some((
                Err::<Bytes, _>(Error::unavailable("a peer stopped sending a file")),
                None,
            )),
        }
    });
    timed.into_stream().boxed()
}

/// The task of one peer.
struct Link {
    node: NodeId,
    client: Client,
    handler: Arc<RwLock<Option<Weak<dyn PeerHandler>>>>,
}

impl Link {
    async fn run(mut self, mut messages: mpsc::Receiver<v1::PeerMessage>, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        loop {
            let begun = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.stream(&mut messages) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, node = %self.node, "replication stream ended");
            }
            if let Some(handler) = self.handler() {
                handler.lost(self.node);
            }
            pause = if begun.elapsed() > PAUSE.1 {
                PAUSE.0
            } else {
                (pause * 2).min(PAUSE.1)
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            // What waited is old by now; the machine repeats what matters.
            while messages.try_recv().is_ok() {}
        }
    }

    fn handler(&self) -> Option<Arc<dyn PeerHandler>> {
        self.handler.read().as_ref().and_then(Weak::upgrade)
    }

    /// One connection, until it breaks.
    async fn stream(&mut self, messages: &mut mpsc::Receiver<v1::PeerMessage>) -> Result<()> {
        let hello = self
            .handler()
            .ok_or_else(|| Error::unavailable("this node is not ready"))?
            .hello();
        let (sender, stream) = mpsc::channel(STREAM_MESSAGES);
        let broken = |_| Error::unavailable("the stream ended");
        sender
            .try_send(v1::PeerMessage {
                message: Some(Message::Hello(hello.clone())),
            })
            .map_err(|_| Error::internal("a new channel is full"))?;
        let mut replies = timely(self.client.exchange(ReceiverStream::new(stream))).await?;
        let first = tokio::time::timeout(CALL_TIMEOUT, replies.message())
            .await
            .map_err(|_| Error::unavailable("no greeting"))??;
        let Some(Message::Hello(theirs)) = first.and_then(|m| m.message) else {
            return Err(Error::protocol("the peer did not greet"));
        };
        let peer = check_hello(&hello, &theirs)?;
        if peer.node != self.node {
            return Err(Error::protocol(format!(
                "node {} answers at the address of node {}",
                peer.node, self.node
            )));
        }
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => sender.send(message).await.map_err(|_| broken(()))?,
                    None => return Ok(()),
                },
                reply = replies.message() => match reply? {
                    Some(_) => {}
                    None => return Err(broken(())),
                },
            }
        }
    }
}
