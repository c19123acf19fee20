//! SELECT ... FOR UPDATE under concurrency: order of arrival, job queues, deadlocks, what ends a wait.

use crate::cluster::{PATIENCE, code, connect, embedded, rows, until, value};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

async fn run(client: &Client, sql: &str) {
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

/// A table (id, v) of so many rows in eight shards.
async fn table(client: &Client, rows: u32) {
    run(
        client,
        "CREATE TABLE t (id int PRIMARY KEY, v int) SHARD BY HASH (id) SHARDS 8",
    )
    .await;
    let insert = format!("INSERT INTO t SELECT n, 0 FROM generate_series(1, {rows}) AS s (n)");
    run(client, &insert).await;
}

async fn pid(client: &Client) -> String {
    value(client, "SELECT pg_backend_pid()").await
}

/// Until so many sessions wait for locks.
async fn until_waiting(admin: &Client, count: usize) {
    let sql = "SELECT DISTINCT pid FROM pg_locks WHERE NOT granted";
    until(admin, sql, |rows| rows.len() == count).await;
}

/// Whoever waits for a row gets it when its turn comes, whatever the statement.
#[tokio::test(flavor = "multi_thread")]
async fn waiters_are_served_in_the_order_of_their_arrival() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (admin, holder) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    table(&admin, 20).await;
    for (round, lock) in ["SELECT v FROM t WHERE id = 7 FOR UPDATE", "UPDATE t SET v = v + 1 WHERE id = 7"]
        .into_iter()
        .enumerate()
    {
        run(&holder, "BEGIN").await;
        run(&holder, lock).await;
        let served = Arc::new(Mutex::new(vec![]));
        let mut waiting = vec![];
        for number in 0..6 {
            let (client, served) = (connect(&cluster.url()).await, served.clone());
            waiting.push(tokio::spawn(async move {
                run(&client, "BEGIN").await;
                let wait = match number % 3 {
                    0 => "SELECT v FROM t WHERE id = 7 FOR UPDATE",
                    1 => "UPDATE t SET v = v + 1 WHERE id = 7",
                    _ => "SELECT v FROM t WHERE id IN (6, 7, 8) ORDER BY id FOR NO KEY UPDATE",
                };
                run(&client, wait).await;
                served.lock().expect("unpoisoned").push(number);
                run(&client, "COMMIT").await;
            }));
            until_waiting(&admin, number + 1).await;
        }
        run(&holder, "COMMIT").await;
        for waiter in waiting {
            timeout(PATIENCE, waiter).await.expect("is served").expect("works");
        }
        let served = served.lock().expect("unpoisoned").clone();
        assert_eq!(served, [0, 1, 2, 3, 4, 5], "round {round}");
    }
    assert_eq!(value(&admin, "SELECT v FROM t WHERE id = 7").await, "5");
    drop((admin, holder));
    cluster.shutdown().await.expect("stops");
}

/// Workers take jobs from one table: every job is taken exactly once, and nobody is told that there is none while there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_queue_gives_every_job_once() {
    const JOBS: usize = 80;
    const WORKERS: usize = 4;
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let admin = connect(&cluster.url()).await;
    run(&admin, "CREATE TABLE job (id int PRIMARY KEY, state text) SHARD BY HASH (id) SHARDS 6").await;
    let insert = format!("INSERT INTO job SELECT n, 'ready' FROM generate_series(1, {JOBS}) AS s (n)");
    run(&admin, &insert).await;
    let workers = (0..WORKERS).map(|worker| {
        let url = cluster.url();
        tokio::spawn(async move {
            let client = connect(&url).await;
            let next = "SELECT id FROM job WHERE state = 'ready' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";
            let mut taken = vec![];
            loop {
                let found = match worker % 2 {
                    // One statement alone.
                    0 => {
                        let sql = format!("UPDATE job SET state = 'done' WHERE id = ({next}) RETURNING id");
                        rows(&client, &sql).await.expect("a job or none")
                    }
                    _ => {
                        run(&client, "BEGIN").await;
                        let found = rows(&client, next).await.expect("a job or none");
                        if let Some(job) = found.first() {
                            let id = job[0].as_deref().expect("an id");
                            run(&client, &format!("UPDATE job SET state = 'done' WHERE id = {id}")).await;
                        }
                        run(&client, "COMMIT").await;
                        found
                    }
                };
                match found.first() {
                    Some(job) => taken.push(job[0].as_deref().expect("an id").parse::<usize>().expect("a number")),
                    None => {
                        let left = value(&client, "SELECT count(*) FROM job WHERE state = 'ready'").await;
                        let left: usize = left.parse().expect("a number");
                        assert!(left < WORKERS, "{left} jobs are ready, and the others hold one each");
                        if left == 0 {
                            return taken;
                        }
                    }
                }
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    let mut taken = vec![];
    for worker in workers {
        taken.extend(timeout(PATIENCE, worker).await.expect("ends").expect("works"));
    }
    taken.sort_unstable();
    assert_eq!(taken, (1..=JOBS).collect::<Vec<_>>());
    drop(admin);
    cluster.shutdown().await.expect("stops");
}

/// Two that share a row and both want to change it wait for each other: the younger gives up.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_share_a_row_and_want_more_are_a_deadlock() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (a, b) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    table(&a, 20).await;
    for more in ["UPDATE t SET v = v + 1 WHERE id = 3", "SELECT v FROM t WHERE id = 3 FOR UPDATE"] {
        for client in [&a, &b] {
            run(client, "BEGIN").await;
            run(client, "SELECT v FROM t WHERE id = 3 FOR SHARE").await;
        }
        let both = async { tokio::join!(a.simple_query(more), b.simple_query(more)) };
        let begin = Instant::now();
        let (on_a, on_b) = timeout(PATIENCE, both).await.expect("a deadlock is found");
        println!("found after {:?}", begin.elapsed());
        assert!(on_a.is_ok(), "{on_a:?}");
        assert_eq!(state(&on_b.expect_err("the younger gives up")), "40P01");
        run(&b, "ROLLBACK").await;
        run(&a, "COMMIT").await;
    }
    drop((a, b));
    cluster.shutdown().await.expect("stops");
}

/// Statements that lock the same rows in the same order do not wait in circles, whatever shards the rows are in.
#[tokio::test(flavor = "multi_thread")]
async fn rows_locked_in_one_order_are_no_deadlock() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let admin = connect(&cluster.url()).await;
    table(&admin, 20).await;
    let clients = (0..4_u64).map(|client| {
        let url = cluster.url();
        tokio::spawn(async move {
            let db = connect(&url).await;
            let mut seed = client + 1;
            let mut random = move |below: u64| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % below
            };
            for _ in 0..12 {
                let (first, count) = (random(15) + 1, random(5) + 1);
                run(&db, "BEGIN").await;
                if random(2) == 0 {
                    // One by one, in the same order as the others.
                    for id in first..first + count {
                        run(&db, &format!("SELECT v FROM t WHERE id = {id} FOR UPDATE")).await;
                    }
                } else {
                    let last = first + count - 1;
                    let sql = format!("SELECT v FROM t WHERE id BETWEEN {first} AND {last} ORDER BY id FOR UPDATE");
                    run(&db, &sql).await;
                }
                let sql = format!("UPDATE t SET v = v + 1 WHERE id = {first}");
                run(&db, &sql).await;
                run(&db, "COMMIT").await;
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        timeout(PATIENCE, client).await.expect("ends").expect("works");
    }
    assert_eq!(value(&admin, "SELECT sum(v) FROM t").await, "48");
    drop(admin);
    cluster.shutdown().await.expect("stops");
}

/// A statement alone that waits for a row can be cancelled and has a lock timeout; then nothing of it happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_alone_that_waits_can_be_ended() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (admin, holder) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    table(&admin, 20).await;
    run(&holder, "BEGIN").await;
    run(&holder, "SELECT v FROM t WHERE id = 5 FOR SHARE").await;
    for sql in [
        "UPDATE t SET v = 1 WHERE id = 5",
        // Over many shards, most of which are prepared.
        "UPDATE t SET v = 1",
        "DELETE FROM t WHERE id < 10",
        "SELECT v FROM t WHERE id = 5 FOR UPDATE",
        "SELECT v FROM t ORDER BY id FOR UPDATE",
    ] {
        let client = connect(&cluster.url()).await;
        let cancel = client.cancel_token();
        let waiting = tokio::spawn(async move {
            let failed = client.simple_query(sql).await.expect_err("it is cancelled");
            (client, state(&failed))
        });
        until_waiting(&admin, 1).await;
        cancel.cancel_query(NoTls).await.expect("cancels");
        let (client, failed) = timeout(PATIENCE, waiting).await.expect("ends").expect("works");
        assert_eq!(failed, "57014", "{sql}");
        until_waiting(&admin, 0).await;
        run(&client, "SET lock_timeout = 30").await;
        assert_eq!(code(&client, sql).await, "55P03", "{sql}");
        run(&client, "SET lock_timeout = 0; SET statement_timeout = 300").await;
        assert_eq!(code(&client, sql).await, "57014", "{sql}");
    }
    run(&holder, "COMMIT").await;
    assert_eq!(value(&admin, "SELECT count(*) FROM t WHERE v = 0").await, "20");
    // Nothing is left locked.
    run(&admin, "SET lock_timeout = 10000").await;
    run(&admin, "UPDATE t SET v = 2").await;
    drop((admin, holder));
    cluster.shutdown().await.expect("stops");
}

/// Locks end with the leadership: whoever had some cannot commit, and others get them.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_changes_takes_its_locks_with_it() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (admin, a, b) = (
        connect(&cluster.url()).await,
        connect(&cluster.url()).await,
        connect(&cluster.url()).await,
    );
    table(&admin, 20).await;
    let sql = "SELECT shard FROM tessera.shards WHERE table_name = 't' AND role = 'follower' AND in_sync";
    until(&admin, sql, |rows| rows.len() == 8).await;
    run(&a, "BEGIN").await;
    run(&a, "SELECT v FROM t WHERE id = 5 FOR UPDATE").await;
    run(&b, "BEGIN").await;
    run(&b, "SELECT v FROM t ORDER BY id FOR KEY SHARE SKIP LOCKED").await;
    run(&b, "UPDATE t SET v = 9 WHERE id = 6").await;
    for shard in 0..8 {
        run(&admin, &format!("ALTER SHARD {shard} OF t SWITCH LEADER")).await;
    }
    for client in [&a, &b] {
        assert_eq!(code(client, "COMMIT").await, "40001");
    }
    run(&admin, "SELECT v FROM t ORDER BY id FOR UPDATE NOWAIT").await;
    assert_eq!(value(&admin, "SELECT sum(v) FROM t").await, "0");
    drop((admin, a, b));
    cluster.shutdown().await.expect("stops");
}

/// An operator ends a transaction that somebody forgot.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_can_be_resolved() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (admin, holder) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    table(&admin, 20).await;
    run(&holder, "BEGIN").await;
    run(&holder, "SELECT v FROM t WHERE id = 5 FOR UPDATE").await;
    run(&holder, "UPDATE t SET v = 1 WHERE id IN (6, 7, 8)").await;
    let id = value(&admin, "SELECT DISTINCT transaction FROM tessera.transactions").await;
    let resolve = format!("SELECT tessera.resolve_transaction('{id}')");
    assert_eq!(value(&admin, &resolve).await, "aborted");
    run(&admin, "SELECT v FROM t ORDER BY id FOR UPDATE NOWAIT").await;
    assert_eq!(code(&holder, "COMMIT").await, "40001");
    assert_eq!(code(&admin, &resolve).await, "42704");
    assert_eq!(code(&admin, "SELECT tessera.resolve_transaction('none')").await, "22P02");
    let prepared = admin.query_one("SELECT tessera.resolve_transaction($1)", &[&id]);
    let failed = prepared.await.expect_err("it is gone");
    assert_eq!(state(&failed), "42704");
    assert_eq!(value(&admin, "SELECT sum(v) FROM t").await, "0");
    drop((admin, holder));
    cluster.shutdown().await.expect("stops");
}

/// Single statements that change one row all at once: no update is lost, and none gives up.
#[tokio::test(flavor = "multi_thread")]
async fn a_hot_row_is_changed_by_all() {
    const CLIENTS: usize = 8;
    const TIMES: usize = 12;
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let admin = connect(&cluster.url()).await;
    table(&admin, 20).await;
    let clients = (0..CLIENTS).map(|_| {
        let url = cluster.url();
        tokio::spawn(async move {
            let client = connect(&url).await;
            for _ in 0..TIMES {
                run(&client, "UPDATE t SET v = v + 1 WHERE id IN (2, 3)").await;
            }
        })
    });
    let begin = Instant::now();
    let clients: Vec<_> = clients.collect();
    for client in clients {
        timeout(PATIENCE, client).await.expect("ends").expect("works");
    }
    println!("{} updates of two rows in {:?}", CLIENTS * TIMES, begin.elapsed());
    let sum = (2 * CLIENTS * TIMES).to_string();
    assert_eq!(value(&admin, "SELECT sum(v) FROM t").await, sum);
    drop(admin);
    cluster.shutdown().await.expect("stops");
}

/// What pg_locks and tessera.transactions show of a holder and of one that waits.
#[tokio::test(flavor = "multi_thread")]
async fn locks_are_shown() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = embedded(dir.path(), 3).await;
    let (admin, holder, waiter) = (
        connect(&cluster.url()).await,
        connect(&cluster.url()).await,
        connect(&cluster.url()).await,
    );
    table(&admin, 20).await;
    let (holds, waits) = (pid(&holder).await, pid(&waiter).await);
    assert_ne!(holds, waits);
    run(&holder, "BEGIN").await;
    run(&holder, "SELECT v FROM t WHERE id = 5 FOR SHARE").await;
    let waiting = tokio::spawn(async move {
        run(&waiter, "UPDATE t SET v = 1 WHERE id = 5").await;
    });
    until_waiting(&admin, 1).await;
    let shown = rows(
        &admin,
        "SELECT l.locktype, c.relname, l.pid, l.mode, l.granted, l.waitstart IS NOT NULL
         FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE l.locktype = 'tuple' ORDER BY granted DESC",
    );
    let shown: Vec<String> = shown
        .await
        .expect("rows")
        .into_iter()
        .map(|row| row.into_iter().map(|value| value.unwrap_or_default()).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        shown,
        [
            format!("tuple t {holds} RowShareLock t f"),
            format!("tuple t {waits} ExclusiveLock f t"),
        ]
    );
    // The usual question: who blocks whom.
    let blocks = "SELECT waits.pid, holds.pid FROM pg_locks waits JOIN pg_locks holds
        ON holds.transactionid = waits.transactionid AND holds.pid <> waits.pid WHERE holds.granted AND NOT waits.granted";
    let blocks = rows(&admin, blocks).await.expect("rows");
    assert_eq!(blocks, [[Some(waits), Some(holds.clone())]]);
    let open = "SELECT state, locks, bytes, pid FROM tessera.transactions";
    let open = rows(&admin, open).await.expect("rows");
    assert_eq!(open, [["open", "1", "0", &holds].map(|text| Some(text.to_owned()))]);
    run(&holder, "COMMIT").await;
    timeout(PATIENCE, waiting).await.expect("ends").expect("works");
    assert_eq!(value(&admin, "SELECT count(*) FROM pg_locks WHERE locktype = 'tuple'").await, "0");
    drop((admin, holder));
    cluster.shutdown().await.expect("stops");
}
