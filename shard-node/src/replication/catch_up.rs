//! Files for copies: segments that log entries name, and snapshots for copies whose next entries are gone.
//!
//! ```text
//!   Append names seg a ─▶ a here? else fetch it from the sender, fsync ─▶ only then write the entry (and acknowledge)
//!   Offer ─▶ fetch Snapshot{at, manifest, ledger, files} ─▶ fetch files ─▶ machine still wants it?
//!         ─▶ mark INSTALLING ─▶ replace rows, ledger ─▶ log restarts behind `at` ─▶ unmark
//! ```
//!
//! A crash in between finds the mark and asks for a snapshot again; such a copy never acknowledges anything meanwhile.

use super::log_shape::Position;
use super::transport::PeerTransport;
use crate::node::shard::Shard;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use prost::Message;
use tessera_proto::{Epoch, Error, NodeId, Result, v1};
use tokio::sync::mpsc;

/// Name of the mark of an unfinished installation.
pub const INSTALLING: &str = "INSTALLING";
/// Largest header of a snapshot: manifest, and writes of prepared transactions.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// A shard's state at one log position; files come separately.
#[derive(Clone, PartialEq, Message)]
pub struct Snapshot {
    /// Epoch of the last entry in it.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Index of the last entry in it.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Of the store; opaque.
    #[prost(bytes = "bytes", tag = "3")]
    pub manifest: Bytes,
    /// Image of the ledger.
    #[prost(bytes = "bytes", tag = "4")]
    pub ledger: Bytes,
    /// Files the manifest names and the prepared transactions staged.
    #[prost(message, repeated, tag = "5")]
    pub files: Vec<v1::SegmentRef>,
}

impl Snapshot {
    /// The last entry in it.
    pub fn at(&self) -> Position {
        Position::new(self.epoch, self.index)
    }
}

/// Makes segment files present and durable, fetching what is missing from `source`.
///
/// # Errors
/// Of the source, or 53100; what was fetched before stays.
pub async fn ensure_segments(
    shard: &Shard,
    transport: &dyn PeerTransport,
    source: NodeId,
    files: &[v1::SegmentRef],
) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    // One fetch at a time: a prefetch and a log entry may want the same file.
    let _gate = shard.fetch_gate.lock().await;
    let store = &shard.store;
    for segment in files {
        let (at, wanted) = (store.clone(), segment.clone());
        let here = tokio::task::spawn_blocking(move || at.keep_segment(&wanted.file)).await;
        if here.map_err(|e| Error::internal(format!("looking for a segment: {e}")))? {
            continue;
        }
        let id = shard.id;
        let request = v1::FetchFileRequest {
            group: id.group.0,
            shard: id.index,
            file: segment.file.clone(),
        };
        let mut chunks = transport.fetch_file(source, request).await?;
        // Four chunks in memory; the writer's disk sets the pace.
        let (sender, mut receiver) = mpsc::channel::<Result<Bytes>>(4);
        let (at, wanted) = (store.clone(), segment.clone());
        let written = tokio::task::spawn_blocking(move || {
            at.install_segment(&wanted, &mut std::iter::from_fn(|| receiver.blocking_recv()))
        });
        while let Some(chunk) = chunks.next().await {
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        drop(sender);
        written
            .await
            .map_err(|e| Error::internal(format!("writing a fetched segment: {e}")))??;
    }
    Ok(())
}

/// Fetches the leader's snapshot and its files; nothing is replaced yet.
///
/// # Errors
/// Of the leader, 08P01 when it is malformed, 53100.
pub async fn fetch_snapshot(
    shard: &Shard,
    transport: &dyn PeerTransport,
    leader: NodeId,
    epoch: Epoch,
) -> Result<Snapshot> {
    let id = shard.id;
    let request = v1::FetchSnapshotRequest {
        group: id.group.0,
        shard: id.index,
        epoch: epoch.0,
    };
    let mut chunks = transport.fetch_snapshot(leader, request).await?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(Error::protocol(format!(
                "snapshot of shard {id} is larger than {SNAPSHOT_BYTES_MAX} bytes"
            )));
        }
    }
    let snapshot = Snapshot::decode(bytes.freeze()).map_err(|e| Error::protocol(format!("malformed snapshot: {e}")))?;
    ensure_segments(shard, transport, leader, &snapshot.files).await?;
    Ok(snapshot)
}
