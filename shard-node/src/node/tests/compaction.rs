//! Copies that compact whenever they like, beside writers, through crashes, and while other copies catch up.

use super::changes::{until_done, update};
use super::cluster::{Cluster, PATIENCE, TABLE, code};
use super::{background, stage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tessera_proto::service::{ShardService, TimestampOracle};
use tessera_proto::{Error, Result, Timestamp, TxnId, v1};

/// Compacts one copy; nothing older than now is read any more.
async fn vacuum(cluster: &Cluster, node: u32, shard: u32) -> Result<v1::VacuumReply> {
    let request = v1::VacuumRequest {
        shard: Some(v1::ShardRef::new(cluster.shard(shard), tessera_proto::Epoch(0))),
        table: TABLE.0,
        deadline_ms: PATIENCE.as_millis() as u64,
        running: cluster.oracle.draw().await?.0,
    };
    cluster.node(node).vacuum(request).await
}

/// Rows of a copy that are gone and stored, and its files.
async fn dead_rows_and_files(cluster: &Cluster, node: u32, shard: u32) -> (u64, u64) {
    let request = v1::StatusRequest {
        statistics: true,
        running: 0,
    };
    let status = cluster.node(node).status(request).await.unwrap();
    let id = cluster.shard(shard);
    let shard = status.shards.into_iter().find(|s| s.shard.unwrap().id() == id).unwrap();
    let table = shard.tables.into_iter().find(|t| t.table == TABLE.0);
    table.map_or((0, 0), |t| (t.dead_rows, t.segments))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_compact_alone_have_the_same_rows() {
    let mut cluster = Cluster::new(2, 2).await;
    cluster.insert(0..1_000).await.unwrap();
    let before = cluster.oracle.draw().await.unwrap();
    for _ in 0..3 {
        until_done(&cluster, |keys| update(&cluster, keys)).await.unwrap();
    }
    until_done(&cluster, |keys| cluster.removal(keys)).await.unwrap();
    let leaders = [
        cluster.config(0).await.leader.node.0,
        cluster.config(1).await.leader.node.0,
    ];
    let mut removed = 0;
    for (shard, node) in leaders.into_iter().enumerate() {
        let done = vacuum(&cluster, node, shard as u32).await.unwrap();
        removed += done.rows_removed;
        assert_eq!(dead_rows_and_files(&cluster, node, shard as u32).await, (0, 1));
    }
    assert_eq!(removed, 400);
    // The followers did not.
    cluster.assert_copies_equal().await;
    assert_eq!(cluster.rows().await, 900);
    for (shard, leader) in leaders.into_iter().enumerate() {
        let follower = 3 - leader;
        assert!(dead_rows_and_files(&cluster, follower, shard as u32).await.0 > 0);
        assert_eq!(code(cluster.try_digest_at(shard as u32, before).await), "72000");
        vacuum(&cluster, follower, shard as u32).await.unwrap();
    }
    cluster.assert_copies_equal().await;
    for clean in [false, true] {
        cluster.restart_all(clean).await;
        assert_eq!(cluster.rows().await, 900);
        cluster.assert_copies_equal().await;
        // What a node refuses is durable: its own clock began anew.
        assert_eq!(code(cluster.try_digest_at(0, before).await), "72000");
    }
    cluster.insert(0..100).await.unwrap();
    assert_eq!(code(cluster.insert(50..60).await), "23505");
    assert_eq!(cluster.rows().await, 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_go_on_beside_compactions() {
    let cluster = Arc::new(Cluster::new(2, 2).await);
    cluster.insert(0..500).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let compactors = [1, 2].map(|node| {
        let (cluster, over) = (cluster.clone(), over.clone());
        tokio::spawn(async move {
            let mut removed = 0;
            while !over.load(Ordering::SeqCst) {
                for shard in 0..2 {
                    removed += vacuum(&cluster, node, shard).await.unwrap().rows_removed;
                }
            }
            removed
        })
    });
    for _ in 0..40 {
        until_done(&cluster, |keys| update(&cluster, keys)).await.unwrap();
    }
    until_done(&cluster, |keys| cluster.removal(keys)).await.unwrap();
    over.store(true, Ordering::SeqCst);
    for compactor in compactors {
        assert!(compactor.await.unwrap() > 0);
    }
    cluster.assert_copies_equal().await;
    assert_eq!(cluster.rows().await, 400);
    for (node, shard) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        vacuum(&cluster, node, shard).await.unwrap();
        assert_eq!(dead_rows_and_files(&cluster, node, shard).await, (0, 1));
    }
    cluster.assert_copies_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_it_compacts_has_its_rows() {
    let mut cluster = Cluster::new(2, 1).await;
    cluster.insert(0..300).await.unwrap();
    for point in ["compact.before_manifest", "compact.after_manifest"] {
        until_done(&cluster, |keys| update(&cluster, keys)).await.unwrap();
        for node in [1, 2] {
            let fired = Arc::new(AtomicBool::new(false));
            let flag = fired.clone();
            cluster.node(node).failpoints().set(Some(Arc::new(move |at| {
                if at == point || flag.load(Ordering::SeqCst) {
                    flag.store(true, Ordering::SeqCst);
                    return Err(Error::outcome_unknown(format!("died at {at}")));
                }
                Ok(())
            })));
            assert_eq!(code(vacuum(&cluster, node, 0).await), "40003", "{point}");
            assert!(fired.load(Ordering::SeqCst));
            cluster.halt(node).await;
            cluster.start(node).await;
            cluster
                .until_config(0, "both are in sync", |c| c.in_sync.len() == 2)
                .await;
            assert_eq!(cluster.rows().await, 300, "{point}");
        }
        cluster.assert_copies_equal().await;
    }
    for node in [1, 2] {
        vacuum(&cluster, node, 0).await.unwrap();
        assert_eq!(dead_rows_and_files(&cluster, node, 0).await, (0, 1));
    }
    cluster.assert_copies_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_needs_a_file_that_was_compacted_away_gets_a_snapshot() {
    let mut cluster = Cluster::new(2, 1).await;
    cluster.insert(0..10).await.unwrap();
    cluster.halt(2).await;
    cluster
        .until_config(0, "the follower is taken out", |c| c.in_sync.len() == 1)
        .await;
    let txn = TxnId::generate();
    let (reply, shard, service, revision) = stage(&cluster, txn, 1_000..3_000).await;
    let payload = v1::table_write::Payload::Staged(v1::StagedSegments {
        segments: reply.segments.clone(),
    });
    let write = v1::TableWrite {
        table: TABLE.0,
        schema_version: 1,
        payload: Some(payload),
        ..Default::default()
    };
    let commit = v1::CommitRequest {
        open: false,
        home: Some(shard),
        txn: txn.to_wire(),
        meta_revision: revision,
        deadline_ms: 30_000,
        participants: vec![],
        writes: vec![write],
        read_at: 0,
    };
    service.commit(commit).await.unwrap();
    let done = vacuum(&cluster, 1, 0).await.unwrap();
    assert_eq!((done.files_before, done.files_after), (2, 1));
    let leader = cluster.node(1).shard(cluster.shard(0)).unwrap();
    assert!(!leader.store.has_segment(&reply.segments[0].file));
    drop(leader);
    cluster.start(2).await;
    cluster
        .until_config(0, "the follower is back", |c| c.in_sync.len() == 2)
        .await;
    assert_eq!(cluster.rows().await, 2_010);
    cluster.assert_copies_equal().await;
    cluster.restart_all(false).await;
    cluster.assert_copies_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_by_itself_what_pays_off() {
    let cluster = Cluster::new(1, 1).await;
    cluster.insert(0..300).await.unwrap();
    until_done(&cluster, |keys| update(&cluster, keys)).await.unwrap();
    let shard = cluster.node(1).shard(cluster.shard(0)).unwrap();
    background::seal(&shard).await;
    // A quarter of its rows is dead, once nothing older than now is read.
    let now = cluster.oracle.draw().await.unwrap();
    let told = v1::StatusRequest {
        statistics: false,
        running: now.0,
    };
    cluster.node(1).status(told).await.unwrap();
    let tidy = async {
        while dead_rows_and_files(&cluster, 1, 0).await.0 > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tidy).await.expect("compacted by itself");
    assert_eq!(shard.compaction.finished().0, 1);
    assert_eq!(cluster.rows().await, 300);
    assert_eq!(code(cluster.try_digest_at(0, Timestamp(1)).await), "72000");
}
