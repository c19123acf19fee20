//! Predicates on the shard key to the shards that can hold matching rows.
//!
//! ```text
//!   k = 7                        -> {shard of 7}          k IS NULL                     -> {shard of NULL}
//!   k IN (7, 8) AND v > 1        -> {of 7, of 8}          (k = 7 AND a) OR k = 9        -> {of 7, of 9}
//!   a = 1 AND b IN (2, 3)        -> {of (1,2), of (1,3)}  for the key (a, b)
//! ```
//!
//! Sound, not complete: `None` means "all shards". A literal is cast to the column's type only if the value survives the
//! way there and back; otherwise nothing is pruned. The predicates stay in the plan: pruning only decides who is asked.

use crate::shard_local::key::{Key, key_column};
use datafusion::arrow::array::ArrayRef;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::utils::{split_binary, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use std::collections::BTreeSet;
use tessera_proto::table::ColocationGroup;
use tessera_proto::token::tokens;

/// Shard numbers of one group.
pub type ShardSet = BTreeSet<u32>;

/// Most keys that one conjunction may enumerate: above it, hashing them costs more than asking every shard.
const KEYS_MAX: usize = 4_096;

/// Shards that can hold rows for which all `predicates` are true; never empty. `key` says where the shard key is in `schema`.
pub fn prune<'a>(
    predicates: impl IntoIterator<Item = &'a Expr>,
    key: &Key,
    schema: &DFSchema,
    group: &ColocationGroup,
) -> Option<ShardSet> {
    let pruner = Pruner { key, schema, group };
    let conjuncts: Vec<&Expr> = predicates.into_iter().flat_map(split_conjunction).collect();
    let shards = pruner.conjunction(&conjuncts)?;
    if shards.is_empty() {
        // Contradictory predicates. One shard is asked all the same, so that a leaf always has an owner.
        return Some(ShardSet::from([0]));
    }
    Some(shards)
}

struct Pruner<'a> {
    key: &'a Key,
    schema: &'a DFSchema,
    group: &'a ColocationGroup,
}

impl Pruner<'_> {
    fn conjunction(&self, conjuncts: &[&Expr]) -> Option<ShardSet> {
        let by_values = self.enumerated(conjuncts);
        let by_alternatives = conjuncts.iter().filter_map(|e| self.alternatives(e));
        by_alternatives.chain(by_values).reduce(|a, b| &a & &b)
    }

    /// An OR whose every side restricts the shards.
    fn alternatives(&self, expr: &Expr) -> Option<ShardSet> {
        if !matches!(expr, Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. })) {
            return None;
        }
        let mut all = ShardSet::new();
        for side in split_binary(expr, Operator::Or) {
            all.extend(self.conjunction(&split_conjunction(side))?);
        }
        Some(all)
    }

    /// Every part of the key has a list of possible values: hash all combinations.
    fn enumerated(&self, conjuncts: &[&Expr]) -> Option<ShardSet> {
        let mut parts: Vec<Option<Vec<ScalarValue>>> = vec![None; self.key.0.len()];
        for (part, values) in conjuncts.iter().filter_map(|e| self.values(e)) {
            // Several lists for one part: any one is sound, the shortest is best.
            let shorter = parts[part].as_ref().is_none_or(|known| values.len() < known.len());
            if shorter {
                parts[part] = Some(values);
            }
        }
        let parts: Vec<Vec<ScalarValue>> = parts.into_iter().collect::<Option<_>>()?;
        self.shards(&parts)
    }

    /// Hashes the cross product of the parts' values.
    fn shards(&self, parts: &[Vec<ScalarValue>]) -> Option<ShardSet> {
        let rows = parts
            .iter()
            .try_fold(1usize, |n, part| n.checked_mul(part.len()).filter(|n| *n <= KEYS_MAX))?;
        if rows == 0 {
            return Some(ShardSet::new());
        }
        let mut repeat = 1;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(parts.len());
        for part in parts {
            let column = (0..rows).map(|row| part[row / repeat % part.len()].clone());
            columns.push(ScalarValue::iter_to_array(column).ok()?);
            repeat *= part.len();
        }
        Some(
            tokens(&columns)
                .ok()?
                .into_iter()
                .map(|token| self.group.shard_of(token))
                .collect(),
        )
    }

    /// The key part that `expr` restricts to a list of values, with the list.
    fn values(&self, expr: &Expr) -> Option<(usize, Vec<ScalarValue>)> {
        match expr {
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: Operator::Eq | Operator::IsNotDistinctFrom,
                right,
            }) => self.equal(left, right).or_else(|| self.equal(right, left)),
            Expr::InList(list) if !list.negated => {
                let (part, column) = self.part(&list.expr)?;
                let values = list
                    .list
                    .iter()
                    .map(|e| self.literal(e, column))
                    .collect::<Option<_>>()?;
                Some((part, values))
            }
            Expr::IsNull(inner) => {
                let (part, column) = self.part(inner)?;
                let null = ScalarValue::try_from(self.schema.field(column).data_type()).ok()?;
                Some((part, vec![null]))
            }
            _ => None,
        }
    }

    fn equal(&self, key: &Expr, literal: &Expr) -> Option<(usize, Vec<ScalarValue>)> {
        let (part, column) = self.part(key)?;
        Some((part, vec![self.literal(literal, column)?]))
    }

    /// The key part an expression holds, and its column.
    fn part(&self, expr: &Expr) -> Option<(usize, usize)> {
        let column = key_column(expr, self.schema)?;
        let part = self.key.0.iter().position(|columns| columns.contains(&column))?;
        Some((part, column))
    }

    /// The literal in the column's type, if nothing is lost.
    fn literal(&self, expr: &Expr, column: usize) -> Option<ScalarValue> {
        let Expr::Literal(value, _) = expr else { return None };
        let to = self.schema.field(column).data_type();
        if value.is_null() {
            return ScalarValue::try_from(to).ok();
        }
        let cast = value.cast_to(to).ok()?;
        let back = cast.cast_to(&value.data_type()).ok()?;
        (back == *value).then_some(cast)
    }
}
