//! Copies of reference tables for nodes that joined after the tables were made.
//!
//! ```text
//!   nodes 1 2 3      reference group: leader 1, in sync 1 2      ──▶  learners + 3, epoch + 1
//! ```
//!
//! The leader brings learners up to date and takes them into the in-sync set. Not here: moving shards of sharded tables
//! to new nodes.

use crate::cluster::bootstrap::put;
use crate::engine::Engine;
use tessera_meta::Expect;
use tessera_meta::view::{ClusterView, ShardEntry};
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::{Epoch, Result, ShardId, keys};

/// Adds missing learners, one compare-and-swap per group; a lost one is tried again at the next poll.
///
/// # Errors
/// The meta store's.
pub async fn add_reference_copies(engine: &Engine) -> Result<()> {
    let view = engine.view();
    let alive = engine.statistics();
    for group in view.groups.values().filter(|g| g.reference) {
        for (shard, entry) in view.group_shards(group.id) {
            if let Some(config) = with_learners(&view, entry, |node| alive.is_alive(node)) {
                add(engine, shard, entry.revision, &config).await?;
            }
        }
    }
    Ok(())
}

fn with_learners(
    view: &ClusterView,
    entry: &ShardEntry,
    alive: impl Fn(tessera_proto::NodeId) -> bool,
) -> Option<ShardConfig> {
    let mut config = entry.config.clone();
    // A wiped disk is a new replica, but its node may still be listed with the old one: the leader removes that first.
    let missing = view
        .nodes
        .values()
        .filter(|n| config.replica_on(n.id).is_none() && alive(n.id));
    let missing: Vec<_> = missing.map(|n| n.replica()).collect();
    if missing.is_empty() {
        return None;
    }
    config.learners.extend(missing);
    config.epoch = Epoch(config.epoch.0 + 1);
    Some(config)
}

async fn add(engine: &Engine, shard: ShardId, revision: u64, config: &ShardConfig) -> Result<()> {
    let op = put(keys::shard(shard), Expect::Revision(revision), config)?;
    let outcome = engine.views().store().cas(vec![op]).await?;
    if outcome.applied {
        tracing::info!(%shard, epoch = %config.epoch, learners = config.learners.len(), "reference tables get copies on new nodes");
    }
    Ok(())
}
