//! Queries derived from TPC-DS, loaded through the real ingest path, against single-process DataFusion.
//!
//! Everyday runs take some queries over the tables they need, because one dimension alone has 1.9 million rows at every
//! scale; `TESSERA_TPCDS=all` takes all 99.

use crate::cluster;
use tessera_benches::{BenchOptions, Load, Verify, run, tpcds};

/// The smallest scale at which most queries find rows.
const SCALE: f64 = 0.01;

/// Facts joined within and across channels, self joins, set operations, ROLLUP, windows, FULL JOIN, both parts of three.
const QUERIES: [u8; 9] = [3, 14, 16, 23, 24, 51, 67, 78, 97];

/// What those do not read.
const UNREAD: [&str; 12] = [
    "catalog_page",
    "customer_demographics",
    "household_demographics",
    "income_band",
    "inventory",
    "promotion",
    "reason",
    "ship_mode",
    "time_dim",
    "warehouse",
    "web_page",
    "web_site",
];

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 3).await;
    let mut workload = tpcds::workload();
    let mut options = BenchOptions::new(cluster.url(), SCALE);
    if std::env::var_os("TESSERA_TPCDS").is_none() {
        workload.tables.retain(|table| !UNREAD.contains(&table.name()));
        options.queries = Some(QUERIES.to_vec());
    }
    let files = dir.path().join("files");
    options.load = Load::Files(files.clone());
    options.parquet_dir = Some(files);
    options.verify = Some(Verify::Oracle);
    let report = run(&workload, options).await.expect("the benchmark runs");
    assert!(report.ok(), "{report}");
    assert_eq!(report.matches(), report.queries.len(), "{report}");
    cluster.shutdown().await.expect("stops");
}
