//! Functions that DataFusion lacks, for routers and for the workers that run what routers planned.
//!
//! Of these a shard node's leaf may hold checked arithmetic; the rest of what it may evaluate is DataFusion's own.

pub mod arithmetic;
mod decimal_average;
mod random_uuid;
mod zero_if_null;

pub use decimal_average::decimal_average;
pub use zero_if_null::zero_if_null;

use datafusion::logical_expr::ScalarUDF;

/// Those that users may name.
pub fn public() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(random_uuid::GenRandomUuid::default())]
}

/// Those that only plans name.
pub fn internal() -> Vec<ScalarUDF> {
    vec![
        arithmetic::function().as_ref().clone(),
        ScalarUDF::from(decimal_average::DecimalAverage::default()),
        ScalarUDF::from(zero_if_null::ZeroIfNull::default()),
    ]
}
