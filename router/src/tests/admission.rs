//! Heavy queries wait for a place, and clients that do not read do not keep theirs.

use super::Cluster;
use std::time::{Duration, Instant};

/// Far more rows than fit between a query and its client.
const HEAVY: &str = "select t.id, s.n from t, generate_series(1, 1000) as s (n)";

#[tokio::test]
async fn clients_that_do_not_read_let_the_next_one_in() {
    let mut c = Cluster::start(1).await;
    c.check("create table t (id bigint primary key)", Ok(&["CREATE TABLE"]))
        .await;
    let rows = "insert into t select n from generate_series(1, 30000) as s (n)";
    c.check(rows, Ok(&["INSERT 0 30000"])).await;
    c.engine.refresh_statistics(None).await;
    c.check("set statement_timeout = 30000", Ok(&["SET"])).await;
    // Two threads, so four places.
    let mut held = vec![];
    for _ in 0..4 {
        held.push(c.outcome(HEAVY, vec![]).await.unwrap());
    }
    // What reads little does not wait.
    c.check("select count(*) from generate_series(1, 10)", Ok(&["10"]))
        .await;
    let start = Instant::now();
    held.push(c.outcome(HEAVY, vec![]).await.unwrap());
    assert!(start.elapsed() > Duration::from_millis(500), "it did not wait");
    // Those who are gone give their places back at once.
    drop(held);
    for _ in 0..4 {
        drop(c.outcome(HEAVY, vec![]).await.unwrap());
    }
    c.engine.shutdown().await;
}
