//! Row keys of batches as canonical bytes, and their hashes.
//!
//! The bytes are those of `tessera_proto::token::canonical_keys`; keys of integers and dates take a path without
//! allocations, because loading hashes every row.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Date32Type, Int64Type};
use datafusion::arrow::util::display::array_value_to_string;
use std::collections::HashMap;
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// Integer key columns that fit the buffer on the stack.
const FAST_COLUMNS_MAX: usize = 4;

/// Hash of canonical key bytes; part of the sidecar format.
pub(crate) fn hash_key(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The row key columns of a batch in table column order.
///
/// # Errors
/// XX000 when the batch is not of this table.
pub(crate) fn key_columns(def: &TableDef, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    columns(def, batch, def.row_key())
}

fn columns(def: &TableDef, batch: &RecordBatch, positions: Vec<usize>) -> Result<Vec<ArrayRef>> {
    positions
        .into_iter()
        .map(|c| batch.columns().get(c).cloned())
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::internal(format!("rows do not have the columns of table \"{}\"", def.name)))
}

/// The columns that stored rows are sorted by, in that order.
///
/// # Errors
/// XX000 when the batch is not of this table.
pub(crate) fn order_columns(def: &TableDef, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    columns(def, batch, def.storage_order())
}

/// Calls `visit(row, key)` for every row.
///
/// # Errors
/// A column type that cannot be a key.
pub(crate) fn for_each_key(columns: &[ArrayRef], mut visit: impl FnMut(usize, &[u8])) -> Result<()> {
    let Some(fast) = fast_columns(columns)? else {
        canonical_keys(columns)?
            .iter()
            .enumerate()
            .for_each(|(row, key)| visit(row, key));
        return Ok(());
    };
    let mut bytes = [0; FAST_COLUMNS_MAX * 9];
    for row in 0..columns.first().map_or(0, |c| c.len()) {
        let mut used = 0;
        for column in &fast {
            used += column.append(row, &mut bytes[used..]);
        }
        visit(row, &bytes[..used]);
    }
    Ok(())
}

/// A key column without NULLs whose values have few bytes.
enum FastColumn {
    Int(ArrayRef),
    Date(ArrayRef),
}

impl FastColumn {
    fn append(&self, row: usize, out: &mut [u8]) -> usize {
        match self {
            Self::Int(array) => {
                out[0] = 2;
                out[1..9].copy_from_slice(&array.as_primitive::<Int64Type>().value(row).to_le_bytes());
                9
            }
            Self::Date(array) => {
                out[0] = 5;
                out[1..5].copy_from_slice(&array.as_primitive::<Date32Type>().value(row).to_le_bytes());
                5
            }
        }
    }
}

fn fast_columns(columns: &[ArrayRef]) -> Result<Option<Vec<FastColumn>>> {
    let fits = |c: &ArrayRef| {
        c.null_count() == 0
            && matches!(
                c.data_type(),
                DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Date32
            )
    };
    if columns.len() > FAST_COLUMNS_MAX || !columns.iter().all(fits) {
        return Ok(None);
    }
    let fast = columns.iter().map(|c| match c.data_type() {
        DataType::Date32 => Ok(FastColumn::Date(c.clone())),
        DataType::Int64 => Ok(FastColumn::Int(c.clone())),
        _ => cast(c, &DataType::Int64)
            .map(FastColumn::Int)
            .map_err(|e| Error::internal(e.to_string())),
    });
    fast.collect::<Result<Vec<_>>>().map(Some)
}

/// Detail of a duplicate key error, as PostgreSQL words it; `columns` are the key columns.
pub(crate) fn duplicate_detail(def: &TableDef, columns: &[ArrayRef], row: usize) -> String {
    let names: Vec<&str> = def
        .row_key()
        .into_iter()
        .filter_map(|c| def.columns.get(c))
        .map(|c| c.name.as_str())
        .collect();
    let values: Vec<String> = columns
        .iter()
        .map(|c| array_value_to_string(c, row).unwrap_or_else(|_| "?".into()))
        .collect();
    format!("Key ({})=({}) already exists.", names.join(", "), values.join(", "))
}

/// The keys of a table's delta and where the rows are: by position in the delta's unbroken row numbering. A row that was
/// changed is there once for each change since the last seal.
#[derive(Debug, Default)]
pub(crate) struct DeltaKeys {
    /// The newest position of each key.
    by_hash: HashMap<u64, (Box<[u8]>, u64)>,
    /// From a position to the one before it of the same key.
    older: HashMap<u64, u64>,
    /// Keys whose hash another key has: practically never.
    collided: Vec<(Box<[u8]>, u64)>,
}

impl DeltaKeys {
    /// Adds a row. Positions ascend.
    pub fn insert(&mut self, key: &[u8], position: u64) {
        match self.by_hash.entry(hash_key(key)) {
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert((key.into(), position));
            }
            std::collections::hash_map::Entry::Occupied(mut slot) if *slot.get().0 == *key => {
                let before = std::mem::replace(&mut slot.get_mut().1, position);
                self.older.insert(position, before);
            }
            std::collections::hash_map::Entry::Occupied(_) => self.collided.push((key.into(), position)),
        }
    }

    /// Positions of the rows that have or had this key, newest first. Of a row that is changed all the time there are many.
    pub fn positions<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        let slot = self.by_hash.get(&hash_key(key));
        let newest = slot.filter(|(found, _)| **found == *key).map(|(_, newest)| *newest);
        let chain = std::iter::successors(newest, |at| self.older.get(at).copied());
        let collided: &[_] = match (slot, newest) {
            (Some(_), None) => &self.collided,
            _ => &[],
        };
        let same = collided.iter().rev().filter(move |(found, _)| **found == *key);
        chain.chain(same.map(|(_, position)| *position))
    }

    /// Forgets rows below a position: they are in segments now.
    pub fn forget_below(&mut self, position: u64) {
        self.by_hash.retain(|_, (_, p)| *p >= position);
        self.older.retain(|_, before| *before >= position);
        self.collided.retain(|(_, p)| *p >= position);
        // A collided key must not be orphaned behind an empty slot.
        for (key, p) in std::mem::take(&mut self.collided) {
            self.insert(&key, p);
        }
    }

    /// Keys that `alive` says of their newest row that it is there, with their hashes, ascending.
    pub fn sorted(&self, alive: impl Fn(u64) -> bool) -> Vec<(u64, Box<[u8]>)> {
        let collided = self.collided.iter().map(|(key, p)| (hash_key(key), key, *p));
        let mut all: Vec<_> = self
            .by_hash
            .iter()
            .map(|(hash, (key, p))| (*hash, key, *p))
            .chain(collided)
            .filter(|(_, _, position)| alive(*position))
            .map(|(hash, key, _)| (hash, key.clone()))
            .collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Date32Array, Int16Array, Int64Array, StringViewArray};
    use std::sync::Arc;

    fn check(columns: &[ArrayRef]) {
        let mut keys = Vec::new();
        for_each_key(columns, |_, key| keys.push(Box::<[u8]>::from(key))).unwrap();
        assert_eq!(keys, canonical_keys(columns).unwrap());
    }

    #[test]
    fn delta_keys_forget_what_was_sealed() {
        let mut keys = DeltaKeys::default();
        (0..100u64).for_each(|n| keys.insert(&n.to_le_bytes(), n));
        // What a hash collision would leave behind.
        keys.collided.push((Box::from(&b"other"[..]), 70));
        keys.forget_below(60);
        let of = |keys: &DeltaKeys, n: u64| keys.positions(&n.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!((of(&keys, 59), of(&keys, 60)), (vec![], vec![60]));
        assert_eq!(keys.positions(b"other").collect::<Vec<_>>(), [70]);
        assert_eq!(keys.sorted(|_| true).len(), 41);
        // Changed rows: newest first, and older ones go with their seal.
        (100..103u64).for_each(|p| keys.insert(&60u64.to_le_bytes(), p));
        assert_eq!(of(&keys, 60), [102, 101, 100, 60]);
        keys.forget_below(101);
        assert_eq!(of(&keys, 60), [102, 101]);
        assert!(keys.sorted(|p| p != 102).is_empty());
    }

    #[test]
    fn fast_path_gives_canonical_bytes() {
        let ints: ArrayRef = Arc::new(Int16Array::from(vec![-1, 0, 300]));
        let longs: ArrayRef = Arc::new(Int64Array::from(vec![i64::MIN, 5, i64::MAX]));
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![-5, 0, 20_000]));
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "", "long enough to be outside"]));
        check(std::slice::from_ref(&ints));
        check(&[longs.clone(), dates.clone(), ints.clone()]);
        check(&[longs, texts]);
        check(&[Arc::new(Int64Array::from(vec![Some(1), None]))]);
    }
}
