//! What was acknowledged is there after a restart, once, on leader and follower; what failed is not there at all.

use crate::cluster::{self, Process, rows, value};

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

/// Kills the whole process again and again while multi-shard INSERTs of 40 rows run, and checks after each start that
/// every acknowledged batch is there whole, no batch is there in part, and the copies agree.
#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_no_acknowledged_row() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut acknowledged = 0;
    let mut attempted = 0;
    for round in 0..cycles() {
        let (process, url) = Process::start(dir.path(), 3).await;
        let client = cluster::connect(&url).await;
        if round == 0 {
            client.simple_query(TABLE).await.expect("created");
        }
        check(&client, acknowledged, attempted).await;
        // A different number of acknowledged statements each round moves the kill to a different moment; the statement
        // under way is cut at a random point by the kill itself.
        let quota = 1 + round * 7 % 5;
        let killer = tokio::spawn({
            let url = url.clone();
            async move { insert_batches(&url, attempted, quota).await }
        });
        let (acked, tried) = killer.await.expect("inserts");
        acknowledged = acknowledged.max(acked);
        attempted = tried;
        process.kill();
    }
    let (_process, url) = Process::start(dir.path(), 3).await;
    let client = cluster::connect(&url).await;
    check(&client, acknowledged, attempted).await;
}

/// Inserts `quota` batches and leaves one more under way. Returns the last acknowledged batch and the last attempted.
async fn insert_batches(url: &str, from: i64, quota: i64) -> (i64, i64) {
    let client = cluster::connect(url).await;
    let mut acknowledged = 0;
    for batch in from + 1..=from + quota {
        client.simple_query(&insert(batch)).await.expect("acknowledged");
        acknowledged = batch;
    }
    let last = from + quota + 1;
    let sql = insert(last);
    // Dropped half-way: the server may or may not have committed it, but never a part.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(2), client.simple_query(&sql)).await;
    (acknowledged, last)
}

fn insert(batch: i64) -> String {
    let rows: Vec<_> = (0..40)
        .map(|i| format!("({}, {batch}, 'x')", batch * 1000 + i))
        .collect();
    format!("INSERT INTO t VALUES {}", rows.join(","))
}

async fn check(client: &tokio_postgres::Client, acknowledged: i64, attempted: i64) {
    let found = rows(client, "SELECT batch, count(*) FROM t GROUP BY batch ORDER BY batch")
        .await
        .expect("reads");
    for row in &found {
        assert_eq!(row[1].as_deref(), Some("40"), "batch {:?} is there in part", row[0]);
    }
    let batches: Vec<i64> = found.iter().filter_map(|r| r[0].as_ref()?.parse().ok()).collect();
    let last = batches.last().copied().unwrap_or(0);
    assert!(
        last >= acknowledged && last <= attempted,
        "acknowledged up to {acknowledged}, attempted {attempted}, found {last}"
    );
    verified(client).await;
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

/// Kill cycles: few in the everyday test, as many as `TESSERA_KILL_CYCLES` says in acceptance runs.
fn cycles() -> i64 {
    std::env::var("TESSERA_KILL_CYCLES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(4)
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
