//! What an order of joins costs, and greedy searches for a cheap one. All orders: `dynamic.rs`.
//!
//! ```text
//!   join on the nodes     (rows in + rows out) x 50 ns / nodes          cut      bytes to the router x 0.7 ns
//!   join on the router    (rows in + rows out) x 50 ns
//! ```
//!
//! Rows of a join: product of the sides, divided by the larger number of distinct keys. A side has no more keys than rows,
//! however many values each of their columns has: those of one key are rarely independent. Where both sides have common values
//! of their only key, those meet each other (`skew.rs`). The constants are measured ones (`docs`); only their ratio matters.

use super::graph::{Graph, equal_sides, is_over};
use super::skew::Skew;
use crate::cluster::Cluster;
use crate::shard_local::locality::{Locality, derive};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, JoinConstraint, JoinType, NullEquality, ScalarValue, Statistics};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Join, LogicalPlan};
use std::cmp::Ordering;
use std::sync::Arc;
use tessera_proto::broadcast::width;

/// Hash-join work per row, nanoseconds.
const ROW_NS: f64 = 50.0;
/// Sending a byte to the router and reading it there, nanoseconds.
const BYTE_NS: f64 = 0.7;
/// Rows of a relation nobody has statistics of.
const ROWS_UNKNOWN: f64 = 1_000.0;

/// An order of joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// A relation's number.
    Relation(usize),
    /// Both sides joined.
    Join(Box<Tree>, Box<Tree>),
}

/// One relation of a graph.
#[derive(Debug)]
pub struct Relation {
    /// Its subplan.
    pub plan: LogicalPlan,
    /// What is believed of its rows.
    pub statistics: Statistics,
    /// `None`: it is not local.
    pub locality: Option<Locality>,
}

/// Some relations joined.
#[derive(Debug, Clone)]
pub struct Joined {
    /// In which order.
    pub tree: Tree,
    /// The subplan.
    pub plan: LogicalPlan,
    /// Nanoseconds so far, without the way to the router.
    pub cost: f64,
    locality: Option<Locality>,
    rows: f64,
}

impl Joined {
    /// Whether all of it runs on the nodes.
    pub fn is_local(&self) -> bool {
        self.locality.is_some()
    }
}

/// The costs of one graph.
pub struct Costs<'a> {
    graph: &'a Graph<'a>,
    relations: Vec<Relation>,
    /// Common values of the relations' keys.
    skew: Skew,
    cluster: &'a Cluster,
    /// An aggregate above shrinks the rows before they leave the nodes.
    shrinks: bool,
}

impl<'a> Costs<'a> {
    /// `relations` in the graph's order, with the conditions that concern one of them only.
    pub fn new(graph: &'a Graph<'a>, relations: Vec<Relation>, cluster: &'a Cluster, shrinks: bool) -> Self {
        Self {
            graph,
            skew: Skew::of(&graph.classes, &relations),
            relations,
            cluster,
            shrinks,
        }
    }

    /// A given order, with its cost including the way to the router.
    pub fn of(&self, tree: &Tree) -> Option<Joined> {
        self.build(tree).map(|joined| self.finished(joined))
    }

    fn build(&self, tree: &Tree) -> Option<Joined> {
        match tree {
            Tree::Relation(number) => self.single(*number),
            Tree::Join(left, right) => self.join(&self.build(left)?, &self.build(right)?),
        }
    }

    /// Relations.
    pub fn len(&self) -> usize {
        self.relations.len()
    }

    /// Columns of a relation.
    pub fn schema(&self, number: usize) -> &DFSchema {
        self.relations[number].plan.schema()
    }

    /// Relations, classes and conditions.
    pub fn graph(&self) -> &Graph<'a> {
        self.graph
    }

    /// A relation alone.
    pub fn single(&self, number: usize) -> Option<Joined> {
        let relation = self.relations.get(number)?;
        let rows = match relation.statistics.num_rows {
            Precision::Exact(rows) | Precision::Inexact(rows) => rows as f64,
            Precision::Absent => ROWS_UNKNOWN,
        };
        let (plan, locality) = (relation.plan.clone(), relation.locality.clone());
        Some(Joined {
            tree: Tree::Relation(number),
            plan,
            cost: 0.0,
            locality,
            rows: rows.max(1.0),
        })
    }

    /// Joins the pair that `compare` likes best until one is left.
    pub fn greedy(&self, compare: impl Fn(&Candidate, &Candidate) -> Ordering) -> Option<Joined> {
        let mut parts: Vec<Joined> = (0..self.relations.len())
            .map(|n| self.single(n))
            .collect::<Option<_>>()?;
        while parts.len() > 1 {
            let mut best: Option<Candidate> = None;
            for i in 0..parts.len() {
                for j in i + 1..parts.len() {
                    let Some(candidate) = self.candidate(&parts, i, j) else {
                        continue;
                    };
                    if best.as_ref().is_none_or(|best| compare(&candidate, best).is_lt()) {
                        best = Some(candidate);
                    }
                }
            }
            let best = best?;
            parts.swap_remove(best.pair.1);
            parts[best.pair.0] = best.joined;
        }
        parts.pop().map(|joined| self.finished(joined))
    }

    /// Local pairs first, then small results.
    pub fn local_first(a: &Candidate, b: &Candidate) -> Ordering {
        let key = |c: &Candidate| (!c.is_connected, c.joined.locality.is_none());
        key(a).cmp(&key(b)).then(a.joined.rows.total_cmp(&b.joined.rows))
    }

    /// The pair that adds least cost.
    pub fn cheapest_first(a: &Candidate, b: &Candidate) -> Ordering {
        a.is_connected
            .cmp(&b.is_connected)
            .reverse()
            .then(a.added.total_cmp(&b.added))
    }

    fn candidate(&self, parts: &[Joined], i: usize, j: usize) -> Option<Candidate> {
        let (left, right) = (&parts[i], &parts[j]);
        let is_connected = !self.equal_pairs(left, right).is_empty();
        let joined = self.smaller_first(left, right)?;
        let added = joined.cost - left.cost - right.cost;
        Some(Candidate {
            pair: (i, j),
            joined,
            added,
            is_connected,
        })
    }

    /// Two parts joined, the smaller side first: DataFusion builds its hash table of the left one.
    pub fn smaller_first(&self, left: &Joined, right: &Joined) -> Option<Joined> {
        if left.rows <= right.rows {
            self.join(left, right)
        } else {
            self.join(right, left)
        }
    }

    /// One pair of equal expressions for each class that has members on both sides, and for each equality between them.
    fn equal_pairs(&self, left: &Joined, right: &Joined) -> Vec<(Expr, Expr)> {
        let (left, right) = (left.plan.schema(), right.plan.schema());
        let on = |class: &Vec<Expr>| {
            let l = class.iter().find(|e| is_over(e, left))?;
            let r = class.iter().find(|e| is_over(e, right))?;
            Some((l.clone(), r.clone()))
        };
        let conditions = self.graph.conditions.iter();
        let equalities = conditions.filter_map(|c| equal_sides(c, left, right));
        let classes = self.graph.classes.iter().filter_map(on);
        classes.chain(equalities.map(|(l, r)| (l.clone(), r.clone()))).collect()
    }

    fn join(&self, left: &Joined, right: &Joined) -> Option<Joined> {
        let on = self.equal_pairs(left, right);
        let (l, r) = (Arc::new(left.plan.clone()), Arc::new(right.plan.clone()));
        let schema = l.schema().join(r.schema()).ok()?;
        // Conditions that could not be checked on one side and can be now, and are no keys.
        let due = |c: &&Expr| {
            let is_new = is_over(c, &schema) && !is_over(c, l.schema()) && !is_over(c, r.schema());
            is_new && equal_sides(c, l.schema(), r.schema()).is_none()
        };
        let filter = conjunction(self.graph.conditions.iter().filter(due).cloned());
        let keys = |joined: &Joined, distinct: f64| distinct.clamp(1.0, joined.rows.max(1.0));
        let lefts = keys(left, on.iter().map(|(l, _)| self.distinct(l, left)).product());
        let rights = keys(right, on.iter().map(|(_, r)| self.distinct(r, right)).product());
        let equal = match on.len() {
            1 => self.skew.equal(&left.tree.relations(), &right.tree.relations()),
            _ => None,
        };
        let rows = left.rows * right.rows * equal.unwrap_or(1.0 / lefts.max(rights));
        let rows = rows.max(1.0);
        let (kind, constraint, nulls) = (JoinType::Inner, JoinConstraint::On, NullEquality::NullEqualsNothing);
        let plan = LogicalPlan::Join(Join::try_new(l, r, on, filter, kind, constraint, nulls, false).ok()?);
        let locality = match (&left.locality, &right.locality) {
            (Some(a), Some(b)) => derive(&plan, &[a.clone(), b.clone()], self.cluster),
            _ => None,
        };
        let work = (left.rows + right.rows + rows) * ROW_NS;
        let cost = match &locality {
            Some(locality) => left.cost + right.cost + work / self.nodes(locality),
            None => self.gathered(left.clone()).cost + self.gathered(right.clone()).cost + work,
        };
        let tree = Tree::Join(Box::new(left.tree.clone()), Box::new(right.tree.clone()));
        Some(Joined {
            tree,
            plan,
            cost,
            locality,
            rows,
        })
    }

    /// With the way to the router, unless an aggregate shrinks the rows before.
    pub fn finished(&self, joined: Joined) -> Joined {
        if self.shrinks { joined } else { self.gathered(joined) }
    }

    /// With the way to the router, if it is not there yet.
    fn gathered(&self, mut joined: Joined) -> Joined {
        if joined.locality.take().is_some() {
            let width: usize = joined.plan.schema().fields().iter().map(|f| width(f.data_type())).sum();
            joined.cost += joined.rows * width as f64 * BYTE_NS;
        }
        joined
    }

    fn nodes(&self, locality: &Locality) -> f64 {
        self.cluster
            .owners(&locality.reads.shards)
            .map_or(1, |nodes| nodes.len().max(1)) as f64
    }

    /// Distinct values of an expression over one of the relations inside `joined`.
    fn distinct(&self, expr: &Expr, joined: &Joined) -> f64 {
        let known = joined.tree.relations().into_iter().find_map(|number| {
            let relation = self.relations.get(number)?;
            is_over(expr, relation.plan.schema()).then(|| distinct_in(expr, relation))
        });
        known.unwrap_or(joined.rows).clamp(1.0, joined.rows.max(1.0))
    }
}

/// A pair that could be joined next.
#[derive(Debug)]
pub struct Candidate {
    pair: (usize, usize),
    joined: Joined,
    added: f64,
    is_connected: bool,
}

/// Distinct values of a column: as counted, else bounded by its range, else by the number of rows.
pub(super) fn distinct_in(expr: &Expr, relation: &Relation) -> f64 {
    let rows = relation
        .statistics
        .num_rows
        .get_value()
        .map_or(ROWS_UNKNOWN, |rows| *rows as f64);
    let column = expr
        .column_refs()
        .into_iter()
        .next()
        .and_then(|c| relation.plan.schema().maybe_index_of_column(c));
    let Some(column) = column.and_then(|c| relation.statistics.column_statistics.get(c)) else {
        return rows;
    };
    if let Some(distinct) = column.distinct_count.get_value() {
        return (*distinct as f64).min(rows);
    }
    let range = column.min_value.get_value().zip(column.max_value.get_value());
    range
        .and_then(|(min, max)| integer(max)?.checked_sub(integer(min)?))
        .map_or(rows, |span| (span as f64 + 1.0).min(rows))
}

fn integer(value: &ScalarValue) -> Option<i64> {
    match value.cast_to(&DataType::Int64).ok()? {
        ScalarValue::Int64(value) => value,
        _ => None,
    }
}
