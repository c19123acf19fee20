//! What was acknowledged is there after a restart, once, on leader and follower; what failed is not there at all.

use crate::cluster::{self, rows, value};

const TABLE: &str = "CREATE TABLE t (k bigint PRIMARY KEY, batch bigint NOT NULL, v text) SHARD BY HASH(k) SHARDS 4";

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_keeps_everything() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let first = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&first.url()).await;
    client.simple_query(TABLE).await.expect("created");
    let values: Vec<_> = (1..=5000).map(|k| format!("({k}, 1, 'row {k}')")).collect();
    client
        .simple_query(&format!("INSERT INTO t VALUES {}", values.join(",")))
        .await
        .expect("inserted");
    let digests = verified(&client).await;
    drop(client);
    first.shutdown().await.expect("stops");

    let second = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&second.url()).await;
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || sum(k) FROM t").await,
        "5000 12502500"
    );
    assert_eq!(verified(&client).await, digests);
    drop(client);
    second.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let first = cluster::embedded(dir.path(), 1).await;
    let error = tessera::embedded::lock(dir.path()).expect_err("the folder is taken");
    assert_eq!(error.code, "55006");
    first.shutdown().await.expect("stops");
}

/// Rows of VERIFY TABLE, none of which may differ.
async fn verified(client: &tokio_postgres::Client) -> Vec<Vec<Option<String>>> {
    let rows = rows(client, "VERIFY TABLE t").await.expect("verifies");
    assert!(!rows.is_empty());
    assert!(
        rows.iter().all(|r| r[5].as_deref() == Some("t")),
        "copies differ: {rows:?}"
    );
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_copy_leaves_nothing() {
    use futures::SinkExt;
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&cluster.url()).await;
    client.simple_query(TABLE).await.expect("created");
    let sink = client
        .copy_in::<_, bytes::Bytes>("COPY t FROM STDIN (FORMAT csv)")
        .await
        .expect("copy starts");
    let mut sink = std::pin::pin!(sink);
    let good: String = (0..10_000).map(|i| format!("{i},1,x\n")).collect();
    sink.send(good.into()).await.expect("sent");
    sink.send(bytes::Bytes::from_static(b"not a number,1,x\n"))
        .await
        .expect("sent");
    let error = sink.finish().await.expect_err("the line is refused");
    let db = error.as_db_error().expect("a server error");
    assert_eq!(db.code().code(), "22P02");
    assert!(
        db.where_()
            .or(db.detail())
            .unwrap_or_else(|| db.message())
            .contains("10001"),
        "{db:?}"
    );
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "0");
    drop(client);
    cluster.shutdown().await.expect("stops");
}
