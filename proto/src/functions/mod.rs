//! Functions that DataFusion lacks, for routers and for the workers that run what routers planned.
//!
//! Of these a shard node's leaf may hold those of [`portable`]; the rest of what it may evaluate is DataFusion's own.

pub mod arithmetic;
pub mod arrays;
mod decimal_average;
pub mod division;
pub mod domain;
pub mod json;
pub mod json_build;
pub mod ordered;
mod random_uuid;
pub mod rounding;
pub mod rows;
mod series;
mod subquery;
mod zero_if_null;

pub use decimal_average::decimal_average;
pub use series::SERIES;
pub use subquery::{ARRAY_OF_ROWS, ROW, single_row, subquery_marker};
pub use zero_if_null::zero_if_null;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// How names of functions begin that only routers have: a plan with one of them runs there.
pub const ROUTER_PREFIX: &str = "__router_";

/// Those that users may name.
pub fn public() -> Vec<ScalarUDF> {
    let mut all = vec![ScalarUDF::from(random_uuid::GenRandomUuid::default())];
    let json = json::functions()
        .into_iter()
        .chain(rows::functions())
        .filter(|f| !f.name().starts_with("__"));
    all.extend(json.map(|f| f.as_ref().clone()));
    all
}

/// Those that every node evaluates in its leaves.
pub fn portable() -> Vec<Arc<ScalarUDF>> {
    let mut all = rounding::functions();
    all.extend(json::functions());
    all.extend(domain::functions());
    all.extend(subquery::functions());
    all.extend(arrays::functions());
    all.extend(json_build::functions());
    all.extend(rows::functions());
    all.extend([
        arithmetic::function(),
        division::function(),
        Arc::new(series::function()),
    ]);
    all
}

/// Aggregates that every node has besides DataFusion's.
pub fn aggregates() -> Vec<Arc<AggregateUDF>> {
    ordered::functions()
}

/// One of [`aggregates`] by its name.
pub fn aggregate(name: &str) -> Option<Arc<AggregateUDF>> {
    aggregates().into_iter().find(|f| f.name() == name)
}

/// One that the planner puts in the place of another before names are looked up; [`portable`] has it, too.
pub fn rewritten(name: &str) -> Option<Arc<ScalarUDF>> {
    static ALL: LazyLock<HashMap<String, Arc<ScalarUDF>>> = LazyLock::new(|| {
        let all = arrays::functions()
            .into_iter()
            .chain(json::functions())
            .chain(json_build::functions())
            .chain(rows::functions());
        all.map(|f| (f.name().to_owned(), f)).collect()
    });
    ALL.get(name).cloned()
}

/// Those that only plans name.
pub fn internal() -> Vec<ScalarUDF> {
    let mut all: Vec<_> = portable().iter().map(|f| f.as_ref().clone()).collect();
    all.push(ScalarUDF::from(decimal_average::DecimalAverage::default()));
    all.push(ScalarUDF::from(zero_if_null::ZeroIfNull::default()));
    all
}
