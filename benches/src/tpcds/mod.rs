//! The workload derived from TPC-DS: its tables, rows and queries. Not comparable with published results.

pub mod queries;
pub mod schema;

use crate::workload::{Table, Workload};

/// Largest scale factor the generator knows.
pub const SCALE_MAX: f64 = 100_000.0;

/// The 24 tables and 99 queries; four of them have two parts.
pub fn workload() -> Workload {
    Workload {
        title: "derived from TPC-DS, not comparable with published results",
        tables: schema::TABLES.iter().map(|table| table as &dyn Table).collect(),
        queries: queries::queries(),
        scale_max: SCALE_MAX,
    }
}
