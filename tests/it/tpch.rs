//! The 22 queries derived from TPC-H, loaded through the real ingest path, against the stored answers.

use crate::cluster;
use std::path::PathBuf;
use tessera_benches::{BenchOptions, Load, Verify, run, tpch};

async fn answers_match(nodes: u32) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let cluster = cluster::embedded(dir.path(), nodes).await;
    let mut options = BenchOptions::new(cluster.url(), 0.01);
    options.load = Load::Stream;
    options.verify = Some(Verify::Answers(PathBuf::from("benches/answers/sf0.01")));
    let report = run(&tpch::workload(), options.clone())
        .await
        .expect("the benchmark runs");
    assert!(report.ok(), "{report}");
    if nodes > 1 {
        // At this scale nothing is worth an exchange by itself.
        options.load = Load::Skip;
        options.url += "?options=-c%20tessera.distributed%3Don";
        let report = run(&tpch::workload(), options).await.expect("the benchmark runs");
        assert!(report.ok(), "{report}");
        let exchanged = report
            .queries
            .iter()
            .filter(|q| q.strategy.as_deref() == Some("exchange"));
        assert!(exchanged.count() > 15, "{report}");
    }
    cluster.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node() {
    answers_match(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes() {
    answers_match(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_several_sizes_side_by_side() {
    let mut options = BenchOptions::new("", 0.01);
    options.queries = Some(vec![3, 6]);
    options.verify = Some(Verify::Answers(PathBuf::from("benches/answers/sf0.01")));
    let report = tessera::bench_scale::run(&tpch::workload(), &[1, 2], &options)
        .await
        .expect("the benchmark runs");
    assert!(report.ok(), "{report}");
    let table = report.markdown();
    assert!(
        table.starts_with("| query | 1 node ms | moved | 2 nodes ms | moved |"),
        "{table}"
    );
    let moved = |cluster: usize, query: usize| report.clusters[cluster].1.queries[query].moved.as_ref();
    // Two nodes give the router twice what one gives: a sum each.
    let rows = [0, 1].map(|cluster| moved(cluster, 1).expect("was asked").rows);
    assert_eq!(rows, [1, 2], "{table}");
    assert!(moved(1, 1).is_some_and(|m| m.partial_aggregates_only && !m.sources.is_empty()));
    let none = tessera::bench_scale::run(&tpch::workload(), &[], &options).await;
    assert_eq!(none.expect_err("no sizes").code, "22023");
}
