//! The directory of shard nodes.

use super::put;
use crate::MetaStore;
use crate::directory::ClusterDirectory;
use crate::local::LocalMeta;
use crate::view::ViewKeeper;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tessera_proto::client::GrpcShard;
use tessera_proto::service::{NodeDirectory, ShardService};
use tessera_proto::{NodeId, Retry, keys};

async fn move_to(store: &LocalMeta, keeper: &ViewKeeper, address: &str) {
    let uuid = "00000000-0000-0000-0000-000000000001";
    let info = serde_json::json!({ "id": 2, "disk": uuid, "address": address, "boot": uuid });
    let revision = store
        .cas(vec![put(&keys::node(NodeId(2)), info.to_string())])
        .await
        .unwrap()
        .revision;
    keeper.at_least(revision, Duration::from_secs(20)).await.unwrap();
}

#[tokio::test]
async fn local_first_then_by_address_else_unavailable() {
    let store = LocalMeta::memory();
    let keeper = ViewKeeper::start(store.clone()).await.unwrap();
    let directory = ClusterDirectory::new(keeper.clone(), tokio::runtime::Handle::current());
    let find = || directory.node(NodeId(2));
    let refused = || find().err().expect("nobody is there");
    assert_eq!(refused().retry, Retry::Elsewhere);
    assert!(refused().message.contains("node 2"));

    move_to(&store, &keeper, "").await;
    assert_eq!(
        refused().retry,
        Retry::Elsewhere,
        "it ran inside another process, or not yet here"
    );

    // Any service will do for a local one.
    let local: Arc<dyn ShardService> = Arc::new(GrpcShard::new(NodeId(2), "localhost:1").unwrap());
    directory.register(NodeId(2), Arc::downgrade(&local));
    assert!(Arc::ptr_eq(&find().unwrap(), &local));

    move_to(&store, &keeper, "localhost:2").await;
    assert!(Arc::ptr_eq(&find().unwrap(), &local), "still alive here");
    drop(local);
    let second = find().unwrap();
    assert!(Arc::ptr_eq(&find().unwrap(), &second), "one channel for all");

    move_to(&store, &keeper, "localhost:3").await;
    let third = find().unwrap();
    assert!(!Arc::ptr_eq(&third, &second));
    assert_eq!(
        format!("{directory:?}"),
        "ClusterDirectory { local: [], remote: [NodeId(2)], .. }"
    );

    let gone: Weak<dyn ShardService> = Weak::<GrpcShard>::new();
    directory.register(NodeId(2), gone);
    assert!(Arc::ptr_eq(&find().unwrap(), &third));
    keeper.shutdown().await;
}
