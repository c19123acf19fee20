//! What a node does by itself: follow the cluster view, beat, resolve what is in doubt, seal.
//!
//! ```text
//!   view     shards that name this disk are opened, those that are gone are removed, configurations go to the machines
//!   beat     every 200 ms to every node; who is alive goes to the machines
//!   doubt    open and its router silent? drop. Prepared for too long? ask home. Committed at home? tell the participants, then log End
//!   upkeep   seal big deltas, cut the log, forget old staged files, move the watermark
//!   sweep    let go of what tasks of queries held that have ended
//! ```

use super::ShardNode;
use super::shard::{Chore, Shard};
use crate::replication::message::Event;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ClusterView;
use tessera_proto::v1::outcome_reply::State;
use tessera_proto::v1::peer_message::Message;
use tessera_proto::{Error, Result, ShardId, Timestamp, TxnId, v1};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Between looks for transactions in doubt.
const DOUBT_INTERVAL: Duration = Duration::from_millis(200);
/// Longest attempt to resolve or finish one transaction.
const DOUBT_TIMEOUT: Duration = Duration::from_secs(5);
/// Transactions resolved at the same time.
const DOUBT_AT_ONCE: usize = 16;
/// Between rounds of upkeep.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A delta above this many rows or bytes is sealed.
const DELTA_MAX: (usize, usize) = (128 << 10, 32 << 20);
/// Log files above this make the shard that holds the oldest seal.
const LOG_BYTES_MAX: u64 = 512 << 20;

/// Longest wait for the oracle's time.
const DRAW_TIMEOUT: Duration = Duration::from_secs(1);

/// Follows the cluster view until `stop`.
pub async fn follow_view(node: Arc<ShardNode>, stop: CancellationToken) {
    let mut changes = node.views.changes();
    // News that did not fit into an inbox are repeated.
    let mut again = interval(UPKEEP_INTERVAL);
    again.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seen = None;
    loop {
        changes.borrow_and_update();
        let view = node.views.current();
        if seen.replace(view.revision) != Some(view.revision) {
            node.transport.set_peers(&view.nodes);
            open_and_close(&node, &view).await;
        } else if !node.offline().is_empty() {
            // What could not be opened may have been a full disk, or a meta store that was away.
            open_missing(&node, &view).await;
        }
        for shard in node.shards() {
            if let Some(entry) = view.shards.get(&shard.id) {
                shard.post(Event::ConfigChanged {
                    config: entry.config.clone(),
                    revision: entry.revision,
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            _ = again.tick() => {}
        }
    }
}

async fn open_missing(node: &Arc<ShardNode>, view: &Arc<ClusterView>) {
    let mine = view
        .shards
        .iter()
        .filter(|(_, e)| e.config.replicas().any(|r| r == node.id))
        .map(|(id, _)| *id);
    let missing: Vec<ShardId> = mine.filter(|id| node.shard(*id).is_none()).collect();
    futures::stream::iter(missing)
        .for_each_concurrent(8, |id| async move {
            if let Err(error) = node.open_shard(id).await
                && node.note_offline(id, &error)
            {
                tracing::error!(%error, shard = %id, "a shard cannot be opened; it is offline on this node");
            }
        })
        .await;
}

async fn open_and_close(node: &Arc<ShardNode>, view: &Arc<ClusterView>) {
    open_missing(node, view).await;
    let gone: Vec<ShardId> = node
        .shards()
        .iter()
        .map(|s| s.id)
        .filter(|id| !view.shards.contains_key(id))
        .collect();
    for id in gone {
        node.remove_shard(id).await;
    }
    drop_tables(node).await;
}

/// Rows of tables that are no more.
async fn drop_tables(node: &Arc<ShardNode>) {
    for shard in node.shards() {
        // Tables first, catalog second: rows came under a catalog at most this new, so what it lacks was dropped.
        let tables = shard.store.tables();
        let view = node.views.current();
        for table in tables.into_iter().filter(|t| !view.tables.contains_key(t)) {
            let here = shard.clone();
            match tokio::task::spawn_blocking(move || here.store.drop_table(table)).await {
                Ok(Ok(())) => tracing::info!(shard = %shard.id, %table, "removed the rows of a dropped table"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, shard = %shard.id, %table, "rows of a dropped table stay for now")
                }
                Err(error) => tracing::error!(%error, "dropping a table failed"),
            }
        }
    }
}

/// Sends heartbeats and tells machines who is alive, until `stop`.
pub async fn beat(node: Arc<ShardNode>, stop: CancellationToken) {
    let mut tick = interval(node.lease_timings.beat);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut told = (Vec::new(), BTreeMap::new(), Instant::now() - UPKEEP_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (view, now) = (node.views.current(), node.begun.elapsed());
        for peer in view.nodes.keys().filter(|n| **n != node.id.node) {
            let sequence = node.leases.lock().beat(*peer, now);
            let beat = v1::Beat {
                boot: node.boot,
                sequence,
                reply: false,
            };
            node.transport.send(
                *peer,
                v1::PeerMessage {
                    message: Some(Message::Beat(beat)),
                },
            );
        }
        let alive = node.leases.lock().alive(now);
        let disks: BTreeMap<_, _> = view.nodes.values().map(|n| (n.id, n.disk)).collect();
        if alive == told.0 && disks == told.1 && told.2.elapsed() < UPKEEP_INTERVAL {
            continue;
        }
        for shard in node.shards() {
            shard.post(Event::Peers {
                alive: alive.clone(),
                disks: disks.clone(),
            });
        }
        told = (alive, disks, Instant::now());
    }
}

/// Pause between two looks for tasks that have ended.
const SWEEP_INTERVAL: Duration = Duration::from_millis(400);

/// Lets go of what tasks of queries held that have ended, until `stop`.
pub async fn sweep(node: Arc<ShardNode>, stop: CancellationToken) {
    let mut tick = interval(SWEEP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => tessera_proto::exchange::sweep(&node.worker),
        }
    }
}

/// Ends what a router left half done, until `stop`.
pub async fn resolve(node: Arc<ShardNode>, stop: CancellationToken) {
    let mut tick = interval(DOUBT_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let led: Vec<_> = node
            .shards()
            .into_iter()
            .filter(|s| s.status.borrow().leads.is_some_and(|l| l.ready))
            .collect();
        for shard in &led {
            node.drop_expired(shard).await;
        }
        let work: Vec<Doubt> = led.iter().flat_map(|shard| doubts(&node, shard)).collect();
        let all = futures::stream::iter(work).for_each_concurrent(DOUBT_AT_ONCE, |doubt| {
            let node = node.clone();
            async move {
                let (shard, txn) = (doubt.shard().id, doubt.txn());
                if let Err(error) = settle(&node, doubt).await {
                    tracing::debug!(%error, %shard, %txn, "a transaction stays undecided for now");
                }
            }
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = all => {}
        }
    }
}

enum Doubt {
    /// Prepared here for long; home knows.
    Prepared {
        shard: Arc<Shard>,
        txn: TxnId,
        home: ShardId,
    },
    /// Committed here; these may not know.
    Unfinished {
        shard: Arc<Shard>,
        txn: TxnId,
        timestamp: Timestamp,
        participants: Vec<ShardId>,
    },
}

impl Doubt {
    fn shard(&self) -> &Shard {
        match self {
            Self::Prepared { shard, .. } | Self::Unfinished { shard, .. } => shard,
        }
    }

    fn txn(&self) -> TxnId {
        match self {
            Self::Prepared { txn, .. } | Self::Unfinished { txn, .. } => *txn,
        }
    }
}

fn doubts(node: &ShardNode, shard: &Arc<Shard>) -> Vec<Doubt> {
    let (ledger, mut participant) = (shard.ledger.lock(), shard.participant.lock());
    let old = participant.in_doubt(
        ledger.prepared().keys(),
        ledger.unfinished().map(|u| u.0),
        node.begun.elapsed(),
        node.in_doubt_after,
    );
    let prepared = ledger.prepared().iter().filter(|(t, _)| old.contains(t));
    let prepared = prepared.map(|(txn, p)| Doubt::Prepared {
        shard: shard.clone(),
        txn: *txn,
        home: p.home,
    });
    let unfinished = ledger.unfinished().filter(|u| old.contains(&u.0));
    let unfinished = unfinished.map(|(txn, timestamp, participants)| Doubt::Unfinished {
        shard: shard.clone(),
        txn,
        timestamp,
        participants: participants.to_vec(),
    });
    prepared.chain(unfinished).collect()
}

async fn settle(node: &Arc<ShardNode>, doubt: Doubt) -> Result<()> {
    let until = Instant::now() + DOUBT_TIMEOUT;
    match doubt {
        Doubt::Prepared { shard, txn, home } => {
            let reply = node.ask_home(home, txn, true, until).await?;
            match reply.state() {
                State::Committed => {
                    node.finish_txn(shard.id, None, txn, Timestamp(reply.timestamp), until)
                        .await
                }
                State::Aborted => node.finish_txn(shard.id, None, txn, Timestamp(0), until).await,
                State::Pending | State::Committing => Ok(()),
            }
        }
        Doubt::Unfinished {
            shard,
            txn,
            timestamp,
            participants,
        } => {
            for participant in participants {
                tell(node, participant, txn, timestamp, until).await?;
            }
            shard
                .propose(crate::txn::entry::Logged::End(txn).encode(), until)
                .await
                .map(drop)
        }
    }
}

/// Finish at a participant's present leader; idempotent there.
async fn tell(
    node: &Arc<ShardNode>,
    participant: ShardId,
    txn: TxnId,
    timestamp: Timestamp,
    until: Instant,
) -> Result<()> {
    let view = node.views.current();
    // A shard that was dropped needs to know nothing.
    let Some(entry) = view.shards.get(&participant) else {
        return Ok(());
    };
    let reference = v1::ShardRef::new(participant, entry.config.epoch);
    if entry.config.leader == node.id {
        return node
            .finish_txn(participant, Some(reference), txn, timestamp, until)
            .await;
    }
    let left = until.saturating_duration_since(Instant::now()).as_millis() as u64;
    let request = v1::FinishRequest {
        give_up: false,
        shard: Some(reference),
        txn: txn.to_wire(),
        commit_timestamp: timestamp.0,
        deadline_ms: left.max(1),
    };
    node.directory
        .node(entry.config.leader.node)?
        .finish(request)
        .await
        .map(drop)
}

/// Keeps memory and the log small, until `stop`.
pub async fn upkeep(node: Arc<ShardNode>, stop: CancellationToken) {
    let mut tick = interval(UPKEEP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (log_bytes, oldest) = node.wal.retained();
        for shard in node.shards() {
            let (rows, bytes) = shard.store.delta_size();
            let holds_log = log_bytes > LOG_BYTES_MAX && oldest == Some(shard.id);
            if rows > DELTA_MAX.0 || bytes > DELTA_MAX.1 || holds_log {
                seal(&shard).await;
            }
        }
        node.discard_old().await;
        node.advance_watermark().await;
    }
}

impl ShardNode {
    /// Without the oracle's time nothing grows old.
    pub(super) async fn advance_watermark(&self) {
        if let Ok(Ok(now)) = timeout(DRAW_TIMEOUT, self.oracle.draw()).await {
            self.watermark.advance(now);
        }
    }
}

/// Seals one shard; failures are tried again in the next round.
pub async fn seal(shard: &Arc<Shard>) {
    let Some(answer) = shard.chore(Chore::Seal) else { return };
    let closed = |_| Err(Error::unavailable("the shard was closed"));
    if let Err(error) = answer.await.unwrap_or_else(closed) {
        tracing::warn!(%error, shard = %shard.id, "sealing failed");
    }
}
