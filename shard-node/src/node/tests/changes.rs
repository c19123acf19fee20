//! Rows that are replaced and removed, over shards and copies.

use super::cluster::{Cluster, PATIENCE};
use tessera_proto::service::TimestampOracle;
use tessera_proto::{Result, Retry, Timestamp, TxnId, v1};
use tokio::time::Instant;

/// Replaces keys by themselves.
pub fn update(cluster: &Cluster, keys: &[i64]) -> v1::TableWrite {
    v1::TableWrite {
        removed: cluster.removal(keys).removed,
        ..cluster.write(keys)
    }
}

/// What a router does: reads at a new snapshot and tries, until nobody came between.
pub async fn until_done(cluster: &Cluster, write: impl Fn(&[i64]) -> v1::TableWrite) -> Result<Timestamp> {
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
