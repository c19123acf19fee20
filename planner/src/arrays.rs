//! Arrays: operators and subscripts as calls of the functions that have PostgreSQL's values.
//!
//! ```text
//!   a[1][2]     __tessera_array_element(a, 1, 2)     a @> b, b <@ a    __tessera_array_contains(a, b)
//!   a[:2]       __tessera_array_slice(a, 1, 2)       a && b            __tessera_array_overlaps(a, b)
//!   array_remove(a, 1)   __tessera_array_remove      a || '{1,2}'      the constant is an array; a || NULL is a
//! ```

use crate::rewrite::call;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Cast, Expr, ExprSchemable};
use sqlparser::ast::{
    AccessExpr, BinaryOperator, Expr as AstExpr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    ObjectName, Subscript, Value,
};
use tessera_proto::functions::arrays::{ArrayKind, named};

/// Operators; see the module's text.
#[derive(Debug)]
pub struct ArrayOperators;

impl ExprPlanner for ArrayOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = expr;
        let known = matches!(
            op,
            BinaryOperator::AtArrow
                | BinaryOperator::ArrowAt
                | BinaryOperator::PGOverlap
                | BinaryOperator::StringConcat
        );
        let types = (left.get_type(schema), right.get_type(schema));
        let (true, (Ok(left_type), Ok(right_type))) = (known, types) else {
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        };
        if !left_type.is_list() && !right_type.is_list() {
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        }
        let (left, right) = (
            as_array(left, &left_type, &right_type),
            as_array(right, &right_type, &left_type),
        );
        Ok(match op {
            BinaryOperator::AtArrow => PlannerResult::Planned(ArrayKind::Contains.call(vec![left, right])),
            BinaryOperator::ArrowAt => PlannerResult::Planned(ArrayKind::Contains.call(vec![right, left])),
            BinaryOperator::PGOverlap => PlannerResult::Planned(ArrayKind::Overlaps.call(vec![left, right])),
            // NULL alone is an array here, and adds nothing.
            _ if right_type.is_null() => PlannerResult::Planned(left),
            _ if left_type.is_null() => PlannerResult::Planned(right),
            op => PlannerResult::Original(RawBinaryExpr { op, left, right }),
        })
    }
}

/// A constant in quotes beside an array is an array of its type.
fn as_array(expr: Expr, own: &DataType, other: &DataType) -> Expr {
    match &expr {
        Expr::Literal(value, _) if own.is_string() && !value.is_null() && other.is_list() => {
            Expr::Cast(Cast::new(Box::new(expr), other.clone()))
        }
        _ => expr,
    }
}

/// A subscript or a function of arrays as the call that stands for it.
pub(crate) fn rewritten(expr: &AstExpr) -> Option<AstExpr> {
    match expr {
        AstExpr::CompoundFieldAccess { root, access_chain } => subscripts(root, access_chain),
        AstExpr::Function(function) => function_of(function),
        _ => None,
    }
}

fn subscripts(root: &AstExpr, chain: &[AccessExpr]) -> Option<AstExpr> {
    let dots = chain
        .iter()
        .take_while(|access| matches!(access, AccessExpr::Dot(_)))
        .count();
    let (dots, chain) = chain.split_at(dots);
    if chain.is_empty() {
        return None;
    }
    let root = match dots {
        [] => root.clone(),
        dots => AstExpr::CompoundFieldAccess {
            root: Box::new(root.clone()),
            access_chain: dots.to_vec(),
        },
    };
    let is_slice = |access: &AccessExpr| matches!(access, AccessExpr::Subscript(Subscript::Slice { .. }));
    let sliced = chain.iter().any(is_slice);
    let mut args = vec![root];
    for access in chain {
        match access {
            // Of a document, by key: no array.
            AccessExpr::Subscript(Subscript::Index { index }) if is_text(index) => return None,
            AccessExpr::Subscript(Subscript::Index { index }) if sliced => args.extend([number(1), index.clone()]),
            AccessExpr::Subscript(Subscript::Index { index }) => args.push(index.clone()),
            AccessExpr::Subscript(Subscript::Slice {
                lower_bound,
                upper_bound,
                stride: None,
            }) => {
                args.push(lower_bound.clone().unwrap_or_else(|| number(1)));
                args.push(upper_bound.clone().unwrap_or_else(|| number(i32::MAX)));
            }
            _ => return None,
        }
    }
    let name = if sliced { "[:]" } else { "[]" };
    Some(call(named(name)?, args))
}

fn is_text(expr: &AstExpr) -> bool {
    matches!(expr, AstExpr::Value(value) if matches!(value.value, Value::SingleQuotedString(_) | Value::DoubleQuotedString(_)))
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
    if name != "array_fill" {
        let name = ObjectName::from(vec![Ident::new(named(&name)?)]);
        return Some(AstExpr::Function(Function {
            name,
            ..function.clone()
        }));
    }
    // One call for each dimension, the last one innermost.
    let [
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)),
        FunctionArg::Unnamed(FunctionArgExpr::Expr(AstExpr::Array(counts))),
    ] = list.args.as_slice()
    else {
        return None;
    };
    let fill = |value, count: &AstExpr| Some(call(named("array_fill")?, vec![value, count.clone()]));
    let filled = counts.elem.iter().rev().try_fold(value.clone(), fill);
    filled.filter(|_| !counts.elem.is_empty())
}
