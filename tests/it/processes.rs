//! A router and three shard nodes as processes of their own, over gRPC.

use crate::cluster::{self, Processes, rows, until, until_verified, value};
use tokio_postgres::Client;

/// Nodes start before their router; a killed node comes back with its rows, and the copies agree.
#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_start_and_a_killed_node() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut processes = Processes::start(dir.path(), 3).await;
    let client = cluster::connect(processes.url()).await;
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

    processes.kill_node(3);
    processes.start_node(3);
    until(&client, "SELECT count(*) || ' ' || sum(k) FROM p", |rows| {
        rows[0][0].as_deref() == Some("600 180300")
    })
    .await;
    until_verified(&client, "p", 6, 2).await;
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
