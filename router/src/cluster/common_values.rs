//! The most common values of a table's columns, added up over its shards.
//!
//! ```text
//!   shard 0   open 900 of 1,000          ┐
//!   shard 1   open 850, lost 30 of 1,000 ├─▶  open 1,750 of 2,000 = 0.875     kept: any other value has (2,000 - 1,750) / 9
//!             10 distinct values         ┘    lost    30 of 2,000             not kept: it has what any other has
//! ```
//!
//! A value is kept if it has a quarter more rows than it would be taken to have without being listed, and that is more than the
//! sample's error: two standard deviations and half a row looked at. PostgreSQL's `analyze_mcv_list` has the same rule without
//! the quarter, older versions had the quarter alone. If all values of a column are known, and few, all are kept, as there.

use std::collections::BTreeMap;
use tessera_proto::common_values::{CommonValues, VALUES_MAX};
use tessera_proto::v1;

/// Times the rows of other values that a common one must have.
const CLEARLY: f64 = 1.25;
/// Share of distinct values among the rows above which values are taken to come with the rows; PostgreSQL's, too.
const SCALES: f64 = 0.1;

/// Of one column. `parts` are the shards' rows with what is told of the column there; `distinct` values are believed to be
/// in all of them, and `nulls` NULLs.
pub(super) fn of_column(parts: &[(u64, &v1::ColumnStatistics)], distinct: u64, nulls: u64) -> CommonValues {
    let (mut values, mut complete) = (BTreeMap::<&[u8], u64>::new(), true);
    let (mut rows, mut sampled) = (0_u64, 0_u64);
    for (part_rows, column) in parts {
        let Some(told) = &column.common else {
            // Too much to tell; all of these rows may have any value.
            (rows, complete) = (rows.saturating_add(*part_rows), false);
            continue;
        };
        (rows, sampled) = (rows.saturating_add(told.rows), sampled.saturating_add(told.sampled));
        complete &= told.complete;
        for value in &told.values {
            let sum = values.entry(value.value.as_ref()).or_default();
            *sum = sum.saturating_add(value.rows);
        }
    }
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
    complete &= values.len() <= VALUES_MAX && distinct as f64 <= SCALES * rows as f64;
    values.truncate(VALUES_MAX);
    if !complete {
        let counts: Vec<f64> = values.iter().map(|(_, rows)| *rows as f64).collect();
        values.truncate(clearly_common(&counts, rows as f64, sampled as f64, distinct, nulls));
    }
    let shares = values.into_iter().filter_map(|(value, count)| {
        let value = super::statistics::scalar(value)?;
        Some((value, (count as f64 / rows as f64).min(1.0)))
    });
    CommonValues::new(shares.collect())
}

/// How many of the values, with so many rows each, are clearly more common than those behind them.
fn clearly_common(counts: &[f64], rows: f64, sampled: f64, distinct: u64, nulls: u64) -> usize {
    let (mut kept, mut sum) = (counts.len(), counts.iter().sum::<f64>());
    while let Some(least) = kept.checked_sub(1).and_then(|last| counts.get(last)) {
        sum -= least;
        let rest = (rows - nulls as f64 - sum).max(0.0);
        let others = (distinct as f64 - (kept - 1) as f64).max(1.0);
        if *least > CLEARLY * rest / others + 2.0 * deviation(*least, rows, sampled) + 0.5 * (rows / sampled).max(1.0) {
            break;
        }
        kept -= 1;
    }
    kept
}

/// Standard deviation of the number of rows that a value is estimated to have by looking at some of them, drawn at random
/// (hypergeometric).
fn deviation(count: f64, rows: f64, sampled: f64) -> f64 {
    if sampled >= rows || sampled < 1.0 || rows < 2.0 {
        return 0.0;
    }
    let variance = sampled * count * (rows - count).max(0.0) * (rows - sampled) / (rows * rows * (rows - 1.0));
    variance.sqrt() * rows / sampled
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::common::ScalarValue;
    use datafusion_proto::protobuf;
    use prost::Message;

    fn shard(rows: u64, sampled: u64, complete: bool, values: &[(i64, u64)]) -> v1::ColumnStatistics {
        let value = |(value, rows): &(i64, u64)| {
            let message = protobuf::ScalarValue::try_from(&ScalarValue::Int64(Some(*value))).unwrap();
            v1::CommonValue {
                value: message.encode_to_vec().into(),
                rows: *rows,
            }
        };
        v1::ColumnStatistics {
            common: Some(v1::CommonValues {
                rows,
                sampled,
                complete,
                values: values.iter().map(value).collect(),
            }),
            ..Default::default()
        }
    }

    fn check(shards: &[(u64, &v1::ColumnStatistics)], distinct: u64, nulls: u64, expected: &[(i64, f64)]) {
        let found = of_column(shards, distinct, nulls);
        let found: Vec<_> = found.iter().map(|(v, share)| (v.clone(), share)).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(v, s)| (ScalarValue::Int64(Some(*v)), *s))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn shards_are_added_up_and_only_the_clearly_common_stay() {
        let (a, b) = (
            shard(1_000, 1_000, false, &[(1, 900), (2, 11)]),
            shard(1_000, 1_000, false, &[(1, 850), (3, 30)]),
        );
        // 250 rows for nine others are 28 each: 3 is not a quarter above that, 2 is below it.
        check(&[(1_000, &a), (1_000, &b)], 10, 0, &[(1, 0.875)]);
        // With 200 NULLs among the rows, 20 are left for eight values.
        check(
            &[(1_000, &a), (1_000, &b)],
            10,
            200,
            &[(1, 0.875), (3, 0.015), (2, 0.0055)],
        );
    }

    #[test]
    fn all_values_of_few_stay() {
        let even = shard(1_000, 1_000, true, &[(1, 500), (2, 500)]);
        check(&[(1_000, &even)], 2, 0, &[(1, 0.5), (2, 0.5)]);
        // As many values as rows: the next row has another.
        let unique = shard(4, 4, true, &[(1, 1), (2, 1), (3, 1), (4, 1)]);
        check(&[(4, &unique)], 4, 0, &[]);
        let partly = shard(1_000, 1_000, false, &[(1, 500), (2, 500)]);
        check(&[(1_000, &even), (1_000, &partly)], 100, 0, &[(1, 0.5), (2, 0.5)]);
    }

    #[test]
    fn what_may_be_chance_is_not_common() {
        // 160 of 16,000 rows, where the others have 100: certain if all rows were looked at, ten of them seen otherwise.
        let seen = |sampled| shard(16_000, sampled, false, &[(1, 160)]);
        check(&[(16_000, &seen(16_000))], 160, 0, &[(1, 0.01)]);
        check(&[(16_000, &seen(1_000))], 160, 0, &[]);
    }

    #[test]
    fn what_was_not_told_counts_as_rows() {
        let told = shard(1_000, 1_000, true, &[(1, 1_000)]);
        let silent = v1::ColumnStatistics::default();
        check(&[(1_000, &told), (3_000, &silent)], 100, 0, &[(1, 0.25)]);
        check(&[(3_000, &silent)], 100, 0, &[]);
        let broken = v1::CommonValue {
            value: vec![0xff].into(),
            rows: 5,
        };
        let mut damaged = told.clone();
        damaged.common.as_mut().unwrap().values.push(broken);
        check(&[(1_000, &damaged)], 2, 0, &[(1, 1.0)]);
    }
}
