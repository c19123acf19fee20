//! Rows of a leaf that was planned a while ago: from whoever leads its shards now.
//!
//! ```text
//!   request {shards 0,3,6 at epochs 4,4,5}     view: 0,3 led by node 1 (epoch 4), 6 by node 2 (epoch 6)
//!      └─▶ node 1: {shards 0,3}   node 2: {shard 6 at epoch 6}    streams joined; a node that refuses: newer view, again
//! ```
//!
//! Splitting a leaf is sound because a leaf is what each shard could compute alone. The snapshot stays: whoever leads a shard now has
//! everything that was committed before it was drawn. Copies of reference tables are asked for by log index; a node that was
//! not meant to read its own copy when the leaf was planned gets the index from the copy's leader.
//!
//! Repeated only before the first row: afterwards the client has seen some.

use crate::view::{ClusterView, Retries, ViewKeeper};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use std::collections::BTreeMap;
use tessera_proto::fragment::LeafOwner;
use tessera_proto::service::NodeDirectory;
use tessera_proto::v1::{ExecuteRequest, ReadIndexRequest, ReferenceRead, ShardRef};
use tessera_proto::{Error, NodeId, Result};

/// The rows of a leaf, cast to `schema` by position. `here` is the node that asks, which then reads reference tables itself.
///
/// # Errors
/// The nodes'; 08006 or TS001 when a shard has no leader for longer than the waits.
pub async fn rows(
    views: &ViewKeeper,
    directory: &dyn NodeDirectory,
    here: Option<NodeId>,
    request: ExecuteRequest,
    schema: SchemaRef,
) -> Result<SendableRecordBatchStream> {
    let mut retries = Retries::default();
    loop {
        let view = views.current();
        match attempt(&view, directory, here, &request, &schema).await {
            Err(error) => retries.after(error, views, view.revision).await?,
            rows => return rows,
        }
    }
}

async fn attempt(
    view: &ClusterView,
    directory: &dyn NodeDirectory,
    here: Option<NodeId>,
    request: &ExecuteRequest,
    schema: &SchemaRef,
) -> Result<SendableRecordBatchStream> {
    let mut streams = vec![];
    for owner in owners(view, here, request)? {
        let request = covered(view, directory, owner.request).await?;
        streams.push(directory.node(owner.node)?.execute(request, schema.clone()).await?);
    }
    let joined = futures::stream::select_all(streams);
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema.clone(), joined.fuse())))
}

/// Who runs which part of `request` now.
fn owners(view: &ClusterView, here: Option<NodeId>, request: &ExecuteRequest) -> Result<Vec<LeafOwner>> {
    let mut nodes: BTreeMap<NodeId, Vec<ShardRef>> = BTreeMap::new();
    for shard in &request.shards {
        let id = shard.id();
        let entry = view.shards.get(&id);
        let entry = entry.ok_or_else(|| Error::stale_map(format!("shard {id} is gone; its table was dropped")))?;
        let current = ShardRef::new(id, entry.config.epoch);
        nodes.entry(entry.config.leader.node).or_default().push(current);
    }
    if nodes.is_empty() {
        let reference = request.references.first().and_then(|r| r.shard);
        let leader = || Some(view.shards.get(&reference?.id())?.config.leader.node);
        // A plan pruned to no shard at all reads nothing: any node will do.
        let any = || view.nodes.keys().next().copied();
        let node = here.or_else(leader).or_else(any);
        nodes.insert(
            node.ok_or_else(|| Error::unavailable("no node can read the leaf"))?,
            vec![],
        );
    }
    let owner = |(node, shards)| LeafOwner {
        node,
        request: ExecuteRequest {
            shards,
            ..request.clone()
        },
    };
    Ok(nodes.into_iter().map(owner).collect())
}

/// The request with log indexes at which any node may read its own copies of reference tables.
async fn covered(
    view: &ClusterView,
    directory: &dyn NodeDirectory,
    mut request: ExecuteRequest,
) -> Result<ExecuteRequest> {
    for reference in &mut request.references {
        let Some(shard) = reference.shard.map(|s| s.id()) else {
            return Err(Error::protocol("reference read names no shard"));
        };
        let entry = view.shards.get(&shard);
        let config = &entry
            .ok_or_else(|| Error::stale_map(format!("shard {shard} is gone")))?
            .config;
        let current = ShardRef::new(shard, config.epoch);
        let asked = ReadIndexRequest {
            shard: Some(current),
            snapshot: request.snapshot,
            deadline_ms: request.deadline_ms,
        };
        let leader = directory.node(config.leader.node)?;
        *reference = ReferenceRead {
            shard: Some(current),
            log_index: match reference.log_index {
                // Whoever led the copy then was to read it as it was; now anybody may.
                0 => leader.read_index(asked).await?.log_index,
                index => index,
            },
        };
    }
    Ok(request)
}
