//! Transactions of several statements under concurrency: locks, deadlocks, sums that stay the same.

use crate::cluster::{code, connect, embedded, rows, value};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Longest time anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn run(client: &tokio_postgres::Client, sql: &str) {
    client
        .simple_query(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// The SQLSTATE of a failure.
fn state(error: &tokio_postgres::Error) -> String {
    error
        .code()
        .map_or_else(|| panic!("{error:?}"), |code| code.code().to_owned())
}

/// A writer waits for the row's holder and then works on what that one committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_for_the_holder_of_a_row() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (a, b) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    run(&a, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    run(&a, "INSERT INTO t VALUES (1, 10), (2, 20)").await;
    let mut b = b;
    for (end, expected) in [("COMMIT", "22"), ("ROLLBACK", "20")] {
        run(&a, "UPDATE t SET v = 10 WHERE id = 1").await;
        run(&a, "BEGIN").await;
        run(&a, "UPDATE t SET v = v + 1 WHERE id = 1").await;
        run(&b, "BEGIN").await;
        let waiting = tokio::spawn(async move {
            run(&b, "UPDATE t SET v = v * 2 WHERE id = 1").await;
            run(&b, "COMMIT").await;
            b
        });
        // The other row is free meanwhile.
        run(&a, "UPDATE t SET v = v + 1 WHERE id = 2").await;
        assert!(!waiting.is_finished());
        run(&a, end).await;
        b = timeout(PATIENCE, waiting).await.expect("ends").expect("works");
        assert_eq!(value(&b, "SELECT v FROM t WHERE id = 1").await, expected, "after {end}");
    }
    drop((a, b));
    cluster.shutdown().await.expect("stops");
}

/// Of two transactions that wait for each other, over two shards, the younger fails within moments and the other goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_broken() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (a, b) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    run(&a, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    run(&a, "INSERT INTO t SELECT n, 0 FROM generate_series(1, 20) AS s (n)").await;
    for (first, second) in [(1, 2), (3, 17), (5, 9)] {
        for client in [&a, &b] {
            run(client, "BEGIN").await;
        }
        run(&a, &format!("UPDATE t SET v = 1 WHERE id = {first}")).await;
        run(&b, &format!("UPDATE t SET v = 2 WHERE id = {second}")).await;
        let (cross_a, cross_b) = (
            format!("UPDATE t SET v = 1 WHERE id = {second}"),
            format!("UPDATE t SET v = 2 WHERE id = {first}"),
        );
        let both = async { tokio::join!(a.simple_query(&cross_a), b.simple_query(&cross_b)) };
        let (on_a, on_b) = timeout(PATIENCE, both).await.expect("a deadlock is found");
        // The one that began to write later is the younger.
        assert!(on_a.is_ok(), "{on_a:?}");
        assert_eq!(state(&on_b.expect_err("the younger gives up")), "40P01");
        assert_eq!(code(&b, "SELECT 1").await, "25P02");
        run(&b, "ROLLBACK").await;
        run(&a, "COMMIT").await;
        let sql = format!("SELECT sum(v) FROM t WHERE id IN ({first}, {second})");
        assert_eq!(value(&b, &sql).await, "2");
    }
    drop((a, b));
    cluster.shutdown().await.expect("stops");
}

/// Transfers between accounts of all shards, some rolled back: every reader sees the same total, and so does the end.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_keep_the_total() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let url = cluster.url();
    let admin = connect(&url).await;
    run(
        &admin,
        "CREATE TABLE account (id int PRIMARY KEY, balance bigint) SHARD BY HASH (id) SHARDS 6",
    )
    .await;
    run(&admin, "CREATE TABLE done (id bigint PRIMARY KEY, amount bigint)").await;
    run(
        &admin,
        "INSERT INTO account SELECT n, 1000 FROM generate_series(0, 9) AS s (n)",
    )
    .await;
    let writers = (0..4u64).map(|writer| {
        let url = url.clone();
        tokio::spawn(async move {
            let client = connect(&url).await;
            let (mut committed, mut seed) = (vec![], writer + 1);
            let mut random = move |below: u64| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % below
            };
            for round in 0..25u64 {
                let (from, to, amount) = (random(10), random(10), random(50));
                let (level, id) = (
                    ["READ COMMITTED", "REPEATABLE READ"][random(2) as usize],
                    writer * 1_000 + round,
                );
                let end = if random(5) == 0 { "ROLLBACK" } else { "COMMIT" };
                let steps = [
                    format!("BEGIN ISOLATION LEVEL {level}"),
                    format!("UPDATE account SET balance = balance - {amount} WHERE id = {from}"),
                    format!("UPDATE account SET balance = balance + {amount} WHERE id = {to}"),
                    format!("INSERT INTO done VALUES ({id}, {amount})"),
                    end.to_owned(),
                ];
                let mut failed = None;
                for step in &steps {
                    if let Err(error) = client.simple_query(step).await {
                        failed = Some(state(&error));
                        break;
                    }
                }
                match failed.as_deref() {
                    None if end == "COMMIT" => committed.push(id),
                    None => {}
                    Some("40001" | "40P01") => run(&client, "ROLLBACK").await,
                    Some(other) => panic!("{other}: {steps:?}"),
                }
            }
            committed
        })
    });
    let writers: Vec<_> = writers.collect();
    let reading = tokio::spawn({
        let url = url.clone();
        async move {
            let client = connect(&url).await;
            for _ in 0..40 {
                assert_eq!(value(&client, "SELECT sum(balance) FROM account").await, "10000");
                run(&client, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
                let first = rows(&client, "SELECT id, balance FROM account ORDER BY id")
                    .await
                    .expect("rows");
                let second = rows(&client, "SELECT id, balance FROM account ORDER BY id")
                    .await
                    .expect("rows");
                assert_eq!(first, second, "one snapshot");
                run(&client, "COMMIT").await;
            }
        }
    });
    let mut committed = vec![];
    for writer in writers {
        committed.extend(timeout(PATIENCE, writer).await.expect("ends").expect("works"));
    }
    timeout(PATIENCE, reading).await.expect("ends").expect("reads");
    committed.sort_unstable();
    assert!(committed.len() > 20, "{} transfers", committed.len());
    let done = rows(&admin, "SELECT id FROM done ORDER BY id").await.expect("rows");
    let done: Vec<u64> = done
        .iter()
        .map(|row| row[0].as_deref().unwrap().parse().unwrap())
        .collect();
    assert_eq!(done, committed, "acknowledged transfers are there, and no others");
    assert_eq!(value(&admin, "SELECT sum(balance) FROM account").await, "10000");
    drop(admin);
    cluster.shutdown().await.expect("stops");
}

/// A client that goes away in a transaction leaves no lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_client_leaves_nothing() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (a, b) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    run(&a, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    run(&a, "INSERT INTO t VALUES (1, 10)").await;
    run(&a, "BEGIN").await;
    run(&a, "UPDATE t SET v = 11 WHERE id = 1").await;
    drop(a);
    let update = run(&b, "UPDATE t SET v = v + 5 WHERE id = 1");
    timeout(PATIENCE, update).await.expect("the lock ends");
    assert_eq!(value(&b, "SELECT v FROM t").await, "15");
    // One that is idle for too long is told so.
    let idle = connect(&cluster.url()).await;
    run(&idle, "SET idle_in_transaction_session_timeout = 50").await;
    run(&idle, "BEGIN").await;
    run(&idle, "UPDATE t SET v = 0 WHERE id = 1").await;
    timeout(PATIENCE, run(&b, "UPDATE t SET v = v + 1 WHERE id = 1"))
        .await
        .expect("the lock ends");
    assert_eq!(value(&b, "SELECT v FROM t").await, "16");
    drop((b, idle));
    cluster.shutdown().await.expect("stops");
}

/// A client that sends frames of the protocol itself, several before it waits.
struct Raw(tokio::net::TcpStream);

impl Raw {
    async fn start(url: &str) -> Self {
        let address = url.split('@').nth(1).and_then(|rest| rest.split('/').next());
        let stream = tokio::net::TcpStream::connect(address.expect("an address")).await;
        let mut raw = Self(stream.expect("connects"));
        let body = b"\0\x03\0\0user\0raw\0\0";
        let length = (body.len() as i32 + 4).to_be_bytes();
        raw.0.write_all(&[&length[..], body].concat()).await.expect("sends");
        raw.until_ready().await;
        raw
    }

    /// Runs statements as one pipeline: one Sync behind the last. The kinds of the answers, and the status at the end.
    async fn pipeline(&mut self, statements: &[&str]) -> (String, char) {
        let mut bytes = vec![];
        let mut put = |kind: u8, body: &[u8]| {
            bytes.push(kind);
            bytes.extend((body.len() as i32 + 4).to_be_bytes());
            bytes.extend(body);
        };
        for sql in statements {
            put(b'P', format!("\0{sql}\0\0\0").as_bytes());
            put(b'B', b"\0\0\0\0\0\0\0\0");
            put(b'E', b"\0\0\0\0\0");
        }
        put(b'S', b"");
        self.0.write_all(&bytes).await.expect("sends");
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> (String, char) {
        let mut kinds = String::new();
        loop {
            let kind = self.0.read_u8().await.expect("a message");
            let length = self.0.read_i32().await.expect("a length");
            let mut body = vec![0; usize::try_from(length - 4).expect("a length")];
            self.0.read_exact(&mut body).await.expect("a body");
            match kind {
                b'Z' => return (kinds, char::from(body[0])),
                b'C' | b'E' => kinds.push(char::from(kind)),
                _ => {}
            }
        }
    }
}

/// Statements up to Sync happen together or not at all; BEGIN among them opens a block that outlives Sync.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_one_transaction() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let client = connect(&cluster.url()).await;
    run(&client, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    let mut raw = Raw::start(&cluster.url()).await;
    let insert = [
        "INSERT INTO t VALUES (1, 1)",
        "INSERT INTO t VALUES (2, 2)",
        "INSERT INTO t VALUES (1, 3)",
    ];
    assert_eq!(raw.pipeline(&insert).await, ("CCE".into(), 'I'));
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "0");
    assert_eq!(raw.pipeline(&insert[..2]).await, ("CC".into(), 'I'));
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "2");
    let block = ["INSERT INTO t VALUES (3, 3)", "BEGIN", "INSERT INTO t VALUES (4, 4)"];
    assert_eq!(raw.pipeline(&block).await, ("CCC".into(), 'T'));
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "2");
    assert_eq!(raw.pipeline(&["SELECT 1 / 0"]).await, ("E".into(), 'E'));
    assert_eq!(raw.pipeline(&["SELECT 1"]).await, ("E".into(), 'E'));
    assert_eq!(raw.pipeline(&["ROLLBACK"]).await, ("C".into(), 'I'));
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "2");
    drop((client, raw));
    cluster.shutdown().await.expect("stops");
}
