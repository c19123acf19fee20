//! How a join key's values share the rows of its column, and how many pairs of rows are equal.
//!
//! ```text
//!   orders.status    open 0.90   lost 0.02   eight others 0.08          open with open   0.90 x 0.50
//!   events.status    open 0.50               nine others  0.50          lost with one of nine others   0.02 x 0.50 / 9
//!                                                                       others with others   0.08 x 0.44 / 8
//! ```
//!
//! As PostgreSQL's `eqjoinsel`: common values meet themselves, one that is common on one side only meets an average value of the
//! other, and the rest meets as if the side with fewer values had none that the other has not. Here the result is a distribution
//! again, so that a third column of the same class joins what the first two left; PostgreSQL asks each pair of tables anew.

use datafusion::common::ScalarValue;
use tessera_proto::common_values::CommonValues;

/// One column's shares, over a list of values that all columns of its class have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    /// By number of the value; `None`: it is one of the others here.
    common: Vec<Option<f64>>,
    /// What the others have together.
    rest: f64,
    /// How many they are, at least 1 if they have anything.
    others: f64,
}

/// Numbers for the common values of a class of columns.
#[derive(Debug, Default)]
pub struct Values(Vec<ScalarValue>);

impl Values {
    /// The number of a value.
    fn number(&mut self, value: ScalarValue) -> usize {
        let known = self.0.iter().position(|v| *v == value);
        known.unwrap_or_else(|| {
            self.0.push(value);
            self.0.len() - 1
        })
    }
}

impl Shares {
    /// Of a column with `distinct` values, of whose rows a share of `nulls` has none of them. The common values are cast to the type that the
    /// class is compared in; one that has none there is one of the others.
    pub fn new(
        common: &CommonValues,
        distinct: f64,
        nulls: f64,
        cast: impl Fn(&ScalarValue) -> Option<ScalarValue>,
        values: &mut Values,
    ) -> Self {
        let mut shares = Self {
            common: vec![],
            rest: 0.0,
            others: 0.0,
        };
        let mut taken = 0.0;
        let mut total = 0.0;
        for (value, share) in common.iter() {
            let Some(value) = cast(value) else { continue };
            let number = values.number(value);
            shares.common.resize(shares.common.len().max(number + 1), None);
            shares.common[number] = Some(share);
            (taken, total) = (taken + 1.0, total + share);
        }
        shares.rest = (1.0 - nulls - total).max(0.0);
        shares.others = (distinct - taken).max(1.0);
        shares
    }

    /// Whether any value is known to be common.
    pub fn is_skewed(&self) -> bool {
        self.common.iter().any(Option::is_some)
    }

    /// Of all pairs of rows the share that is equal, and how the values share those.
    pub fn join(&self, other: &Self) -> (f64, Self) {
        let (mut left, mut right) = (self.clone(), other.clone());
        let values = left.common.len().max(right.common.len());
        left.common.resize(values, None);
        right.common.resize(values, None);
        let (left_each, right_each) = (left.each(), right.each());
        let mut common = Vec::with_capacity(values);
        for number in 0..values {
            common.push(match (left.common[number], right.common[number]) {
                (Some(l), Some(r)) => Some(l * r),
                (Some(l), None) => Some(l * right.take(right_each)),
                (None, Some(r)) => Some(left.take(left_each) * r),
                (None, None) => None,
            });
        }
        let rest = left.rest * right.rest / left.others.max(right.others);
        let equal = common.iter().flatten().sum::<f64>() + rest;
        let scale = if equal > 0.0 { 1.0 / equal } else { 0.0 };
        common.iter_mut().flatten().for_each(|share| *share *= scale);
        let joined = Self {
            common,
            rest: rest * scale,
            others: left.others.min(right.others),
        };
        (equal, joined)
    }

    /// What one of the others has.
    fn each(&self) -> f64 {
        self.rest / self.others
    }

    /// Takes an average value out of the others; nothing when there is none left.
    fn take(&mut self, each: f64) -> f64 {
        let share = each.min(self.rest);
        self.rest -= share;
        self.others = (self.others - 1.0).max(1.0);
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(common: &[(i64, f64)], distinct: f64, nulls: f64, values: &mut Values) -> Shares {
        let common = common.iter().map(|(v, share)| (ScalarValue::Int64(Some(*v)), *share));
        Shares::new(
            &CommonValues::new(common.collect()),
            distinct,
            nulls,
            |v| Some(v.clone()),
            values,
        )
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
    }

    #[test]
    fn common_values_meet_themselves_and_the_rest_meets_the_rest() {
        let mut values = Values::default();
        let left = shares(&[(1, 0.90), (2, 0.02)], 10.0, 0.0, &mut values);
        let right = shares(&[(1, 0.50)], 10.0, 0.0, &mut values);
        let (equal, joined) = left.join(&right);
        let expected = 0.45 + 0.02 * 0.5 / 9.0 + 0.08 * (0.5 - 0.5 / 9.0) / 8.0;
        close(equal, expected);
        assert_eq!(right.join(&left).0, equal);
        // Of the pairs nearly all have the common value.
        close(joined.common[0].unwrap(), 0.45 / expected);
        close(joined.common.iter().flatten().sum::<f64>() + joined.rest, 1.0);
    }

    #[test]
    fn without_skew_it_is_one_by_the_larger_number_of_values() {
        let mut values = Values::default();
        let (left, right) = (
            shares(&[], 100.0, 0.0, &mut values),
            shares(&[], 40.0, 0.0, &mut values),
        );
        assert!(!left.is_skewed());
        let (equal, joined) = left.join(&right);
        close(equal, 0.01);
        close(joined.others, 40.0);
        // Skew on the side that refers to unique keys changes nothing either.
        let (many, unique) = (
            shares(&[(1, 0.7)], 100.0, 0.0, &mut values),
            shares(&[], 100.0, 0.0, &mut values),
        );
        close(many.join(&unique).0, 0.01);
        // NULLs are equal to nothing.
        let half = shares(&[], 40.0, 0.5, &mut values);
        close(left.join(&half).0, 0.005);
    }

    #[test]
    fn three_columns_of_a_class_give_the_same_in_any_order() {
        let mut values = Values::default();
        let a = shares(&[(1, 0.5), (2, 0.1)], 50.0, 0.0, &mut values);
        let b = shares(&[(1, 0.3), (3, 0.2)], 50.0, 0.1, &mut values);
        let c = shares(&[(1, 0.2), (2, 0.2), (3, 0.2)], 50.0, 0.0, &mut values);
        let three = |a: &Shares, b: &Shares, c: &Shares| {
            let (first, ab) = a.join(b);
            first * ab.join(c).0
        };
        let first = three(&a, &b, &c);
        for other in [three(&a, &c, &b), three(&b, &c, &a)] {
            assert!((other / first - 1.0).abs() < 0.02, "{other} or {first}");
        }
    }

    #[test]
    fn values_that_never_meet_are_no_rows() {
        let mut values = Values::default();
        let (left, right) = (
            shares(&[(1, 1.0)], 1.0, 0.0, &mut values),
            shares(&[(2, 1.0)], 1.0, 0.0, &mut values),
        );
        let (equal, joined) = left.join(&right);
        assert_eq!(equal, 0.0);
        assert_eq!(joined.join(&left).0, 0.0);
    }
}
