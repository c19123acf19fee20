//! Tables that have rows before they have a name.

use super::Cluster;
use crate::cluster::catalog_store;
use crate::ddl::fill::{Filling, columns};
use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use std::sync::Arc;
use std::time::Duration;
use tessera_parser::{CreateTable, ObjectName};
use tessera_proto::clock::now_ms;
use tokio_util::sync::CancellationToken;

fn one_column() -> Schema {
    Schema::new(vec![Field::new("a", DataType::Int64, true)])
}

async fn begin(cluster: &Cluster, name: &str) -> Filling {
    let create = CreateTable {
        name: ObjectName {
            schema: None,
            name: name.into(),
        },
        if_not_exists: false,
        reference: false,
        columns: columns(&one_column(), &[], true).unwrap(),
        primary_key: vec![],
        sharding: None,
        cluster_by: vec![],
    };
    let context = cluster.session.context(CancellationToken::new());
    let mut table = Filling::create(&context, &create, "public").await.unwrap();
    let values = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_new(Arc::new(one_column()), vec![values]).unwrap();
    table.write(&batch).await.unwrap();
    table
}

/// Waits until no table is without a name.
async fn until_none_pending(cluster: &Cluster) {
    let views = cluster.engine.views();
    let mut changes = views.changes();
    while !views.refresh().await.unwrap().pending.is_empty() {
        let changed = tokio::time::timeout(Duration::from_secs(30), changes.changed());
        changed.await.expect("a table is still without a name").unwrap();
    }
}

#[tokio::test]
async fn nobody_sees_a_table_that_is_being_filled() {
    let mut c = Cluster::start(2).await;
    let table = begin(&c, "t").await;
    c.check("select * from t", Err("42P01")).await;
    c.check("drop table t", Err("42P01")).await;
    let shown = "select count(*) from information_schema.tables where table_name = 't'";
    c.check(shown, Ok(&["0"])).await;
    c.check("select count(*) from pg_class where relname = 't'", Ok(&["0"]))
        .await;
    assert_eq!(table.finish().await.unwrap().0, 3);
    c.check("select sum(a) from t", Ok(&["6"])).await;
    c.check(shown, Ok(&["1"])).await;
    assert!(c.engine.views().refresh().await.unwrap().pending.is_empty());
    c.engine.shutdown().await;
}

#[tokio::test]
async fn somebody_elses_table_of_that_name_stays() {
    let mut c = Cluster::start(2).await;
    let (late, given_up) = (begin(&c, "t").await, begin(&c, "t").await);
    c.check("create table t (b int)", Ok(&["CREATE TABLE"])).await;
    c.check("insert into t values (7)", Ok(&["INSERT 0 1"])).await;
    drop(given_up);
    assert_eq!(late.finish().await.unwrap_err().code, "42P07");
    until_none_pending(&c).await;
    c.check("select b from t", Ok(&["7"])).await;
    // Their shards are gone, too.
    assert_eq!(c.engine.views().refresh().await.unwrap().tables.len(), 1);
    assert_eq!(c.engine.view().groups.len(), 1);
    c.engine.shutdown().await;
}

#[tokio::test]
async fn a_forgotten_table_is_dropped_when_it_expires() {
    let mut c = Cluster::start(2).await;
    let table = begin(&c, "t").await;
    let views = c.engine.views().clone();
    catalog_store::drop_expired(&views, now_ms()).await.unwrap();
    assert_eq!(views.refresh().await.unwrap().pending.len(), 1, "it has not expired");
    catalog_store::drop_expired(&views, u64::MAX).await.unwrap();
    assert!(views.refresh().await.unwrap().tables.is_empty());
    // What it was being filled by finds out.
    assert!(table.finish().await.is_err());
    c.check("create table t (b int)", Ok(&["CREATE TABLE"])).await;
    c.engine.shutdown().await;
}
