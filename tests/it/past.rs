//! Rows of the past: AS OF SYSTEM TIME, snapshots that hold compaction back, and files that do not grow for ever.

use crate::cluster::{code, connect, embedded, rows, value};
use std::path::Path;
use std::time::Duration;
use tessera::embedded::{Embedded, EmbeddedOptions};
use tessera_proto::memory::query_pool;
use tokio_postgres::Client;

async fn run(client: &Client, sql: &str) {
    client
        .simple_query(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// A cluster that forgets at once what nobody reads.
async fn forgetful(dir: &Path, nodes: u32) -> Embedded {
    let mut options = EmbeddedOptions::local(dir, nodes);
    options.query_memory = query_pool(600 << 20);
    options.column_bytes = 100 << 20;
    options.retention = Duration::ZERO;
    Embedded::start(options).await.expect("the cluster starts")
}

/// The time of a snapshot that later changes are not in: times of statements are whole milliseconds.
async fn now(client: &Client) -> String {
    let now = value(client, "SELECT now()").await;
    while value(client, "SELECT now()").await == now {}
    now
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_the_past() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let client = connect(&cluster.url()).await;
    run(
        &client,
        "CREATE TABLE t (id int PRIMARY KEY, v int) SHARD BY HASH(id) SHARDS 8",
    )
    .await;
    run(&client, "CREATE REFERENCE TABLE r (id int PRIMARY KEY, name text)").await;
    run(
        &client,
        "INSERT INTO t SELECT n, 0 FROM generate_series(1, 500) AS g (n)",
    )
    .await;
    run(&client, "INSERT INTO r VALUES (1, 'one'), (2, 'two')").await;
    let mut times = vec![];
    for round in 1..=3 {
        times.push(now(&client).await);
        run(&client, &format!("UPDATE t SET v = {round} WHERE id % 3 = 0")).await;
        run(&client, &format!("DELETE FROM t WHERE id = {round}")).await;
        run(&client, &format!("UPDATE r SET name = 'round {round}' WHERE id = 1")).await;
    }
    // Small tables are merged, and nothing of the last ten minutes goes.
    run(&client, "VACUUM").await;
    for (round, time) in times.iter().enumerate() {
        let ask = |sql: &str| format!("{sql} AS OF SYSTEM TIME '{time}'");
        let gone = format!("{}", 500 - round);
        assert_eq!(value(&client, &ask("SELECT count(*) FROM t")).await, gone);
        let highest = format!("{} WHERE id % 3 = 0", ask("SELECT max(v) FROM t"));
        assert_eq!(value(&client, &highest).await, round.to_string());
        // By key, through a join, prepared, and as a file.
        let row = format!("{} WHERE id = {}", ask("SELECT v FROM t"), round + 1);
        assert_eq!(rows(&client, &row).await.expect("a row").len(), 1);
        let joined = format!(
            "{} WHERE t.id = 6",
            ask("SELECT r.name FROM t JOIN r ON r.id = t.id - 5")
        );
        let name = if round == 0 {
            "one".to_owned()
        } else {
            format!("round {round}")
        };
        assert_eq!(value(&client, &joined).await, name);
        let prepared = format!("{} WHERE id = $1", ask("SELECT v FROM t"));
        let found = client.query(&prepared, &[&9]).await.expect("prepared");
        assert_eq!(found[0].get::<_, i32>(0), round as i32);
        let copied = client.copy_out(&format!("COPY ({}) TO STDOUT", ask("SELECT count(*) FROM t")));
        let lines: Vec<_> = futures::TryStreamExt::try_collect(copied.await.expect("copies"))
            .await
            .expect("lines");
        let lines: Vec<u8> = lines.iter().flat_map(|line: &bytes::Bytes| line.to_vec()).collect();
        assert_eq!(String::from_utf8_lossy(&lines).trim(), gone);
    }
    assert_eq!(
        value(&client, "SELECT count(*) FROM t AS OF SYSTEM TIME '-0s'").await,
        "497"
    );
    let plan = rows(&client, "EXPLAIN SELECT count(*) FROM t AS OF SYSTEM TIME '-0s'").await;
    assert!(!plan.expect("a plan").is_empty());
    for (sql, expected) in [
        ("SELECT * FROM t AS OF SYSTEM TIME '2000-01-01'", "72000"),
        ("SELECT * FROM t AS OF SYSTEM TIME '-2h'", "72000"),
        ("SELECT v FROM t AS OF SYSTEM TIME '-2h' WHERE id = 7", "72000"),
        ("SELECT * FROM r AS OF SYSTEM TIME '-2h'", "72000"),
        ("SELECT * FROM t AS OF SYSTEM TIME '1h'", "22007"),
        ("SELECT * FROM t AS OF SYSTEM TIME '2999-01-01'", "22023"),
        ("SELECT * FROM t AS OF SYSTEM TIME 'then'", "22007"),
        (
            "INSERT INTO t SELECT id + 1000, v FROM t AS OF SYSTEM TIME '-1s'",
            "0A000",
        ),
        ("CREATE VIEW past AS SELECT * FROM t AS OF SYSTEM TIME '-1s'", "0A000"),
        ("SELECT * FROM (SELECT * FROM t AS OF SYSTEM TIME '-1s') x", "0A000"),
    ] {
        assert_eq!(code(&client, sql).await, expected, "{sql}");
    }
    run(&client, "BEGIN").await;
    assert_eq!(code(&client, "SELECT * FROM t AS OF SYSTEM TIME '-0s'").await, "0A000");
    run(&client, "ROLLBACK").await;
    assert_eq!(code(&client, "BEGIN; VACUUM t").await, "25001");
    run(&client, "ROLLBACK").await;
    drop(client);
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_is_kept_and_what_is_not_goes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = forgetful(dir.path(), 3).await;
    let (client, reader) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    run(
        &client,
        "CREATE TABLE t (id int PRIMARY KEY, v int) SHARD BY HASH(id) SHARDS 4",
    )
    .await;
    run(
        &client,
        "INSERT INTO t SELECT n, 0 FROM generate_series(1, 200) AS g (n)",
    )
    .await;
    let before = now(&client).await;
    let past = format!("SELECT sum(v) FROM t AS OF SYSTEM TIME '{before}'");
    run(&reader, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(value(&reader, "SELECT sum(v) FROM t").await, "0");
    run(&client, "UPDATE t SET v = 1").await;
    run(&client, "DELETE FROM t WHERE id > 150").await;
    run(&client, "VACUUM (VERBOSE) t").await;
    // The transaction still reads what it began with, and nobody reads anything older.
    for _ in 0..2 {
        assert_eq!(value(&reader, "SELECT count(*) || ' ' || sum(v) FROM t").await, "200 0");
        assert_eq!(value(&reader, "SELECT v FROM t WHERE id = 180").await, "0");
        assert_eq!(code(&client, &past).await, "72000");
        run(&client, "VACUUM t").await;
    }
    let dead = "SELECT sum(dead_rows) FROM tessera.shards WHERE table_name = 't'";
    run(&client, "ANALYZE t").await;
    assert_eq!(value(&client, dead).await, "500", "250 on each copy");
    run(&reader, "COMMIT").await;
    run(&client, "VACUUM ANALYZE t").await;
    assert_eq!(value(&client, dead).await, "0");
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || sum(v) FROM t").await,
        "150 150"
    );
    let copies = rows(&client, "VERIFY TABLE t").await.expect("verifies");
    assert!(
        copies.len() == 8 && copies.iter().all(|copy| copy[5].as_deref() == Some("t")),
        "{copies:?}"
    );
    let files = "SELECT count(*) FROM tessera.shards WHERE table_name = 't' AND files = 1 AND compactions > 0";
    assert_eq!(value(&client, files).await, "8");
    drop((client, reader));
    cluster.shutdown().await.expect("stops");
}

/// Bytes of all segments below a folder.
fn segment_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => segment_bytes(&entry.path()),
        Ok(meta) if entry.path().extension().is_some_and(|e| e == "parquet" || e == "pk") => meta.len(),
        _ => 0,
    });
    bytes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_changed_all_the_time_does_not_grow() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = forgetful(dir.path(), 2).await;
    let client = connect(&cluster.url()).await;
    run(
        &client,
        "CREATE TABLE t (id int PRIMARY KEY, v int, s text) SHARD BY HASH(id) SHARDS 2",
    )
    .await;
    run(
        &client,
        "INSERT INTO t SELECT n, 0, 'row ' || n FROM generate_series(1, 60) AS g (n)",
    )
    .await;
    let mut sizes = vec![];
    for round in 1..=1_000 {
        run(&client, "UPDATE t SET v = v + 1").await;
        if round % 50 == 0 {
            run(&client, "VACUUM t").await;
            sizes.push(segment_bytes(dir.path()));
        }
    }
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || sum(v) || ' ' || min(v) FROM t").await,
        "60 60000 1000"
    );
    // Sixty rows on two copies, a file and a sidecar for each of two shards, whatever became of them.
    let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
    assert!(
        last < first + first / 2 && sizes.iter().all(|size| *size < 4 * first),
        "{sizes:?}"
    );
    let copies = rows(&client, "VERIFY TABLE t").await.expect("verifies");
    assert!(copies.iter().all(|copy| copy[5].as_deref() == Some("t")), "{copies:?}");
    drop(client);
    cluster.shutdown().await.expect("stops");
}
