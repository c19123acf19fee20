//! `percentile_disc` and `percentile_cont`, of one fraction or an array of them.
//!
//! ```text
//!   of 1 2 3 4     disc(0.5)  2   the first value at or behind the fraction
//!                  cont(0.5)  2.5 between the two that are nearest        cont({0.25,NULL})  {1.75,NULL}
//! ```

use super::values::Values;
use crate::error::Error;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::{DataType, Float64Type, IntervalMonthDayNano};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::Accumulator;

const NANOS_DAY: f64 = 86_400e9;
const DAYS_MONTH: f64 = 30.0;

/// The accumulator.
#[derive(Debug)]
pub(super) struct Percentile {
    continuous: bool,
    values: Values,
    /// NULL until it is known.
    fraction: ScalarValue,
}

impl Percentile {
    /// `fraction` is NULL where it is no constant.
    pub(super) fn new(continuous: bool, values: Values, fraction: ScalarValue) -> Result<Self> {
        check(&fraction)?;
        Ok(Self {
            continuous,
            values,
            fraction,
        })
    }

    fn note(&mut self, fractions: &ArrayRef) -> Result<()> {
        if self.fraction.is_null() && !fractions.is_empty() {
            self.fraction = ScalarValue::try_from_array(fractions, 0)?.compacted();
            check(&self.fraction)?;
        }
        Ok(())
    }

    /// The value at a fraction of the sorted ones, of which there are some.
    fn at(&self, fraction: f64, sorted: &[usize]) -> Result<ArrayRef> {
        if !self.continuous {
            let position = (fraction * sorted.len() as f64).ceil() as usize;
            return self.values.decoded([sorted[position.clamp(1, sorted.len()) - 1]]);
        }
        let place = fraction * (sorted.len() - 1) as f64;
        let (first, second) = (place.floor(), place.ceil());
        let both = self.values.decoded([sorted[first as usize], sorted[second as usize]])?;
        if first == second {
            return Ok(both.slice(0, 1));
        }
        let (a, b) = (
            ScalarValue::try_from_array(&both, 0)?,
            ScalarValue::try_from_array(&both, 1)?,
        );
        between(&a, &b, place - first)?.to_array()
    }
}

/// The numbers of one fraction or of an array; `None` for NULL.
fn numbers(fraction: &ScalarValue) -> Vec<Option<f64>> {
    match fraction {
        ScalarValue::Float64(number) => vec![*number],
        ScalarValue::List(list) if list.len() == 1 && list.is_valid(0) => list
            .value(0)
            .as_primitive_opt::<Float64Type>()
            .map_or_else(Vec::new, |all| all.iter().collect()),
        _ => vec![],
    }
}

fn check(fraction: &ScalarValue) -> Result<()> {
    match numbers(fraction)
        .into_iter()
        .flatten()
        .find(|n| !(0.0..=1.0).contains(n))
    {
        Some(wrong) => {
            let message = format!("percentile value {wrong} is not between 0 and 1");
            Err(Error::new("22003", message).into())
        }
        None => Ok(()),
    }
}

/// `a + (b - a) * part`, of intervals with what is left of months in days and of days in time.
fn between(a: &ScalarValue, b: &ScalarValue, part: f64) -> Result<ScalarValue> {
    Ok(match (a, b) {
        (ScalarValue::Float64(Some(a)), ScalarValue::Float64(Some(b))) => {
            ScalarValue::Float64(Some(a + part * (b - a)))
        }
        (ScalarValue::DurationMicrosecond(Some(a)), ScalarValue::DurationMicrosecond(Some(b))) => {
            let more = (part * (*b as f64 - *a as f64)).round_ties_even() as i64;
            ScalarValue::DurationMicrosecond(Some(a.saturating_add(more)))
        }
        (ScalarValue::IntervalMonthDayNano(Some(a)), ScalarValue::IntervalMonthDayNano(Some(b))) => {
            let months = part * (f64::from(b.months) - f64::from(a.months));
            let days = part * (f64::from(b.days) - f64::from(a.days)) + months.fract() * DAYS_MONTH;
            let nanos = part * (b.nanoseconds as f64 - a.nanoseconds as f64) + days.fract() * NANOS_DAY;
            // To the microsecond.
            let nanos = (nanos / 1e3).round_ties_even() * 1e3;
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano {
                months: a.months.saturating_add(months as i32),
                days: a.days.saturating_add(days as i32),
                nanoseconds: a.nanoseconds.saturating_add(nanos as i64),
            }))
        }
        _ => return exec_err!("what is between {a} and {b}"),
    })
}

impl Accumulator for Percentile {
    /// Arguments are the order, the value and the fraction.
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let [_, values, fractions] = columns else {
            return exec_err!("a percentile of {} columns", columns.len());
        };
        self.note(fractions)?;
        self.values.append(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [values, fractions] = states else {
            return exec_err!("a percentile of {} states", states.len());
        };
        // A part without rows does not know the fraction.
        for row in 0..fractions.len() {
            self.note(&fractions.slice(row, 1))?;
        }
        self.values.merge(values)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.values.state()?, self.fraction.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let is_list = matches!(self.fraction, ScalarValue::List(_));
        let null = || -> Result<ScalarValue> {
            let null = self.values.null()?;
            match is_list {
                true => ScalarValue::try_from(&DataType::new_list(null.data_type(), true)),
                false => Ok(null),
            }
        };
        if self.fraction.is_null() || self.values.len() == 0 {
            return null();
        }
        let sorted = self.values.sorted();
        let nothing = new_null_array(&self.values.null()?.data_type(), 1);
        let found = numbers(&self.fraction).into_iter().map(|number| match number {
            Some(fraction) => self.at(fraction, &sorted),
            None => Ok(nothing.clone()),
        });
        let found = found.collect::<Result<Vec<_>>>()?;
        if !is_list {
            return ScalarValue::try_from_array(found.first().unwrap_or(&nothing), 0);
        }
        let found: Vec<&dyn Array> = found.iter().map(|value| value.as_ref()).collect();
        let all = match found.is_empty() {
            true => nothing.slice(0, 0),
            false => concat(&found)?,
        };
        Ok(SingleRowListArrayBuilder::new(all)
            .with_nullable(true)
            .build_list_scalar())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.size() + self.fraction.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_carry_down() {
        let interval = |months, days, nanoseconds| {
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, nanoseconds)))
        };
        let hour = 3_600_000_000_000;
        let got = between(&interval(0, 0, 0), &interval(3, 1, hour), 0.5).unwrap();
        assert_eq!(got, interval(1, 15, 12 * hour + hour / 2));
        let got = between(&interval(0, 2, 0), &interval(0, 1, 0), 0.25).unwrap();
        assert_eq!(got, interval(0, 2, -6 * hour));
    }

    #[test]
    fn fractions_are_fractions() {
        for (number, fine) in [(0.0, true), (1.0, true), (-0.1, false), (1.5, false), (f64::NAN, false)] {
            assert_eq!(check(&ScalarValue::Float64(Some(number))).is_ok(), fine, "{number}");
        }
    }
}
