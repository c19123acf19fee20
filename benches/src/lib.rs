//! Workloads with fixed seeds that measure and check a running server over the PostgreSQL wire.
//!
//! ```text
//! tessera bench tpch  --url ... --scale 1 --load --runs 5 --verify   -->  run::run(tpch::workload(), ...)
//! tessera bench tpcds --url ... --scale 1 --load --runs 5 --verify   -->  run::run(tpcds::workload(), ...)
//! tessera bench scale --nodes 1,2,4,8 --scale 0.1                    -->  scale::ScaleReport of a run per cluster
//! tessera demo                                                       -->  run::demo
//! ```
//!
//! The server is spoken to as any client would, so the figures include the protocol. Nothing here depends on the
//! server's crates, which is why the same program can measure a plain PostgreSQL.

mod chart;
pub mod csv;
pub mod duckdb;
pub mod error;
pub mod load;
pub mod oracle;
pub mod report;
pub mod run;
pub mod scale;
pub mod tpcds;
pub mod tpch;
pub mod verify;
pub mod workload;

pub use error::{Error, Result};
pub use load::Ddl;
pub use report::Report;
pub use run::{BenchOptions, Load, Peer, Verify, demo, run};
pub use scale::ScaleReport;
