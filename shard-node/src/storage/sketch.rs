//! HyperLogLog: how many distinct values a column has, in 1,024 registers (standard error 3.3 %).
//!
//! ```text
//!   hash 64 bits = | 10 bits: register | 54 bits: leading zeros + 1 kept as the register's maximum |
//! ```
//!
//! Flajolet et al. 2007, with linear counting for small numbers. Sketches of segments are merged by taking maxima. As text
//! (in Parquet footers) a register is one character, `'0' + value`.

use crate::storage::values::for_each_value;
use datafusion::arrow::array::ArrayRef;
use tessera_proto::Result;
use xxhash_rust::xxh3::xxh3_64;

const REGISTERS: usize = 1 << BITS;
const BITS: u32 = 10;
/// Greatest register value: 54 zeros + 1.
const RANK_MAX: u8 = (64 - BITS + 1) as u8;

/// A sketch of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sketch {
    registers: Vec<u8>,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            registers: vec![0; REGISTERS],
        }
    }
}

impl Sketch {
    /// Adds a column's values; NULL is not a value.
    ///
    /// # Errors
    /// XX000: a type that no column has.
    pub fn add(&mut self, array: &ArrayRef) -> Result<()> {
        for_each_value(array, &mut |_, value| {
            if let Some(bytes) = value {
                self.add_hash(xxh3_64(bytes));
            }
        })
    }

    fn add_hash(&mut self, hash: u64) {
        let register = (hash >> (64 - BITS)) as usize;
        // The lowest bit set bounds the count of zeros at 54.
        let rank = ((hash << BITS) | (1 << (BITS - 1))).leading_zeros() as u8 + 1;
        self.registers[register] = self.registers[register].max(rank);
    }

    /// The union of both.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Estimated number of distinct values.
    pub fn count(&self) -> u64 {
        let m = REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|r| f64::powi(2.0, -i32::from(*r))).sum();
        let raw = 0.7213 / (1.0 + 1.079 / m) * m * m / sum;
        let empty = self.registers.iter().filter(|r| **r == 0).count();
        if raw <= 2.5 * m && empty > 0 {
            return (m * (m / empty as f64).ln()).round() as u64;
        }
        raw.round() as u64
    }

    /// For a Parquet footer.
    pub fn to_text(&self) -> String {
        self.registers.iter().map(|r| char::from(b'0' + r)).collect()
    }

    /// The inverse; `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let registers = text
            .bytes()
            .map(|b| b.checked_sub(b'0').filter(|r| *r <= RANK_MAX))
            .collect::<Option<Vec<_>>>()?;
        (registers.len() == REGISTERS).then_some(Self { registers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int64Array;
    use std::sync::Arc;

    fn check(range: std::ops::Range<i64>) {
        let mut sketch = Sketch::default();
        let expected = range.end - range.start;
        sketch
            .add(&(Arc::new(Int64Array::from_iter_values(range)) as ArrayRef))
            .unwrap();
        assert!(
            (sketch.count() as f64 / expected as f64 - 1.0).abs() < 0.1,
            "{} for {expected}",
            sketch.count()
        );
        assert_eq!(Sketch::from_text(&sketch.to_text()), Some(sketch));
    }

    #[test]
    fn counts_within_three_standard_errors() {
        check(0..10);
        check(-500..500);
        check(0..20_000);
        check(0..300_000);
        assert_eq!(Sketch::default().count(), 0);
        assert_eq!(Sketch::from_text("0"), None);
    }

    #[test]
    fn merging_counts_common_values_once() {
        let of = |range: std::ops::Range<i64>| {
            let mut sketch = Sketch::default();
            sketch
                .add(&(Arc::new(Int64Array::from_iter_values(range)) as ArrayRef))
                .unwrap();
            sketch
        };
        let mut left = of(0..6_000);
        left.merge(&of(4_000..10_000));
        assert_eq!(left, of(0..10_000));
    }
}
