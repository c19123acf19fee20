//! Three nodes in one process, through `ShardService` only: commits, copies, restarts, moves of leadership, crashes.

mod changes;
mod cluster;
mod compaction;
mod open;
mod repair;

use super::background;
use crate::replication::message::Event;
use cluster::{Cluster, PATIENCE, TABLE, code};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tessera_proto::service::ShardService;
use tessera_proto::v1::change_leader_request::Action;
use tessera_proto::{Error, TxnId, v1};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_on_every_copy_and_survive_restarts() {
    let mut cluster = Cluster::new(3, 4).await;
    cluster.insert(0..1_000).await.unwrap();
    let one = cluster.keys_of(2, 1_000..1_100)[0];
    cluster.insert(one..one + 1).await.unwrap();
    assert_eq!(cluster.rows().await, 1_001);
    assert_eq!(code(cluster.insert(one..one + 1).await), "23505");
    assert_eq!(code(cluster.insert(500..2_000).await), "23505");
    assert_eq!(cluster.rows().await, 1_001);
    cluster.assert_copies_equal().await;

    cluster.restart_all(false).await;
    assert_eq!(cluster.rows().await, 1_001);
    cluster.insert(5_000..5_100).await.unwrap();
    cluster.restart_all(true).await;
    assert_eq!(cluster.rows().await, 1_101);
    assert_eq!(code(cluster.insert(5_050..5_051).await), "23505");
    cluster.assert_copies_equal().await;
    assert_eq!(code(cluster.try_start(1, String::new()).await), "55006");
    cluster.restart_all(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_over_grpc() {
    let mut cluster = Cluster::over_grpc(3, 3).await;
    cluster.insert(0..500).await.unwrap();
    assert_eq!(code(cluster.insert(0..1).await), "23505");
    cluster.assert_copies_equal().await;
    stage(&cluster, TxnId::generate(), 1_000..2_000).await;
    cluster.halt(2).await;
    cluster
        .until_config(0, "the follower is taken out", |c| c.in_sync.len() == 1)
        .await;
    let own = cluster.keys_of(0, 500..600)[0];
    cluster.insert(own..own + 1).await.unwrap();
    cluster.wipe(2);
    cluster.start(2).await;
    cluster
        .until_config(0, "the new disk is in sync", |c| c.in_sync.len() == 2)
        .await;
    // Shard 1 had its leader on the wiped disk: its follower leads now.
    cluster
        .until_config(1, "the follower leads", |c| {
            c.leader.node.0 == 3 && c.in_sync.len() == 2
        })
        .await;
    cluster.restart_all(false).await;
    assert_eq!(cluster.rows().await, 501);
    for index in 0..3 {
        cluster
            .until_config(index, "all are in sync", |c| c.in_sync.len() == 2)
            .await;
    }
    cluster.assert_copies_equal().await;
    cluster.restart_all(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_inserts_of_a_key_have_one_winner() {
    let cluster = Arc::new(Cluster::new(2, 3).await);
    cluster.insert(0..1).await.unwrap();
    let racers = (0..6).map(|i| {
        let cluster = cluster.clone();
        // Some span shards, in different combinations.
        tokio::spawn(async move { cluster.try_insert(TxnId::generate(), 10..11 + (i % 3) * 20).await })
    });
    let mut won = 0;
    for racer in racers.collect::<Vec<_>>() {
        match racer.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert!(matches!(error.code.as_str(), "23505" | "40P01"), "{error:?}"),
        }
    }
    assert!(won <= 1, "{won} winners");
    let rows = cluster.rows().await;
    assert!(
        [1, 2, 22, 42].contains(&rows) && (won == 0) == (rows == 1),
        "{rows} rows, {won} winners"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_follower_leaves_and_comes_back_by_log_and_by_snapshot() {
    let mut cluster = Cluster::new(2, 1).await;
    cluster.insert(0..100).await.unwrap();
    cluster.halt(2).await;
    cluster.insert(100..200).await.unwrap();
    cluster
        .until_config(0, "the follower is taken out", |c| {
            c.in_sync.len() == 1 && c.learners.len() == 1
        })
        .await;
    cluster.start(2).await;
    cluster
        .until_config(0, "the follower is back by log", |c| c.in_sync.len() == 2)
        .await;
    cluster.assert_copies_equal().await;

    cluster.halt(2).await;
    cluster.wipe(2);
    cluster.insert(200..300).await.unwrap();
    let leader = cluster.node(1).shard(cluster.shard(0)).unwrap();
    super::background::seal(&leader).await;
    leader.post(Event::Released {
        upto: leader.store.checkpoint(),
    });
    cluster.start(2).await;
    let disk = cluster.node(2).replica().disk;
    let config = cluster
        .until_config(0, "the new disk is in sync", |c| c.in_sync.len() == 2)
        .await;
    assert!(
        config.in_sync.iter().any(|r| r.disk == disk) && config.learners.is_empty(),
        "{config:?}"
    );
    cluster.insert(300..310).await.unwrap();
    cluster.assert_copies_equal().await;
    cluster.restart_all(false).await;
    assert_eq!(cluster.rows().await, 310);
    cluster.assert_copies_equal().await;
}

async fn change_leader(cluster: &Cluster, node: u32, action: Action) -> tessera_proto::Result<u64> {
    let shard = Some(v1::ShardRef::new(cluster.shard(0), tessera_proto::Epoch(0)));
    let request = v1::ChangeLeaderRequest {
        shard,
        action: action.into(),
        deadline_ms: PATIENCE.as_millis() as u64,
    };
    cluster.node(node).change_leader(request).await.map(|r| r.epoch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_by_switch_and_by_promote() {
    let mut cluster = Cluster::new(2, 1).await;
    cluster.insert(0..50).await.unwrap();
    cluster
        .until_config(0, "both are in sync", |c| c.in_sync.len() == 2)
        .await;
    change_leader(&cluster, 1, Action::Switch).await.unwrap();
    assert_eq!(cluster.config(0).await.leader.node.0, 2);
    cluster.insert(50..100).await.unwrap();
    cluster.assert_copies_equal().await;
    assert_eq!(code(change_leader(&cluster, 1, Action::Promote).await), "55000");
    assert_eq!(code(change_leader(&cluster, 1, Action::Switch).await), "TS001");

    cluster.halt(2).await;
    let end = Instant::now() + PATIENCE;
    while let Err(error) = change_leader(&cluster, 1, Action::Promote).await {
        // The leader counts as alive until the grace has passed.
        assert!(error.code == "55000" && Instant::now() < end, "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.insert(100..150).await.unwrap();
    assert_eq!(cluster.rows().await, 150);
    cluster.start(2).await;
    cluster
        .until_config(0, "the old leader follows", |c| {
            c.in_sync.len() == 2 && c.leader.node.0 == 1
        })
        .await;
    cluster.assert_copies_equal().await;
}

/// Stages the keys that live in shard 0.
async fn stage(
    cluster: &Cluster,
    txn: TxnId,
    keys: std::ops::Range<i64>,
) -> (v1::StageReply, v1::ShardRef, Arc<dyn ShardService>, u64) {
    let (shard, service) = cluster.reference(0).await;
    let revision = cluster.views.current().revision;
    let begin = v1::StageBegin {
        shard: Some(shard),
        txn: txn.to_wire(),
        table: TABLE.0,
        schema_version: 1,
        meta_revision: revision,
        deadline_ms: 30_000,
    };
    let batch = cluster.batch(&cluster.keys_of(0, keys));
    let rows = Box::pin(RecordBatchStreamAdapter::new(
        batch.schema(),
        futures::stream::iter([Ok(batch)]),
    ));
    (service.stage(begin, rows).await.unwrap(), shard, service, revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staged_rows_are_on_every_copy_when_committed_and_nowhere_when_not() {
    let cluster = Cluster::new(2, 1).await;
    cluster.insert(0..10).await.unwrap();
    let files = |node: u32| {
        std::fs::read_dir(cluster.node(node).shard(cluster.shard(0)).unwrap().dir.join("seg"))
            .unwrap()
            .count()
    };
    let before = (files(1), files(2));
    let aborted = TxnId::generate();
    let (reply, shard, service, _) = stage(&cluster, aborted, 1_000..3_000).await;
    assert_eq!(
        (reply.rows, files(1) > before.0, files(2) > before.1),
        (2_000, true, true)
    );
    service
        .finish(v1::FinishRequest {
            give_up: false,
            shard: Some(shard),
            txn: aborted.to_wire(),
            commit_timestamp: 0,
            deadline_ms: 5_000,
        })
        .await
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while (files(1), files(2)) != before {
        assert!(Instant::now() < end, "staged files stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let txn = TxnId::generate();
    let (reply, shard, service, revision) = stage(&cluster, txn, 1_000..3_000).await;
    let payload = v1::table_write::Payload::Staged(v1::StagedSegments {
        segments: reply.segments,
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
    let first = service.commit(commit.clone()).await.unwrap();
    assert_eq!(
        service.commit(commit).await.unwrap(),
        first,
        "a repeated commit has the same outcome"
    );
    assert_eq!(cluster.rows().await, 2_010);
    assert_eq!(code(cluster.insert(2_500..2_501).await), "23505");
    cluster.assert_copies_equal().await;
}

/// Dies (halt, then restart from disk) at every step of a commit over several shards: all rows or none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_interrupted_at_any_step_applies_everywhere_or_nowhere() {
    let mut cluster = Cluster::new(3, 3).await;
    cluster.insert(0..30).await.unwrap();
    let points = [
        ("prepare.before_propose", 2),
        ("prepare.after_apply", 2),
        ("commit.before_draw", 1),
        ("commit.before_propose", 1),
        ("commit.after_apply", 1),
        ("apply.before_rows", 1),
        ("apply.after_rows", 1),
        ("finish.before_propose", 2),
        ("finish.after_apply", 3),
        ("outcome.before_tombstone", 1),
    ];
    for (round, (point, node)) in points.into_iter().enumerate() {
        let before = cluster.rows().await;
        let fired = Arc::new(AtomicBool::new(false));
        let flag = fired.clone();
        cluster.node(node).failpoints().set(Some(Arc::new(move |at| {
            // From the first hit on this node is dead until its restart.
            if at == point || flag.load(Ordering::SeqCst) {
                flag.store(true, Ordering::SeqCst);
                return Err(Error::outcome_unknown(format!("died at {at}")));
            }
            Ok(())
        })));
        let first = 1_000 * (round as i64 + 1);
        let result = tokio::time::timeout(
            Duration::from_secs(30),
            cluster.try_insert(TxnId::generate(), first..first + 30),
        )
        .await;
        cluster.halt(node).await;
        cluster.start(node).await;
        let rows = cluster.rows().await;
        assert!(
            rows == before || rows == before + 30,
            "{point}: {before} rows became {rows}"
        );
        if matches!(result, Ok(Ok(_))) {
            assert_eq!(rows, before + 30, "{point}: acknowledged rows are gone");
        }
        assert!(
            fired.load(Ordering::SeqCst) || point == "outcome.before_tombstone",
            "{point} was never reached"
        );
        // Nobody's locks stay: the same keys can be written, or are there.
        match cluster.insert(first..first + 30).await {
            Ok(_) => assert_eq!(rows, before, "{point}"),
            Err(error) => assert_eq!((error.code.as_str(), rows), ("23505", before + 30), "{point}"),
        }
        assert_eq!(cluster.rows().await, before + 30, "{point}");
    }
    cluster.assert_copies_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_serves_nothing_and_loses_nothing() {
    let cluster = Cluster::new(2, 1).await;
    cluster.insert(0..20).await.unwrap();
    // Both are alive; meta is reachable from both: the leader takes the follower out and goes on alone.
    cluster.network.cut(tessera_proto::NodeId(1), tessera_proto::NodeId(2));
    cluster.insert(20..40).await.unwrap();
    cluster
        .until_config(0, "the follower is taken out", |c| c.in_sync.len() == 1)
        .await;
    assert_eq!(code(change_leader(&cluster, 2, Action::Promote).await), "55000");
    cluster.network.heal();
    cluster
        .until_config(0, "the follower is back", |c| c.in_sync.len() == 2)
        .await;
    assert_eq!(cluster.rows().await, 40);
    cluster.assert_copies_equal().await;
}
