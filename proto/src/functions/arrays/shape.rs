//! Dimensions of arrays, and parts of them by position.
//!
//! ```text
//!   dims({{1,2,3},{4,5,6}})   [1:2][1:3]          length(.., 2)   3          of {} all are NULL
//!   slice({1,2,3}, 0, 2)      {1,2}               trim({1,2,3}, 1)  {1,2}    element({1,2,3}, 4)  NULL
//! ```

use super::{element_type, flattened, list_of, range};
use crate::error::Error;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Builder, ListArray, ListBuilder, StringViewArray, UInt64Array,
    UInt64Builder,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{Field, Int64Type};
use datafusion::common::{DataFusionError, Result};
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

/// Elements of one array that `array_fill` makes; a dimension more multiplies.
const FILL_MAX: i64 = 1 << 20;
/// Elements of one batch of them.
const FILL_BATCH_MAX: u64 = 1 << 24;

/// The lengths of the dimensions of each array; none for an empty one or NULL. Arrays inside are of one length.
fn lengths(list: &ListArray) -> Result<Vec<Vec<usize>>> {
    let mut ranges: Vec<Range<usize>> = (0..list.len()).map(|row| range(list, row)).collect();
    let mut all: Vec<Vec<usize>> = ranges.iter().map(|r| vec![r.len()]).collect();
    let mut values = list.values().clone();
    while let Some(of) = element_type(values.data_type()).cloned() {
        let inner = cast(&values, &list_of(of))?;
        let inner = inner.as_list::<i32>();
        for (range, lengths) in ranges.iter_mut().zip(&mut all) {
            // The first tells for all.
            *range = match range.len() {
                0 => 0..0,
                _ => super::range(inner, range.start),
            };
            lengths.push(range.len());
        }
        values = inner.values().clone();
    }
    for lengths in &mut all {
        if lengths.contains(&0) {
            lengths.clear();
        }
    }
    Ok(all)
}

pub(super) fn length(list: &ListArray, dimension: &ArrayRef, lower: bool) -> Result<ArrayRef> {
    let dimensions = dimension.as_primitive::<Int64Type>();
    let lengths = lengths(list)?;
    let one = |row: usize| {
        let dimension = dimensions.is_valid(row).then(|| dimensions.value(row))?;
        let at = usize::try_from(dimension.checked_sub(1)?).ok()?;
        let length = *lengths[row].get(at)?;
        Some(if lower { 1 } else { length as i32 })
    };
    Ok(Arc::new((0..list.len()).map(one).collect::<Int32Array>()))
}

pub(super) fn dimensions(list: &ListArray) -> Result<ArrayRef> {
    let count = |lengths: Vec<usize>| Some(lengths.len() as i32).filter(|n| *n > 0);
    Ok(Arc::new(lengths(list)?.into_iter().map(count).collect::<Int32Array>()))
}

pub(super) fn dims(list: &ListArray) -> Result<ArrayRef> {
    let text = |lengths: Vec<usize>| {
        let mut text = String::new();
        for length in &lengths {
            // Writing to a String does not fail.
            let _ = write!(text, "[1:{length}]");
        }
        Some(text).filter(|text| !text.is_empty())
    };
    Ok(Arc::new(
        lengths(list)?.into_iter().map(text).collect::<StringViewArray>(),
    ))
}

/// Parts of the arrays; `None` for NULL.
fn parts(list: &ListArray, part: impl Fn(usize) -> Result<Option<Range<usize>>>) -> Result<ArrayRef> {
    let (mut at, mut lengths, mut valid) = (UInt64Builder::new(), vec![], vec![]);
    for row in 0..list.len() {
        let part = part(row)?;
        valid.push(part.is_some());
        let part = part.unwrap_or(0..0);
        lengths.push(part.len());
        part.for_each(|position| at.append_value(position as u64));
    }
    let values = take(list.values(), &at.finish(), None)?;
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let (offsets, nulls) = (OffsetBuffer::from_lengths(lengths), NullBuffer::from(valid));
    Ok(Arc::new(ListArray::try_new(field, offsets, values, Some(nulls))?))
}

pub(super) fn slice(list: &ListArray, from: &ArrayRef, to: &ArrayRef) -> Result<ArrayRef> {
    let (from, to) = (from.as_primitive::<Int64Type>(), to.as_primitive::<Int64Type>());
    parts(list, |row| {
        if list.is_null(row) || from.is_null(row) || to.is_null(row) {
            return Ok(None);
        }
        let range = range(list, row);
        let length = range.len() as i64;
        let first = from.value(row).clamp(1, length + 1) - 1;
        let end = to.value(row).clamp(first, length.max(first));
        Ok(Some(range.start + first as usize..range.start + end as usize))
    })
}

pub(super) fn trim(list: &ListArray, count: &ArrayRef) -> Result<ArrayRef> {
    let counts = count.as_primitive::<Int64Type>();
    parts(list, |row| {
        if list.is_null(row) || counts.is_null(row) {
            return Ok(None);
        }
        let range = range(list, row);
        match usize::try_from(counts.value(row)).ok().filter(|n| *n <= range.len()) {
            Some(n) => Ok(Some(range.start..range.end - n)),
            None => {
                let message = format!("number of elements to trim must be between 0 and {}", range.len());
                Err(Error::new("2202E", message).into())
            }
        }
    })
}

/// `array[i][j]`: NULL, too, where there are fewer subscripts than dimensions, or more.
pub(super) fn element(list: &ArrayRef, positions: &[ArrayRef]) -> Result<ArrayRef> {
    let rows = list.len();
    let mut at: Vec<Option<usize>> = (0..rows).map(Some).collect();
    let mut values = list.clone();
    for position in positions {
        let positions = position.as_primitive::<Int64Type>();
        let Some(list) = values.as_list_opt::<i32>().cloned() else {
            at = vec![None; rows];
            break;
        };
        for (row, at) in at.iter_mut().enumerate() {
            let one = |array: usize| {
                let position = positions.is_valid(row).then(|| positions.value(row))?;
                let range = range(&list, array);
                let inside = usize::try_from(position.checked_sub(1)?).ok()?;
                (inside < range.len()).then_some(range.start + inside)
            };
            *at = at.and_then(one);
        }
        values = list.values().clone();
    }
    while let Some(list) = values.as_list_opt::<i32>() {
        at = vec![None; rows];
        let inside = list.values().clone();
        values = inside;
    }
    let at: UInt64Array = at.into_iter().map(|at| at.map(|at| at as u64)).collect();
    Ok(take(&values, &at, None)?)
}

pub(super) fn ordinals(lists: &[ArrayRef]) -> Result<ArrayRef> {
    let rows = lists.first().map_or(0, |list| list.len());
    let mut all = ListBuilder::new(Int64Builder::new());
    for row in 0..rows {
        let lengths = lists
            .iter()
            .map(|list| list.as_list_opt::<i32>().map_or(0, |list| range(list, row).len()));
        let longest = lengths.max().unwrap_or(0) as i64;
        (1..=longest).for_each(|n| all.values().append_value(n));
        all.append(true);
    }
    Ok(Arc::new(all.finish()))
}

pub(super) fn fill(values: &ArrayRef, counts: &ArrayRef) -> Result<ArrayRef> {
    let counts = counts.as_primitive::<Int64Type>();
    let (mut at, mut lengths, mut total) = (UInt64Builder::new(), vec![], 0u64);
    // What one value weighs: of arrays, their elements.
    let weights: Vec<u64> = match values.as_list_opt::<i32>() {
        Some(list) => flattened(list)?.1.into_iter().map(|range| range.len() as u64).collect(),
        None => vec![1; values.len()],
    };
    for (row, weight) in weights.into_iter().enumerate() {
        if counts.is_null(row) {
            return Err(Error::new("22004", "dimension values cannot be null").into());
        }
        let count = counts.value(row);
        let too_many = || -> DataFusionError {
            let error = Error::new("54000", format!("array size exceeds the maximum allowed ({FILL_MAX})"));
            error.into()
        };
        total = total.saturating_add(weight.max(1).saturating_mul(count.max(0) as u64));
        if !(0..=FILL_MAX).contains(&count) || weight * count as u64 > FILL_MAX as u64 || total > FILL_BATCH_MAX {
            return Err(too_many());
        }
        lengths.push(count as usize);
        (0..count).for_each(|_| at.append_value(row as u64));
    }
    let filled = take(values, &at.finish(), None)?;
    let field = Arc::new(Field::new_list_field(filled.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(field, offsets, filled, None)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int64Array;
    use datafusion::arrow::datatypes::Int32Type;

    fn parts_of(from: i64, to: i64) -> Vec<Option<i32>> {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), Some(2), Some(3)])]);
        let bound = |n: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![n])) };
        let part = slice(&list, &bound(from), &bound(to)).unwrap();
        part.as_list::<i32>()
            .values()
            .as_primitive::<Int32Type>()
            .iter()
            .collect()
    }

    #[test]
    fn bounds_are_clipped() {
        let (one, two, three) = (Some(1), Some(2), Some(3));
        assert_eq!(parts_of(2, 3), [two, three]);
        assert_eq!(parts_of(-1, 2), [one, two]);
        assert_eq!(parts_of(i64::MIN, i64::MAX), [one, two, three]);
        assert_eq!(parts_of(3, 2), []);
        assert_eq!(parts_of(5, 6), []);
        assert_eq!(parts_of(0, -4), []);
    }
}
