//! Which expressions may run on the nodes.
//!
//! ```text
//!   random(), uuid()        cut: each node would draw its own, and pruned shards would change how many are drawn
//!   (SELECT ...)            cut: what is left of subqueries after optimising needs the router
//!   now()                   already a literal when we get here
//!   version(), pg_typeof()  cut: functions that only the router has
//! ```

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::{
    AggregateUDF, Expr, LogicalPlan, ScalarUDF, Volatility, WindowFunctionDefinition, WindowUDF,
};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use tessera_proto::functions;

/// The functions that every node has: those DataFusion registers by itself, and ours.
struct NodeFunctions {
    scalar: HashMap<String, Arc<ScalarUDF>>,
    aggregate: HashMap<String, Arc<AggregateUDF>>,
    window: HashMap<String, Arc<WindowUDF>>,
}

static NODE_FUNCTIONS: LazyLock<NodeFunctions> = LazyLock::new(|| NodeFunctions {
    scalar: SessionStateDefaults::default_scalar_functions()
        .into_iter()
        .chain(functions::portable())
        .map(|f| (f.name().to_owned(), f))
        .collect(),
    aggregate: SessionStateDefaults::default_aggregate_functions()
        .into_iter()
        .chain(functions::aggregates())
        .map(|f| (f.name().to_owned(), f))
        .collect(),
    window: SessionStateDefaults::default_window_functions()
        .into_iter()
        .map(|f| (f.name().to_owned(), f))
        .collect(),
});

/// Whether nodes can evaluate all expressions of this operator, with the result that the router would get.
pub fn can_run_on_nodes(node: &LogicalPlan) -> bool {
    // An empty relation loses its columns on the way to a node.
    if let LogicalPlan::EmptyRelation(empty) = node
        && !empty.schema.fields().is_empty()
    {
        return false;
    }
    let mut fine = true;
    let walked = node.apply_expressions(|expr| {
        fine = fine && is_portable(expr)?;
        Ok(if fine {
            TreeNodeRecursion::Continue
        } else {
            TreeNodeRecursion::Stop
        })
    });
    walked.is_ok() && fine
}

fn is_portable(expr: &Expr) -> Result<bool> {
    let mut fine = true;
    expr.apply(|e| {
        fine = match e {
            Expr::ScalarFunction(f) => is_known_scalar(&f.func),
            Expr::AggregateFunction(f) => is_known_aggregate(&f.func),
            Expr::WindowFunction(f) => match &f.fun {
                WindowFunctionDefinition::AggregateUDF(f) => is_known_aggregate(f),
                WindowFunctionDefinition::WindowUDF(f) => NODE_FUNCTIONS
                    .window
                    .get(f.name())
                    .is_some_and(|known| Arc::ptr_eq(known, f) || known == f),
            },
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_) => false,
            Expr::OuterReferenceColumn(..) | Expr::Placeholder(_) | Expr::ScalarVariable(..) => false,
            Expr::HigherOrderFunction(_) | Expr::Lambda(_) | Expr::LambdaVariable(_) => false,
            _ => true,
        };
        Ok(if fine {
            TreeNodeRecursion::Continue
        } else {
            TreeNodeRecursion::Stop
        })
    })?;
    Ok(fine)
}

fn is_known_scalar(f: &Arc<ScalarUDF>) -> bool {
    f.signature().volatility != Volatility::Volatile
        && NODE_FUNCTIONS
            .scalar
            .get(f.name())
            .is_some_and(|known| Arc::ptr_eq(known, f) || known == f)
}

fn is_known_aggregate(f: &Arc<AggregateUDF>) -> bool {
    f.signature().volatility != Volatility::Volatile
        && NODE_FUNCTIONS
            .aggregate
            .get(f.name())
            .is_some_and(|known| Arc::ptr_eq(known, f) || known == f)
}

/// Whether an aggregate gives the same value for the same rows in any order. Sums of floats do not: rounding depends on
/// the order.
pub fn is_order_independent(expr: &Expr, schema: &DFSchema) -> bool {
    use datafusion::logical_expr::ExprSchemable;
    let Expr::AggregateFunction(function) = expr.clone().unalias() else {
        return false;
    };
    let exact = || {
        let first = function.params.args.first().and_then(|arg| arg.get_type(schema).ok());
        first.is_some_and(|t| !matches!(t, DataType::Float16 | DataType::Float32 | DataType::Float64))
    };
    match function.func.name() {
        "count" | "min" | "max" | "bool_and" | "bool_or" | "bit_and" | "bit_or" | "bit_xor" => true,
        "sum" | "avg" => exact(),
        _ => false,
    }
}
