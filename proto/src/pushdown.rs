//! Filters go down only where their columns cannot be mistaken for others.
//!
//! ```text
//!   Filter q.k > 3                         Filter q.k > 3
//!     Project [q.k, t.k, t.id]               Gate: id                    q.k and t.k have one name, k
//!       Join                         ->        Project [q.k, t.k, t.id]
//!         q                                      Gate: id
//!         t                                        Join
//! ```
//!
//! DataFusion's `FilterPushdown` finds a filter's columns below an operator by name. Where two columns have the same one it
//! takes the first or the last, so that a condition on `q.k` filters `t`; dynamic filters of joins and TopK go the same way.
//! Found by seed 3017 of the random queries. While the rule runs, a [`Gate`] stands above each operator with such columns and
//! lets pass what is about the others; they are gone from the plan that it leaves.

use crate::physical::Rule;
use datafusion::arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::filter_pushdown::{
    ChildFilterDescription, ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// DataFusion's rule, with gates while it runs.
#[derive(Debug)]
pub struct GatedPushdown(pub Rule);

impl PhysicalOptimizerRule for GatedPushdown {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, options: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let gated = plan.transform_up(with_gates)?;
        let pushed = self.0.optimize(gated.data, options)?;
        if !gated.transformed {
            return Ok(pushed);
        }
        let open = pushed.transform_up(|node| match node.downcast_ref::<Gate>() {
            Some(gate) => Ok(Transformed::yes(gate.input.clone())),
            None => Ok(Transformed::no(node)),
        })?;
        Ok(open.data)
    }

    fn name(&self) -> &str {
        "GatedPushdown"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn with_gates(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let mut gated = false;
    let mut inputs = vec![];
    for (number, input) in node.children().into_iter().enumerate() {
        let columns = input.schema().fields().len();
        let passing: HashSet<usize> = (0..columns)
            .filter(|column| is_clear(node.as_ref(), number, input.as_ref(), *column))
            .collect();
        if passing.len() == columns {
            inputs.push(input.clone());
        } else {
            gated = true;
            let input = input.clone();
            inputs.push(Arc::new(Gate { input, passing }));
        }
    }
    if !gated {
        return Ok(Transformed::no(node));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    node.replace_children(inputs, options).map(Transformed::yes)
}

/// Whether a filter that comes from `parent` with this column of its `number`th input means it, and whatever `input` makes of
/// the name still does.
fn is_clear(parent: &dyn ExecutionPlan, number: usize, input: &dyn ExecutionPlan, column: usize) -> bool {
    let schema = input.schema();
    let name = schema.field(column).name();
    let is_here = is_only(&schema, name);
    let join = parent.downcast_ref::<HashJoinExec>();
    let from_above = join.is_none_or(|join| !is_stray(join, number, column));
    let below = if let Some(filter) = input.downcast_ref::<FilterExec>() {
        // What its input refuses it takes itself, by name, whether it drops columns or not.
        is_only(&filter.input().schema(), name)
    } else if let Some(aggregate) = input.downcast_ref::<AggregateExec>() {
        let group = aggregate.group_expr().expr().get(column);
        group.is_none_or(|(expr, name)| expr.downcast_ref::<Column>().is_some_and(|c| c.name() == name))
    } else {
        true
    };
    is_here && from_above && below
}

fn is_only(schema: &Schema, name: &str) -> bool {
    schema.fields().iter().filter(|field| field.name() == name).count() == 1
}

/// Whether a filter on a key of a semi join may come to the other side as one on this column, which is not the other key but
/// has its name.
fn is_stray(join: &HashJoinExec, number: usize, column: usize) -> bool {
    let (other, schema) = match (join.join_type(), number) {
        (JoinType::LeftSemi, 1) => (false, join.right().schema()),
        (JoinType::RightSemi, 0) => (true, join.left().schema()),
        _ => return false,
    };
    join.on().iter().any(|(left, right)| {
        let (kept, here) = if other { (right, left) } else { (left, right) };
        let here = here.downcast_ref::<Column>().map(Column::index);
        let named = kept
            .downcast_ref::<Column>()
            .and_then(|key| schema.index_of(key.name()).ok());
        named == Some(column) && here != Some(column)
    })
}

/// Lets filters through that have no other columns than these.
#[derive(Debug, Clone)]
struct Gate {
    input: Arc<dyn ExecutionPlan>,
    passing: HashSet<usize>,
}

impl DisplayAs for Gate {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl ExecutionPlan for Gate {
    fn name(&self) -> &str {
        "Gate"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = &children[..] else {
            return internal_err!("Gate has one input");
        };
        Ok(Arc::new(Self {
            input: input.clone(),
            passing: self.passing.clone(),
        }))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let [input] = inputs else {
            return internal_err!("Gate has one input");
        };
        Ok(input.clone())
    }

    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        let passing = self.passing.clone();
        let child = ChildFilterDescription::from_child_with_allowed_indices(&filters, passing, &self.input)?;
        Ok(FilterDescription::new().with_child(child))
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        result: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_all(result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{DataType, Field, SchemaRef};
    use datafusion::common::NullEquality;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, lit};
    use datafusion::physical_optimizer::filter_pushdown::FilterPushdown;
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::physical_plan::joins::PartitionMode;
    use datafusion::physical_plan::projection::ProjectionExec;
    use datafusion::physical_plan::{displayable, joins::HashJoinExecBuilder};

    fn table(columns: &[&str]) -> Arc<dyn ExecutionPlan> {
        let fields: Vec<_> = columns.iter().map(|c| Field::new(*c, DataType::Int64, true)).collect();
        Arc::new(EmptyExec::new(SchemaRef::new(Schema::new(fields))))
    }

    fn column(name: &str, index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(name, index))
    }

    fn filtered(input: Arc<dyn ExecutionPlan>, name: &str, index: usize) -> Arc<dyn ExecutionPlan> {
        let condition = binary(column(name, index), Operator::Gt, lit(3_i64), &input.schema()).expect("typed");
        Arc::new(FilterExec::try_new(condition, input).expect("planned"))
    }

    fn joined(
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
        on: (Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>),
        kind: JoinType,
    ) -> Arc<dyn ExecutionPlan> {
        let builder = HashJoinExecBuilder::new(left, right, vec![on], kind)
            .with_partition_mode(PartitionMode::CollectLeft)
            .with_null_equality(NullEquality::NullEqualsNothing);
        Arc::new(builder.build().expect("planned"))
    }

    /// The filters that are left: their depth and condition.
    fn filters(plan: Arc<dyn ExecutionPlan>) -> Vec<String> {
        let rule = GatedPushdown(Arc::new(FilterPushdown::new()));
        let plan = rule.optimize(plan, &ConfigOptions::default()).expect("optimised");
        let text = displayable(plan.as_ref()).indent(false).to_string();
        assert!(!text.contains("Gate"), "{text}");
        let filter = |line: &str| {
            let (indent, condition) = line.split_once("FilterExec: ")?;
            Some(format!("{}: {condition}", indent.len() / 2))
        };
        text.lines().filter_map(filter).collect()
    }

    #[test]
    fn a_column_of_a_name_that_is_there_twice_stays_above() {
        let (q, t) = (table(&["k", "z"]), filtered(table(&["k", "id"]), "id", 1));
        let join = joined(q, t, (column("z", 1), column("id", 1)), JoinType::Right);
        let all = vec![
            (column("k", 0), "k".to_owned()),
            (column("k", 2), "k".to_owned()),
            (column("id", 3), "id".to_owned()),
        ];
        let all: Arc<dyn ExecutionPlan> = Arc::new(ProjectionExec::try_new(all, join).expect("planned"));
        assert_eq!(filters(filtered(all.clone(), "k", 0)), ["0: k@0 > 3", "3: id@1 > 3"]);
        // The other column is as free as ever.
        assert_eq!(filters(filtered(all, "id", 2)), ["2: id@1 > 3 AND id@1 > 3"]);
    }

    #[test]
    fn a_key_of_a_semi_join_is_not_another_column_of_its_name() {
        // ... WHERE EXISTS (SELECT 1 FROM u WHERE u.x = t.k): u has a k of its own.
        let (t, u) = (
            filtered(table(&["k", "a"]), "a", 1),
            filtered(table(&["k", "x"]), "x", 1),
        );
        let join = joined(t, u, (column("k", 0), column("x", 1)), JoinType::LeftSemi);
        assert_eq!(
            filters(filtered(join, "k", 0)),
            ["1: k@0 > 3 AND a@1 > 3", "1: x@1 > 3"]
        );
    }
}
