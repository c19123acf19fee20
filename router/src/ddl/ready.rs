//! Waits until new shards are served, so that a statement right after CREATE TABLE finds them.

use crate::cluster::statistics;
use crate::engine::VIEW_WAIT;
use crate::session::StatementContext;
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tessera_proto::{Error, NodeId, Result, ShardId};
use tokio::time::Instant;

/// Longest wait; a table whose leaders are slower exists anyway.
const SERVING_MAX: Duration = Duration::from_secs(10);
/// First pause between two looks at a leader; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Nodes asked at the same time.
const NODES_AT_ONCE: usize = 16;

/// Waits for the view to show `revision`, and for the shards' leaders. Returns a warning when they are late.
///
/// # Errors
/// The meta store does not get to the revision.
pub(super) async fn wait(context: &StatementContext, revision: u64, shards: &[ShardId]) -> Result<Vec<Error>> {
    context.engine.views().at_least(revision, VIEW_WAIT).await?;
    let until = Instant::now() + SERVING_MAX;
    let mut waiting: BTreeSet<ShardId> = shards.iter().copied().collect();
    let mut pause = PAUSE;
    while !waiting.is_empty() {
        for served in served(context, &waiting).await {
            waiting.remove(&served);
        }
        if waiting.is_empty() || Instant::now() >= until {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    // A leader may have started by winning a new epoch.
    context.engine.views().refresh().await?;
    match waiting.len() {
        0 => Ok(vec![]),
        late => Ok(vec![
            Error::new("01000", format!("{late} shards are not served yet"))
                .with_hint("SHOW SHARDS tells which; statements wait and retry for a while"),
        ]),
    }
}

/// Those of `waiting` whose present leader says that it leads them.
async fn served(context: &StatementContext, waiting: &BTreeSet<ShardId>) -> Vec<ShardId> {
    let view = context.engine.view();
    let mut leaders: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
    let mut out = vec![];
    for shard in waiting {
        match view.shards.get(shard) {
            Some(entry) => leaders.entry(entry.config.leader.node).or_default().push(*shard),
            // Dropped meanwhile: nothing to wait for.
            None => out.push(*shard),
        }
    }
    let directory = context.engine.directory();
    let ask = |(node, shards): (NodeId, Vec<ShardId>)| async move {
        let status = statistics::status(directory.as_ref(), node).await;
        let leads = |id: &ShardId| {
            status
                .iter()
                .flat_map(|s| &s.shards)
                .any(|s| s.leader && s.shard.as_ref().is_some_and(|r| r.id() == *id))
        };
        shards.into_iter().filter(leads).collect::<Vec<_>>()
    };
    let answers: Vec<_> = futures::stream::iter(leaders.into_iter().map(ask))
        .buffer_unordered(NODES_AT_ONCE)
        .collect()
        .await;
    out.extend(answers.into_iter().flatten());
    out
}
