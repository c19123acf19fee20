//! The most common values: counted where rows are written, told by ANALYZE, and seen in estimates and in pg_stats.
//!
//! ```text
//!   80,000 rows   closed 72,000   open 4,000   NULL 800   400 others 8 each          in segments (sampled), in memory (counted)
//!   EXPLAIN VERBOSE SELECT .. WHERE status = 'closed'    ->    Leaf 0: estimated rows 72000, more or less
//! ```

use crate::cluster;
use std::ops::RangeInclusive;
use tokio_postgres::Client;

const TABLE: &str = "CREATE TABLE t (k bigint PRIMARY KEY, status text, n int, note text) SHARD BY HASH(k) SHARDS 4";

/// Rows `from` to `to`; so much text that many rows are written as segments at once.
fn insert(from: u32, to: u32) -> String {
    format!(
        "INSERT INTO t SELECT i, CASE WHEN i % 100 < 90 THEN 'closed' WHEN i % 100 < 95 THEN 'open' \
         WHEN i % 100 < 96 THEN NULL ELSE 's' || (i / 100) % 400 END, \
         CASE WHEN i % 2 = 0 THEN 7 ELSE i END, repeat('x', 100) || i FROM generate_series({from}, {to}) AS s (i)"
    )
}

/// Estimated rows of the only leaf.
async fn estimated(client: &Client, condition: &str) -> usize {
    let sql = format!("EXPLAIN VERBOSE SELECT k FROM t WHERE {condition}");
    let lines = cluster::rows(client, &sql).await.unwrap();
    let lines: Vec<String> = lines.into_iter().filter_map(|mut row| row.remove(0)).collect();
    let found = lines.iter().find_map(|l| l.strip_prefix("Leaf 0: estimated rows "));
    let found = found.unwrap_or_else(|| panic!("{sql}: {lines:#?}"));
    found.parse().unwrap_or_else(|e| panic!("{sql}: {found}: {e}"))
}

async fn check(client: &Client, thousands: u32) {
    client.simple_query("ANALYZE t").await.unwrap();
    let times = |range: RangeInclusive<u32>| (range.start() * thousands) as usize..=(range.end() * thousands) as usize;
    for (condition, expected) in [
        ("status = 'closed'", times(880..=920)),
        ("'open' = status", times(40..=60)),
        ("status IN ('closed', 'open')", times(925..=970)),
        ("status <> 'closed'", times(70..=110)),
        ("status IS NULL", times(10..=10)),
        ("n = 7", times(480..=520)),
        ("n = 7 AND status = 'closed'", times(420..=480)),
        // Of others, and of none, as many as another has.
        ("status = 's17'", 1..=(thousands as usize).max(3)),
        ("status = 'none'", 1..=(thousands as usize).max(3)),
        ("n = 9", 1..=5),
        // Too long to be counted, and all different.
        ("note = repeat('x', 100) || '5'", 1..=5),
    ] {
        let rows = estimated(client, condition).await;
        assert!(
            expected.contains(&rows),
            "{condition}: {rows} of {thousands},000, not {expected:?}"
        );
    }
    let told = "SELECT most_common_vals, most_common_freqs[1] BETWEEN 0.88 AND 0.92, null_frac, n_distinct \
                FROM pg_stats WHERE tablename = 't' AND attname = ";
    let status = cluster::rows(client, &format!("{told}'status'"))
        .await
        .unwrap()
        .remove(0);
    // Of few values all are known.
    let values = status[0].as_deref().unwrap();
    assert!(
        values == "{closed,open}" || thousands == 4 && values.starts_with("{closed,open,s"),
        "{values}"
    );
    assert_eq!(status[1..3], ["t", "0.01"].map(|text| Some(text.to_owned())));
    let distinct: f64 = status[3].as_deref().unwrap().parse().unwrap();
    assert!(distinct.abs() > 0.0, "{distinct}");
    for unique in ["k", "note"] {
        let row = cluster::rows(client, &format!("{told}'{unique}'"))
            .await
            .unwrap()
            .remove(0);
        assert_eq!((row[0].as_deref(), row[2].as_deref()), (None, Some("0")), "{unique}");
    }
    assert_eq!(
        cluster::value(
            client,
            "SELECT most_common_vals FROM pg_stats WHERE tablename = 't' AND attname = 'n'"
        )
        .await,
        "{7}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn estimates_know_them_in_files_and_in_memory() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let first = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&first.url()).await;
    client.simple_query(TABLE).await.expect("created");
    client.simple_query(&insert(1, 4_000)).await.expect("inserted");
    // In memory, every row counted.
    check(&client, 4).await;
    assert_eq!(estimated(&client, "status = 'closed'").await, 3_600);
    client.simple_query(&insert(4_001, 80_000)).await.expect("inserted");
    check(&client, 80).await;
    drop(client);
    first.shutdown().await.expect("stops");

    // Kept with the files.
    let second = cluster::embedded(dir.path(), 3).await;
    let client = cluster::connect(&second.url()).await;
    check(&client, 80).await;
    drop(client);
    second.shutdown().await.expect("stops");
}
