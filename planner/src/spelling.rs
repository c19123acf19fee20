//! Calls and operators of PostgreSQL's that are other calls here.
//!
//! ```text
//!   (a, b) OVERLAPS (c, d)                 __tessera_overlaps(a, b, c, d)        an end that is an interval is added to its start
//!   age(ts)                                __tessera_age(CURRENT_DATE, ts)       make_date, encode, decode likewise, ceiling, ...
//!   make_interval(days => 10)              make_interval(0, 0, 0, 10)
//!   substring(t FROM 'o(.)b')              (regexp_match(t, 'o(.)b'))[1]
//!   div(a, b)                              trunc((a - a % b) / b)
//!   interval '1 day' * 2                   __tessera_interval_times(interval '1 day', 2)
//! ```

use crate::rewrite::call;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator, cast, lit};
use sqlparser::ast::{
    BinaryOperator, DataType as SqlType, Expr as AstExpr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
    Ident, Value,
};
use tessera_proto::functions;
use tessera_proto::functions::rows::named;

/// Intervals times numbers and over them.
#[derive(Debug)]
pub struct IntervalOperators;

impl ExprPlanner for IntervalOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = expr;
        let original = |op, left, right| Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        if !matches!(op, BinaryOperator::Multiply | BinaryOperator::Divide) {
            return original(op, left, right);
        }
        let (Ok(left_type), Ok(right_type)) = (left.get_type(schema), right.get_type(schema)) else {
            return original(op, left, right);
        };
        let is_span = |of: &DataType| matches!(of, DataType::Interval(_) | DataType::Duration(_));
        let (interval, factor) = match (is_span(&left_type), is_span(&right_type), &op) {
            (true, false, BinaryOperator::Multiply) if right_type.is_numeric() => {
                (left, cast(right, DataType::Float64))
            }
            (false, true, BinaryOperator::Multiply) if left_type.is_numeric() => (right, cast(left, DataType::Float64)),
            (true, false, BinaryOperator::Divide) if right_type.is_numeric() => {
                let inverse = Expr::BinaryExpr(BinaryExpr {
                    left: Box::new(lit(1.0f64)),
                    op: Operator::Divide,
                    right: Box::new(cast(right, DataType::Float64)),
                });
                (left, inverse)
            }
            _ => return original(op, left, right),
        };
        let Some(times) = named("*").and_then(functions::rewritten) else {
            return original(op, interval, factor);
        };
        let call = ScalarFunction::new_udf(times, vec![interval, factor]);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

/// An expression in the other words; `None` where it stays.
pub(crate) fn rewritten(expr: &AstExpr) -> Option<AstExpr> {
    match expr {
        AstExpr::BinaryOp {
            left,
            op: BinaryOperator::Overlaps,
            right,
        } => {
            let (mut args, more) = (ends(left)?, ends(right)?);
            args.extend(more);
            Some(call(named("overlaps")?, args))
        }
        AstExpr::Substring {
            expr,
            substring_from: Some(pattern),
            substring_for: None,
            special: false,
            ..
        } if is_text(pattern) => {
            let found = call("regexp_match", vec![(**expr).clone(), (**pattern).clone()]);
            Some(call(functions::arrays::named("[]")?, vec![found, number(1)]))
        }
        AstExpr::Function(function) => function_of(function),
        _ => None,
    }
}

/// A period's ends.
fn ends(period: &AstExpr) -> Option<Vec<AstExpr>> {
    let AstExpr::Tuple(ends) = period else { return None };
    let [start, end] = ends.as_slice() else { return None };
    let is_interval = match end {
        AstExpr::Interval(_) => true,
        AstExpr::Cast { data_type, .. } => matches!(data_type, SqlType::Interval { .. }),
        AstExpr::TypedString(typed) => matches!(typed.data_type, SqlType::Interval { .. }),
        _ => false,
    };
    let end = match is_interval {
        true => nested(start.clone(), BinaryOperator::Plus, end.clone()),
        false => end.clone(),
    };
    Some(vec![start.clone(), end])
}

fn nested(left: AstExpr, op: BinaryOperator, right: AstExpr) -> AstExpr {
    let operand = |expr| Box::new(AstExpr::Nested(Box::new(expr)));
    AstExpr::Nested(Box::new(AstExpr::BinaryOp {
        left: operand(left),
        op,
        right: operand(right),
    }))
}

fn is_text(expr: &AstExpr) -> bool {
    matches!(expr, AstExpr::Value(value) if matches!(
        value.value,
        Value::SingleQuotedString(_) | Value::EscapedStringLiteral(_) | Value::DollarQuotedString(_)
    ))
}

fn number(n: i32) -> AstExpr {
    AstExpr::Value(Value::Number(n.to_string(), false).into())
}

fn function_of(function: &Function) -> Option<AstExpr> {
    let [part] = function.name.0.as_slice() else {
        return None;
    };
    let name = part.as_ident()?.value.to_lowercase();
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    if name == "make_interval" {
        return interval_of(&list.args);
    }
    let args = list.args.iter().map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    let args = args.collect::<Option<Vec<_>>>()?;
    Some(match (name.as_str(), args.as_slice()) {
        ("ceiling", [_]) => call("ceil", args),
        ("statement_timestamp" | "transaction_timestamp", []) => call("now", args),
        ("age", [only]) => {
            let today = call("current_date", vec![]);
            call(named("age")?, vec![today, only.clone()])
        }
        ("div", [a, b]) => {
            let rest = nested(a.clone(), BinaryOperator::Modulo, b.clone());
            let whole = nested(a.clone(), BinaryOperator::Minus, rest);
            call("trunc", vec![nested(whole, BinaryOperator::Divide, b.clone())])
        }
        // Sets are [`crate::sets`]'s.
        ("*" | "regexp_matches" | "to_timestamp", _) => return None,
        (name, _) => call(named(name)?, args),
    })
}

/// `make_interval` with all its arguments, if some have names.
fn interval_of(args: &[FunctionArg]) -> Option<AstExpr> {
    const NAMES: [&str; 7] = ["years", "months", "weeks", "days", "hours", "mins", "secs"];
    let place = |name: &Ident| NAMES.iter().position(|known| name.value.eq_ignore_ascii_case(known));
    let mut all = NAMES.map(|_| number(0));
    let mut any = false;
    for (position, arg) in args.iter().enumerate() {
        match arg {
            FunctionArg::Named {
                name,
                arg: FunctionArgExpr::Expr(expr),
                ..
            } => {
                *all.get_mut(place(name)?)? = expr.clone();
                any = true;
            }
            FunctionArg::ExprNamed {
                name: AstExpr::Identifier(name),
                arg: FunctionArgExpr::Expr(expr),
                ..
            } => {
                *all.get_mut(place(name)?)? = expr.clone();
                any = true;
            }
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => *all.get_mut(position)? = expr.clone(),
            _ => return None,
        }
    }
    any.then(|| call("make_interval", all.to_vec()))
}
