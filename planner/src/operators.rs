//! EXTRACT as function calls of PostgreSQL's types.
//!
//! ```text
//!   EXTRACT (epoch FROM x), (second)    CAST(date_part(..) AS numeric), six digits after the point; see [`is_extract`]
//! ```
//!
//! The other fields of EXTRACT stay integers, where PostgreSQL has numerics without digits after the point.

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use datafusion::functions::datetime::date_part;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::{Cast, ScalarFunction};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult};
use std::collections::HashMap;
use std::sync::Arc;

/// See the module's text.
#[derive(Debug)]
pub struct Operators;

/// Key of the metadata of the field that the cast of EXTRACT has.
const EXTRACT: &str = "tessera.extract";

/// Digits of seconds, and of those since 1970.
const SECONDS: DataType = DataType::Decimal128(23, 6);

/// Whether a cast is that of EXTRACT. Whoever binds the plan drops the metadata, and the digits after the point where the value
/// comes from a date.
pub fn is_extract(field: &Field) -> bool {
    field.metadata().contains_key(EXTRACT)
}

impl ExprPlanner for Operators {
    fn plan_extract(&self, args: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        let field = match args.first() {
            Some(Expr::Literal(field, _)) => field.try_as_str().flatten(),
            _ => None,
        };
        let fraction = field.is_some_and(|f| {
            let seconds = ["epoch", "second", "seconds"];
            seconds.iter().any(|name| f.eq_ignore_ascii_case(name))
        });
        if !fraction {
            return Ok(PlannerResult::Original(args));
        }
        let part = Expr::ScalarFunction(ScalarFunction::new_udf(date_part(), args));
        let metadata = HashMap::from([(EXTRACT.to_owned(), String::new())]);
        Ok(PlannerResult::Planned(Expr::Cast(Cast {
            expr: Box::new(part),
            field: Arc::new(Field::new("", SECONDS, true).with_metadata(metadata)),
        })))
    }
}
