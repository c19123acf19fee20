//! Keys as they are read, and the set that they become.
//!
//! ```text
//!   up to 16 different keys            a list of them
//!   integers no further than           one bit for each number from the least to the greatest
//!     8 Mi from each other
//!   up to 1 Mi keys                    a Bloom filter, 16 bits a key as long as they fit into 1 MiB
//!   more, or memory is short           every value may be a key, and reading them ends
//! ```

use super::{BOUND_BYTES_MAX, KEYS_MAX, KeySet, LISTED_MAX, Members, SET_BYTES_MAX};
use super::{Bloom, hashes, integer, integers_of, is_supported, mixed, numbers};
use crate::error::{Error, Result};
use datafusion::arrow::array::{Array, ArrayRef, make_comparator};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use std::cmp::Ordering;
use std::sync::Arc;

/// Bits of a Bloom filter for each key, where they fit.
const BITS_PER_KEY: usize = 16;

/// Keys of one type.
#[derive(Debug)]
pub struct Collector {
    integers: bool,
    /// Numbers of integers, hashes of others.
    codes: Vec<u64>,
    /// All of them, as long as they are few.
    few: Option<Vec<ScalarValue>>,
    range: Option<(ScalarValue, ScalarValue)>,
    full: bool,
    memory: MemoryReservation,
}

impl Collector {
    /// For keys of this type; what it holds counts in `pool`.
    ///
    /// # Errors
    /// A type that has no sets.
    pub fn new(data_type: &DataType, pool: &Arc<dyn MemoryPool>) -> Result<Self> {
        if !is_supported(data_type) {
            return Err(Error::internal(format!("no sets of keys of type {data_type}")));
        }
        Ok(Self {
            integers: integers_of(data_type).is_some(),
            codes: vec![],
            few: Some(vec![]),
            range: None,
            full: false,
            memory: MemoryConsumer::new("key filter").register(pool),
        })
    }

    /// Adds the values of a column; NULLs are no keys. `false` when there are too many and more need not be read.
    ///
    /// # Errors
    /// A column of another type.
    pub fn add(&mut self, keys: &ArrayRef) -> Result<bool> {
        let rows: Vec<usize> = (0..keys.len()).filter(|row| keys.is_valid(*row)).collect();
        if self.full || rows.is_empty() {
            return Ok(!self.full);
        }
        let room = rows.len() * size_of::<u64>();
        if self.codes.len() + rows.len() > KEYS_MAX || self.memory.try_grow(room).is_err() {
            self.full = true;
            return Ok(false);
        }
        if self.integers {
            let numbers = numbers(keys)?;
            self.codes.extend(rows.iter().map(|row| numbers[*row] as u64));
        } else {
            let hashes = hashes(keys)?;
            self.codes.extend(rows.iter().map(|row| hashes[*row]));
        }
        self.list(keys, &rows)?;
        self.widen(keys, &rows)?;
        Ok(true)
    }

    fn list(&mut self, keys: &ArrayRef, rows: &[usize]) -> Result<()> {
        let Some(mut few) = self.few.take() else { return Ok(()) };
        for row in rows {
            let key = scalar(keys, *row)?;
            if few.contains(&key) {
                continue;
            }
            if few.len() == LISTED_MAX || key.size() > BOUND_BYTES_MAX {
                return Ok(());
            }
            few.push(key);
        }
        self.few = Some(few);
        Ok(())
    }

    fn widen(&mut self, keys: &ArrayRef, rows: &[usize]) -> Result<()> {
        let compare = make_comparator(keys, keys, SortOptions::default()).map_err(|e| Error::internal(e.to_string()))?;
        let (mut least, mut greatest) = (rows[0], rows[0]);
        for row in rows {
            if compare(*row, least) == Ordering::Less {
                least = *row;
            }
            if compare(*row, greatest) == Ordering::Greater {
                greatest = *row;
            }
        }
        let (mut min, mut max) = (scalar(keys, least)?, scalar(keys, greatest)?);
        if let Some((known_min, known_max)) = self.range.take() {
            if known_min < min {
                min = known_min;
            }
            if known_max > max {
                max = known_max;
            }
        }
        self.range = Some((min, max));
        Ok(())
    }

    /// The set, and how many keys were added.
    pub fn finish(self) -> (KeySet, usize) {
        let keys = self.codes.len();
        if self.full {
            return (KeySet::any(), keys);
        }
        let Some((min, max)) = self.range else {
            let members = Members::None;
            return (KeySet { range: None, members }, 0);
        };
        if let Some(few) = self.few {
            let (keys, members) = (few.len(), Members::Few(few));
            return (KeySet { range: None, members }, keys);
        }
        let ends = integer(&min).zip(integer(&max)).filter(|_| self.integers);
        let span = ends.and_then(|(first, last)| Some((first, last.checked_sub(first)? as u64)));
        let members = match span {
            Some((first, span)) if span < 8 * SET_BYTES_MAX as u64 => {
                let mut bits = vec![0u8; (span / 8) as usize + 1];
                for code in &self.codes {
                    let at = (*code as i64 - first) as usize;
                    bits[at / 8] |= 1 << (at % 8);
                }
                let bits = bits.into();
                Members::Bits { first, bits }
            }
            _ => {
                let mut bloom = Bloom::new((keys * BITS_PER_KEY / 8).min(SET_BYTES_MAX));
                for code in &self.codes {
                    bloom.insert(if self.integers { mixed(*code as i64) } else { *code });
                }
                Members::Bloom(bloom)
            }
        };
        let keys = match &members {
            Members::Bits { bits, .. } => bits.iter().map(|byte| byte.count_ones() as usize).sum(),
            _ => keys,
        };
        let short = |bound: &ScalarValue| bound.size() <= BOUND_BYTES_MAX;
        let range = Some((min, max)).filter(|(min, max)| short(min) && short(max));
        (KeySet { range, members }, keys)
    }
}

fn scalar(keys: &ArrayRef, row: usize) -> Result<ScalarValue> {
    Ok(ScalarValue::try_from_array(keys, row)?)
}
