//! Rows that are replaced and removed, over shards and copies.

use super::cluster::{Cluster, PATIENCE};
use std::sync::atomic::Ordering;
use tessera_proto::service::TimestampOracle;
use tessera_proto::{Result, Retry, Timestamp, TxnId, v1};
use tokio::time::Instant;

/// Replaces keys by themselves.
fn update(cluster: &Cluster, keys: &[i64]) -> v1::TableWrite {
    v1::TableWrite {
        removed: cluster.removal(keys).removed,
        ..cluster.write(keys)
    }
}

/// What a router does: reads at a new snapshot and tries, until nobody came between.
async fn until_done(cluster: &Cluster, write: impl Fn(&[i64]) -> v1::TableWrite) -> Result<Timestamp> {
    let end = Instant::now() + PATIENCE;
    loop {
        let read_at = cluster.oracle.draw().await?;
        match cluster.transact(TxnId::generate(), 0..100, read_at, &write).await {
            Err(error) if (error.is_retryable() || error.retry == Retry::Restart) && Instant::now() < end => {}
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_replaced_and_removed_on_every_copy() {
    let mut cluster = Cluster::new(3, 4).await;
    cluster.insert(0..1_000).await.unwrap();
    let before = cluster.oracle.draw().await.unwrap();
    until_done(&cluster, |keys| update(&cluster, keys)).await.unwrap();
    assert_eq!(cluster.rows().await, 1_000);
    until_done(&cluster, |keys| cluster.removal(keys)).await.unwrap();
    assert_eq!(cluster.rows().await, 900);
    cluster.assert_copies_equal().await;
    let old: u64 = futures::future::join_all((0..4).map(|shard| cluster.digest_at(shard, before)))
        .await
        .into_iter()
        .map(|(_, rows, _)| rows)
        .sum();
    assert_eq!(old, 1_000, "an older snapshot sees what was there");
    cluster.insert(0..100).await.unwrap();
    for clean in [false, true] {
        cluster.restart_all(clean).await;
        assert_eq!(cluster.rows().await, 1_000);
        cluster.assert_copies_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_since_it_was_read_is_not_changed_again() {
    let cluster = Cluster::new(2, 4).await;
    cluster.insert(0..100).await.unwrap();
    let read_at = cluster.oracle.draw().await.unwrap();
    until_done(&cluster, |keys| update(&cluster, keys)).await.unwrap();
    for write in [update, |cluster: &Cluster, keys: &[i64]| cluster.removal(keys)] {
        let late = cluster
            .transact(TxnId::generate(), 0..100, read_at, |keys| write(&cluster, keys))
            .await;
        let late = late.unwrap_err();
        assert_eq!((late.code.as_str(), late.retry), ("40001", Retry::Restart), "{late}");
    }
    // A row twice, and one that was never there.
    let now = cluster.oracle.draw().await.unwrap();
    let twice = |keys: &[i64]| cluster.removal(&[keys, keys].concat());
    let result = cluster.transact(TxnId::generate(), 0..100, now, twice).await;
    assert_eq!(result.unwrap_err().code, "08P01");
    let result = cluster
        .transact(TxnId::generate(), 500..600, now, |keys| cluster.removal(keys))
        .await;
    assert_eq!(result.unwrap_err().retry, Retry::Restart);
    assert_eq!(cluster.rows().await, 100);
    cluster.assert_copies_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_racing_removals_one_wins() {
    let cluster = Cluster::new(2, 4).await;
    cluster.insert(0..100).await.unwrap();
    let read_at = cluster.oracle.draw().await.unwrap();
    let racers = (0..8).map(|_| cluster.transact(TxnId::generate(), 0..100, read_at, |keys| cluster.removal(keys)));
    let results = futures::future::join_all(racers).await;
    assert!(results.iter().filter(|r| r.is_ok()).count() <= 1);
    for error in results.into_iter().filter_map(Result::err) {
        assert!(["40001", "40P01"].contains(&error.code.as_str()), "{error:?}");
    }
    cluster.assert_copies_equal().await;
}

/// All rows of a shard go, and rows with the keys given come.
fn refill(cluster: &Cluster, keys: &[i64]) -> v1::TableWrite {
    v1::TableWrite {
        truncated: true,
        ..cluster.write(keys)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_shards_are_equal_on_every_copy() {
    let mut cluster = Cluster::new(3, 4).await;
    cluster.insert(0..1_000).await.unwrap();
    let before = cluster.oracle.draw().await.unwrap();
    until_done(&cluster, |keys| refill(&cluster, keys)).await.unwrap();
    assert_eq!(cluster.rows().await, 100);
    cluster.assert_copies_equal().await;
    for clean in [false, true] {
        cluster.restart_all(clean).await;
        assert_eq!(cluster.rows().await, 100);
        cluster.assert_copies_equal().await;
        let old = futures::future::join_all((0..4).map(|shard| cluster.digest_at(shard, before))).await;
        assert_eq!(old.into_iter().map(|(_, rows, _)| rows).sum::<u64>(), 1_000);
    }
    // Rows that were truncated are free, and cannot be changed.
    cluster.insert(500..600).await.unwrap();
    let late = cluster.transact(TxnId::generate(), 600..700, before, |keys| cluster.removal(keys));
    assert_eq!(late.await.unwrap_err().retry, Retry::Restart);
    cluster.assert_copies_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_came_since_begins_an_upsert_again() {
    let cluster = Cluster::new(2, 4).await;
    let read_at = cluster.oracle.draw().await.unwrap();
    cluster.insert(0..100).await.unwrap();
    let insert = |at| cluster.transact(TxnId::generate(), 50..150, at, |keys| cluster.write(keys));
    assert_eq!(insert(read_at).await.unwrap_err().code, "23505");
    cluster.upserts.store(true, Ordering::Relaxed);
    let late = insert(read_at).await.unwrap_err();
    assert_eq!((late.code.as_str(), late.retry), ("40001", Retry::Restart));
    // The statement saw the keys and gives them a second time.
    let now = cluster.oracle.draw().await.unwrap();
    assert_eq!(insert(now).await.unwrap_err().code, "23505");
    assert_eq!(cluster.rows().await, 100);
}
