//! The cluster view and its keeper.

use super::{delete, put};
use crate::local::LocalMeta;
use crate::view::{ClusterView, ViewKeeper};
use crate::{Entry, MetaStore, Op, Outcome};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tessera_proto::shard_map::{ClusterInfo, NodeInfo, ShardConfig};
use tessera_proto::table::{ColocationGroup, Distribution, TableDef, ViewDef};
use tessera_proto::{Epoch, GroupId, NodeId, ReplicaId, Result, Retry, ShardId, TableId, keys, token};
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(20);

fn json(key: String, value: &impl serde::Serialize) -> Op {
    put(&key, serde_json::to_vec(value).unwrap())
}

/// Ids as text; the crate `uuid` is no dependency of ours.
fn node(id: u32, address: &str) -> NodeInfo {
    let uuid = "00000000-0000-0000-0000-000000000001";
    serde_json::from_value(serde_json::json!({ "id": id, "disk": uuid, "address": address, "boot": uuid })).unwrap()
}

fn table(id: u64, name: &str, version: u64) -> TableDef {
    TableDef {
        id: TableId(id),
        schema: "s/1%".into(),
        name: name.into(),
        columns: vec![],
        primary_key: vec![],
        cluster_by: vec![],
        distribution: Distribution::Sharded { key: vec![] },
        group: GroupId(7),
        version,
    }
}

fn config(epoch: u64) -> ShardConfig {
    let leader: ReplicaId = node(1, "").replica();
    ShardConfig {
        epoch: Epoch(epoch),
        leader,
        in_sync: vec![leader],
        learners: vec![],
    }
}

fn shard(group: u64, index: u32) -> ShardId {
    ShardId {
        group: GroupId(group),
        index,
    }
}

/// A cluster with one table, one view and three groups' shards.
async fn filled() -> Arc<LocalMeta> {
    let store = LocalMeta::memory();
    let cluster: ClusterInfo = serde_json::from_value(
        serde_json::json!({ "cluster_id": "00000000-0000-0000-0000-00000000000a", "format_version": 1 }),
    )
    .unwrap();
    let view = ViewDef {
        id: TableId(21),
        schema: "s/1%".into(),
        name: "v".into(),
        columns: vec![],
        query: "SELECT 1".into(),
    };
    let group = ColocationGroup {
        id: GroupId(7),
        key_classes: vec![],
        ranges: token::equal_ranges(2),
        reference: false,
    };
    let mut ops = vec![
        json(keys::CLUSTER.into(), &cluster),
        json(keys::NEXT_ID.into(), &22),
        json(keys::ORACLE.into(), &1),
        put(&keys::schema("s/1%"), "{}"),
        json(keys::table(TableId(20)), &table(20, "t%2F", 1)),
        json(keys::name("s/1%", "t%2F"), &20),
        json(keys::view(TableId(21)), &view),
        json(keys::name("s/1%", "v"), &21),
        json(keys::group(GroupId(7)), &group),
        json(keys::node(NodeId(1)), &node(1, "")),
        put("/of-a-later-version/x", "?"),
    ];
    ops.extend([shard(6, 9), shard(7, 0), shard(7, 1), shard(8, 0)].map(|id| json(keys::shard(id), &config(1))));
    assert!(store.cas(ops).await.unwrap().applied);
    store
}

fn check_filled(view: &ClusterView) {
    assert_eq!(view.table("s/1%", "t%2F").unwrap().id, TableId(20));
    assert_eq!(view.view("s/1%", "v").unwrap().query, "SELECT 1");
    assert!(view.table("s/1%", "v").is_none() && view.view("s/1%", "t%2F").is_none() && view.table("s", "v").is_none());
    assert!(view.cluster.is_some() && view.schemas.contains("s/1%") && view.nodes.contains_key(&NodeId(1)));
    assert_eq!(view.groups[&GroupId(7)].ranges.len(), 2);
    let shards: Vec<_> = view
        .group_shards(GroupId(7))
        .map(|(id, entry)| (id, entry.revision))
        .collect();
    assert_eq!(shards, [(shard(7, 0), 1), (shard(7, 1), 1)]);
}

#[tokio::test]
async fn follows_the_store_and_decodes_only_changes() {
    let store = filled().await;
    let keeper = ViewKeeper::start(store.clone()).await.unwrap();
    let first = keeper.current();
    check_filled(&first);

    let mut changes = keeper.changes();
    let ops = vec![
        json(keys::shard(shard(7, 1)), &config(2)),
        delete(&keys::shard(shard(6, 9))),
        delete(&keys::name("s/1%", "v")),
    ];
    let revision = store.cas(ops).await.unwrap().revision;
    tokio::time::timeout(LONG, changes.wait_for(|now| *now >= revision))
        .await
        .unwrap()
        .unwrap();
    let second = keeper.current();
    assert!(Arc::ptr_eq(
        first.table("s/1%", "t%2F").unwrap(),
        second.table("s/1%", "t%2F").unwrap()
    ));
    let moved = &second.shards[&shard(7, 1)];
    assert_eq!(
        (moved.config.epoch, moved.revision, second.shards[&shard(7, 0)].revision),
        (Epoch(2), revision, 1)
    );
    assert!(!second.shards.contains_key(&shard(6, 9)) && second.view("s/1%", "v").is_none());
    check_filled(&first);
    keeper.shutdown().await;
}

#[tokio::test]
async fn a_recreated_key_is_not_taken_for_the_old_one() {
    let store = filled().await;
    let keeper = ViewKeeper::start(store.clone()).await.unwrap();
    keeper.shutdown().await;
    store.cas(vec![delete(&keys::table(TableId(20)))]).await.unwrap();
    store
        .cas(vec![json(keys::table(TableId(20)), &table(20, "t%2F", 2))])
        .await
        .unwrap();
    assert_eq!(keeper.refresh().await.unwrap().tables[&TableId(20)].version, 2);
}

#[tokio::test]
async fn at_least_reads_the_store_itself_and_gives_up_in_time() {
    let store = filled().await;
    let keeper = ViewKeeper::start(store.clone()).await.unwrap();
    keeper.shutdown().await;
    let revision = store
        .cas(vec![json(keys::node(NodeId(2)), &node(2, "h:1"))])
        .await
        .unwrap()
        .revision;
    assert_eq!(keeper.current().nodes.len(), 1, "no one watches any more");
    assert_eq!(keeper.at_least(revision, LONG).await.unwrap().nodes.len(), 2);
    let error = keeper
        .at_least(revision + 1, Duration::from_millis(10))
        .await
        .unwrap_err();
    assert_eq!(error.retry, Retry::Elsewhere);

    let (later, written) = tokio::join!(keeper.at_least(revision + 1, LONG), store.cas(vec![put("/x", "")]));
    assert_eq!(later.unwrap().revision, written.unwrap().revision);
}

#[tokio::test]
async fn malformed_values_are_named_and_the_last_good_view_stays() {
    let good = filled().await;
    let keys = [
        keys::table(TableId(20)),
        keys::table(TableId(99)),
        keys::shard(shard(7, 0)),
        keys::node(NodeId(1)),
        keys::CLUSTER.to_owned(),
        keys::name("s", "t"),
        "/table/abc".to_owned(),
        "/shard/7/0".to_owned(),
        "/name/only-schema".to_owned(),
        "/schema/50%".to_owned(),
    ];
    let keeper = ViewKeeper::start(good.clone()).await.unwrap();
    for key in keys {
        let last = keeper.current();
        let before = good.range(&key).await.unwrap().0.pop();
        // A definition of table 20 is valid JSON everywhere, and right nowhere but at its own key.
        let value = if key.ends_with("99") {
            serde_json::to_vec(&table(20, "t", 1)).unwrap()
        } else {
            b"{\"id\":".to_vec()
        };
        let broken = good.cas(vec![put(&key, value)]).await.unwrap().revision;
        let error = keeper.at_least(broken, LONG).await.unwrap_err();
        assert_eq!(error.code, "XX001", "{key}");
        assert!(error.message.contains(&key), "{error}");
        assert!(Arc::ptr_eq(&keeper.current(), &last));
        let repair = before.map_or_else(|| delete(&key), |entry| put(&key, entry.value));
        let repaired = good.cas(vec![repair]).await.unwrap().revision;
        keeper.at_least(repaired, LONG).await.unwrap();
    }
    good.cas(vec![put(&keys::view(TableId(21)), "")]).await.unwrap();
    assert_eq!(ViewKeeper::start(good).await.unwrap_err().code, "XX001");
}

/// Counts the ranges of a store, and tells above which revision it was last waited for.
#[derive(Debug)]
struct Counting {
    store: Arc<LocalMeta>,
    ranges: AtomicUsize,
    waited: watch::Sender<u64>,
}

#[async_trait::async_trait]
impl MetaStore for Counting {
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, u64)> {
        self.ranges.fetch_add(1, Ordering::SeqCst);
        self.store.range(prefix).await
    }
    async fn cas(&self, ops: Vec<Op>) -> Result<Outcome> {
        self.store.cas(ops).await
    }
    async fn wait(&self, after: u64, timeout: Duration) -> Result<u64> {
        self.waited.send_replace(after);
        self.store.wait(after, timeout).await
    }
}

#[tokio::test]
async fn a_malformed_value_is_read_once() {
    let store = Arc::new(Counting {
        store: filled().await,
        ranges: AtomicUsize::new(0),
        waited: watch::Sender::new(0),
    });
    let keeper = ViewKeeper::start(store.clone()).await.unwrap();
    let mut waited = store.waited.subscribe();
    let broken = store.cas(vec![put(keys::CLUSTER, "?")]).await.unwrap().revision;
    tokio::time::timeout(LONG, waited.wait_for(|after| *after == broken))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        store.ranges.load(Ordering::SeqCst),
        2,
        "the first view, and the malformed value"
    );
    assert_eq!(keeper.current().revision, broken - 1);
    keeper.shutdown().await;
}
