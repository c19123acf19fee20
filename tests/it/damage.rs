//! Damage to one node of a cluster of processes: it comes back by itself, with equal copies, from its peers. Damage to the
//! only copy: that shard refuses, the others serve. What every kind of damage does is tested node by node in shard-node.

use crate::cluster::{self, Process, Processes, code, until, until_verified, value};
use std::path::{Path, PathBuf};

const TABLE: &str = "CREATE TABLE d (k bigint PRIMARY KEY, v text) SHARD BY HASH(k) SHARDS 6";

/// Files below `dir` whose name ends so, except what was put aside.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry").path())
    {
        if path.is_dir() && !path.ends_with("damaged") {
            found.extend(files(&path, end));
        } else if path.to_str().expect("text").ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("read");
    bytes[at] ^= 4;
    std::fs::write(path, bytes).expect("written");
}

fn insert(first: i64) -> String {
    let values: Vec<_> = (first..first + 500).map(|k| format!("({k}, 'v{k}')")).collect();
    format!("INSERT INTO d VALUES {}", values.join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_node_is_mended_while_the_cluster_serves() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut processes = Processes::start(dir.path(), 3).await;
    let client = cluster::connect(processes.url()).await;
    client.simple_query(TABLE).await.expect("created");
    for first in [0, 2_000, 4_000, 6_000, 8_000] {
        client.simple_query(&insert(first)).await.expect("inserted");
    }

    // The log in its middle, where it was durable: refused, put aside, everything fetched again.
    processes.kill_node(1);
    let log = files(&processes.path(1), ".wal").pop().expect("a log");
    flip(&log, std::fs::metadata(&log).expect("size").len() as usize / 2);
    processes.start_node(1);
    until_verified(&client, "d", 6, 2).await;
    assert!(processes.path(1).join("damaged").is_dir(), "the log was not refused");

    // Segments of a running node: VERIFY TABLE finds them, and that is all it takes.
    processes.terminate_node(2);
    processes.start_node(2);
    until_verified(&client, "d", 6, 2).await;
    let segments = files(&processes.path(2), ".parquet");
    assert!(!segments.is_empty(), "a clean stop seals");
    segments.iter().for_each(|s| flip(s, 100));
    until_verified(&client, "d", 6, 2).await;
    assert!(processes.path(2).join("damaged").is_dir(), "damage was not found");
    assert_eq!(
        value(&client, "SELECT count(*) || ' ' || count(DISTINCT k) FROM d").await,
        "2500 2500"
    );
    client.simple_query(&insert(1_000)).await.expect("inserted");
    assert_eq!(code(&client, &insert(1_499)).await, "23505");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_only_copy_refuses_and_the_other_shards_serve() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (process, url) = Process::start(dir.path(), 1).await;
    let client = cluster::connect(&url).await;
    client.simple_query(TABLE).await.expect("created");
    client.simple_query(&insert(0)).await.expect("inserted");
    process.terminate();
    process.wait();
    let manifests: Vec<_> = files(&dir.path().join("node-1"), ".json")
        .into_iter()
        .filter(|f| f.to_str().expect("text").contains("MANIFEST"))
        .collect();
    flip(&manifests[0], 60);
    let (_process, url) = Process::start(dir.path(), 1).await;
    let client = cluster::connect(&url).await;
    assert_eq!(code(&client, "SELECT count(*) FROM d").await, "XX001");
    let served = async {
        let mut served = 0;
        for k in 0..60 {
            let found = cluster::rows(&client, &format!("SELECT v FROM d WHERE k = {k}")).await;
            served += usize::from(found.is_ok_and(|rows| rows.len() == 1));
        }
        served
    };
    let served = served.await;
    assert!(served > 30 && served < 60, "{served} of 60 keys are served");
    until(
        &client,
        "SELECT state FROM tessera.shards WHERE state <> 'serving'",
        |rows| !rows.is_empty(),
    )
    .await;
}
