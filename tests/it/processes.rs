//! A router and three shard nodes as processes of their own, over gRPC.

use crate::cluster::{self, PATIENCE, Process, free_address, rows, value};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

fn write_config(path: &Path, text: String) -> PathBuf {
    std::fs::write(path, text).expect("configuration written");
    path.to_path_buf()
}

/// Repeats a statement that may fail while a node comes back. Nothing announces that to a client, so it has to ask.
async fn until(client: &Client, sql: &str, done: impl Fn(&[Vec<Option<String>>]) -> bool) {
    let start = Instant::now();
    loop {
        let found = rows(client, sql).await;
        if found.as_ref().is_ok_and(|rows| done(rows)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{sql}: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nodes start before their router; a killed node comes back with its rows, and the copies agree.
#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_start_and_a_killed_node() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| dir.path().join(name);
    let (pg, grpc, http) = (free_address(), free_address(), free_address());
    let nodes: Vec<_> = (1..=3)
        .map(|id| {
            let (data, listen) = (path(&format!("node-{id}")), free_address());
            write_config(
                &path(&format!("node-{id}.toml")),
                format!("id = {id}\ndata = {data:?}\nlisten = \"{listen}\"\nrouter = \"{grpc}\"\nmemory_mib = 256\n"),
            )
        })
        .collect();
    let router = write_config(
        &path("router.toml"),
        format!(
            "data = {:?}\npg = \"{pg}\"\ngrpc = \"{grpc}\"\nhttp = \"{http}\"\nmemory_mib = 256\n",
            path("router")
        ),
    );
    let mut running: Vec<_> = nodes
        .iter()
        .map(|config| Process::with_config("shard-node", config))
        .collect();
    let url = format!("postgres://tessera@{pg}/tessera");
    let mut router = Process::with_config("router", &router);
    router.until_ready(&url).await;
    let client = cluster::connect(&url).await;
    until(&client, "SELECT node FROM tessera.nodes", |rows| rows.len() == 3).await;

    client
        .simple_query("CREATE TABLE p (k bigint PRIMARY KEY, v text) SHARD BY HASH(k) SHARDS 6")
        .await
        .expect("created");
    let values: Vec<_> = (1..=600).map(|k| format!("({k}, 'v{k}')")).collect();
    client
        .simple_query(&format!("INSERT INTO p VALUES {}", values.join(",")))
        .await
        .expect("inserted");
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || sum(k) FROM p").await,
        "600 180300"
    );

    exchanges(&client).await;

    running.pop().expect("three run").kill();
    running.push(Process::with_config("shard-node", &nodes[2]));
    until(&client, "SELECT count(*) || ' ' || sum(k) FROM p", |rows| {
        rows[0][0].as_deref() == Some("600 180300")
    })
    .await;
    until(&client, "VERIFY TABLE p", |rows| {
        rows.len() == 12 && rows.iter().all(|row| row[5].as_deref() == Some("t"))
    })
    .await;
}

/// Rows move between the nodes' workers over gRPC, and an error on the way arrives with its SQLSTATE.
async fn exchanges(client: &Client) {
    let sql = "SELECT a.v, count(*) FROM p a JOIN p b ON a.k = b.k + 1 GROUP BY a.v ORDER BY a.v LIMIT 2";
    let gathered = rows(client, sql).await.expect("gathers");
    let run = async |sql: &str| client.simple_query(sql).await.expect("is set");
    run("SET tessera.distributed = on").await;
    let plan = rows(client, &format!("EXPLAIN {sql}")).await.expect("explains");
    assert_eq!(plan[0][0].as_deref(), Some("Strategy: exchange"), "{plan:?}");
    assert_eq!(rows(client, sql).await.expect("exchanges"), gathered);
    // Once inside a leaf, once above one.
    for failing in [
        "SELECT count(*) FROM p a JOIN (SELECT k / (k - k) AS x FROM p) b ON a.k = b.x",
        "SELECT sum(1 / (a.k - b.k)) FROM p a JOIN p b ON a.v = b.v",
    ] {
        assert_eq!(cluster::code(client, failing).await, "22012", "{failing}");
    }
    run("RESET tessera.distributed").await;
}
