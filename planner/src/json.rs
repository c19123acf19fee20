//! JSON's operators as function calls.
//!
//! ```text
//!   j -> 'a', j -> 0     __tessera_json_get(j, 'a')            j #> '{a,b}'     json_extract_path(j, 'a', 'b')
//!   j ->> 'a'            __tessera_json_get_text(j, 'a')       j #>> '{a,b}'    json_extract_path_text(j, 'a', 'b')
//! ```
//!
//! A path must be a constant without quotes in it.

use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, lit};
use sqlparser::ast::BinaryOperator;
use tessera_proto::Error;
use tessera_proto::functions::json::Json;

/// See the module's text.
#[derive(Debug)]
pub struct JsonOperators;

impl ExprPlanner for JsonOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = expr;
        let (kind, is_path) = match op {
            BinaryOperator::Arrow => (Json::Get, false),
            BinaryOperator::LongArrow => (Json::GetText, false),
            BinaryOperator::HashArrow => (Json::Path, true),
            BinaryOperator::HashLongArrow => (Json::PathText, true),
            op => return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right })),
        };
        let mut args = vec![left];
        match is_path {
            true => args.extend(path(&right)?.into_iter().map(lit)),
            false => args.push(right),
        }
        Ok(PlannerResult::Planned(kind.call(args)))
    }
}

/// The steps of `'{a,b}'`.
fn path(expr: &Expr) -> Result<Vec<String>> {
    let text = match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    };
    let inside = text.and_then(|t| t.trim().strip_prefix('{')?.strip_suffix('}'));
    let Some(inside) = inside.filter(|t| !t.contains(['"', '\\', '{', '}'])) else {
        let what = "a path of JSON that is not a constant such as '{a,b}' is not supported";
        return Err(Error::unsupported(what, "use json_extract_path(document, 'a', 'b')").into());
    };
    Ok(match inside.trim() {
        "" => vec![],
        steps => steps.split(',').map(|step| step.trim().to_owned()).collect(),
    })
}
