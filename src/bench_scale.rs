//! `tessera bench scale`: the same workload on embedded clusters of several sizes, one after the other.
//!
//! ```text
//!   for N in 1, 2, 4, 8:   temporary folder ─▶ Embedded::start(N) ─▶ load, warm, run, EXPLAIN ANALYZE ─▶ stop, remove
//! ```

use crate::embedded::{Embedded, EmbeddedOptions};
use tessera_benches::workload::Workload;
use tessera_benches::{BenchOptions, Load, ScaleReport};
use tessera_proto::{Error, Result};

/// Runs `workload` as `options` say (its address and loading apart) on a cluster of each of these sizes.
///
/// # Errors
/// 22023 for no sizes or ones that cannot be started, what starting a cluster finds, and 58000 with what stopped the
/// benchmark. Wrong answers and failed queries are in the report.
pub async fn run(workload: &Workload, nodes: &[u32], options: &BenchOptions) -> Result<ScaleReport> {
    if nodes.is_empty() {
        return Err(Error::new("22023", "no numbers of nodes to compare"));
    }
    let mut report = ScaleReport::default();
    for nodes in nodes.iter().copied() {
        let dir = tempfile::tempdir().map_err(|e| Error::io("creating a temporary folder", &e))?;
        let cluster = Embedded::start(EmbeddedOptions::local(dir.path(), nodes)).await?;
        println!("{nodes} shard nodes");
        let options = BenchOptions {
            url: cluster.url(),
            load: Load::Stream,
            analyze: true,
            ..options.clone()
        };
        let measured = tessera_benches::run(workload, options).await;
        cluster.shutdown().await?;
        let measured = measured.map_err(|e| Error::new("58000", e.to_string()))?;
        report.clusters.push((nodes, measured));
    }
    Ok(report)
}
