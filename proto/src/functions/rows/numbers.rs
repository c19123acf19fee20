//! Counting NULLs, and buckets of a histogram.

use super::{Out, Row, float, int};
use crate::error::{Error, Result};

pub(super) fn nulls(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Int(row.iter().filter(|value| value.is_none()).count() as i32))
}

pub(super) fn not_nulls(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Int(row.iter().flatten().count() as i32))
}

/// In which of `count` equal parts between two bounds a number lies: 0 before them, `count + 1` behind.
pub(super) fn width_bucket(row: Row<'_, '_>) -> Result<Out> {
    let (value, from, to, count) = (float(row, 0), float(row, 1), float(row, 2), int(row, 3));
    let wrong = |message: &str| Err(Error::new("2201G", message));
    let Some(count) = i32::try_from(count).ok().filter(|count| *count > 0) else {
        return wrong("count must be greater than zero");
    };
    if value.is_nan() || from.is_nan() || to.is_nan() {
        return wrong("operand, lower bound, and upper bound cannot be NaN");
    }
    if !from.is_finite() || !to.is_finite() {
        return wrong("lower and upper bounds must be finite");
    }
    if from == to {
        return wrong("lower bound cannot equal upper bound");
    }
    let beyond = count
        .checked_add(1)
        .ok_or_else(|| Error::new("22003", "integer out of range"))?;
    let (before, behind) = match from < to {
        true => (value < from, value >= to),
        false => (value > from, value <= to),
    };
    Ok(Out::Int(match (before, behind) {
        (true, _) => 0,
        (_, true) => beyond,
        _ => ((f64::from(count) * ((value - from) / (to - from))).floor() as i32).min(count - 1) + 1,
    }))
}
