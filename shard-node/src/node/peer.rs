//! What this node does for its peers: takes messages, sends files, fetches staged ones.

use super::shard::Chore;
use super::{ShardNode, checks};
use crate::replication::message::Event;
use crate::replication::transport::{CHUNK_BYTES, Chunks, FILE_GONE, PeerHandler};
use crate::replication::wire;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use tessera_proto::v1::peer_message::Message;
use tessera_proto::{Error, FORMAT_VERSION, GroupId, NodeId, ReplicaId, Result, ShardId, TxnId, v1};
use tokio_util::io::ReaderStream;

impl ShardNode {
    fn local(&self, group: u64, index: u32) -> Result<Arc<super::shard::Shard>> {
        let id = ShardId {
            group: GroupId(group),
            index,
        };
        self.shard(id)
            .ok_or_else(|| Error::unavailable(format!("shard {id} is not on node {}", self.id.node)))
    }

    fn beat(&self, from: ReplicaId, beat: v1::Beat) {
        if beat.reply {
            return self.leases.lock().answered(from.node, beat.boot, beat.sequence);
        }
        self.leases.lock().heard(from.node, self.begun.elapsed());
        let reply = v1::Beat { reply: true, ..beat };
        self.transport.send(
            from.node,
            v1::PeerMessage {
                message: Some(Message::Beat(reply)),
            },
        );
    }
}

#[async_trait::async_trait]
impl PeerHandler for ShardNode {
    fn hello(&self) -> v1::Hello {
        v1::Hello {
            cluster_id: self.identity.cluster_id.clone(),
            format_version: FORMAT_VERSION,
            node: self.id.node.0,
            disk: Bytes::copy_from_slice(self.id.disk.as_bytes()),
        }
    }

    fn deliver(&self, from: ReplicaId, message: v1::PeerMessage) {
        match message.message {
            Some(Message::Beat(beat)) => self.beat(from, beat),
            Some(Message::Shard(message)) => match wire::from_wire(message) {
                Ok((id, message)) => {
                    // Not opened yet: the leader asks again.
                    if let Some(shard) = self.shard(id) {
                        shard.post(Event::Message { from, message });
                    }
                }
                Err(error) => tracing::warn!(%error, %from, "a malformed replication message was dropped"),
            },
            Some(Message::Hello(_)) | None => {}
        }
    }

    fn lost(&self, node: NodeId) {
        self.shards().iter().for_each(|s| s.post(Event::PeerLost { node }));
    }

    async fn read_file(&self, request: v1::FetchFileRequest) -> Result<Chunks> {
        let path = self
            .local(request.group, request.shard)?
            .store
            .segment_path(&request.file)?;
        let file = tokio::fs::File::open(&path).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(FILE_GONE, format!("there is no segment \"{}\" any more", request.file))
            }
            _ => Error::io(&format!("opening segment \"{}\"", request.file), &e),
        })?;
        Ok(ReaderStream::with_capacity(file, CHUNK_BYTES)
            .map(|c| c.map_err(|e| Error::io("reading a segment", &e)))
            .boxed())
    }

    async fn read_snapshot(&self, request: v1::FetchSnapshotRequest) -> Result<Chunks> {
        let shard = self.local(request.group, request.shard)?;
        let busy = || Error::unavailable(format!("shard {} takes no snapshot now", shard.id));
        let answer = shard.chore(Chore::Snapshot).ok_or_else(busy)?;
        let mut bytes = answer.await.map_err(|_| busy())??;
        let mut chunks = Vec::with_capacity(bytes.len() / CHUNK_BYTES + 1);
        while !bytes.is_empty() {
            chunks.push(Ok(bytes.split_to(CHUNK_BYTES.min(bytes.len()))));
        }
        Ok(futures::stream::iter(chunks).boxed())
    }

    async fn prefetch(&self, request: v1::PrefetchRequest) -> Result<()> {
        let until = checks::until(request.deadline_ms)?;
        let shard = self.local(request.group, request.shard)?;
        let txn = TxnId::from_wire(&request.txn)?;
        let node = self
            .myself
            .upgrade()
            .ok_or_else(|| Error::unavailable("the node is shutting down"))?;
        node.prefetch_segments(shard, NodeId(request.from), txn, request.segments, until)
            .await
    }

    async fn discard(&self, request: v1::DiscardRequest) -> Result<()> {
        let shard = self.local(request.group, request.shard)?;
        self.discard_here(&shard, TxnId::from_wire(&request.txn)?).await;
        Ok(())
    }
}
