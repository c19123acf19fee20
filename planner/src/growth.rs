//! A bound on how far the optimiser may blow an expression up.
//!
//! ```text
//!   CASE WHEN x THEN a ELSE b END   of booleans   ->   (x AND a) OR (NOT x AND b)          x twice
//!   x BETWEEN a AND b                             ->   x >= a AND x <= b                   x twice
//!   coalesce(x, y)                                ->   CASE WHEN x IS NOT NULL THEN x ...  x twice
//! ```
//!
//! Nested n deep, x is there 2^n times: twenty CASEs in each other's WHEN took two minutes, which nothing could cancel. The size
//! after such rewriting is estimated first, from the leaves of the expression up, and too large a one is refused.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion, TreeNodeVisitor};
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use tessera_proto::{Error, Result};

/// Nodes of one expression after rewriting. Twelve CASEs in each other make 32,000 and are planned in 0.4 s; each further
/// one doubles both.
const NODES_MAX: u64 = 50_000;

/// Refuses a plan with an expression that would grow too large.
///
/// # Errors
/// 54001.
pub fn check(plan: &LogicalPlan) -> Result<()> {
    let mut largest = 0;
    plan.apply_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        node.apply_expressions(|expr| {
            let mut size = Size {
                schema: &schema,
                sizes: vec![],
            };
            expr.visit(&mut size)?;
            largest = largest.max(size.sizes.pop().unwrap_or(0));
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    if largest <= NODES_MAX {
        return Ok(());
    }
    Err(
        Error::new("54001", "an expression is nested too deeply to be simplified")
            .with_hint("compute the inner CASE, BETWEEN or coalesce in a subquery or WITH, and use its column"),
    )
}

/// Sizes of finished subexpressions that have no parent yet.
struct Size<'a> {
    schema: &'a DFSchema,
    sizes: Vec<u64>,
}

impl<'n> TreeNodeVisitor<'n> for Size<'_> {
    type Node = Expr;

    fn f_up(&mut self, expr: &'n Expr) -> DfResult<TreeNodeRecursion> {
        let mut children = 0;
        expr.apply_children(|_| {
            children += 1;
            Ok(TreeNodeRecursion::Continue)
        })?;
        let sizes = self.sizes.split_off(self.sizes.len() - children);
        let times = |i: usize| copies(expr, i, self.schema);
        let sum = sizes
            .iter()
            .enumerate()
            .fold(1u64, |sum, (i, size)| sum.saturating_add(size.saturating_mul(times(i))));
        self.sizes.push(sum);
        Ok(TreeNodeRecursion::Continue)
    }
}

/// How often child `i` is there after rewriting.
fn copies(expr: &Expr, i: usize, schema: &DFSchema) -> u64 {
    match expr {
        Expr::Between(_) if i == 0 => 2,
        // Children are WHEN, THEN, WHEN, THEN, ..., ELSE. A WHEN is negated in every later branch.
        Expr::Case(case) if case.expr.is_none() && i.is_multiple_of(2) && i / 2 < case.when_then_expr.len() => {
            let whens = &case.when_then_expr;
            let constant = |e: &Expr| matches!(e, Expr::Literal(..));
            let constants = whens.iter().all(|(_, then)| constant(then));
            let no_else = case.else_expr.as_ref().is_none_or(|e| constant(e));
            let rewritten = whens.len() < 3 || constants;
            let is_boolean = || whens[0].1.get_type(schema).is_ok_and(|t| t.is_null() || t == BOOLEAN);
            if !rewritten || (whens.len() == 1 && constants && no_else) || !is_boolean() {
                return 1;
            }
            (whens.len() - i / 2 + 1) as u64
        }
        Expr::ScalarFunction(f) if matches!(f.name(), "coalesce" | "nvl" | "ifnull") && i + 1 < f.args.len() => 2,
        _ => 1,
    }
}

const BOOLEAN: datafusion::arrow::datatypes::DataType = datafusion::arrow::datatypes::DataType::Boolean;

#[cfg(test)]
mod tests {
    use super::check;
    use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit, when};

    fn refused(expr: Expr) -> bool {
        let rows = LogicalPlanBuilder::values(vec![vec![lit(1)]]).unwrap();
        let plan = rows.project(vec![expr]).unwrap().build().unwrap();
        check(&plan).is_err_and(|e| e.code == "54001")
    }

    fn nest(levels: i32, level: impl Fn(Expr, i32) -> Expr) -> Expr {
        (0..levels).fold(col("column1").eq(lit(0)), level)
    }

    #[test]
    fn what_doubles_at_every_level_is_bounded() {
        let k = || col("column1");
        let both = |e: Expr, i| when(e, k().eq(lit(i))).otherwise(k().gt(lit(i))).unwrap();
        assert!(!refused(nest(10, both)));
        assert!(refused(nest(20, both)));
        assert!(refused(nest(60, both)));
        assert!(refused(nest(40, |e, _| e.between(lit(false), lit(true)))));
        // Not rewritten, or to no more than it was.
        let number = |e: Expr, i| when(k().eq(lit(i)), lit(i)).otherwise(e).unwrap();
        assert!(!refused((0..60).fold(k(), number)));
        let constants = |e: Expr, _| when(e, lit(true)).otherwise(lit(false)).unwrap();
        assert!(!refused(nest(60, constants)));
    }
}
