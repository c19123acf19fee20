//! The 99 queries derived from TPC-DS, loaded through the real ingest path, against single-process DataFusion.

use crate::cluster;
use tessera_benches::{BenchOptions, Load, Verify, run, tpcds};

/// The smallest scale at which most queries find rows; the large dimensions have their full size at every scale.
const SCALE: f64 = 0.01;

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), 3).await;
    let workload = tpcds::workload();
    let mut options = BenchOptions::new(cluster.url(), SCALE);
    options.load = Load::Files(dir.path().join("files"));
    options.verify = Some(Verify::Oracle);
    let report = run(&workload, options.clone()).await.expect("the benchmark runs");
    assert!(report.ok(), "{report}");
    assert_eq!(report.matches(), workload.queries.len(), "{report}");
    cluster.shutdown().await.expect("stops");
}
