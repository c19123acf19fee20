//! `generate_series` in FROM, and in a SELECT list.
//!
//! ```text
//!   SELECT generate_series(1, k) FROM t         unnest(generate_series(1, k)): DataFusion's scalar function makes an array
//!   generate_series(1, 10, 3) AS s              1 4 7 10           integer or bigint, column s
//!   generate_series(date, date, interval)       timestamps, as PostgreSQL has them
//! ```
//!
//! DataFusion's function makes the rows, on the router; here its arguments and its column get the types of ours:
//! microseconds, where it counts nanoseconds. Arguments are constants. Not here: numeric series (42883), and timestamps
//! outside of 1677 to 2262 (22008).

use datafusion::arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, TableReference};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::functions_table::generate_series::GenerateSeriesFunc;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, col, lit};
use sqlparser::ast::{
    Expr as SqlExpr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName, Query, SelectItem, VisitMut, VisitorMut,
};
use std::ops::ControlFlow;
use std::sync::Arc;
use tessera_proto::Error;

/// See the module's text.
#[derive(Debug)]
pub struct Series;

impl TableFunctionImpl for Series {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let values: Vec<&ScalarValue> = args
            .exprs()
            .iter()
            .filter_map(|e| match e {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            })
            .collect();
        let to = kind(&values)?;
        let nanoseconds = match &to {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Nanosecond, zone.clone()),
            DataType::Int32 => DataType::Int64,
            other => other.clone(),
        };
        let mut converted = vec![];
        for (i, value) in values.iter().enumerate() {
            let to = match &nanoseconds {
                DataType::Timestamp(..) if i == 2 => &DataType::Interval(IntervalUnit::MonthDayNano),
                other => other,
            };
            let range = || {
                Error::new("22008", "timestamp out of range for generate_series").with_hint("1677 to 2262 is possible")
            };
            let changed = value.cast_to(to).ok().filter(|v| v.is_null() == value.is_null());
            converted.push(lit(changed.ok_or_else(range)?));
        }
        if converted.get(2).is_some_and(is_zero) {
            return Err(Error::new("22023", "step size cannot equal zero").into());
        }
        // A NULL anywhere: no rows.
        if values.iter().any(|v| v.is_null()) {
            converted = vec![lit(ScalarValue::Null); 2];
        }
        let rows = GenerateSeriesFunc {}.call_with_args(TableFunctionArgs::new(&converted, args.session()))?;
        let name = TableReference::bare("generate_series");
        let scan = LogicalPlanBuilder::scan(name, provider_as_source(rows), None)?;
        let column = cast(col("value"), to).alias("generate_series");
        Ok(Arc::new(ViewTable::new(scan.project(vec![column])?.build()?, None)))
    }
}

/// The type of the series.
fn kind(values: &[&ScalarValue]) -> Result<DataType> {
    let types: Vec<DataType> = values.iter().map(|v| v.data_type()).collect();
    let is_instant = |t: &DataType| matches!(t, DataType::Date32 | DataType::Timestamp(..) | DataType::Null);
    let known = |t: &DataType| t.is_integer() || t.is_null();
    match types.as_slice() {
        [first, second] if known(first) && known(second) => Ok(integer(&types)),
        [first, second, step] if known(first) && known(second) && known(step) => Ok(integer(&types)),
        [
            first,
            second,
            DataType::Interval(_) | DataType::Utf8 | DataType::Utf8View | DataType::Null,
        ] if is_instant(first) && is_instant(second) => {
            let zone = [first, second].into_iter().find_map(|t| match t {
                DataType::Timestamp(_, Some(zone)) => Some(zone.clone()),
                _ => None,
            });
            Ok(DataType::Timestamp(TimeUnit::Microsecond, zone))
        }
        types => {
            let names: Vec<_> = types.iter().map(ToString::to_string).collect();
            let message = format!("function generate_series({}) does not exist", names.join(", "));
            Err(Error::new("42883", message)
                .with_hint("it takes two or three integers, or two dates or timestamps and an interval, all constant")
                .into())
        }
    }
}

/// Makes rows of series in an item of a SELECT list.
pub(crate) fn unnest_series(item: &mut SelectItem) {
    struct Calls {
        queries: usize,
        found: bool,
    }
    impl VisitorMut for Calls {
        type Break = ();
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.queries += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.queries -= 1;
            ControlFlow::Continue(())
        }
        fn post_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<()> {
            if let SqlExpr::Function(call) = expr
                && self.queries == 0
                && is_series(call)
            {
                let argument = FunctionArg::Unnamed(FunctionArgExpr::Expr(SqlExpr::Function(call.clone())));
                let unnest = Function {
                    name: ObjectName::from(vec![Ident::new("unnest")]),
                    args: FunctionArguments::List(FunctionArgumentList {
                        duplicate_treatment: None,
                        args: vec![argument],
                        clauses: vec![],
                    }),
                    ..call.clone()
                };
                *expr = SqlExpr::Function(unnest);
                self.found = true;
            }
            ControlFlow::Continue(())
        }
    }
    let alone = matches!(&*item, SelectItem::UnnamedExpr(SqlExpr::Function(call)) if is_series(call));
    let mut calls = Calls {
        queries: 0,
        found: false,
    };
    // Never breaks.
    let _ = item.visit(&mut calls);
    if let SelectItem::UnnamedExpr(expr) = item
        && calls.found
        && alone
    {
        *item = SelectItem::ExprWithAlias {
            expr: expr.clone(),
            alias: Ident::new("generate_series"),
        };
    }
}

fn is_series(call: &Function) -> bool {
    let only = match call.name.0.as_slice() {
        [only] => only.as_ident(),
        _ => None,
    };
    call.over.is_none() && only.is_some_and(|name| name.value.eq_ignore_ascii_case("generate_series"))
}

/// A series is of bigint where one of its arguments is.
fn integer(arguments: &[DataType]) -> DataType {
    match arguments.contains(&DataType::Int64) {
        true => DataType::Int64,
        false => DataType::Int32,
    }
}

fn is_zero(step: &Expr) -> bool {
    match step {
        Expr::Literal(ScalarValue::Int64(step), _) => *step == Some(0),
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(step)), _) => {
            (step.months, step.days, step.nanoseconds) == (0, 0, 0)
        }
        _ => false,
    }
}
