//! Where the shard key is in an operator's output.
//!
//! ```text
//!   key of t: (a, b)         SELECT b, CAST(a AS bigint) AS x, c FROM t
//!                                   0  1                      2           Key[{1}, {0}]
//! ```
//!
//! For every column of the shard key, the set of output columns that hold its value; they differ at most by a cast that
//! keeps the value and the key class, so equal outputs have equal tokens. An empty set: that part of the key is lost.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::logical_expr::Expr;
use std::collections::BTreeSet;

/// See the module's text. One set per shard key column, in key order; never empty for a sharded table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(pub Vec<BTreeSet<usize>>);

impl Key {
    /// A key of which nothing is left.
    pub fn lost(columns: usize) -> Self {
        Key(vec![BTreeSet::new(); columns])
    }

    /// Whether `columns` (of the same operator) hold the whole key.
    pub fn is_within(&self, columns: &BTreeSet<usize>) -> bool {
        self.0.iter().all(|part| !part.is_disjoint(columns))
    }

    /// Whether the expressions, read in `schema`, hold the whole key.
    pub fn is_within_exprs<'a>(&self, exprs: impl IntoIterator<Item = &'a Expr>, schema: &DFSchema) -> bool {
        self.is_within(&exprs.into_iter().filter_map(|e| key_column(e, schema)).collect())
    }

    /// The key in the output of an operator that computes `exprs` from `schema`.
    pub fn through<'a>(&self, exprs: impl IntoIterator<Item = &'a Expr>, schema: &DFSchema) -> Self {
        let mut out = Key::lost(self.0.len());
        for (position, expr) in exprs.into_iter().enumerate() {
            let Some(column) = key_column(expr, schema) else {
                continue;
            };
            for (part, output) in self.0.iter().zip(&mut out.0) {
                if part.contains(&column) {
                    output.insert(position);
                }
            }
        }
        out
    }

    /// The key when `offset` columns are put before the operator's own.
    pub fn shifted(&self, offset: usize) -> Self {
        Key(self
            .0
            .iter()
            .map(|part| part.iter().map(|c| c + offset).collect())
            .collect())
    }

    /// Both keys hold in one row: an inner join on the whole key.
    pub fn and(&self, other: &Key) -> Self {
        Key(self.0.iter().zip(&other.0).map(|(a, b)| a | b).collect())
    }

    /// Either key holds: the branches of a union.
    pub fn or(&self, other: &Key) -> Self {
        Key(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }

    /// Every row has equal values in these two columns.
    pub fn equate(&mut self, a: usize, b: usize) {
        for part in &mut self.0 {
            if part.contains(&a) || part.contains(&b) {
                part.extend([a, b]);
            }
        }
    }
}

/// The column whose value `expr` has: a bare column, or casts of one that lose nothing and stay in its key class.
pub fn key_column(expr: &Expr, schema: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        Expr::Alias(alias) => key_column(&alias.expr, schema),
        Expr::Cast(cast) => cast_column(&cast.expr, cast.field.data_type(), schema),
        Expr::TryCast(cast) => cast_column(&cast.expr, cast.field.data_type(), schema),
        _ => None,
    }
}

fn cast_column(inner: &Expr, to: &DataType, schema: &DFSchema) -> Option<usize> {
    let column = key_column(inner, schema)?;
    let from = inner_type(inner, schema)?;
    is_lossless(&from, to).then_some(column)
}

/// Type of an expression that [`key_column`] accepted.
fn inner_type(expr: &Expr, schema: &DFSchema) -> Option<DataType> {
    match expr {
        Expr::Alias(alias) => inner_type(&alias.expr, schema),
        Expr::Cast(cast) => Some(cast.field.data_type().clone()),
        Expr::TryCast(cast) => Some(cast.field.data_type().clone()),
        Expr::Column(column) => {
            let index = schema.maybe_index_of_column(column)?;
            Some(schema.field(index).data_type().clone())
        }
        _ => None,
    }
}

/// Whether a cast keeps every value, and with it the token.
pub fn is_lossless(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    match (from, to) {
        (a, b) if a == b => true,
        (Int8 | Int16 | Int32 | Int64, Int8 | Int16 | Int32 | Int64) => from.primitive_width() <= to.primitive_width(),
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        (Decimal128(p1, s1), Decimal128(p2, s2)) => {
            s1 <= s2 && i16::from(*p1) - i16::from(*s1) <= i16::from(*p2) - i16::from(*s2)
        }
        // Zones only change how an instant is shown.
        (Timestamp(u1, z1), Timestamp(u2, z2)) => u1 == u2 && z1.is_some() == z2.is_some(),
        _ => false,
    }
}
