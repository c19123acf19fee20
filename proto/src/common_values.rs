//! The most common values of a column, as the planner knows them: each with its share of the table's rows.
//!
//! ```text
//!   status    open 0.02   closed 0.95                  and 0.03 of the rows have other values, or NULL
//!     status = 'closed'  ->  0.95 of the rows          status = 'lost'  ->  0.03 / (distinct values - 2)
//! ```
//!
//! Nodes find them (`shard-node/src/storage/common_values.rs`), the router adds them up (`router/src/cluster/common_values.rs`).
//! Shares are lower bounds: rows that were counted for certain. At most [`VALUES_MAX`] values of at most [`VALUE_BYTES_MAX`]
//! bytes; longer ones are never among them.

use datafusion::common::ScalarValue;
use std::sync::Arc;

/// Values of a column at most. With 100, as PostgreSQL has, statistics of a shard would not fit a few kilobytes; the 64th most
/// common value of a column can have 1/64 of its rows at most.
pub const VALUES_MAX: usize = 64;
/// Longest value, in the bytes of its type: names and codes fit, documents do not. PostgreSQL's limit is 1,024, for one
/// list a table where here is one a segment.
pub const VALUE_BYTES_MAX: usize = 64;

/// Those of one column; none where nothing is known, or no value is clearly more common than others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommonValues {
    values: Vec<(ScalarValue, f64)>,
}

/// One entry per visible column of a table; empty where nobody knows.
pub type TableCommonValues = Arc<[CommonValues]>;

impl CommonValues {
    /// Of values of the column's type with their shares of the rows, from 0 to 1. Their sum is kept at 1 or below, and their
    /// number at [`VALUES_MAX`].
    pub fn new(values: Vec<(ScalarValue, f64)>) -> Self {
        let mut values: Vec<_> = values.into_iter().filter(|(v, _)| !v.is_null()).collect();
        values.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        values.truncate(VALUES_MAX);
        let total: f64 = values.iter().map(|(_, share)| share).sum();
        if total > 1.0 {
            values.iter_mut().for_each(|(_, share)| *share /= total);
        }
        Self { values }
    }

    /// With their shares, the most common first.
    pub fn iter(&self) -> impl Iterator<Item = (&ScalarValue, f64)> {
        self.values.iter().map(|(value, share)| (value, *share))
    }

    /// The share of a value, which must be of the column's type; `None` if it is not among them.
    pub fn share(&self, value: &ScalarValue) -> Option<f64> {
        self.iter().find(|(v, _)| *v == value).map(|(_, share)| share)
    }

    /// The share of all of them together.
    pub fn total(&self) -> f64 {
        self.iter().map(|(_, share)| share).sum()
    }

    /// The share of the least common of them, if there is one.
    pub fn least(&self) -> Option<f64> {
        self.values.last().map(|(_, share)| *share)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(n: i64) -> ScalarValue {
        ScalarValue::Int64(Some(n))
    }

    #[test]
    fn the_most_common_come_first_and_all_together_are_no_more_than_one() {
        let common = CommonValues::new(vec![(value(1), 0.1), (value(2), 0.6), (ScalarValue::Int64(None), 0.2)]);
        let values: Vec<_> = common.iter().collect();
        assert_eq!(values, [(&value(2), 0.6), (&value(1), 0.1)]);
        assert_eq!(common.share(&value(1)), Some(0.1));
        assert_eq!(common.share(&value(3)), None);
        assert_eq!(common.least(), Some(0.1));
        let much = CommonValues::new((0..200).map(|n| (value(n), 0.5)).collect());
        assert_eq!(much.len(), VALUES_MAX);
        assert!((much.total() - 1.0).abs() < 1e-9);
        assert!(CommonValues::default().is_empty());
    }
}
