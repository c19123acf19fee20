//! `FETCH FIRST n ROWS WITH TIES`.
//!
//! ```text
//!   Limit(ties(n), skip m) over Sort(k) over X
//!     becomes   Limit(skip m) over Sort(k) over Filter(rank <= m + n) over Window(rank() over (order by k)) over X
//! ```
//!
//! The parser writes it as `LIMIT __tessera_ties(n)`. A row is kept if fewer than m + n rows come before it, which is the rule:
//! those that tie with the last row wanted have its rank.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, Result};
use datafusion::functions_window::rank::rank_udwf;
use datafusion::logical_expr::expr::{ScalarFunction, WindowFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprFunctionExt, Limit, LogicalPlan, LogicalPlanBuilder, Projection, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Sort, Volatility, WindowFunctionDefinition, cast,
};
use datafusion::scalar::ScalarValue;
use std::sync::Arc;
use tessera_parser::TIES;
use tessera_proto::Error;

/// Takes every limit with ties apart.
///
/// # Errors
/// 42601 without an order; 2201W for a negative number; 0A000 over DISTINCT ON.
pub(crate) fn expand(plan: LogicalPlan) -> Result<LogicalPlan> {
    let expanded = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Limit(limit) => match limit.fetch.as_deref() {
            Some(Expr::ScalarFunction(ScalarFunction { func, args })) if func.name() == TIES => {
                let count = args.first().cloned().unwrap_or_default();
                Ok(Transformed::yes(with_ties(&limit, count)?))
            }
            _ => Ok(Transformed::no(LogicalPlan::Limit(limit))),
        },
        node => Ok(Transformed::no(node)),
    })?;
    Ok(expanded.data)
}

fn with_ties(limit: &Limit, count: Expr) -> Result<LogicalPlan> {
    let (above, sort) = match limit.input.as_ref() {
        LogicalPlan::Sort(sort) => (None, sort),
        LogicalPlan::Projection(projection) => match projection.input.as_ref() {
            LogicalPlan::Sort(sort) => (Some(projection), sort),
            _ => return Err(no_order()),
        },
        LogicalPlan::Distinct(_) => {
            let what = "FETCH ... WITH TIES of DISTINCT ON is not supported";
            return Err(Error::unsupported(what, "put the DISTINCT ON into a subquery").into());
        }
        _ => return Err(no_order()),
    };
    if let Expr::Literal(value, _) = &count
        && let Ok(ScalarValue::Int64(Some(..0))) = value.cast_to(&DataType::Int64)
    {
        return Err(Error::new("2201W", "LIMIT must not be negative").into());
    }
    let mut last = cast(count, DataType::Int64);
    if let Some(skip) = limit.skip.as_deref() {
        last = last + cast(skip.clone(), DataType::Int64);
    }
    let rank = WindowFunction::new(WindowFunctionDefinition::WindowUDF(rank_udwf()), vec![]);
    let rank = Expr::from(rank).order_by(sort.expr.clone()).build()?;
    let column = Expr::Column(Column::from_name(rank.schema_name().to_string()));
    let columns: Vec<Expr> = sort.input.schema().columns().into_iter().map(Expr::Column).collect();
    let kept = LogicalPlanBuilder::from(sort.input.as_ref().clone())
        .window([rank])?
        .filter(cast(column, DataType::Int64).lt_eq(last))?
        .project(columns)?
        .build()?;
    let mut plan = LogicalPlan::Sort(Sort {
        expr: sort.expr.clone(),
        input: Arc::new(kept),
        fetch: None,
    });
    if let Some(skip) = limit.skip.as_deref() {
        plan = LogicalPlanBuilder::from(plan)
            .limit_by_expr(Some(skip.clone()), None)?
            .build()?;
    }
    match above {
        Some(projection) => Ok(LogicalPlan::Projection(Projection::try_new(
            projection.expr.clone(),
            Arc::new(plan),
        )?)),
        None => Ok(plan),
    }
}

fn no_order() -> datafusion::error::DataFusionError {
    let error = Error::new("42601", "WITH TIES cannot be specified without ORDER BY clause");
    error.with_hint("say ORDER BY, or ONLY in place of WITH TIES").into()
}

/// The function of this name, if it is ours.
pub(crate) fn function(name: &str) -> Option<Arc<ScalarUDF>> {
    let signature = Signature::any(1, Volatility::Stable);
    (name == TIES).then(|| Arc::new(ScalarUDF::from(Ties { signature })))
}

/// Marks a limit; it never runs there.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Ties {
    signature: Signature,
}

impl ScalarUDFImpl for Ties {
    fn name(&self) -> &str {
        TIES
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(Error::new("42883", format!("function {TIES} does not exist")).into())
    }
}
