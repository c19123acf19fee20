//! DEFAULT expressions: planned once per statement, evaluated per batch only where they are volatile.
//!
//! ```text
//!   DEFAULT now()               one value for the whole statement, fixed before anything is logged
//!   DEFAULT gen_random_uuid()   a new value for every row
//! ```
//!
//! The text is planned as `SELECT <text>` over no table; columns, subqueries and aggregates are refused when the table is
//! created.

use super::cast;
use crate::cluster::catalog::StatementCatalog;
use crate::execute::prepare;
use crate::session::StatementContext;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::Schema;
use datafusion::common::DFSchema;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::scalar::ScalarValue;
use std::sync::Arc;
use tessera_parser::Statement;
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result, Timestamp};

/// A column's default, ready to give values.
#[derive(Debug, Clone)]
pub(super) enum Default {
    /// The same for every row, of the column's type.
    Fixed(ScalarValue),
    /// Evaluated for every row.
    Volatile(Arc<dyn PhysicalExpr>),
}

impl Default {
    /// NULL of the column's type.
    ///
    /// # Errors
    /// None is expected.
    pub(super) fn null(column: &ColumnDef) -> Result<Self> {
        Ok(Self::Fixed(ScalarValue::try_from(&column.sql_type.arrow())?))
    }

    /// A column of `rows` values.
    ///
    /// # Errors
    /// What the expression or its cast fails with.
    pub(super) fn column(&self, column: &ColumnDef, rows: usize, zone: &str) -> Result<ArrayRef> {
        match self {
            Self::Fixed(value) => Ok(value.to_array_of_size(rows)?),
            Self::Volatile(expr) => cast::assign(column, &evaluate(expr.as_ref(), rows)?, zone),
        }
    }
}

/// Values of an expression without columns.
fn evaluate(expr: &dyn PhysicalExpr, rows: usize) -> Result<ArrayRef> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)
        .map_err(|e| Error::internal(e.to_string()))?;
    Ok(expr.evaluate(&batch)?.into_array(rows)?)
}

/// Plans the default of a column, NULL if it has none. `now` is what `now()` tells, the same for all columns.
///
/// # Errors
/// 42P17 for what cannot be a default; what planning and casting find.
pub(super) async fn plan(
    context: &StatementContext,
    catalog: &StatementCatalog,
    column: &ColumnDef,
    zone: &str,
    now: Timestamp,
) -> Result<Default> {
    let Some(text) = &column.default else {
        return Default::null(column);
    };
    let (expr, volatile) = physical(context, catalog, column, text, now).await?;
    if volatile {
        return Ok(Default::Volatile(expr));
    }
    let value = cast::assign(column, &evaluate(expr.as_ref(), 1)?, zone)?;
    Ok(Default::Fixed(ScalarValue::try_from_array(&value, 0)?))
}

/// Refuses a default that could not be evaluated later.
///
/// # Errors
/// Those of [`plan`].
pub(crate) async fn check(context: &StatementContext, column: &ColumnDef) -> Result<()> {
    let catalog = StatementCatalog::new(context);
    let zone = context.settings.get("timezone").unwrap_or_default();
    let now = context.engine.oracle().draw().await?;
    plan(context, &catalog, column, &zone, now).await.map(|_| ())
}

async fn physical(
    context: &StatementContext,
    catalog: &StatementCatalog,
    column: &ColumnDef,
    text: &str,
    now: Timestamp,
) -> Result<(Arc<dyn PhysicalExpr>, bool)> {
    let refuse = |why: &str| {
        Error::new(
            "42P17",
            format!("default of column \"{}\" is not possible", column.name),
        )
        .with_detail(why.to_owned())
    };
    let parsed = tessera_parser::parse(&format!("SELECT {text}")).map_err(crate::error::from_parse)?;
    let [statement] = parsed.as_slice() else {
        return Err(refuse("it is not one expression"));
    };
    let Statement::Query(query) = &statement.statement else {
        return Err(refuse("it is not an expression"));
    };
    let state = prepare::session_state(context, now)?;
    let plan = prepare::read_literals(context, tessera_planner::bind(&state, query, catalog, &[]).await?)?;
    let LogicalPlan::Projection(projection) = &plan else {
        return Err(refuse("it is not a plain expression"));
    };
    if !matches!(projection.input.as_ref(), LogicalPlan::EmptyRelation(_)) || projection.expr.len() != 1 {
        return Err(refuse("it must be one expression without tables or aggregates"));
    }
    let expr: Expr = projection.expr[0].clone().unalias();
    if !expr.column_refs().is_empty() || prepare::has_subquery(&expr) {
        return Err(refuse("it must not contain columns or subqueries"));
    }
    let schema = DFSchema::empty();
    let data_type = datafusion::logical_expr::ExprSchemable::get_type(&expr, &schema)?;
    cast::check_assignable(column, &data_type, prepare::is_literal(&expr))?;
    let volatile = expr.is_volatile();
    let simplifier = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(state.config_options().clone())
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    // Simplifying is what gives now() its value.
    let simplifier = ExprSimplifier::new(simplifier);
    let expr = simplifier.simplify(simplifier.coerce(expr, &schema)?)?;
    Ok((state.create_physical_expr(expr, &schema)?, volatile))
}
