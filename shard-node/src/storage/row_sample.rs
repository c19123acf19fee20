//! The rows of a segment that its most common values are counted of.
//!
//! ```text
//!   rows  0 1 2 ... 4,095 | 4,096 .. 4,111 | 4,112 .. 4,127 | ..        69,000 of the 1,048,576 rows of the largest segment
//!         all             | one, drawn     | one, drawn     | ..        each weighs 16
//! ```
//!
//! Counting a value costs several times what hashing it for a sketch does, so counting all of them would be felt in a load; one
//! of 16 is not. One is drawn of each block, for with every 16th row a column that repeats itself (`i % 16`) would show one value only. Blocks and
//! not draws from anywhere, because segments are sorted: a run of equal values is hit in proportion to its length. What is drawn depends on the row's
//! number alone, so every copy and every run has the same.
//!
//! A share p is off by sqrt(p (1 - p) / n) of n rows as a rule: 0.04 % for a value with 1 % of the rows of a full segment.

use crate::storage::common_values::{Counters, Summary, column_bytes_max};
use datafusion::arrow::array::{Array, ArrayRef, UInt32Array};
use datafusion::arrow::compute::take;
use std::ops::Range;
use tessera_proto::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// First rows, which are all counted: small tables are known exactly. A multiple of [`STRIDE`].
const WHOLE_ROWS: u64 = 4_096;
/// One of so many rows behind them is counted.
const STRIDE: u64 = 16;

/// Counters of all columns of some rows.
#[derive(Debug)]
pub(crate) struct RowSample {
    columns: Vec<Counters>,
    seen: u64,
}

impl RowSample {
    /// Of so many columns.
    pub fn new(columns: usize) -> Self {
        Self {
            columns: vec![Counters::default(); columns],
            seen: 0,
        }
    }

    /// Takes the next rows: columns of equal length, in the order of the others.
    ///
    /// # Errors
    /// XX000: a type that no column has.
    pub fn add(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let rows = columns.first().map_or(0, |column| column.len()) as u64;
        let whole = WHOLE_ROWS.saturating_sub(self.seen).min(rows);
        let first = self.seen;
        self.seen += rows;
        let drawn: UInt32Array = drawn(first + whole..self.seen)
            .map(|row| (row - first) as u32)
            .collect();
        for (counters, column) in self.columns.iter_mut().zip(columns) {
            counters.add_rows(rows);
            if whole > 0 {
                counters.add(&column.slice(0, whole as usize), 1)?;
            }
            if !drawn.is_empty() {
                let values = take(column, &drawn, None).map_err(|e| Error::internal(e.to_string()))?;
                counters.add(&values, STRIDE)?;
            }
        }
        Ok(())
    }

    /// What is kept, one of each column.
    pub fn summaries(self) -> Vec<Summary> {
        let bytes = column_bytes_max(self.columns.len());
        self.columns.into_iter().map(|c| c.summary(bytes)).collect()
    }
}

/// The rows drawn among these.
fn drawn(rows: Range<u64>) -> impl Iterator<Item = u64> {
    let blocks = rows.start / STRIDE..rows.end.div_ceil(STRIDE);
    let row = |block: u64| block * STRIDE + xxh3_64(&block.to_le_bytes()) % STRIDE;
    blocks.map(row).filter(move |row| rows.contains(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, StringViewArray};
    use datafusion::arrow::datatypes::DataType;
    use std::sync::Arc;

    /// Rows that each of the values is said to have, of a column written 8,192 rows at a time.
    fn counted(rows: i64, value: impl Fn(i64) -> i64) -> Vec<u64> {
        let mut sample = RowSample::new(1);
        let values: Vec<i64> = (0..rows).map(value).collect();
        for batch in values.chunks(8_192) {
            sample.add(&[Arc::new(Int64Array::from(batch.to_vec()))]).unwrap();
        }
        let summary = sample.summaries().pop().unwrap();
        let told = summary.to_wire(&DataType::Int64, 1, 0, |_| Default::default());
        assert_eq!(told.rows, rows as u64);
        told.values.iter().map(|v| v.rows).collect()
    }

    #[track_caller]
    fn close(counts: &[u64], expected: &[u64]) {
        assert_eq!(counts.len(), expected.len(), "{counts:?}");
        for (count, expected) in counts.iter().zip(expected) {
            let off = (*count as f64 / *expected as f64 - 1.0).abs();
            assert!(off < 0.15, "{count} instead of {expected}");
        }
    }

    #[test]
    fn small_tables_are_counted_exactly() {
        assert_eq!(counted(4_096, |n| n % 4), [1_024; 4]);
        assert_eq!(counted(10, |n| n / 9), [9, 1]);
    }

    #[test]
    fn columns_that_repeat_themselves_and_sorted_ones_are_seen_as_they_are() {
        for period in [2, 8, 16, 32] {
            let expected = vec![400_000 / period as u64; period as usize];
            close(&counted(400_000, |n| n % period), &expected);
        }
        close(&counted(400_000, |n| n / 100_000), &[100_000; 4]);
    }

    #[test]
    fn one_row_of_each_block_is_drawn_wherever_batches_end() {
        let all: Vec<u64> = drawn(0..1_600).collect();
        assert_eq!(all.len(), 100);
        assert!(all.iter().enumerate().all(|(block, row)| row / STRIDE == block as u64));
        for cut in [1, 7, 16, 100, 1_599] {
            let parts: Vec<u64> = drawn(0..cut).chain(drawn(cut..1_600)).collect();
            assert_eq!(parts, all);
        }
    }

    #[test]
    fn every_column_has_as_many_rows() {
        let mut sample = RowSample::new(2);
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter(
            (0..5_000).map(|n| (n % 3 > 0).then_some("x")),
        ));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5_000));
        sample.add(&[texts, numbers]).unwrap();
        let told: Vec<_> = sample
            .summaries()
            .iter()
            .zip([DataType::Utf8View, DataType::Int64])
            .map(|(s, t)| s.to_wire(&t, 5_000, 0, |_| Default::default()).rows)
            .collect();
        assert_eq!(told, [5_000, 5_000]);
    }
}
