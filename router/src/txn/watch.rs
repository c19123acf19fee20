//! Keeps open transactions alive at the nodes, and ends those that wait for each other.
//!
//! ```text
//!   every 250 ms, while there are any:   node 1 ◀── still working on {a, b} ──▶ a waits for b
//!                                        node 2 ◀── still working on {a, b} ──▶ b waits for a      circle: the younger gives up
//! ```
//!
//! Every node is asked, so a circle over any shards is seen by each router that has a part in it, and all of them choose the same
//! victim: the youngest. Edges of different nodes are not of one moment, so a circle counts when it is seen twice. Who stands before
//! another in line counts as a holder: nothing overtakes. Single statements that commit over several shards wait in circles too, so
//! nodes are asked as well while one of them takes long.

use crate::engine::Engine;
use crate::txn::driver;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::v1::finish_request::GiveUp;
use tessera_proto::{Result, ShardId, TxnId, v1};
use tokio::time::{Instant, MissedTickBehavior};

/// Between two signs of life: a node forgets a transaction after eight of them.
const INTERVAL: Duration = Duration::from_millis(250);
/// A commit that takes longer than most.
const SLOW: Duration = Duration::from_millis(300);
/// Longest single call.
const CALL_MAX: Duration = Duration::from_secs(1);

/// Transactions of this router that have something at shards and are not decided, with the numbers of their sessions.
#[derive(Debug, Default)]
pub(crate) struct OpenTransactions {
    /// Statement by statement: they are kept alive.
    open: Mutex<BTreeMap<TxnId, i32>>,
    /// Single statements that commit, and since when.
    committing: Mutex<BTreeMap<TxnId, (i32, Instant)>>,
}

impl OpenTransactions {
    /// Adds one that is kept alive.
    pub(crate) fn insert(&self, txn: TxnId, session: i32) {
        self.open.lock().insert(txn, session);
    }

    /// Removes one.
    pub(crate) fn remove(&self, txn: TxnId) {
        self.open.lock().remove(&txn);
    }

    /// Adds a single statement that commits.
    pub(crate) fn begin_commit(&self, txn: TxnId, session: i32) {
        self.committing.lock().insert(txn, (session, Instant::now()));
    }

    /// Removes it.
    pub(crate) fn end_commit(&self, txn: TxnId) {
        self.committing.lock().remove(&txn);
    }

    /// The session of each transaction that is known here.
    pub(crate) fn sessions(&self) -> BTreeMap<TxnId, i32> {
        let mut all = self.open.lock().clone();
        let committing = self.committing.lock();
        all.extend(committing.iter().map(|(txn, (session, _))| (*txn, *session)));
        all
    }

    /// Whether a single statement commits for so long that it may wait for rows of others.
    fn any_slow(&self) -> bool {
        let committing = self.committing.lock();
        committing.values().any(|(_, since)| since.elapsed() >= SLOW)
    }

    fn kept_alive(&self) -> BTreeSet<TxnId> {
        self.open.lock().keys().copied().collect()
    }
}

/// Runs until the router stops.
pub(crate) async fn run(engine: Arc<Engine>) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut suspects = BTreeSet::new();
    loop {
        tokio::select! {
            () = engine.stop().cancelled() => return,
            _ = tick.tick() => {}
        }
        let txns = engine.open_transactions().kept_alive();
        if txns.is_empty() && !engine.open_transactions().any_slow() {
            suspects.clear();
            continue;
        }
        let waits = tokio::select! {
            () = engine.stop().cancelled() => return,
            waits = ask(&engine, &txns) => waits,
        };
        let edges: Vec<(TxnId, TxnId)> = waits.iter().map(|w| (w.waiter, w.holder)).collect();
        let victims = victims(&edges);
        let mut told = BTreeSet::new();
        for wait in waits
            .iter()
            .filter(|w| victims.contains(&w.waiter) && suspects.contains(&w.waiter))
            .filter(|w| told.insert((w.waiter, w.shard)))
        {
            tracing::info!(txn = %wait.waiter, holder = %wait.holder, "deadlock: the youngest transaction gives up");
            if let Err(error) = driver::give_up(&engine, wait.shard, wait.waiter, GiveUp::Deadlock).await {
                tracing::debug!(txn = %wait.waiter, %error, "a deadlock could not be broken yet");
            }
        }
        suspects = victims;
    }
}

/// A transaction that waits for another one's rows in a shard.
struct Wait {
    waiter: TxnId,
    holder: TxnId,
    shard: ShardId,
}

/// Tells all nodes and returns who waits; a node that does not answer has none.
async fn ask(engine: &Engine, txns: &BTreeSet<TxnId>) -> Vec<Wait> {
    let request = v1::KeepAliveRequest {
        txns: txns.iter().map(|txn| txn.to_wire()).collect(),
        deadline_ms: CALL_MAX.as_millis() as u64,
    };
    let view = engine.view();
    let asked = view.nodes.keys().map(|node| {
        let request = request.clone();
        async move { engine.directory().node(*node)?.keep_alive(request).await }
    });
    let replies: Vec<Result<v1::KeepAliveReply>> = futures::future::join_all(asked).await;
    let waits = replies.into_iter().flatten().flat_map(|reply| reply.waits);
    waits
        .filter_map(|wait| {
            Some(Wait {
                waiter: TxnId::from_wire(&wait.waiter).ok()?,
                holder: TxnId::from_wire(&wait.holder).ok()?,
                shard: wait.shard?.id(),
            })
        })
        .collect()
}

/// The youngest of every circle, until there is none.
fn victims(edges: &[(TxnId, TxnId)]) -> BTreeSet<TxnId> {
    let mut holders: BTreeMap<TxnId, BTreeSet<TxnId>> = BTreeMap::new();
    for (waiter, holder) in edges {
        holders.entry(*waiter).or_default().insert(*holder);
    }
    let mut victims = BTreeSet::new();
    // Ids ascend with time. The youngest that can reach itself is the youngest of some circle.
    while let Some(victim) = holders
        .keys()
        .rev()
        .find(|txn| reaches_itself(&holders, **txn))
        .copied()
    {
        holders.remove(&victim);
        victims.insert(victim);
    }
    victims
}

fn reaches_itself(holders: &BTreeMap<TxnId, BTreeSet<TxnId>>, txn: TxnId) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![txn]);
    while let Some(at) = next.pop() {
        for holder in holders.get(&at).into_iter().flatten() {
            if *holder == txn {
                return true;
            }
            if seen.insert(*holder) {
                next.push(*holder);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_of_each_circle_gives_up() {
        let mut ids: Vec<TxnId> = (0..6).map(|_| TxnId::generate()).collect();
        ids.sort();
        let edges = |pairs: &[(usize, usize)]| pairs.iter().map(|(a, b)| (ids[*a], ids[*b])).collect::<Vec<_>>();
        let found = |pairs: &[(usize, usize)]| {
            let victims = victims(&edges(pairs));
            ids.iter()
                .enumerate()
                .filter(|(_, id)| victims.contains(id))
                .map(|(i, _)| i)
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&[(1, 0), (2, 1), (3, 1)]), Vec::<usize>::new());
        assert_eq!(found(&[(0, 1), (1, 0)]), [1]);
        assert_eq!(found(&[(0, 1), (1, 2), (2, 0), (5, 0)]), [2]);
        assert_eq!(found(&[(0, 1), (1, 0), (3, 4), (4, 3), (5, 4)]), [1, 4]);
        // Two circles through one transaction, and one that waits in two places.
        assert_eq!(found(&[(0, 3), (3, 0), (1, 3), (3, 1)]), [3]);
        assert_eq!(found(&[(0, 1), (0, 2), (2, 0)]), [2]);
    }
}
