//! Common values of the keys that relations are joined by.
//!
//! ```text
//!   class {o.status, e.status}    o: open 0.90   e: open 0.50, lost 0.10      o x e: 0.45 of all pairs are equal by `open` alone
//! ```
//!
//! Only where the one key of a join is a class of columns (`graph.rs`) with common values on both sides. Several keys at once are
//! rarely independent, so their shares say little together; with common values on one side only, the other has each of them as
//! often as any value, and dividing by the distinct values is right.

use super::cost::{Relation, distinct_in};
use super::graph::is_over;
use crate::estimate::origin::origin;
use crate::estimate::shares::{Shares, Values};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, ExprSchemable};

/// See the module's text.
#[derive(Debug)]
pub struct Skew {
    /// By class and relation.
    classes: Vec<Vec<Key>>,
}

/// How the values of a class share the rows of a relation.
#[derive(Debug)]
enum Key {
    /// It has none of the class.
    Absent,
    /// No value is known to be common.
    Even,
    /// Some are.
    Skewed(Shares),
    /// Rows were chosen by the value.
    Restricted,
}

impl Skew {
    /// Of the classes of a graph.
    pub fn of(classes: &[Vec<Expr>], relations: &[Relation]) -> Self {
        let of_class = |class: &Vec<Expr>| {
            let mut values = Values::default();
            relations
                .iter()
                .map(|relation| key(class, relation, &mut values))
                .collect()
        };
        Self {
            classes: classes.iter().map(of_class).collect(),
        }
    }

    /// The share of the pairs of rows of two sides that are equal in the one class that joins them; `None` where that is not known
    /// better than by distinct values. The sides are numbers of relations.
    pub fn equal(&self, left: &[usize], right: &[usize]) -> Option<f64> {
        let has =
            |class: &[Key], side: &[usize]| side.iter().any(|n| !matches!(class.get(*n), None | Some(Key::Absent)));
        let class = self
            .classes
            .iter()
            .find(|class| has(class, left) && has(class, right))?;
        Some(side(class, left)?.join(&side(class, right)?).0)
    }
}

/// How the values of a class share the rows of some relations joined by it; a relation without common values leaves shares as they are.
fn side(class: &[Key], relations: &[usize]) -> Option<Shares> {
    let mut shares: Option<Shares> = None;
    for number in relations {
        match class.get(*number)? {
            Key::Absent | Key::Even => {}
            Key::Restricted => return None,
            Key::Skewed(more) => {
                shares = Some(match shares {
                    Some(known) => known.join(more).1,
                    None => more.clone(),
                });
            }
        }
    }
    shares
}

fn key(class: &[Expr], relation: &Relation, values: &mut Values) -> Key {
    let Some(expr) = class.iter().find(|e| is_over(e, relation.plan.schema())) else {
        return Key::Absent;
    };
    match origin(expr, &relation.plan) {
        None => Key::Even,
        Some(origin) if origin.is_restricted => Key::Restricted,
        Some(origin) => {
            let compared_in = expr.get_type(relation.plan.schema());
            let cast = |value: &ScalarValue| value.cast_to(compared_in.as_ref().ok()?).ok();
            let (distinct, nulls) = (distinct_in(expr, relation), nulls(expr, relation));
            let shares = Shares::new(origin.common(), distinct, nulls, cast, values);
            match shares.is_skewed() {
                true => Key::Skewed(shares),
                false => Key::Even,
            }
        }
    }
}

/// The share of rows in which a column is NULL.
fn nulls(expr: &Expr, relation: &Relation) -> f64 {
    let share = || {
        let at = relation
            .plan
            .schema()
            .maybe_index_of_column(expr.column_refs().into_iter().next()?)?;
        let nulls = *relation.statistics.column_statistics.get(at)?.null_count.get_value()?;
        let rows = *relation.statistics.num_rows.get_value()?;
        Some((nulls as f64 / rows.max(1) as f64).min(1.0))
    };
    share().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::tests::cluster;
    use crate::join_order::graph::Graph;
    use datafusion::common::{Column, JoinType};
    use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit};

    /// Tables, each with a name of its own, joined from left to right by equal columns.
    fn joined(tables: &[(&str, &str)], on: &[(&str, &str)]) -> (LogicalPlan, Vec<Relation>) {
        let cluster = cluster();
        let relations = tables.iter().map(|(table, alias)| {
            let (plan, statistics) = cluster.scan(table, alias);
            Relation {
                plan,
                statistics,
                locality: None,
            }
        });
        let relations: Vec<_> = relations.collect();
        let mut plan = LogicalPlanBuilder::from(relations[0].plan.clone());
        for (relation, (left, right)) in relations.iter().skip(1).zip(on) {
            let on = (vec![Column::from(*left)], vec![Column::from(*right)]);
            plan = plan.join(relation.plan.clone(), JoinType::Inner, on, None).unwrap();
        }
        (plan.build().unwrap(), relations)
    }

    fn equal(plan: &LogicalPlan, relations: &[Relation], left: &[usize], right: &[usize]) -> Option<f64> {
        let graph = Graph::of(plan).unwrap();
        Skew::of(&graph.classes, relations).equal(left, right)
    }

    #[track_caller]
    fn close(found: Option<f64>, expected: f64) {
        let off = found.map(|found| (found / expected - 1.0).abs());
        assert!(off.is_some_and(|off| off < 0.01), "{found:?} instead of {expected}");
    }

    #[test]
    fn common_keys_of_both_sides_meet() {
        let (plan, relations) = joined(&[("events", "e"), ("jobs", "j")], &[("e.status", "j.status")]);
        // closed with closed; open with one of ten others of jobs; 0.03 in ten with the others.
        close(
            equal(&plan, &relations, &[0], &[1]),
            0.90 * 0.50 + 0.05 * 0.05 + 0.03 * 0.45 / 10.0,
        );
        let (plan, relations) = joined(&[("jobs", "a"), ("jobs", "b")], &[("a.kind", "b.kind")]);
        close(equal(&plan, &relations, &[1], &[0]), 0.25 + 0.25 / 49.0);
    }

    #[test]
    fn a_key_that_is_common_on_one_side_only_is_left_to_distinct_values() {
        let (plan, relations) = joined(&[("jobs", "a"), ("jobs", "b")], &[("a.kind", "b.id")]);
        assert_eq!(equal(&plan, &relations, &[0], &[1]), None);
    }

    #[test]
    fn rows_that_were_joined_by_the_key_have_more_of_its_common_value() {
        let tables = [("jobs", "a"), ("jobs", "b"), ("jobs", "c")];
        let (plan, relations) = joined(&tables, &[("a.kind", "b.kind"), ("b.kind", "c.kind")]);
        let first = 0.25 + 0.25 / 49.0;
        let sevens = 0.25 / first;
        close(
            equal(&plan, &relations, &[0, 1], &[2]),
            sevens * 0.5 + (1.0 - sevens) * 0.5 / 49.0,
        );
        // One that is joined by something else changes nothing.
        let (plan, relations) = joined(&tables, &[("a.kind", "b.kind"), ("b.id", "c.id")]);
        close(equal(&plan, &relations, &[0], &[1, 2]), first);
    }

    #[test]
    fn rows_chosen_by_the_key_are_not_guessed_at() {
        let (_, mut relations) = joined(&[("jobs", "a"), ("jobs", "b")], &[("a.kind", "b.kind")]);
        let chosen = |relation: &Relation, column: &str| {
            let plan = LogicalPlanBuilder::from(relation.plan.clone());
            plan.filter(col(column).gt(lit(3_i64))).unwrap().build().unwrap()
        };
        let plan_of = |relations: &[Relation]| {
            let on = (vec![Column::from("a.kind")], vec![Column::from("b.kind")]);
            let left = LogicalPlanBuilder::from(relations[0].plan.clone());
            let joined = left.join(relations[1].plan.clone(), JoinType::Inner, on, None);
            joined.unwrap().build().unwrap()
        };
        let whole = relations[0].plan.clone();
        relations[0].plan = chosen(&relations[0], "a.kind");
        assert_eq!(equal(&plan_of(&relations), &relations, &[0], &[1]), None);
        // By another column, they are as they were.
        relations[0].plan = whole;
        relations[0].plan = chosen(&relations[0], "a.id");
        close(equal(&plan_of(&relations), &relations, &[0], &[1]), 0.25 + 0.25 / 49.0);
    }
}
