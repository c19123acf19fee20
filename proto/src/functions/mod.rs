//! Functions that DataFusion lacks, for routers and for the workers that run what routers planned.
//!
//! Of these a shard node's leaf may hold those of [`portable`]; the rest of what it may evaluate is DataFusion's own.

pub mod arithmetic;
mod decimal_average;
pub mod division;
pub mod domain;
pub mod json;
mod random_uuid;
pub mod rounding;
mod series;
mod subquery;
mod zero_if_null;

pub use decimal_average::decimal_average;
pub use series::SERIES;
pub use subquery::{ARRAY_OF_ROWS, ROW, single_row, subquery_marker};
pub use zero_if_null::zero_if_null;

use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// How names of functions begin that only routers have: a plan with one of them runs there.
pub const ROUTER_PREFIX: &str = "__router_";

/// Those that users may name.
pub fn public() -> Vec<ScalarUDF> {
    let mut all = vec![ScalarUDF::from(random_uuid::GenRandomUuid::default())];
    let json = json::functions().into_iter().filter(|f| !f.name().starts_with("__"));
    all.extend(json.map(|f| f.as_ref().clone()));
    all
}

/// Those that every node evaluates in its leaves.
pub fn portable() -> Vec<Arc<ScalarUDF>> {
    let mut all = rounding::functions();
    all.extend(json::functions());
    all.extend(domain::functions());
    all.extend(subquery::functions());
    all.extend([
        arithmetic::function(),
        division::function(),
        Arc::new(series::function()),
    ]);
    all
}

/// Those that only plans name.
pub fn internal() -> Vec<ScalarUDF> {
    let mut all: Vec<_> = portable().iter().map(|f| f.as_ref().clone()).collect();
    all.push(ScalarUDF::from(decimal_average::DecimalAverage::default()));
    all.push(ScalarUDF::from(zero_if_null::ZeroIfNull::default()));
    all
}
