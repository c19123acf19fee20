//! `generate_series` in FROM, and in a SELECT list.
//!
//! ```text
//!   SELECT generate_series(1, k) FROM t         unnest(generate_series(1, k)): DataFusion's scalar function makes an array
//!   generate_series(1, 10, 3) AS s              1 4 7 10           integer or bigint, column s
//!   generate_series(ts, '2026-01-03', '1 day')  timestamps; of dates they are with time zone, as PostgreSQL has them
//!   generate_series(1, 2, 0.5)                  1.0 1.5 2.0        numeric: integers of the last digit, scaled
//! ```
//!
//! DataFusion's function makes the rows, on the router; here its arguments and its column get the types of ours:
//! microseconds, where it counts nanoseconds. Arguments are constants. Not here: timestamps outside of 1677 to 2262 (22008).

use crate::session::zone;
use datafusion::arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, IntervalUnit, TimeUnit};
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
        let to = kind(&values, &zone(args.session().config_options()))?;
        let mut converted = values
            .iter()
            .enumerate()
            .map(|(i, value)| Ok(lit(argument(value, &to, i)?)))
            .collect::<Result<Vec<_>>>()?;
        if let (DataType::Decimal128(_, scale), 2) = (&to, converted.len()) {
            let one = ScalarValue::Int64(Some(1)).cast_to(&to)?;
            converted.push(lit(scaled(&one, *scale)?));
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
        let value = match &to {
            DataType::Decimal128(_, scale) => {
                let digit = ScalarValue::Decimal128(Some(1), scale.unsigned_abs().max(1), *scale);
                cast(cast(col("value"), DataType::Decimal128(19, 0)) * lit(digit), to.clone())
            }
            _ => cast(col("value"), to.clone()),
        };
        let column = value.alias("generate_series");
        Ok(Arc::new(ViewTable::new(scan.project(vec![column])?.build()?, None)))
    }
}

/// One argument as DataFusion's function takes it for a series of type `to`.
fn argument(value: &ScalarValue, to: &DataType, position: usize) -> Result<ScalarValue> {
    match to {
        DataType::Decimal128(_, scale) => match value.is_null() {
            true => Ok(ScalarValue::Int64(None)),
            false => scaled(&value.cast_to(to)?, *scale),
        },
        DataType::Timestamp(_, zone) => {
            let range = || {
                Error::new("22008", "timestamp out of range for generate_series").with_hint("1677 to 2262 is possible")
            };
            if position == 2 {
                return value.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano));
            }
            // A date is midnight in the session's zone: without a zone first.
            let value = match value {
                date @ ScalarValue::Date32(_) => date.cast_to(&DataType::Timestamp(TimeUnit::Microsecond, None))?,
                other => (*other).clone(),
            };
            let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, zone.clone());
            let changed = value
                .cast_to(&nanoseconds)
                .ok()
                .filter(|v| v.is_null() == value.is_null());
            Ok(changed.ok_or_else(range)?)
        }
        DataType::Int32 => value.cast_to(&DataType::Int64),
        to => value.cast_to(to),
    }
}

/// A numeric as an integer of its last digit.
fn scaled(value: &ScalarValue, scale: i8) -> Result<ScalarValue> {
    let digits = match value {
        ScalarValue::Decimal128(Some(digits), _, _) => i64::try_from(*digits).ok(),
        _ => None,
    };
    let range = || {
        Error::new(
            "22003",
            format!("a numeric series of {scale} digits after the point is out of range"),
        )
    };
    Ok(ScalarValue::Int64(Some(digits.ok_or_else(range)?)))
}

/// The type of the series, in a session in `zone`.
fn kind(values: &[&ScalarValue], zone: &Arc<str>) -> Result<DataType> {
    let types: Vec<DataType> = values.iter().map(|v| v.data_type()).collect();
    let is_typed = |t: &DataType| matches!(t, DataType::Date32 | DataType::Timestamp(..));
    let is_instant = |t: &DataType| is_typed(t) || t.is_string() || t.is_null();
    let known = |t: &DataType| t.is_integer() || t.is_null();
    let is_number = |t: &DataType| known(t) || matches!(t, DataType::Decimal128(..));
    let shaped = matches!(types.len(), 2 | 3);
    match types.as_slice() {
        types if shaped && types.iter().all(known) => Ok(integer(types)),
        types if shaped && types.iter().all(is_number) => {
            let scale = types.iter().map(|t| match t {
                DataType::Decimal128(_, scale) => *scale,
                _ => 0,
            });
            Ok(DataType::Decimal128(DECIMAL128_MAX_PRECISION, scale.max().unwrap_or(0)))
        }
        [first, second, step]
            if is_instant(first)
                && is_instant(second)
                && (is_typed(first) || is_typed(second) || (first.is_null() && second.is_null()))
                && (matches!(step, DataType::Interval(_)) || step.is_string() || step.is_null()) =>
        {
            let zone = [first, second].into_iter().find_map(|t| match t {
                DataType::Timestamp(_, Some(zone)) => Some(zone.clone()),
                DataType::Date32 => Some(zone.clone()),
                _ => None,
            });
            // A date beside a timestamp is one.
            let plain = [first, second]
                .into_iter()
                .any(|t| matches!(t, DataType::Timestamp(_, None)));
            Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.filter(|_| !plain)))
        }
        types => {
            let names: Vec<_> = types.iter().map(ToString::to_string).collect();
            let message = format!("function generate_series({}) does not exist", names.join(", "));
            Err(Error::new("42883", message)
                .with_hint("it takes two or three numbers, or two dates or timestamps and an interval, all constant")
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
