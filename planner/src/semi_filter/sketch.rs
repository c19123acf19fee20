//! The leaves that a plan will be cut into, and where a column of an operator comes from or goes to among them.
//!
//! ```text
//!   Join o.c = p.k               values of p.k come from leaf 1              rows of the right side may be left out of
//!     ShardLocal 0: o              ShardLocal 1: p, column k                   ShardLocal 0: o, column c
//!     Filter
//!       ShardLocal 1: p
//!
//!   operator                     all values come from      rows without a value may be left out of
//!   projection of the column     its input                 its input
//!   alias, filter, DISTINCT      its input                 its input
//!   sort, LIMIT                  its input                 its input, if all of it is sorted
//!   aggregate, a group of it     its input                 its input
//!   window                       its input                 its input, if each window is partitioned by the column
//!   join                         the column's side         the column's side, unless the other is padded where it is missing
//!     on the column = another      inner, semi: and there    and there
//!   UNION ALL                    -                         every input
//! ```
//!
//! What is not listed ends the way. Values: those of the leaf's column are all of the operator's, but for NULL. Rows: without
//! the leaf's rows of some values, the operator's rows of other values are the same. What becomes of its rows of those values
//! is all one: the join above drops them.

use crate::cluster::Cluster;
use crate::shard_local::locality::{Locality, derive};
use datafusion::common::{DFSchema, JoinType, NullEquality};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, Join, LogicalPlan, Window};
use std::collections::HashMap;

/// Position in the tree: which input of which input of the root. Subtrees may be shared, so their address says nothing.
pub type Path = Vec<usize>;

/// A column of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which leaf.
    pub unit: usize,
    /// Position among its columns.
    pub column: usize,
}

/// A subtree that becomes a leaf, or most of one.
#[derive(Debug)]
pub struct Unit<'a> {
    pub path: Path,
    pub plan: &'a LogicalPlan,
    pub locality: Locality,
}

/// A join above the leaves.
#[derive(Debug)]
pub struct Above<'a> {
    pub path: Path,
    pub join: &'a Join,
    /// A LIMIT above may end it before it has read all.
    pub limited: bool,
}

/// What a plan will be cut into.
#[derive(Debug, Default)]
pub struct Sketch<'a> {
    pub units: Vec<Unit<'a>>,
    pub joins: Vec<Above<'a>>,
    by_path: HashMap<Path, usize>,
}

/// What is asked of a column; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Where all its values come from.
    Values,
    /// Where rows may be left out for its value.
    Rows,
}

impl<'a> Sketch<'a> {
    /// Of a plan; without anything where the whole is one leaf.
    pub fn of(plan: &'a LogicalPlan, cluster: &Cluster) -> Self {
        let mut sketch = Self::default();
        sketch.walk(plan, &mut vec![], false, cluster);
        sketch
    }

    fn walk(&mut self, node: &'a LogicalPlan, path: &mut Path, limited: bool, cluster: &Cluster) -> Option<Locality> {
        let limited = match node {
            LogicalPlan::Limit(_) => true,
            // They read all of their input before they give anything.
            LogicalPlan::Sort(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Window(_) => false,
            _ => limited,
        };
        let mut localities = vec![];
        for (number, input) in node.inputs().into_iter().enumerate() {
            path.push(number);
            localities.push(self.walk(input, path, limited, cluster));
            path.pop();
        }
        let all: Option<Vec<Locality>> = localities.iter().cloned().collect();
        if let Some(locality) = all.and_then(|all| derive(node, &all, cluster)) {
            return Some(locality);
        }
        for (number, (plan, locality)) in node.inputs().into_iter().zip(localities).enumerate() {
            if let Some(locality) = locality.filter(|l| !l.is_constant()) {
                let path = below(path, number);
                self.by_path.insert(path.clone(), self.units.len());
                self.units.push(Unit { path, plan, locality });
            }
        }
        if let LogicalPlan::Join(join) = node {
            let path = path.clone();
            self.joins.push(Above { path, join, limited });
        }
        None
    }

    /// Leaves that answer for column `column` of `node`, which is at `path`; each does so alone.
    pub fn ask(&self, question: Question, node: &LogicalPlan, path: &Path, column: usize) -> Vec<Place> {
        if let Some(unit) = self.by_path.get(path) {
            return vec![Place { unit: *unit, column }];
        }
        let inputs = node.inputs();
        let mut places = vec![];
        for (number, column) in step(question, node, column) {
            if let Some(input) = inputs.get(number) {
                places.extend(self.ask(question, input, &below(path, number), column));
            }
        }
        places
    }
}

/// The path of an input.
pub fn below(path: &Path, number: usize) -> Path {
    let mut path = path.clone();
    path.push(number);
    path
}

/// Inputs of `node` that answer for its column, each with the column there.
fn step(question: Question, node: &LogicalPlan, column: usize) -> Vec<(usize, usize)> {
    let same = |passes: bool| if passes { vec![(0, column)] } else { vec![] };
    match node {
        LogicalPlan::Projection(projection) => {
            let source = projection.expr.get(column).and_then(|e| plain(e, projection.input.schema()));
            source.into_iter().map(|column| (0, column)).collect()
        }
        LogicalPlan::SubqueryAlias(_) | LogicalPlan::Filter(_) | LogicalPlan::Distinct(Distinct::All(_)) => same(true),
        LogicalPlan::Sort(sort) => same(question == Question::Values || sort.fetch.is_none()),
        LogicalPlan::Limit(_) => same(question == Question::Values),
        LogicalPlan::Aggregate(aggregate) => group(aggregate, column).into_iter().map(|c| (0, c)).collect(),
        LogicalPlan::Window(window) => {
            let is_input = column < window.input.schema().fields().len();
            same(is_input && (question == Question::Values || is_partitioned_by(window, column)))
        }
        LogicalPlan::Join(join) => through_join(question, join, column),
        LogicalPlan::Union(union) if question == Question::Rows => {
            (0..union.inputs.len()).map(|number| (number, column)).collect()
        }
        _ => vec![],
    }
}

/// The column that an expression is, by whatever name.
fn plain(expr: &Expr, schema: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        Expr::Alias(alias) => plain(&alias.expr, schema),
        _ => None,
    }
}

fn group(aggregate: &Aggregate, column: usize) -> Option<usize> {
    let sets = aggregate.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_)));
    let expr = aggregate.group_expr.get(column).filter(|_| !sets)?;
    plain(expr, aggregate.input.schema())
}

fn is_partitioned_by(window: &Window, column: usize) -> bool {
    let schema = window.input.schema();
    window.window_expr.iter().all(|expr| match expr.clone().unalias() {
        Expr::WindowFunction(function) => {
            let by = &function.params.partition_by;
            by.iter().any(|expr| plain(expr, schema) == Some(column))
        }
        _ => false,
    })
}

fn through_join(question: Question, join: &Join, column: usize) -> Vec<(usize, usize)> {
    use JoinType::*;
    let width = join.left.schema().fields().len();
    let (side, column) = match join.join_type {
        Inner | Left | Right | Full if column >= width => (1, column - width),
        Inner | Left | Right | Full => (0, column),
        LeftSemi | LeftAnti | LeftMark if column < width => (0, column),
        RightSemi | RightAnti | RightMark if column < join.right.schema().fields().len() => (1, column),
        // The mark.
        LeftSemi | LeftAnti | LeftMark | RightSemi | RightAnti | RightMark => return vec![],
    };
    // Without its row of the other side, a preserved row would be padded instead of joined.
    let is_free = match join.join_type {
        Left => side == 0,
        Right => side == 1,
        Full => false,
        _ => true,
    };
    if question == Question::Rows && !is_free {
        return vec![];
    }
    let mut found = vec![(side, column)];
    let is_matched = match question {
        // In each row that comes out there is an equal value of the other side.
        Question::Values => matches!(join.join_type, Inner | LeftSemi | RightSemi),
        // Rows of the other side with another value match none that stays.
        Question::Rows => !join.null_aware,
    };
    if is_matched && join.null_equality == NullEquality::NullEqualsNothing {
        for (left, right) in &join.on {
            let pair = plain(left, join.left.schema()).zip(plain(right, join.right.schema()));
            match (pair, side) {
                (Some((l, r)), 0) if l == column && is_of_one_type(join, l, r) => found.push((1, r)),
                (Some((l, r)), 1) if r == column && is_of_one_type(join, l, r) => found.push((0, l)),
                _ => {}
            }
        }
    }
    found
}

fn is_of_one_type(join: &Join, left: usize, right: usize) -> bool {
    join.left.schema().field(left).data_type() == join.right.schema().field(right).data_type()
}
