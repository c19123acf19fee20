//! EXPLAIN ANALYZE over all nodes: what each leaf did, what moved from where to where, in one process and in several.
//!
//! ```text
//!   t: 1,000 rows by k, 10 groups g     partial aggregates of every node move, rows do not
//!   exchanged                           stages read stages, the same rows come out
//! ```

use crate::cluster::{self, Processes};
use serde_json::Value;
use tokio_postgres::Client;

async fn load(client: &Client) {
    for sql in [
        "CREATE TABLE t (k bigint PRIMARY KEY, g int, v text) SHARD BY HASH(k) SHARDS 8",
        "INSERT INTO t SELECT i, i % 10, 'value ' || i FROM generate_series(1, 1000) AS s(i)",
        "CREATE TABLE u (k bigint PRIMARY KEY, g int) SHARD BY HASH(k) SHARDS 8",
        "INSERT INTO u SELECT i, i % 7 FROM generate_series(1, 700) AS s(i)",
    ] {
        client
            .simple_query(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
}

async fn analyze(client: &Client, sql: &str) -> Value {
    let text = cluster::value(client, &format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}")).await;
    let mut documents: Vec<Value> = serde_json::from_str(&text).unwrap();
    documents.remove(0)
}

fn sum(items: &Value, field: &str) -> u64 {
    items
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i[field].as_u64().unwrap())
        .sum()
}

fn transfers(document: &Value, source: &str) -> Vec<Value> {
    let all = document["Transfers"].as_array().unwrap().iter();
    all.filter(|t| t["Source"].as_str().unwrap().starts_with(source))
        .cloned()
        .collect()
}

async fn check(client: &Client) {
    client.simple_query("SET tessera.distributed = off").await.unwrap();
    // Statistics of new rows come with the next poll of the nodes.
    let known = |rows: &[Vec<Option<String>>]| !format!("{rows:?}").contains("estimated rows unknown");
    cluster::until(client, "EXPLAIN VERBOSE SELECT g, count(*) FROM t GROUP BY g", known).await;
    let gathered = analyze(client, "SELECT g, count(*), min(v) FROM t GROUP BY g").await;
    assert_eq!(gathered["Rows"], 10, "{gathered:#}");
    let leaf = &gathered["Leaves"][0];
    // Ten groups from each node, and every row that a leaf streamed was read by the router.
    assert_eq!(
        (sum(&leaf["Nodes"], "Rows"), &leaf["Rows"]),
        (30, &Value::from(30)),
        "{gathered:#}"
    );
    assert_eq!(leaf["Skew"], 1.0, "{gathered:#}");
    assert!(
        leaf["Estimated Rows"].as_u64().is_some_and(|rows| rows > 0),
        "{gathered:#}"
    );
    assert!(
        leaf["Nodes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|n| { n["Complete"] == true && n["Operators"].to_string().contains("output_rows") }),
        "{gathered:#}"
    );
    let moved = transfers(&gathered, "leaf 0");
    assert_eq!(moved.len(), 3, "{gathered:#}");
    assert_eq!(sum(&Value::Array(moved.clone()), "Rows"), 30);
    assert!(moved.iter().all(|t| t["To Node"].is_null()), "{gathered:#}");
    assert_eq!(
        gathered["Moved Bytes"].as_u64().unwrap(),
        sum(&Value::Array(moved), "Bytes")
    );
    assert_eq!(gathered["Silent Nodes"], serde_json::json!([]));

    client.simple_query("SET tessera.distributed = on").await.unwrap();
    let exchanged = analyze(
        client,
        "SELECT t.g, count(*) FROM t JOIN u ON t.g = u.g WHERE t.k <= 500 GROUP BY t.g",
    )
    .await;
    assert_eq!(exchanged["Strategy"], "exchange", "{exchanged:#}");
    assert_eq!(exchanged["Rows"], 7, "{exchanged:#}");
    assert!(!transfers(&exchanged, "stage").is_empty(), "{exchanged:#}");
    // What left its node is what counts as moved.
    let all = exchanged["Transfers"].as_array().unwrap().iter();
    let left = all.filter(|t| t["From Node"] != t["To Node"]);
    let left: u64 = left.map(|t| t["Bytes"].as_u64().unwrap()).sum();
    assert_eq!(exchanged["Moved Bytes"].as_u64().unwrap(), left, "{exchanged:#}");
    assert!(left > 0, "{exchanged:#}");

    // A leaf whose reader had enough is told, too.
    client.simple_query("SET tessera.distributed = auto").await.unwrap();
    let text = cluster::rows(client, "EXPLAIN ANALYZE SELECT k, v FROM t LIMIT 3")
        .await
        .unwrap();
    let text: Vec<String> = text.into_iter().filter_map(|mut row| row.remove(0)).collect();
    for wanted in ["Leaf 0: ", "  node ", "Transfers:", "Moved: ", "Rows: 3"] {
        assert!(text.iter().any(|line| line.starts_with(wanted)), "{wanted}: {text:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_tell_in_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&cluster.url()).await;
    load(&client).await;
    check(&client).await;
    cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_tell_as_processes() {
    let dir = tempfile::tempdir().unwrap();
    let processes = Processes::start(dir.path(), 3).await;
    let client = cluster::connect(processes.url()).await;
    load(&client).await;
    check(&client).await;
    processes.stop();
}
