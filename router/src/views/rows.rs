//! Small computed tables: rows of values in, one batch in memory out.

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Int64Array, ListArray, RecordBatch, StringViewArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Float32Type, Schema};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use std::sync::Arc;

/// A value of a computed table.
#[derive(Debug, Clone)]
pub enum Value {
    /// NULL.
    Null,
    /// bool
    Bool(bool),
    /// int8, also OIDs
    Int(i64),
    /// text
    Text(String),
    /// real
    Real(f32),
    /// real[]
    Reals(Vec<f32>),
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(value as i64)
    }
}
impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Type of a computed column.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// bool
    Bool,
    /// int8
    Int,
    /// text
    Text,
    /// real
    Real,
    /// real[]
    Reals,
}

/// One row.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::views::rows::Value::from($value)),*] };
}
pub(super) use row;

/// A table of `rows`, each as long as `columns`. `None` only if a row is not, which is a bug that hides the table.
pub fn table(columns: &[(&str, Kind)], rows: &[Vec<Value>]) -> Option<Arc<dyn TableProvider>> {
    debug_assert!(rows.iter().all(|r| r.len() == columns.len()), "{columns:?}");
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, kind)| Field::new(*name, arrow(*kind), true))
        .collect();
    let arrays: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(i, (_, kind))| array(*kind, rows, i))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), arrays).ok()?;
    Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]]).ok()?))
}

fn arrow(kind: Kind) -> DataType {
    match kind {
        Kind::Bool => DataType::Boolean,
        Kind::Int => DataType::Int64,
        Kind::Text => DataType::Utf8View,
        Kind::Real => DataType::Float32,
        Kind::Reals => DataType::new_list(DataType::Float32, true),
    }
}

fn array(kind: Kind, rows: &[Vec<Value>], column: usize) -> ArrayRef {
    let cells = rows.iter().map(|row| row.get(column));
    match kind {
        Kind::Bool => Arc::new(
            cells
                .map(|c| if let Some(Value::Bool(b)) = c { Some(*b) } else { None })
                .collect::<BooleanArray>(),
        ),
        Kind::Int => Arc::new(
            cells
                .map(|c| if let Some(Value::Int(i)) = c { Some(*i) } else { None })
                .collect::<Int64Array>(),
        ),
        Kind::Text => Arc::new(
            cells
                .map(|c| {
                    if let Some(Value::Text(t)) = c {
                        Some(t.as_str())
                    } else {
                        None
                    }
                })
                .collect::<StringViewArray>(),
        ),
        Kind::Real => Arc::new(
            cells
                .map(|c| if let Some(Value::Real(r)) = c { Some(*r) } else { None })
                .collect::<Float32Array>(),
        ),
        Kind::Reals => {
            let lists = cells.map(|c| match c {
                Some(Value::Reals(list)) => Some(list.iter().copied().map(Some)),
                _ => None,
            });
            Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(lists))
        }
    }
}
