//! TRUNCATE beside readers and writers, on every copy, and after a restart.

use crate::cluster::{self, connect, embedded, rows, until_verified, value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::Client;

/// Longest time anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);
const TABLES: [&str; 3] = [
    "CREATE TABLE t (id bigint PRIMARY KEY, v text) SHARD BY HASH (id) SHARDS 6",
    "CREATE TABLE u (id bigint, n int, PRIMARY KEY (id, n)) SHARD BY HASH (id) SHARDS 4",
    "CREATE REFERENCE TABLE r (id int PRIMARY KEY)",
];

async fn run(client: &Client, sql: &str) {
    let result = client.simple_query(sql).await;
    result.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// Readers see all rows of all tables or none of any, whatever is going on.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_half() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (url, admin) = (cluster.url(), connect(&cluster.url()).await);
    for table in TABLES {
        run(&admin, table).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let readers = (0..3).map(|reader| {
        let (url, stop) = (url.clone(), stop.clone());
        tokio::spawn(async move {
            let client = connect(&url).await;
            let mut seen = [0; 2];
            while !stop.load(Ordering::SeqCst) {
                // Two statements of one snapshot, and one of its own.
                if reader == 0 {
                    run(&client, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
                }
                let counts = "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u), (SELECT count(*) FROM r)";
                let first = rows(&client, counts).await.expect("reads");
                let numbers: Vec<&str> = first[0].iter().map(|n| n.as_deref().expect("a number")).collect();
                match numbers[..] {
                    ["0", "0", "0"] => seen[0] += 1,
                    ["300", "200", "5"] => seen[1] += 1,
                    _ => panic!("half of it: {numbers:?}"),
                }
                if reader == 0 {
                    assert_eq!(rows(&client, counts).await.expect("reads"), first, "one snapshot");
                    run(&client, "COMMIT").await;
                }
            }
            seen
        })
    });
    let readers: Vec<_> = readers.collect();
    for round in 0..12 {
        let steps = [
            "BEGIN",
            "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 300) AS s (g)",
            "INSERT INTO u SELECT g, g FROM generate_series(1, 200) AS s (g)",
            "INSERT INTO r SELECT g FROM generate_series(1, 5) AS s (g)",
            "COMMIT",
        ];
        for step in steps {
            run(&admin, step).await;
        }
        match round % 3 {
            0 => run(&admin, "TRUNCATE t, u, r").await,
            1 => run(&admin, "BEGIN; TRUNCATE u; TRUNCATE t, r; COMMIT").await,
            // All go and others come at once: no reader sees that.
            _ => {
                for step in [&steps[..1], &["TRUNCATE t, u, r"], &steps[1..]].concat() {
                    run(&admin, step).await;
                }
                run(&admin, "TRUNCATE r, u, t").await;
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    let mut seen = [0; 2];
    for reader in readers {
        let found = timeout(PATIENCE, reader).await.expect("ends").expect("reads");
        seen = [seen[0] + found[0], seen[1] + found[1]];
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    for (table, shards, copies) in [("t", 6, 2), ("u", 4, 2), ("r", 1, 3)] {
        until_verified(&admin, table, shards, copies).await;
    }
    drop(admin);
    cluster.shutdown().await.expect("stops");
}

/// A writer's rows go if it was committed before, and stay if it comes after; TRUNCATE waits for those under way.
#[tokio::test(flavor = "multi_thread")]
async fn writers_come_before_or_after() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (a, b) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    run(&a, TABLES[0]).await;
    for (end, left) in [("COMMIT", "0"), ("ROLLBACK", "0")] {
        run(&a, "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) AS s (g)").await;
        run(&a, "BEGIN").await;
        run(&a, "UPDATE t SET v = 'y' WHERE id IN (1, 2)").await;
        let truncating = async {
            run(&b, "TRUNCATE t").await;
            value(&b, "SELECT count(*) FROM t").await
        };
        let ending = async {
            // It waits for the rows, and readers wait for nobody.
            assert_eq!(value(&a, "SELECT count(*) FROM t").await, "50");
            run(&a, end).await;
        };
        let (counted, ()) = timeout(PATIENCE, async { tokio::join!(truncating, ending) })
            .await
            .expect("ends");
        assert_eq!(counted, left, "after {end}");
    }
    // The other way round: a writer waits for the end of the transaction that truncates.
    run(&a, "INSERT INTO t VALUES (1, 'old'), (2, 'old')").await;
    for (end, left) in [("ROLLBACK", "1 old, 2 new"), ("COMMIT", "3 new")] {
        run(&a, "BEGIN").await;
        run(&a, "TRUNCATE t").await;
        let writing = async {
            let sql = "INSERT INTO t VALUES (3, 'new') ON CONFLICT (id) DO NOTHING";
            match end {
                "ROLLBACK" => run(&b, "UPDATE t SET v = 'new' WHERE id = 2").await,
                _ => run(&b, sql).await,
            }
        };
        let ending = async {
            assert_eq!(value(&a, "SELECT count(*) FROM t").await, "0");
            run(&a, end).await;
        };
        timeout(PATIENCE, async { tokio::join!(writing, ending) })
            .await
            .expect("ends");
        let found = rows(&a, "SELECT id || ' ' || v FROM t ORDER BY id")
            .await
            .expect("rows");
        let found: Vec<&str> = found.iter().map(|row| row[0].as_deref().expect("a text")).collect();
        assert_eq!(found.join(", "), left, "after {end}");
    }
    drop((a, b));
    cluster.shutdown().await.expect("stops");
}

/// Rows loaded as files in a transaction go with its TRUNCATE, and so do the files; all of it is so after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn loads_and_restarts() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 2).await;
    let client = connect(&cluster.url()).await;
    run(&client, TABLES[0]).await;
    run(
        &client,
        "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 1000) AS s (g)",
    )
    .await;
    // More than travels inside a commit, so it is staged.
    let load = "INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(2001, 14000) AS s (g)";
    run(&client, "BEGIN").await;
    run(&client, load).await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "13000");
    assert_eq!(value(&client, "SELECT length(v) FROM t WHERE id = 9000").await, "1000");
    run(&client, "TRUNCATE t").await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "0");
    run(&client, "INSERT INTO t VALUES (1, 'second'), (9000, 'second')").await;
    assert_eq!(value(&client, "SELECT v FROM t WHERE id = 9000").await, "second");
    run(&client, "COMMIT").await;
    assert_eq!(value(&client, "SELECT count(*) || min(v) FROM t").await, "2second");
    let files = segment_files(dir.path());
    run(&client, "BEGIN").await;
    run(&client, "TRUNCATE t").await;
    run(&client, load).await;
    run(&client, "COMMIT").await;
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || min(id) FROM t").await,
        "12000 2001"
    );
    assert!(segment_files(dir.path()) > files);
    until_verified(&client, "t", 6, 2).await;
    drop(client);
    cluster.shutdown().await.expect("stops");

    let cluster = embedded(dir.path(), 2).await;
    let client = connect(&cluster.url()).await;
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || min(id) FROM t").await,
        "12000 2001"
    );
    run(&client, "TRUNCATE t").await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "0");
    until_verified(&client, "t", 6, 2).await;
    drop(client);
    cluster.shutdown().await.expect("stops");
    let cluster = embedded(dir.path(), 2).await;
    let client = connect(&cluster.url()).await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "0");
    run(&client, load).await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "12000");
    until_verified(&client, "t", 6, 2).await;
    drop(client);
    cluster.shutdown().await.expect("stops");
}

/// Segment files of all nodes.
fn segment_files(dir: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let count = |path: std::path::PathBuf| match path.is_dir() {
        true => segment_files(&path),
        false => usize::from(path.extension().is_some_and(|e| e == "parquet")),
    };
    entries.flatten().map(|entry| count(entry.path())).sum()
}

/// Hands what node 3 leads of a table to other nodes.
async fn relieve(client: &Client, table: &str) {
    let sql = format!("SELECT DISTINCT shard FROM tessera.shards WHERE table_name = '{table}' AND leader = 3");
    let start = std::time::Instant::now();
    loop {
        let led = rows(client, &sql).await.expect("the map is read");
        if led.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "node 3 keeps {led:?} of {table}");
        for shard in led.iter().map(|row| row[0].as_deref().expect("a shard")) {
            // Refused while the shard is on its way: asked again.
            let _ = client
                .simple_query(&format!("ALTER SHARD {shard} OF {table} SWITCH LEADER"))
                .await;
        }
    }
}

/// A copy that was away catches up with what was truncated meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_back_truncates_too() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut processes = cluster::Processes::start(dir.path(), 3).await;
    let client = connect(processes.url()).await;
    for table in TABLES {
        run(&client, table).await;
    }
    run(
        &client,
        "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 1000) AS s (g)",
    )
    .await;
    run(&client, "INSERT INTO r VALUES (1), (2)").await;
    for kill in [true, false] {
        for table in ["t", "r"] {
            relieve(&client, table).await;
        }
        match kill {
            true => processes.kill_node(3),
            false => processes.terminate_node(3),
        }
        run(&client, "TRUNCATE t, r").await;
        assert_eq!(value(&client, "SELECT count(*) FROM t").await, "0");
        run(
            &client,
            "INSERT INTO t SELECT g, 'y' FROM generate_series(500, 1500) AS s (g)",
        )
        .await;
        run(&client, "INSERT INTO r VALUES (2), (3)").await;
        processes.start_node(3);
        until_verified(&client, "t", 6, 2).await;
        until_verified(&client, "r", 1, 3).await;
        assert_eq!(
            value(&client, "SELECT count(*) || ' ' || sum(id) FROM t").await,
            "1001 1001000"
        );
        assert_eq!(value(&client, "SELECT sum(id) FROM r").await, "5");
    }
    drop(client);
    processes.stop();
}
