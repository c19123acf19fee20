//! Open transactions at one leader: who waits, who gives up, what is dropped.

use super::cluster::{Cluster, code};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tessera_proto::service::ShardService;
use tessera_proto::{Result, TxnId, v1};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Adds a row with this key, in shard 0, to an open transaction.
async fn write(cluster: &Cluster, txn: TxnId, sequence: u64, key: i64) -> Result<v1::WriteReply> {
    let (shard, service) = cluster.reference(0).await;
    let request = v1::WriteRequest {
        shard: Some(v1::ShardRef {
            own: sequence > 1,
            ..shard
        }),
        txn: txn.to_wire(),
        sequence,
        meta_revision: cluster.views.refresh().await?.revision,
        deadline_ms: 20_000,
        writes: vec![cluster.write(&[key])],
        read_at: 0,
        lock_timeout_ms: 0,
        upsert: false,
    };
    service.write(request).await
}

async fn commit(cluster: &Cluster, txn: TxnId) -> Result<v1::CommitReply> {
    let (shard, service) = cluster.reference(0).await;
    let request = v1::CommitRequest {
        home: Some(shard),
        txn: txn.to_wire(),
        meta_revision: cluster.views.refresh().await?.revision,
        deadline_ms: 20_000,
        open: true,
        ..v1::CommitRequest::default()
    };
    service.commit(request).await
}

async fn give_up(cluster: &Cluster, txn: TxnId) {
    let (shard, service) = cluster.reference(0).await;
    let request = v1::FinishRequest {
        shard: Some(shard),
        txn: txn.to_wire(),
        commit_timestamp: 0,
        deadline_ms: 5_000,
        give_up: true,
    };
    service.finish(request).await.unwrap();
}

/// Keeps them alive until `waiter` waits for `holder`.
async fn until_waiting(service: &Arc<dyn ShardService>, waiter: TxnId, holder: TxnId) {
    let end = Instant::now() + PATIENCE;
    loop {
        let request = v1::KeepAliveRequest {
            txns: vec![waiter.to_wire(), holder.to_wire()],
            deadline_ms: 1_000,
        };
        let waits = service.keep_alive(request).await.unwrap().waits;
        if waits
            .iter()
            .any(|w| w.waiter == waiter.to_wire() && w.holder == holder.to_wire())
        {
            return;
        }
        assert!(Instant::now() < end, "nobody waits: {waits:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_ends_a_wait_and_nothing_else() {
    let cluster = Cluster::new(1, 1).await;
    let (_, service) = cluster.reference(0).await;
    let (first, second) = (TxnId::generate(), TxnId::generate());
    write(&cluster, first, 1, 7).await.unwrap();
    write(&cluster, second, 1, 8).await.unwrap();
    let (waiting, ()) = tokio::join!(write(&cluster, second, 2, 7), async {
        until_waiting(&service, second, first).await;
        give_up(&cluster, second).await;
    });
    assert_eq!(code(waiting), "40P01");
    // Neither waits now: both go on.
    give_up(&cluster, first).await;
    give_up(&cluster, second).await;
    write(&cluster, first, 2, 9).await.unwrap();
    // The same request once more is the same.
    write(&cluster, first, 2, 9).await.unwrap();
    commit(&cluster, first).await.unwrap();
    commit(&cluster, second).await.unwrap();
    assert_eq!(cluster.rows().await, 3);
    // A prepared transaction is its home's business.
    let (shard, service) = cluster.reference(0).await;
    let prepared = TxnId::generate();
    write(&cluster, prepared, 1, 20).await.unwrap();
    let request = v1::PrepareRequest {
        shard: Some(shard),
        txn: prepared.to_wire(),
        home: Some(shard),
        deadline_ms: 5_000,
        open: true,
        ..v1::PrepareRequest::default()
    };
    service.prepare(request).await.unwrap();
    give_up(&cluster, prepared).await;
    let ledger = cluster.node(1).shard(cluster.shard(0)).unwrap();
    assert!(ledger.ledger.lock().prepared().contains_key(&prepared));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_router_left_open_is_dropped() {
    let cluster = Cluster::new(1, 1).await;
    let (silent, next) = (TxnId::generate(), TxnId::generate());
    write(&cluster, silent, 1, 7).await.unwrap();
    // Waits for the lock of a transaction that nobody speaks of any more.
    write(&cluster, next, 1, 7).await.unwrap();
    assert_eq!(code(write(&cluster, silent, 2, 8).await), "40001");
    assert_eq!(code(commit(&cluster, silent).await), "40001");
    commit(&cluster, next).await.unwrap();
    assert_eq!(cluster.rows().await, 1);
}
