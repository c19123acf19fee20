//! ALTER SHARD n OF t: moves leadership by asking the node that must act.
//!
//! ```text
//!   SWITCH LEADER                    the present leader drains and hands over
//!   PROMOTE                          an in-sync follower takes over from a dead leader
//!   FORCE PROMOTE ACCEPT DATA LOSS   any copy leads with whatever it has
//! ```
//!
//! The other tables of the colocation group move along: they share the shard.

use crate::cluster::catalog::StatementCatalog;
use crate::engine::VIEW_WAIT;
use crate::ingest::insert::find_table;
use crate::outcome::Outcome;
use crate::session::StatementContext;
use std::time::Duration;
use tessera_parser::{ObjectName, ShardAction};
use tessera_proto::shard_map::ShardConfig;
use tessera_proto::v1::change_leader_request::Action;
use tessera_proto::{Epoch, Error, NodeId, Result, ShardId, v1};
use tokio::time::Instant;

/// Longest single wait for the map to change.
const STEP: Duration = Duration::from_millis(500);

/// Runs it.
pub(crate) async fn run(
    context: &StatementContext,
    index: u32,
    table: &ObjectName,
    action: ShardAction,
) -> Result<Outcome> {
    let engine = &context.engine;
    engine.views().refresh().await?;
    let table = find_table(&StatementCatalog::new(context), table)?;
    let id = ShardId {
        group: table.group,
        index,
    };
    let view = engine.view();
    let Some(entry) = view.shards.get(&id) else {
        let count = view.group_shards(table.group).count();
        return Err(
            Error::new("42704", format!("table \"{}\" has no shard {index}", table.name))
                .with_hint(format!("its shards are 0 to {}", count.saturating_sub(1))),
        );
    };
    let (wire, candidates) = plan(&entry.config, action)?;
    let mut failure = Error::new(
        "55000",
        format!("shard {index} of table \"{}\" has no copy that could lead", table.name),
    );
    for node in candidates {
        match ask(context, id, entry.config.epoch, wire, node).await {
            Ok(epoch) => {
                settle(context, id, epoch).await;
                return Ok(Outcome::done("ALTER SHARD"));
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// What to ask, and of whom, in order.
fn plan(config: &ShardConfig, action: ShardAction) -> Result<(Action, Vec<NodeId>)> {
    let leader = config.leader;
    let followers: Vec<NodeId> = config
        .in_sync
        .iter()
        .filter(|r| **r != leader)
        .map(|r| r.node)
        .collect();
    let no_follower = || {
        let error = Error::new("55000", "the shard has no in-sync follower to hand over to");
        error.with_hint("wait until a second copy is in sync; SHOW SHARDS shows it")
    };
    match action {
        ShardAction::SwitchLeader if followers.is_empty() => Err(no_follower()),
        ShardAction::SwitchLeader => Ok((Action::Switch, vec![leader.node])),
        ShardAction::Promote if followers.is_empty() => Err(no_follower()),
        ShardAction::Promote => Ok((Action::Promote, followers)),
        ShardAction::ForcePromoteAcceptDataLoss => {
            // In-sync copies lose least, learners most.
            let learners = config.learners.iter().map(|r| r.node);
            Ok((Action::ForcePromote, followers.into_iter().chain(learners).collect()))
        }
    }
}

async fn ask(context: &StatementContext, id: ShardId, epoch: Epoch, action: Action, node: NodeId) -> Result<Epoch> {
    let service = context.engine.directory().node(node)?;
    let request = v1::ChangeLeaderRequest {
        shard: Some(v1::ShardRef::new(id, epoch)),
        action: action.into(),
        deadline_ms: context.deadline_ms().min(60_000),
    };
    Ok(Epoch(context.bounded(service.change_leader(request)).await?.epoch))
}

/// Waits until the view shows the change.
async fn settle(context: &StatementContext, id: ShardId, epoch: Epoch) {
    let until = Instant::now() + VIEW_WAIT;
    loop {
        let view = context.engine.view();
        if view.shards.get(&id).is_none_or(|e| e.config.epoch >= epoch) || Instant::now() >= until {
            return;
        }
        context.engine.views().newer(view.revision, STEP).await;
    }
}
