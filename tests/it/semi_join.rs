//! Semi-join filters on real clusters: what they keep from moving, and that the rows are the same.
//!
//! ```text
//!   sale: 120,000 rows by no  ⨝  item: 12,000 rows by id, 120 of each kind        one kind of them is asked for
//!   off    all sales move                 auto    120 keys go to the nodes, 1,200 sales come back
//! ```

use crate::cluster::{self, Processes};
use serde_json::Value;
use tokio_postgres::Client;

const SALES: u64 = 120_000;

async fn run(client: &Client, sql: &str) {
    let ran = client.simple_query(sql).await;
    ran.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

async fn load(client: &Client) {
    for sql in [
        "CREATE TABLE sale (no bigint PRIMARY KEY, item bigint, price bigint, note text) SHARD BY HASH(no) SHARDS 8",
        "CREATE TABLE item (id bigint PRIMARY KEY, kind int) SHARD BY HASH(id) SHARDS 8",
        "INSERT INTO item SELECT i, CAST(i % 100 AS int) FROM generate_series(1, 12000) AS s(i)",
    ] {
        run(client, sql).await;
    }
    let sales = format!("INSERT INTO sale SELECT i, i % 12000 + 1, i % 7, 'n' FROM generate_series(1, {SALES}) AS s(i)");
    run(client, &sales).await;
    // Statistics of new rows come with the next poll of the nodes.
    let known = |rows: &[Vec<Option<String>>]| {
        let text = format!("{rows:?}");
        text.contains(&format!("estimated rows {SALES}")) && text.contains("estimated rows 12000")
    };
    let both = "EXPLAIN VERBOSE SELECT no, kind FROM sale JOIN item ON sale.item = item.id";
    cluster::until(client, both, known).await;
}

const JOIN: &str = "SELECT item.id, sale.no, sale.price FROM sale JOIN item ON sale.item = item.id WHERE item.kind = 42";

async fn analyze(client: &Client, sql: &str) -> Value {
    let text = cluster::value(client, &format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}")).await;
    let mut documents: Vec<Value> = serde_json::from_str(&text).unwrap();
    documents.remove(0)
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let mut rows = cluster::rows(client, sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    rows.sort();
    rows
}

async fn check(client: &Client) {
    for exchange in ["off", "on"] {
        run(client, &format!("SET tessera.distributed = {exchange}")).await;
        run(client, "SET tessera.semi_join_filters = off").await;
        let (all, expected) = (analyze(client, JOIN).await, rows(client, JOIN).await);
        assert_eq!((expected.len(), &all["Filters"]), (1_200, &serde_json::json!([])), "{all:#}");
        run(client, "SET tessera.semi_join_filters = auto").await;
        let few = analyze(client, JOIN).await;
        assert_eq!(rows(client, JOIN).await, expected);
        let filter = &few["Filters"][0];
        assert_eq!((&filter["Keys"], &filter["Form"]), (&120.into(), &"bits".into()), "{few:#}");
        assert!(filter["Sent Bytes"].as_u64().is_some_and(|bytes| bytes > 3 * 12_000 / 8), "{few:#}");
        let leaf = &filter["Leaves"][0];
        assert_eq!(leaf["Kept Rows"], 1_200, "{few:#}");
        // Whatever row groups were pruned was not tested.
        assert!(leaf["Tested Rows"].as_u64().is_some_and(|n| (1_200..=SALES).contains(&n)), "{few:#}");
        let sent = few["Leaves"].as_array().unwrap().iter().map(|l| l["Rows"].as_u64().unwrap());
        assert!(sent.sum::<u64>() <= 1_200 + 2 * 120, "{few:#}");
        let moved = |document: &Value| document["Moved Bytes"].as_u64().unwrap();
        assert!(moved(&few) * 10 < moved(&all) || exchange == "on", "{} of {}", moved(&few), moved(&all));
        assert!(moved(&few) <= moved(&all), "{} of {}", moved(&few), moved(&all));
    }
    for sql in ["RESET tessera.distributed", "RESET tessera.semi_join_filters"] {
        run(client, sql).await;
    }
    let lines = rows(client, &format!("EXPLAIN ANALYZE {JOIN}")).await;
    let lines: Vec<String> = lines.into_iter().filter_map(|mut row| row.remove(0)).collect();
    for wanted in ["Filter 0: estimated keys=120, read first", "Filter 0: keys=120 of leaf 2, as bits, sent 3 times"] {
        assert!(lines.iter().any(|line| line.starts_with(wanted)), "{wanted}: {lines:#?}");
    }
    parameters(client).await;
    a_limit_may_end_it_early(client).await;
}

/// Keys are read for each run, not for each statement.
async fn parameters(client: &Client) {
    let sql = "SELECT count(*), min(item.id) FROM sale JOIN item ON sale.item = item.id WHERE item.kind = $1";
    let statement = client.prepare(sql).await.expect("prepared");
    for kind in [42, 0, 99, 100] {
        let row = client.query_one(&statement, &[&kind]).await.expect("runs");
        let least = match kind {
            0 => Some(100),
            100 => None,
            kind => Some(i64::from(kind)),
        };
        let expected = (if kind == 100 { 0 } else { 1_200 }, least);
        assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<i64>>(1)), expected, "kind {kind}");
    }
}

async fn a_limit_may_end_it_early(client: &Client) {
    let filters = |document: &Value| document["Filters"].as_array().map_or(0, Vec::len);
    let limited = analyze(client, &format!("{JOIN} LIMIT 3")).await;
    assert_eq!((filters(&limited), &limited["Rows"]), (0, &3.into()), "{limited:#}");
    let sorted = analyze(client, &format!("{JOIN} ORDER BY sale.no LIMIT 3")).await;
    assert_eq!((filters(&sorted), &sorted["Rows"]), (1, &3.into()), "{sorted:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_partner_stay_on_their_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&cluster.url()).await;
    load(&client).await;
    check(&client).await;
    cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_partner_stay_on_their_nodes_as_processes() {
    let dir = tempfile::tempdir().unwrap();
    let processes = Processes::start(dir.path(), 3).await;
    let client = cluster::connect(processes.url()).await;
    load(&client).await;
    check(&client).await;
    processes.stop();
}
