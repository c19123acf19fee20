//! The cheapest order of all, by dynamic programming over connected sets of relations.
//!
//! ```text
//!   {a} {b} {c}  ─▶  {a b}      every split of a set in two connected sets that some condition joins (DPsub)
//!                    {b c}      kept per set: the cheapest, and the cheapest that stays on the nodes
//!                    {a b c}
//! ```
//!
//! Where rows are is a physical property: a local join may cost more than another order and pay off above. A split that costs
//! more than the best whole order known is left out. Bushy trees are found; relations that nothing joins are not, nor is
//! anything after [`JOINS_MAX`] joins: then the greedy orders stand.
//!
//! Source: Moerkotte, Neumann, "Analysis of Two Existing and One New Dynamic Programming Algorithm", VLDB 2006.

use super::cost::{Costs, Joined};
use super::graph::is_over;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use std::collections::HashMap;

/// Most relations: a set of them is a bit mask, and a star of more has too many sets.
const RELATIONS_MAX: usize = 12;
/// Joins that are costed at most: each builds a small plan, some 20 µs.
const JOINS_MAX: usize = 1_500;

/// A set of relations, one bit each.
type Set = u32;

/// What is known of one set.
#[derive(Default)]
struct Best {
    any: Option<Joined>,
    local: Option<Joined>,
}

impl Best {
    fn offer(&mut self, joined: Joined) {
        let cheaper = |known: &Option<Joined>| known.as_ref().is_none_or(|k| joined.cost < k.cost);
        if joined.is_local() && cheaper(&self.local) {
            self.local = Some(joined.clone());
        }
        if cheaper(&self.any) {
            self.any = Some(joined);
        }
    }

    /// Without doubles: the cheapest may be the local one.
    fn all(&self) -> impl Iterator<Item = &Joined> {
        let other = self
            .local
            .as_ref()
            .filter(|l| self.any.as_ref().is_none_or(|a| a.tree != l.tree));
        self.any.iter().chain(other)
    }
}

/// An order cheaper than `bound`, the cheapest there is; `None` if there is none or the search would be too long.
pub fn search(costs: &Costs, bound: f64) -> Option<Joined> {
    let count = costs.len();
    if count > RELATIONS_MAX {
        return None;
    }
    let mut known: HashMap<Set, Best> = HashMap::new();
    for number in 0..count {
        known.entry(1 << number).or_default().offer(costs.single(number)?);
    }
    let (classes, equalities) = (classes(costs), equalities(costs));
    let connects = |left: Set, right: Set| {
        let equal = |(a, b): &(Set, Set)| {
            let within = |a: Set, b: Set| a & !left == 0 && b & !right == 0;
            within(*a, *b) || within(*b, *a)
        };
        classes.iter().any(|class| class & left != 0 && class & right != 0) || equalities.iter().any(equal)
    };
    let mut joins = 0;
    // Subsets of a set are smaller numbers, so they come before it.
    for set in 1..1u32 << count {
        if set.count_ones() < 2 {
            continue;
        }
        let mut best = Best::default();
        // Each split once: the part with the lowest relation is the first.
        let lowest = set & set.wrapping_neg();
        let rest = set ^ lowest;
        let mut part = rest;
        while part != 0 {
            let (left, right) = (set ^ part, part);
            part = (part - 1) & rest;
            let (Some(lefts), Some(rights)) = (known.get(&left), known.get(&right)) else {
                continue;
            };
            if !connects(left, right) {
                continue;
            }
            for (l, r) in lefts.all().flat_map(|l| rights.all().map(move |r| (l, r))) {
                if l.cost + r.cost >= bound {
                    continue;
                }
                joins += 1;
                if joins > JOINS_MAX {
                    return None;
                }
                best.offer(costs.smaller_first(l, r)?);
            }
        }
        if best.any.is_some() {
            known.insert(set, best);
        }
    }
    let whole = known.remove(&((1 << count) - 1))?;
    let finished = whole.all().map(|joined| costs.finished(joined.clone()));
    finished
        .min_by(|a, b| a.cost.total_cmp(&b.cost))
        .filter(|joined| joined.cost < bound)
}

/// For each class of equal expressions, the relations that have one.
fn classes(costs: &Costs) -> Vec<Set> {
    let of = |class: &Vec<Expr>| {
        let has = |number: &usize| class.iter().any(|e| is_over(e, costs.schema(*number)));
        (0..costs.len()).filter(has).fold(0, |set, number| set | 1 << number)
    };
    costs.graph().classes.iter().map(of).collect()
}

/// For each equality between several relations, those of its sides.
fn equalities(costs: &Costs) -> Vec<(Set, Set)> {
    let of = |expr: &Expr| {
        let columns = expr.column_refs();
        let has = |number: &usize| columns.iter().any(|c| costs.schema(*number).has_column(c));
        (0..costs.len())
            .filter(has)
            .fold(0, |set: Set, number| set | 1 << number)
    };
    let sides = |condition: &Expr| match condition {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Eq,
            right,
        }) => Some((of(left), of(right))),
        _ => None,
    };
    let both = costs.graph().conditions.iter().filter_map(sides);
    both.filter(|(left, right)| *left != 0 && *right != 0 && left & right == 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::join_order::cost::{Relation, Tree};
    use crate::join_order::graph::Graph;
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::common::stats::Precision;
    use datafusion::common::{Column, ColumnStatistics, JoinType, Statistics};
    use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, table_scan};

    /// Numbers that look random and are the same in every run (xorshift64).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    const COLUMNS: usize = 8;

    fn relation(number: usize, numbers: &mut Numbers) -> Relation {
        let fields: Vec<_> = (0..COLUMNS)
            .map(|c| Field::new(format!("c{c}"), DataType::Int64, false))
            .collect();
        let name = format!("r{number}");
        let plan = table_scan(Some(name.as_str()), &Schema::new(fields), None).unwrap();
        // So few values that no join has fewer rows than values: rows of a set do not depend on the order then.
        let column = |n: &mut Numbers| ColumnStatistics {
            distinct_count: Precision::Inexact(2 + n.below(40)),
            ..ColumnStatistics::new_unknown()
        };
        Relation {
            plan: plan.build().unwrap(),
            statistics: Statistics {
                num_rows: Precision::Inexact(1_000 + numbers.below(100_000)),
                total_byte_size: Precision::Absent,
                column_statistics: (0..COLUMNS).map(|_| column(numbers)).collect(),
            },
            locality: None,
        }
    }

    /// All relations joined from left to right, each by a column of its own to some relation before it.
    fn joined(relations: &[Relation], numbers: &mut Numbers) -> LogicalPlan {
        let mut plan = LogicalPlanBuilder::from(relations[0].plan.clone());
        for (number, relation) in relations.iter().enumerate().skip(1) {
            let other = numbers.below(number);
            let (left, right) = (format!("r{other}.c{number}"), format!("r{number}.c0"));
            let on = (vec![Column::from(left.as_str())], vec![Column::from(right.as_str())]);
            plan = plan.join(relation.plan.clone(), JoinType::Inner, on, None).unwrap();
        }
        plan.build().unwrap()
    }

    /// Every order without a product.
    fn orders(set: Vec<usize>, connects: &dyn Fn(&[usize], &[usize]) -> bool) -> Vec<Tree> {
        if let [only] = set[..] {
            return vec![Tree::Relation(only)];
        }
        let mut trees = vec![];
        for mask in 1..(1u32 << set.len()) - 1 {
            let (left, right): (Vec<_>, Vec<_>) = (0..set.len()).partition(|i| mask & 1 << i != 0);
            let of = |side: Vec<usize>| side.into_iter().map(|i| set[i]).collect::<Vec<_>>();
            let (left, right) = (of(left), of(right));
            if left[0] > right[0] || !connects(&left, &right) {
                continue;
            }
            let rights = orders(right, connects);
            for l in orders(left, connects) {
                let join = |r: &Tree| Tree::Join(Box::new(l.clone()), Box::new(r.clone()));
                trees.extend(rights.iter().map(join));
            }
        }
        trees
    }

    #[test]
    fn finds_the_cheapest_of_all_orders() {
        for seed in 1..60 {
            let mut numbers = Numbers(seed);
            let count = 3 + numbers.below(3);
            let relations: Vec<_> = (0..count).map(|n| relation(n, &mut numbers)).collect();
            let plan = joined(&relations, &mut numbers);
            let graph = Graph::of(&plan).unwrap();
            let cluster = Cluster::default();
            let costs = Costs::new(&graph, relations, &cluster, false);
            let classes = classes(&costs);
            let set = |side: &[usize]| side.iter().fold(0u32, |set, n| set | 1 << n);
            let connects = |l: &[usize], r: &[usize]| classes.iter().any(|c| c & set(l) != 0 && c & set(r) != 0);
            let all = orders((0..count).collect(), &connects);
            let least = all
                .iter()
                .filter_map(|tree| costs.of(tree))
                .map(|j| j.cost)
                .fold(f64::INFINITY, f64::min);
            let found = search(&costs, f64::INFINITY).unwrap();
            assert!(
                (found.cost / least - 1.0).abs() < 1e-9,
                "seed {seed}: {} instead of {least}",
                found.cost
            );
            // What is not cheaper than what is known already is not given.
            assert!(search(&costs, least * 0.999).is_none());
        }
    }

    #[test]
    fn gives_up_in_time() {
        let mut numbers = Numbers(7);
        let relations: Vec<_> = (0..RELATIONS_MAX + 1)
            .map(|n| relation(n % COLUMNS, &mut numbers))
            .collect();
        let plan = joined(&relations[..COLUMNS], &mut numbers);
        let graph = Graph::of(&plan).unwrap();
        let cluster = Cluster::default();
        let costs = Costs::new(&graph, relations, &cluster, false);
        assert!(search(&costs, f64::INFINITY).is_none());
    }
}
