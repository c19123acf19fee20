//! The most common values of a column: a Misra-Gries summary of a sample of its rows, in bounded space.
//!
//! ```text
//!   counters   value -> rows that it has at least, at most      open 37,900..38,100   closed 9,000..9,000     missed 200
//!   a new value when 512 counters are taken: a prune to 256. missed grows by the 257th count, what is not above it goes
//!   segment, chunk: 64 counters are kept  ──▶  added up and pruned per shard  ──▶  those above the average are told
//! ```
//!
//! What holds for the rows looked at (`row_sample.rs`), each weighing as many rows as it stands for: a value with a counter has
//! from `least` to `most` rows, one without has `missed` at most. A prune takes the same from 65 counts or more, so `missed` is
//! at most 1/65 of the rows, however often summaries were pruned and merged. More only where a column's bytes ran out, or a footer
//! had no summary; then `missed` says so.
//!
//! Not here: values longer than [`VALUE_BYTES_MAX`], and taking out rows that are gone.
//!
//! Sources: Misra, Gries, "Finding Repeated Elements", 1982; Agarwal et al., "Mergeable Summaries", PODS 2012, for merging; Metwally et
//! al., "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005, for two bounds of each value.

use crate::storage::values::{for_each_value, value_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::HashMap;
use datafusion::scalar::ScalarValue;
use prost::Message;
use std::cmp::Reverse;
use tessera_proto::common_values::{VALUE_BYTES_MAX, VALUES_MAX};
use tessera_proto::{Result, v1};

/// Counters that a prune leaves while rows are counted; twice as many are taken before it. Some 40 KiB a column: a writer of
/// Parquet has more than that for its pages.
const COUNTERS: usize = 256;
/// Counters kept of a segment or of rows in memory.
const KEPT: usize = VALUES_MAX;
/// Bytes of one column's values and counts, in a footer and in a report: 64 values of 18 bytes, or all numbers.
const COLUMN_BYTES_MAX: usize = 2 << 10;
/// Bytes of all columns of a table, in a footer and in a report of one shard.
const TABLE_BYTES_MAX: usize = 32 << 10;
/// Bytes of a counter beside its value: tags, lengths, and two numbers of four bytes.
const COUNTER_BYTES: usize = 14;

/// Bytes that a column may take in a table of so many.
pub(crate) fn column_bytes_max(columns: usize) -> usize {
    COLUMN_BYTES_MAX.min(TABLE_BYTES_MAX / columns.max(1))
}

/// How many rows a value has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    least: u64,
    most: u64,
}

/// What one column's rows are counted with. Invariant: every `most` is above `missed`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    values: HashMap<Box<[u8]>, Range>,
    rows: u64,
    sampled: u64,
    missed: u64,
    left_out: bool,
}

impl Counters {
    /// Counts a column's values as `weight` rows each; NULL is not a value. The rows themselves: [`Self::add_rows`].
    ///
    /// # Errors
    /// XX000: a type that no column has.
    pub fn add(&mut self, array: &ArrayRef, weight: u64) -> Result<()> {
        self.sampled = self.sampled.saturating_add(array.len() as u64);
        for_each_value(array, &mut |_, value| {
            if let Some(bytes) = value {
                self.count(bytes, weight);
            }
        })
    }

    /// Rows that the counts are of, whether they were looked at or not.
    pub fn add_rows(&mut self, rows: u64) {
        self.rows = self.rows.saturating_add(rows);
    }

    /// Adds rows that are NULL in this column.
    pub fn add_nulls(&mut self, rows: u64) {
        self.add_rows(rows);
        self.sampled = self.sampled.saturating_add(rows);
    }

    /// Adds rows of which nothing is known.
    pub fn add_unknown(&mut self, rows: u64) {
        self.merge(&Summary(v1::ColumnCounters {
            rows,
            missed: rows,
            ..Default::default()
        }));
    }

    fn count(&mut self, value: &[u8], weight: u64) {
        if let Some(range) = self.values.get_mut(value) {
            range.least = range.least.saturating_add(weight);
            range.most = range.most.saturating_add(weight);
            return;
        }
        if value.len() > VALUE_BYTES_MAX {
            self.left_out = true;
            return;
        }
        if self.values.len() >= 2 * COUNTERS {
            self.prune(COUNTERS);
        }
        let range = Range {
            least: weight,
            most: self.missed.saturating_add(weight),
        };
        self.values.insert(value.into(), range);
    }

    /// Leaves `keep` counters at most.
    fn prune(&mut self, keep: usize) {
        if self.values.len() > keep {
            let mut counts: Vec<u64> = self.values.values().map(|r| r.most - self.missed).collect();
            let (_, cut, _) = counts.select_nth_unstable_by_key(keep, |count| Reverse(*count));
            self.miss(*cut);
        }
    }

    /// So many rows more may have been missed; values that may have no more are forgotten.
    fn miss(&mut self, rows: u64) {
        self.missed = self.missed.saturating_add(rows);
        self.values.retain(|_, range| range.most > self.missed);
    }

    /// Adds what is known of other rows.
    pub fn merge(&mut self, Summary(other): &Summary) {
        // What only one side has a counter for may be among what the other missed.
        for range in self.values.values_mut() {
            range.most = range.most.saturating_add(other.missed);
        }
        for counter in &other.counters {
            let both = Range {
                least: 0,
                most: self.missed.saturating_add(other.missed),
            };
            let range = self.values.entry(counter.value.as_ref().into()).or_insert(both);
            range.least = range.least.saturating_add(counter.rows);
            let most = counter.rows.saturating_add(counter.over);
            range.most = range.most.saturating_add(most.saturating_sub(other.missed));
        }
        self.add_rows(other.rows);
        self.sampled = self.sampled.saturating_add(other.sampled);
        self.left_out |= other.left_out;
        self.miss(other.missed);
        self.prune(COUNTERS);
    }

    /// What is kept of it, in `bytes` bytes at most.
    pub fn summary(mut self, bytes: usize) -> Summary {
        self.prune(KEPT);
        let mut counters: Vec<_> = self.values.iter().collect();
        counters.sort_unstable_by_key(|(value, range)| (Reverse(range.least), *value));
        let fits = counters
            .iter()
            .scan(0, |taken, (value, _)| {
                *taken += value.len() + COUNTER_BYTES;
                (*taken <= bytes).then_some(())
            })
            .count();
        let dropped = counters[fits..].iter().map(|(_, range)| range.most);
        let missed = dropped.fold(self.missed, u64::max);
        let kept = counters[..fits].iter().filter(|(_, range)| range.most > missed);
        let counters = kept.map(|(value, range)| v1::ValueCounter {
            value: Bytes::copy_from_slice(value),
            rows: range.least,
            over: range.most - range.least,
        });
        Summary(v1::ColumnCounters {
            rows: self.rows,
            sampled: self.sampled,
            missed,
            left_out: self.left_out,
            counters: counters.collect(),
        })
    }
}

/// A column's counters at rest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary(v1::ColumnCounters);

impl Summary {
    /// For a Parquet footer.
    pub fn to_text(&self) -> String {
        STANDARD.encode(self.0.encode_to_vec())
    }

    /// The inverse; `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Bytes::from(STANDARD.decode(text).ok()?);
        let known = v1::ColumnCounters::decode(bytes).ok()?;
        let fits = |c: &v1::ValueCounter| {
            let most = c.rows.checked_add(c.over);
            c.value.len() <= VALUE_BYTES_MAX && most.is_some_and(|most| most > known.missed)
        };
        (known.counters.len() <= KEPT && known.counters.iter().all(fits)).then_some(Self(known))
    }

    /// What a shard's leader tells: all values if no others were seen, else those that have more rows than the average of
    /// `distinct` values, for which NULLs do not count. `encode` writes a value.
    pub fn to_wire(
        &self,
        data_type: &DataType,
        distinct: u64,
        nulls: u64,
        encode: impl Fn(&ScalarValue) -> Bytes,
    ) -> v1::CommonValues {
        let Self(known) = self;
        let valued = u128::from(known.rows.saturating_sub(nulls));
        let mut complete = known.missed == 0 && !known.left_out;
        let mut values = vec![];
        for counter in &known.counters {
            match value_of(&counter.value, data_type) {
                Some(value) if complete || u128::from(counter.rows) * u128::from(distinct) > valued => {
                    values.push(v1::CommonValue {
                        value: encode(&value),
                        rows: counter.rows,
                    });
                }
                Some(_) => {}
                None => complete = false,
            }
        }
        v1::CommonValues {
            rows: known.rows,
            sampled: known.sampled,
            complete,
            values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, StringViewArray};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    /// Numbers that look random and are the same in every run (xorshift64).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }
    }

    /// As many values as rows, half of the rows with 40 of them: the smaller the number, the more common.
    fn skewed(numbers: &mut Numbers, rows: usize) -> Vec<i64> {
        let value = |n: &mut Numbers| match n.below(2) {
            0 => (n.below(40) * n.below(40) / 40) as i64,
            _ => 1_000 + n.below(1 << 40) as i64,
        };
        (0..rows).map(|_| value(numbers)).collect()
    }

    fn counters(values: &[i64]) -> Counters {
        let mut counters = Counters::default();
        let array: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
        counters.add(&array, 1).unwrap();
        counters.add_rows(values.len() as u64);
        counters
    }

    fn summary(values: &[i64]) -> Summary {
        counters(values).summary(COLUMN_BYTES_MAX)
    }

    /// What is said of every value must be true of the rows; so many may have been missed at most.
    #[track_caller]
    fn check(Summary(known): &Summary, rows: &[i64], missed_max: u64) {
        let mut counts: BTreeMap<i64, u64> = BTreeMap::new();
        rows.iter().for_each(|v| *counts.entry(*v).or_default() += 1);
        for counter in &known.counters {
            let value = i64::from_le_bytes(counter.value.as_ref().try_into().unwrap());
            let count = counts.remove(&value).unwrap_or(0);
            let said = counter.rows..=counter.rows + counter.over;
            assert!(said.contains(&count), "{value} has {count} rows, not {said:?}");
        }
        let missed = counts.into_values().max().unwrap_or(0);
        assert!(
            missed <= known.missed,
            "one without a counter has {missed}, not {}",
            known.missed
        );
        assert!(
            known.missed <= missed_max,
            "{} may be missed, not {missed_max}",
            known.missed
        );
        assert!(known.counters.len() <= KEPT);
        assert_eq!(known.rows, rows.len() as u64);
    }

    #[test]
    fn counts_are_within_their_bounds() {
        for seed in 1..20 {
            let numbers = &mut Numbers(seed);
            for rows in [0, 1, 50, 5_000, 40_000] {
                let mut values = skewed(numbers, rows);
                check(&summary(&values), &values, rows as u64 / 65);
                // The worst order: whatever is common comes when the counters are full, or before they are.
                values.sort_unstable();
                check(&summary(&values), &values, rows as u64 / 65);
                values.reverse();
                check(&summary(&values), &values, rows as u64 / 65);
            }
        }
    }

    #[test]
    fn few_values_are_counted_exactly_and_unique_ones_not_at_all() {
        let few: Vec<i64> = (0..10_000).map(|n| n % 50).collect();
        let Summary(known) = summary(&few);
        assert_eq!((known.missed, known.counters.len()), (0, 50));
        assert!(known.counters.iter().all(|c| c.rows == 200 && c.over == 0));
        let unique: Vec<i64> = (0..10_000).collect();
        assert_eq!(summary(&unique).0.counters, []);
    }

    #[test]
    fn merging_keeps_the_bounds_in_any_order() {
        for seed in 1..20 {
            let numbers = &mut Numbers(seed);
            let parts: Vec<Vec<i64>> = (0..9).map(|_| skewed(numbers, 3_000)).collect();
            let rows = parts.concat();
            let summaries: Vec<Summary> = parts.iter().map(|p| summary(p)).collect();
            let merged = |order: &[usize]| {
                let mut all = Counters::default();
                order.iter().for_each(|at| all.merge(&summaries[*at]));
                all.summary(COLUMN_BYTES_MAX)
            };
            let straight = merged(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
            check(&straight, &rows, rows.len() as u64 / 65);
            check(&merged(&[8, 3, 1, 0, 5, 7, 2, 6, 4]), &rows, rows.len() as u64 / 65);
            // In two halves, each at rest in between.
            let halves = [merged(&[0, 1, 2, 3]), merged(&[4, 5, 6, 7, 8])];
            let mut all = Counters::default();
            halves.iter().for_each(|half| all.merge(half));
            let paired = all.summary(COLUMN_BYTES_MAX);
            check(&paired, &rows, rows.len() as u64 / 65);
            // Whatever the order, the most common one is the same.
            assert_eq!(paired.0.counters[0].value, straight.0.counters[0].value);
        }
    }

    #[test]
    fn without_pruning_merging_is_exact_and_associative() {
        let [a, b, c] = [0..30, 10..40, 5..50].map(|range: std::ops::Range<i64>| summary(&range.collect::<Vec<_>>()));
        let merged = |parts: &[&Summary]| {
            let mut all = Counters::default();
            parts.iter().for_each(|part| all.merge(part));
            all.summary(COLUMN_BYTES_MAX)
        };
        let all = merged(&[&a, &b, &c]);
        assert_eq!(all, merged(&[&c, &a, &b]));
        assert_eq!(all, merged(&[&merged(&[&a, &b]), &c]));
        assert_eq!(all, merged(&[&a, &merged(&[&b, &c])]));
        check(&all, &(0..30).chain(10..40).chain(5..50).collect::<Vec<_>>(), 0);
    }

    #[test]
    fn unknown_rows_may_have_any_value_and_nulls_none() {
        let mut counters = counters(&[7; 100]);
        counters.add_nulls(50);
        counters.add_unknown(30);
        let Summary(known) = counters.summary(COLUMN_BYTES_MAX);
        assert_eq!((known.rows, known.sampled, known.missed), (180, 150, 30));
        assert_eq!((known.counters[0].rows, known.counters[0].over), (100, 30));
    }

    #[test]
    fn long_values_are_left_out_and_bytes_are_bounded() {
        let texts = |texts: Vec<String>| {
            let mut counters = Counters::default();
            let array: ArrayRef = Arc::new(StringViewArray::from(texts));
            counters.add(&array, 1).unwrap();
            counters.summary(COLUMN_BYTES_MAX)
        };
        let long = texts(vec!["x".repeat(VALUE_BYTES_MAX + 1); 10]);
        assert!(long.0.left_out && long.0.counters.is_empty());
        // 60 texts of 60 bytes, the first of which have more rows.
        let wide = texts((0..60).flat_map(|n| vec![format!("{n:>60}"); 100 - n]).collect());
        assert!(wide.0.encode_to_vec().len() <= COLUMN_BYTES_MAX);
        let kept = wide.0.counters.len();
        assert!((20..60).contains(&kept), "{kept}");
        assert_eq!(wide.0.missed, 100 - kept as u64);
        assert_eq!(column_bytes_max(3), COLUMN_BYTES_MAX);
        assert_eq!(column_bytes_max(1_600), 20);
    }

    #[test]
    fn text_comes_back_and_damaged_text_does_not() {
        let known = summary(&[1, 1, 1, 2, 2, 3]);
        let text = known.to_text();
        assert_eq!(Summary::from_text(&text), Some(known.clone()));
        assert_eq!(Summary::from_text("%"), None);
        let with = |change: fn(&mut v1::ColumnCounters)| {
            let mut damaged = known.0.clone();
            change(&mut damaged);
            Summary::from_text(&Summary(damaged).to_text())
        };
        assert_eq!(with(|k| k.missed = 3), None);
        assert_eq!(with(|k| k.counters[0].over = u64::MAX), None);
        assert_eq!(with(|k| k.counters = vec![k.counters[0].clone(); KEPT + 1]), None);
        assert_eq!(with(|k| k.counters[0].value = vec![0; 65].into()), None);
        // Whatever bytes are there, nothing panics.
        for cut in 0..text.len() {
            let _ = Summary::from_text(&text[..cut]);
        }
        let mut extreme = Counters::default();
        let huge = v1::ColumnCounters {
            rows: u64::MAX,
            sampled: u64::MAX,
            missed: u64::MAX - 1,
            left_out: false,
            counters: vec![v1::ValueCounter {
                value: vec![1].into(),
                rows: u64::MAX,
                over: 0,
            }],
        };
        (0..3).for_each(|_| extreme.merge(&Summary(huge.clone())));
        extreme.count(&[2], 16);
        extreme.prune(1);
    }

    #[test]
    fn a_shard_tells_what_is_above_the_average_or_all() {
        let told = |summary: &Summary, distinct, nulls| {
            let encode = |value: &ScalarValue| Bytes::from(value.to_string());
            let told = summary.to_wire(&DataType::Int64, distinct, nulls, encode);
            let values = told
                .values
                .iter()
                .map(|v| (String::from_utf8(v.value.to_vec()).unwrap(), v.rows));
            (told.complete, values.collect::<Vec<_>>())
        };
        let few = summary(&[1, 1, 1, 2]);
        assert_eq!(told(&few, 2, 0), (true, vec![("1".into(), 3), ("2".into(), 1)]));
        let mut counters = counters(&[1, 1, 1, 2]);
        counters.left_out = true;
        let partly = counters.summary(COLUMN_BYTES_MAX);
        assert_eq!(told(&partly, 2, 0), (false, vec![("1".into(), 3)]));
        assert_eq!(told(&partly, 2, 3).1.len(), 2);
        // Bytes of another type are no value.
        assert_eq!(few.to_wire(&DataType::Int32, 2, 0, |_| Bytes::new()).values, []);
        assert!(!few.to_wire(&DataType::Int32, 2, 0, |_| Bytes::new()).complete);
    }
}
