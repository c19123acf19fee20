//! Workloads with fixed seeds that measure and check a running server over the PostgreSQL wire.
//!
//! ```text
//! tessera bench tpch --url ... --scale 1 --load --runs 5 --verify   -->  tpch::run::run_tpch
//! tessera demo                                                      -->  tpch::run::demo
//! ```
//!
//! The server is spoken to as any client would, so the figures include the protocol. Nothing here depends on the
//! server's crates, which is why the same program can measure a plain PostgreSQL.

pub mod error;
pub mod tpch;

pub use error::{Error, Result};
pub use tpch::load::Ddl;
pub use tpch::report::{DemoReport, Report};
pub use tpch::run::{Load, TpchOptions, Verify, baseline_parquet, demo, run_tpch};
