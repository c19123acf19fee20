//! A tree of inner joins as a graph: relations, classes of equal expressions, and conditions on several relations.
//!
//! ```text
//!   a JOIN b ON a.x = b.x JOIN c ON b.x = c.x AND a.y < c.y
//!     relations [a, b, c]     classes [{a.x, b.x, c.x}]     conditions [a.y < c.y]     tree ((0 1) 2)
//! ```
//!
//! Expressions of one class are equal in every result row, so any two of them join their relations: `a` and `c` above can
//! be joined directly. Two of them over one relation are a condition on it, for a join takes one of each side. What is equal
//! to an expression over several relations (`a.x + b.y = c.z`) is a condition too. Projections that only drop columns are
//! looked through.

use super::cost::Tree;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, JoinType, NullEquality, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, Join, LogicalPlan, Operator, Projection};
use std::sync::Arc;

/// See the module's text.
#[derive(Debug)]
pub struct Graph<'a> {
    /// What is joined, in the order of FROM.
    pub relations: Vec<&'a LogicalPlan>,
    /// Expressions that are equal in the result, each over one relation.
    pub classes: Vec<Vec<Expr>>,
    /// All other conditions.
    pub conditions: Vec<Expr>,
    /// The order as written.
    pub tree: Tree,
}

impl<'a> Graph<'a> {
    /// The graph below `root`; `None` if that is no inner join.
    pub fn of(root: &'a LogicalPlan) -> Option<Self> {
        inner_join(root)?;
        let mut graph = Graph {
            relations: vec![],
            classes: vec![],
            conditions: vec![],
            tree: Tree::Relation(0),
        };
        graph.tree = graph.take(root);
        graph.equate_within_relations();
        graph.conditions.iter().all(is_movable).then_some(graph)
    }

    /// A relation with the conditions on it alone.
    pub fn filtered(&self, relation: &LogicalPlan) -> Result<LogicalPlan> {
        let own = self
            .conditions
            .iter()
            .filter(|condition| is_over(condition, relation.schema()))
            .cloned();
        match conjunction(own) {
            Some(condition) => Ok(LogicalPlan::Filter(Filter::try_new(
                condition,
                Arc::new(relation.clone()),
            )?)),
            None => Ok(relation.clone()),
        }
    }

    fn take(&mut self, node: &'a LogicalPlan) -> Tree {
        let Some(join) = inner_join(node) else {
            self.relations.push(node);
            return Tree::Relation(self.relations.len() - 1);
        };
        self.take_filters(node);
        let (left, right) = (self.take(&join.left), self.take(&join.right));
        for (l, r) in &join.on {
            self.equate(l.clone(), r.clone());
        }
        for condition in join.filter.iter().flat_map(split_conjunction) {
            self.add(condition, join.left.schema(), join.right.schema());
        }
        Tree::Join(Box::new(left), Box::new(right))
    }

    /// Filters between this node and its join.
    fn take_filters(&mut self, node: &'a LogicalPlan) {
        match node {
            LogicalPlan::Filter(filter) => {
                self.conditions
                    .extend(split_conjunction(&filter.predicate).into_iter().cloned());
                self.take_filters(&filter.input);
            }
            LogicalPlan::Projection(projection) => self.take_filters(&projection.input),
            _ => {}
        }
    }

    fn add(&mut self, condition: &Expr, left: &DFSchema, right: &DFSchema) {
        match equal_sides(condition, left, right) {
            Some((l, r)) => self.equate(l.clone(), r.clone()),
            None => self.conditions.push(condition.clone()),
        }
    }

    /// A class with several expressions over one relation says something of that relation alone.
    fn equate_within_relations(&mut self) {
        for relation in &self.relations {
            for class in &self.classes {
                let mut own = class.iter().filter(|e| is_over(e, relation.schema()));
                if let Some(first) = own.next() {
                    self.conditions.extend(own.map(|other| first.clone().eq(other.clone())));
                }
            }
        }
    }

    fn equate(&mut self, l: Expr, r: Expr) {
        let is_of_one = |e: &Expr| self.relations.iter().any(|relation| is_over(e, relation.schema()));
        if !is_of_one(&l) || !is_of_one(&r) {
            return self.conditions.push(l.eq(r));
        }
        let (mut merged, rest): (Vec<Vec<Expr>>, Vec<Vec<Expr>>) = self
            .classes
            .drain(..)
            .partition(|class| class.contains(&l) || class.contains(&r));
        merged.push(vec![l, r]);
        let mut class: Vec<Expr> = vec![];
        for expr in merged.into_iter().flatten() {
            if !class.contains(&expr) {
                class.push(expr);
            }
        }
        self.classes = rest;
        self.classes.push(class);
    }
}

/// Both sides of an equality, the one over `left` first; `None` for a condition that does not join them so.
pub fn equal_sides<'e>(condition: &'e Expr, left: &DFSchema, right: &DFSchema) -> Option<(&'e Expr, &'e Expr)> {
    let Expr::BinaryExpr(BinaryExpr {
        left: l,
        op: Operator::Eq,
        right: r,
    }) = condition
    else {
        return None;
    };
    if is_over(l, left) && is_over(r, right) {
        Some((l, r))
    } else if is_over(l, right) && is_over(r, left) {
        Some((r, l))
    } else {
        None
    }
}

/// Whether a condition may be checked elsewhere in the tree: it belongs to some relations, and gives the same wherever it
/// is evaluated.
fn is_movable(condition: &Expr) -> bool {
    let fixed = condition.exists(|e| {
        let subquery = matches!(
            e,
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
        );
        Ok(subquery || matches!(e, Expr::OuterReferenceColumn(..)))
    });
    !condition.column_refs().is_empty() && !condition.is_volatile() && fixed.is_ok_and(|fixed| !fixed)
}

/// Whether `expr` has columns, all of them from `schema`.
pub fn is_over(expr: &Expr, schema: &DFSchema) -> bool {
    let columns = expr.column_refs();
    !columns.is_empty() && columns.into_iter().all(|column| schema.has_column(column))
}

/// The inner join at `node`, looking through filters and projections that only drop columns.
fn inner_join(node: &LogicalPlan) -> Option<&Join> {
    match node {
        LogicalPlan::Join(join) => {
            let plain = join.join_type == JoinType::Inner && !join.null_aware;
            (plain && join.null_equality == NullEquality::NullEqualsNothing).then_some(join)
        }
        LogicalPlan::Filter(filter) => inner_join(&filter.input),
        LogicalPlan::Projection(projection) if only_drops(projection) => inner_join(&projection.input),
        _ => None,
    }
}

fn only_drops(projection: &Projection) -> bool {
    let columns = projection.schema.columns();
    projection
        .expr
        .iter()
        .zip(columns)
        .all(|(expr, output)| matches!(expr, Expr::Column(column) if *column == output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::logical_expr::{LogicalPlanBuilder, col, table_scan};

    fn scan(name: &str) -> LogicalPlanBuilder {
        let fields: Vec<_> = ["x", "y", "z"]
            .map(|column| Field::new(column, DataType::Int64, true))
            .into();
        table_scan(Some(name), &Schema::new(fields), None).expect("planned")
    }

    fn joined(left: LogicalPlanBuilder, right: &str, on: Vec<(Expr, Expr)>) -> LogicalPlanBuilder {
        let (left, right) = (left.build().expect("planned"), scan(right).build().expect("planned"));
        let (kind, nulls) = (JoinType::Inner, NullEquality::NullEqualsNothing);
        let constraint = datafusion::common::JoinConstraint::On;
        let join = Join::try_new(
            Arc::new(left),
            Arc::new(right),
            on,
            None,
            kind,
            constraint,
            nulls,
            false,
        );
        LogicalPlanBuilder::from(LogicalPlan::Join(join.expect("planned")))
    }

    #[test]
    fn columns_of_one_relation_that_are_equal_are_a_condition_on_it() {
        let on = vec![(col("a.x"), col("b.x")), (col("a.x"), col("b.y"))];
        let plan = joined(scan("a"), "b", on).build().expect("planned");
        let graph = Graph::of(&plan).expect("an inner join");
        assert_eq!(graph.classes.len(), 1);
        assert_eq!(graph.conditions, [col("b.x").eq(col("b.y"))]);
    }

    #[test]
    fn an_equality_with_two_relations_on_one_side_is_a_condition() {
        let ab = joined(scan("a"), "b", vec![(col("a.x"), col("b.x"))]);
        let sum = col("a.y") + col("b.y");
        let plan = joined(ab, "c", vec![(sum.clone(), col("c.y")), (col("b.z"), col("c.y"))])
            .build()
            .expect("planned");
        let graph = Graph::of(&plan).expect("an inner join");
        assert_eq!(
            graph.classes,
            [vec![col("a.x"), col("b.x")], vec![col("b.z"), col("c.y")]]
        );
        assert_eq!(graph.conditions, [sum.eq(col("c.y"))]);
    }
}
