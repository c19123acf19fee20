//! Which leaf could tell its keys to which others.
//!
//! ```text
//!   join                    left by keys of right     right by keys of left
//!   inner, semi             yes                       yes
//!   left, left anti/mark    no: it is preserved       yes
//!   right, right anti/mark  yes                       no
//!   full, NOT IN            no                        no: NULL there empties all
//! ```
//!
//! The keys are read by a query of their own, so a leaf may tell them only if it gives the same rows twice: no LIMIT, no window,
//! no sum of floats in a condition.

use super::sketch::{Above, Place, Question, Sketch, below};
use crate::shard_local::key::{is_lossless, key_column};
use crate::shard_local::locality::is_deterministic;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, JoinType, NullEquality};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, cast};
use std::collections::BTreeMap;
use tessera_proto::key_filter::is_supported;

/// A column of a leaf, as the values that are compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keys {
    pub place: Place,
    /// Its type, or one it is cast to without loss.
    pub data_type: DataType,
}

/// A leaf whose rows may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub keys: Keys,
    /// Rows with NULL stay: the join takes NULLs as equal.
    pub keeps_nulls: bool,
}

/// What one reading of keys may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub source: Keys,
    pub targets: Vec<Target>,
    /// Only below a LIMIT that may end it early.
    pub limited: bool,
}

/// All there are, by source.
pub fn candidates(sketch: &Sketch) -> Vec<Candidate> {
    let mut found: BTreeMap<Keys, Candidate> = BTreeMap::new();
    for above in &sketch.joins {
        for (source, target) in pairs(sketch, above) {
            let candidate = found.entry(source.clone()).or_insert_with(|| Candidate {
                source,
                targets: vec![],
                limited: true,
            });
            candidate.limited &= above.limited;
            match candidate.targets.iter_mut().find(|known| known.keys == target.keys) {
                Some(known) => known.keeps_nulls &= target.keeps_nulls,
                None => candidate.targets.push(target),
            }
        }
    }
    found.retain(|source, _| is_repeatable(sketch.units[source.place.unit].plan));
    found.into_values().collect()
}

/// Of one join.
fn pairs(sketch: &Sketch, above: &Above) -> Vec<(Keys, Target)> {
    use JoinType::*;
    let join = above.join;
    let (left_free, right_free) = match join.join_type {
        _ if join.null_aware => return vec![],
        Inner | LeftSemi | RightSemi => (true, true),
        Left | LeftAnti | LeftMark => (false, true),
        Right | RightAnti | RightMark => (true, false),
        Full => return vec![],
    };
    let keeps_nulls = join.null_equality == NullEquality::NullEqualsNull;
    let sides = [(&join.left, below(&above.path, 0)), (&join.right, below(&above.path, 1))];
    let mut found = vec![];
    for (l, r) in &join.on {
        let compared = compared(l, join.left.schema()).zip(compared(r, join.right.schema()));
        let Some(((l, l_type), (r, r_type))) = compared.filter(|((_, l), (_, r))| l == r && is_supported(l)) else {
            continue;
        };
        let columns = [(l, l_type), (r, r_type)];
        for (source, target, is_free) in [(0, 1, right_free), (1, 0, left_free)] {
            if !is_free {
                continue;
            }
            let ask = |question, side: usize| {
                let (column, data_type) = &columns[side];
                let (plan, path) = &sides[side];
                let places = sketch.ask(question, plan, path, *column).into_iter();
                places.filter_map(|place| keys(sketch, place, data_type)).collect::<Vec<_>>()
            };
            let targets = ask(Question::Rows, target);
            for source in ask(Question::Values, source) {
                let target = |keys: &Keys| Target {
                    keys: keys.clone(),
                    keeps_nulls,
                };
                found.extend(targets.iter().map(|keys| (source.clone(), target(keys))));
            }
        }
    }
    found
}

/// The column that an expression compares, and as what type.
fn compared(expr: &Expr, schema: &DFSchema) -> Option<(usize, DataType)> {
    Some((key_column(expr, schema)?, expr.get_type(schema).ok()?))
}

/// A leaf's column as values of this type.
fn keys(sketch: &Sketch, place: Place, data_type: &DataType) -> Option<Keys> {
    let schema = sketch.units[place.unit].plan.schema();
    let own = schema.fields().get(place.column)?.data_type();
    let data_type = data_type.clone();
    is_lossless(own, &data_type).then_some(Keys { place, data_type })
}

impl Keys {
    /// As an expression over the columns of its leaf.
    pub fn expr(&self, schema: &DFSchema) -> Expr {
        let (qualifier, field) = schema.qualified_field(self.place.column);
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        match *field.data_type() == self.data_type {
            true => column,
            false => cast(column, self.data_type.clone()),
        }
    }
}

/// Whether a subtree gives the same rows each time.
fn is_repeatable(plan: &LogicalPlan) -> bool {
    let here = match plan {
        LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
        LogicalPlan::Join(_) | LogicalPlan::Union(_) | LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => true,
        node => is_deterministic(node),
    };
    here && plan.inputs().into_iter().all(is_repeatable)
}
