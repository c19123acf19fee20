//! Ends a transaction by an operator's wish: `SELECT tessera.resolve_transaction('...')`.
//!
//! ```text
//!   every node: Activity ─▶ prepared somewhere ─▶ home: Outcome(resolve) ─▶ committed | aborted ─▶ the shards are told
//!                        └▶ open only ─▶ dropped at its shards; its session fails with 40001
//! ```
//!
//! Safe at any moment: home alone decides, and refuses a commit that comes after the abort record. What is in doubt resolves by
//! itself a second after its router was last heard of; this is for who does not want to wait, or for a session that was forgotten.

use crate::engine::Engine;
use crate::txn::driver::at_leader;
use std::collections::BTreeSet;
use tessera_proto::v1::outcome_reply::State as Outcome;
use tessera_proto::v1::transaction_activity::State;
use tessera_proto::{Error, Result, ShardId, TxnId, v1};
use tokio::time::Instant;

/// Longest wait for a node's list.
const ASK_MS: u64 = 1_000;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// It was committed.
    Committed,
    /// It was aborted.
    Aborted,
}

impl Resolved {
    /// As it is answered.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        }
    }
}

/// Resolves a transaction that some shard knows.
///
/// # Errors
/// 42704 when none does; 55000 while it is committing; those of its shards' leaders.
pub(crate) async fn resolve(engine: &Engine, txn: TxnId, until: Instant) -> Result<Resolved> {
    let known = find(engine, txn).await;
    if known.is_empty() {
        let message = format!("transaction {txn} is not known to any shard");
        return Err(Error::new("42704", message).with_hint("SELECT * FROM tessera.transactions"));
    }
    let home = known.iter().find_map(|part| part.home.map(|home| home.id()));
    let timestamp = match home {
        None => 0,
        Some(home) => decide(engine, home, txn, until).await?,
    };
    let shards: BTreeSet<ShardId> = known
        .iter()
        .filter(|part| part.state() != State::Committed)
        .filter_map(|part| part.shard.map(|shard| shard.id()))
        .collect();
    for shard in shards {
        at_leader(engine, shard, until, |service, reference, deadline_ms| {
            let request = v1::FinishRequest {
                shard: Some(reference),
                txn: txn.to_wire(),
                commit_timestamp: timestamp,
                deadline_ms,
                ..v1::FinishRequest::default()
            };
            Box::pin(async move { service.finish(request).await.map(drop) })
        })
        .await?;
    }
    tracing::info!(%txn, timestamp, "a transaction was resolved by an operator");
    Ok(match timestamp {
        0 => Resolved::Aborted,
        _ => Resolved::Committed,
    })
}

/// The shards that know it, as far as nodes answer.
async fn find(engine: &Engine, txn: TxnId) -> Vec<v1::TransactionActivity> {
    let request = v1::ActivityRequest {
        deadline_ms: ASK_MS,
        locks_max: 0,
    };
    let view = engine.view();
    let asked = view.nodes.keys().map(|node| async move { engine.directory().node(*node)?.activity(request).await });
    let replies: Vec<Result<v1::ActivityReply>> = futures::future::join_all(asked).await;
    let all = replies.into_iter().flatten().flat_map(|reply| reply.transactions);
    all.filter(|part| part.txn == txn.to_wire()).collect()
}

/// Makes home decide; the commit timestamp, 0 for abort.
async fn decide(engine: &Engine, home: ShardId, txn: TxnId, until: Instant) -> Result<u64> {
    let asked = at_leader(engine, home, until, |service, reference, deadline_ms| {
        let request = v1::OutcomeRequest {
            home: Some(reference),
            txn: txn.to_wire(),
            resolve: true,
            deadline_ms,
        };
        Box::pin(async move { service.outcome(request).await })
    });
    let reply = asked.await?;
    match reply.state() {
        Outcome::Committed => Ok(reply.timestamp),
        Outcome::Aborted => Ok(0),
        Outcome::Committing | Outcome::Pending => {
            let message = format!("transaction {txn} is being committed");
            Err(Error::new("55000", message).with_hint("ask again"))
        }
    }
}
