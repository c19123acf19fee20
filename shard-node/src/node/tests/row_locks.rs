//! Rows locked without being changed: who waits for whom, who is left out, and what ends it.

use super::cluster::{Cluster, TABLE, code};
use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tessera_proto::service::{ShardService, TimestampOracle};
use tessera_proto::v1::RowLockMode::{self, KeyShare, NoKeyUpdate, Share, Update};
use tessera_proto::v1::lock_request::Wait;
use tessera_proto::{Result, Timestamp, TxnId, ipc, v1};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn keys(keys: &[i64]) -> bytes::Bytes {
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(keys.to_vec()))]).unwrap();
    ipc::encode(&schema, &[batch]).unwrap()
}

/// One request after the other of one transaction to shard 0.
struct Txn<'a> {
    cluster: &'a Cluster,
    id: TxnId,
    sequence: u64,
    lock_timeout_ms: u64,
}

impl<'a> Txn<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            id: TxnId::generate(),
            sequence: 0,
            lock_timeout_ms: 0,
        }
    }

    async fn lock_at(&mut self, at: Timestamp, mode: RowLockMode, wait: Wait, rows: &[i64]) -> Result<v1::LockReply> {
        self.sequence += 1;
        let (shard, service) = self.cluster.reference(0).await;
        let request = v1::LockRequest {
            shard: Some(shard),
            txn: self.id.to_wire(),
            sequence: self.sequence,
            meta_revision: self.cluster.views.refresh().await?.revision,
            deadline_ms: 20_000,
            locks: vec![v1::RowLocks {
                table: TABLE.0,
                schema_version: 1,
                mode: mode.into(),
                keys: keys(rows),
            }],
            read_at: at.0,
            lock_timeout_ms: self.lock_timeout_ms,
            wait: wait.into(),
        };
        service.lock(request).await
    }

    async fn lock(&mut self, mode: RowLockMode, wait: Wait, rows: &[i64]) -> Result<v1::LockReply> {
        let now = self.cluster.oracle.draw().await?;
        self.lock_at(now, mode, wait, rows).await
    }

    async fn undo(&self, sequence: u64, release: bool) {
        let (shard, service) = self.cluster.reference(0).await;
        let request = v1::UndoRequest {
            shard: Some(shard),
            txn: self.id.to_wire(),
            sequence,
            deadline_ms: 5_000,
            last: self.sequence,
            release,
        };
        service.undo(request).await.unwrap();
    }

    /// Asks whether it holds its locks still.
    async fn vote(&self) -> Result<v1::PrepareReply> {
        let (shard, service) = self.cluster.reference(0).await;
        let request = v1::PrepareRequest {
            shard: Some(shard),
            txn: self.id.to_wire(),
            home: Some(shard),
            deadline_ms: 5_000,
            open: true,
            ..v1::PrepareRequest::default()
        };
        service.prepare(request).await
    }

    async fn finish(&self, give_up: v1::finish_request::GiveUp) {
        let (shard, service) = self.cluster.reference(0).await;
        let request = v1::FinishRequest {
            shard: Some(shard),
            txn: self.id.to_wire(),
            commit_timestamp: 0,
            deadline_ms: 5_000,
            give_up: give_up.into(),
        };
        service.finish(request).await.unwrap();
    }

    async fn end(&self) {
        self.finish(v1::finish_request::GiveUp::No).await;
    }
}

/// Keeps transactions alive until this one waits.
async fn until_waiting(service: &Arc<dyn ShardService>, waiter: TxnId, alive: &[TxnId]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let request = v1::KeepAliveRequest {
            txns: alive.iter().map(|txn| txn.to_wire()).collect(),
            deadline_ms: 1_000,
        };
        let waits = service.keep_alive(request).await.unwrap().waits;
        if waits.iter().any(|wait| wait.waiter == waiter.to_wire()) {
            return;
        }
        assert!(Instant::now() < end, "it does not wait: {waits:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_of_postgresql_and_the_order_of_arrival() {
    let cluster = Cluster::new(1, 1).await;
    cluster.insert(0..10).await.unwrap();
    let (_, service) = cluster.reference(0).await;
    let [mut a, mut b, mut c, mut d] = [0; 4].map(|_| Txn::new(&cluster));
    a.lock(Share, Wait::Wait, &[1, 2]).await.unwrap();
    b.lock(KeyShare, Wait::Wait, &[1, 3]).await.unwrap();
    // Not waited for: none of the request's rows is locked.
    let blocked = b.lock(NoKeyUpdate, Wait::Try, &[4, 1]).await.unwrap().blocked;
    assert_eq!(blocked, TABLE.0);
    assert_eq!(c.lock(Update, Wait::Try, &[4]).await.unwrap().blocked, 0);
    let left_out = d.lock(Update, Wait::Skip, &[1, 2, 3, 4, 5]).await.unwrap().left_out;
    assert_eq!(left_out[0].keys, [0, 1, 2, 3]);
    // b waits for a; c comes later, wants less, and waits for both.
    let all = [a.id, b.id, c.id, d.id];
    let (b_id, c_id) = (b.id, c.id);
    let order = parking_lot::Mutex::new(vec![]);
    let waiting = async {
        tokio::join!(
            async {
                b.lock(NoKeyUpdate, Wait::Wait, &[1]).await.unwrap();
                order.lock().push('b');
                b.end().await;
            },
            async {
                until_waiting(&service, b_id, &all).await;
                c.lock(Share, Wait::Wait, &[1]).await.unwrap();
                order.lock().push('c');
            },
            async {
                until_waiting(&service, c_id, &all).await;
                order.lock().push('a');
                a.vote().await.unwrap();
                a.end().await;
            }
        )
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("all are served");
    assert_eq!(*order.lock(), ['a', 'b', 'c']);
    let activity = v1::ActivityRequest {
        deadline_ms: 1_000,
        locks_max: 100,
    };
    let activity = service.activity(activity).await.unwrap();
    assert_eq!(activity.transactions.len(), 2, "{activity:?}");
    assert_eq!(activity.locks.iter().filter(|lock| lock.granted).count(), 3);
    c.end().await;
    d.end().await;
    assert_eq!(code(d.vote().await), "40001");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_is_told_and_stays_locked_or_is_left_out() {
    let cluster = Cluster::new(1, 1).await;
    cluster.insert(0..10).await.unwrap();
    let before = cluster.oracle.draw().await.unwrap();
    let read_at = cluster.oracle.draw().await.unwrap();
    cluster.transact(TxnId::generate(), 3..4, read_at, |keys| cluster.removal(keys)).await.unwrap();
    let [mut a, mut b] = [0; 2].map(|_| Txn::new(&cluster));
    let error = a.lock_at(before, Update, Wait::Wait, &[2, 3]).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.retry), ("40001", tessera_proto::Retry::Restart));
    let left_out = b.lock_at(before, Update, Wait::Skip, &[1, 2, 3, 4]).await.unwrap().left_out;
    // 2 is locked by a, which got it although 3 was gone, and 3 too.
    assert_eq!(left_out[0].keys, [1, 2]);
    a.end().await;
    let left_out = b.lock_at(before, Update, Wait::Skip, &[2, 3]).await.unwrap().left_out;
    assert_eq!((&left_out[0].keys[..], &left_out[0].changed[..]), (&[][..], &[1][..]));
    // b did not keep the lock of the row that it was not given.
    assert_eq!(a.lock(Update, Wait::Try, &[3]).await.unwrap().blocked, 0);
    a.end().await;
    let mut c = Txn::new(&cluster);
    let write = cluster.write(&[3]);
    let (shard, service) = cluster.reference(0).await;
    let request = v1::WriteRequest {
        shard: Some(shard),
        txn: c.id.to_wire(),
        sequence: 1,
        meta_revision: cluster.views.refresh().await.unwrap().revision,
        deadline_ms: 20_000,
        writes: vec![write],
        read_at: 0,
        lock_timeout_ms: 0,
    };
    service.write(request).await.unwrap();
    // Its own row is not one that changed, whatever it was before.
    c.sequence = 1;
    c.lock_at(before, Update, Wait::Wait, &[3]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_end_by_the_clock_by_wish_and_by_undo() {
    let cluster = Cluster::new(1, 1).await;
    cluster.insert(0..10).await.unwrap();
    let (_, service) = cluster.reference(0).await;
    let [mut a, mut b] = [0; 2].map(|_| Txn::new(&cluster));
    a.lock(Update, Wait::Wait, &[1]).await.unwrap();
    a.lock(Update, Wait::Wait, &[2]).await.unwrap();
    b.lock_timeout_ms = 30;
    assert_eq!(code(b.lock(Share, Wait::Wait, &[1]).await), "55P03");
    b.lock_timeout_ms = 0;
    let both = [a.id, b.id];
    let b_id = b.id;
    let other = Txn {
        cluster: &cluster,
        id: b.id,
        sequence: 0,
        lock_timeout_ms: 0,
    };
    for (why, expected) in [
        (v1::finish_request::GiveUp::Cancelled, "57014"),
        (v1::finish_request::GiveUp::Deadlock, "40P01"),
    ] {
        let (waited, ()) = tokio::join!(b.lock(Share, Wait::Wait, &[1]), async {
            until_waiting(&service, b_id, &both).await;
            other.finish(why).await;
        });
        assert_eq!(code(waited), expected);
    }
    // A single statement that writes gives up by the clock too, and by wish.
    let read_at = cluster.oracle.draw().await.unwrap();
    let revision = cluster.views.refresh().await.unwrap().revision;
    let commit = |lock_timeout_ms| {
        let (cluster, id) = (&cluster, TxnId::generate());
        let work = async move {
            let (shard, service) = cluster.reference(0).await;
            let request = v1::CommitRequest {
                home: Some(shard),
                txn: id.to_wire(),
                meta_revision: revision,
                deadline_ms: 20_000,
                writes: vec![cluster.removal(&[1])],
                read_at: read_at.0,
                lock_timeout_ms,
                ..v1::CommitRequest::default()
            };
            service.commit(request).await
        };
        (id, work)
    };
    assert_eq!(code(commit(30).1.await), "55P03");
    let (id, work) = commit(0);
    let alone = Txn {
        cluster: &cluster,
        id,
        sequence: 0,
        lock_timeout_ms: 0,
    };
    let (waited, ()) = tokio::join!(work, async {
        until_waiting(&service, id, &both).await;
        alone.finish(v1::finish_request::GiveUp::Cancelled).await;
    });
    assert_eq!(code(waited), "57014");
    // What is taken back gives its locks back, or keeps them.
    a.undo(2, false).await;
    assert_eq!(b.lock(Share, Wait::Try, &[2]).await.unwrap().blocked, TABLE.0);
    a.undo(2, true).await;
    assert_eq!(b.lock(Share, Wait::Try, &[2]).await.unwrap().blocked, 0);
    assert_eq!(b.lock(Share, Wait::Try, &[1]).await.unwrap().blocked, TABLE.0);
    // Nobody speaks of a any more.
    b.lock(Share, Wait::Wait, &[1]).await.unwrap();
    assert_eq!(code(a.vote().await), "40001");
}
