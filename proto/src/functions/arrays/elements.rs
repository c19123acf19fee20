//! Elements found, removed, replaced and compared.
//!
//! ```text
//!   remove({1,2,1}, 1)     {2}        replace({1,NULL}, NULL, 9)    {1,9}        here NULL is not distinct from NULL
//!   position({1,2,1}, 1, 2)  3        {1,NULL} @> {NULL}            false        here it is
//! ```
//!
//! Arrays of arrays are refused where PostgreSQL refuses them.

use super::{ArrayKind, flattened, range};
use crate::error::Error;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DynComparator, Int32Builder, ListArray, ListBuilder, UInt64Array,
    make_comparator,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::{SortOptions, interleave, take};
use datafusion::arrow::datatypes::{Field, Int64Type};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, exec_err};
use std::collections::HashSet;
use std::sync::Arc;

fn refuse_nested(list: &ListArray, what: &str) -> Result<()> {
    match super::element_type(list.values().data_type()) {
        None => Ok(()),
        Some(_) => {
            let message = format!("{what} multidimensional arrays is not supported");
            Err(Error::new("0A000", message).into())
        }
    }
}

/// Compares a value of the arrays with the element of a row; NULL is equal to NULL.
fn comparator(list: &ListArray, element: &ArrayRef) -> Result<DynComparator> {
    Ok(make_comparator(list.values(), element, SortOptions::default())?)
}

pub(super) fn remove(list: &ListArray, element: &ArrayRef) -> Result<ArrayRef> {
    refuse_nested(list, "removing elements from")?;
    let same = comparator(list, element)?;
    let (mut kept, mut lengths) = (vec![], vec![]);
    for row in 0..list.len() {
        let before = kept.len();
        kept.extend(range(list, row).filter(|at| same(*at, row).is_ne()).map(|at| at as u64));
        lengths.push(kept.len() - before);
    }
    let values = take(list.values(), &UInt64Array::from(kept), None)?;
    rebuilt(list, values, lengths)
}

pub(super) fn replace(list: &ListArray, from: &ArrayRef, to: &ArrayRef) -> Result<ArrayRef> {
    refuse_nested(list, "replacing elements of")?;
    let same = comparator(list, from)?;
    let (mut places, mut lengths) = (vec![], vec![]);
    for row in 0..list.len() {
        let range = range(list, row);
        lengths.push(range.len());
        places.extend(range.map(|at| if same(at, row).is_eq() { (1, row) } else { (0, at) }));
    }
    let values = interleave(&[list.values().as_ref(), to.as_ref()], &places)?;
    rebuilt(list, values, lengths)
}

fn rebuilt(list: &ListArray, values: ArrayRef, lengths: Vec<usize>) -> Result<ArrayRef> {
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(
        field,
        offsets,
        values,
        list.nulls().cloned(),
    )?))
}

pub(super) fn position(list: &ListArray, element: &ArrayRef, start: Option<&ArrayRef>) -> Result<ArrayRef> {
    refuse_nested(list, "searching for elements in")?;
    let same = comparator(list, element)?;
    let starts = start.map(|start| start.as_primitive::<Int64Type>());
    let mut found = Int32Builder::with_capacity(list.len());
    for row in 0..list.len() {
        let range = range(list, row);
        let first = match starts {
            Some(starts) if starts.is_null(row) && list.is_valid(row) => {
                return Err(Error::new("22004", "initial position must not be null").into());
            }
            Some(starts) => usize::try_from(starts.value(row).max(1) - 1).unwrap_or(usize::MAX),
            None => 0,
        };
        let at = range.clone().skip(first).find(|at| same(*at, row).is_eq());
        found.append_option(at.map(|at| (at - range.start + 1) as i32));
    }
    Ok(Arc::new(found.finish()))
}

pub(super) fn positions(list: &ListArray, element: &ArrayRef) -> Result<ArrayRef> {
    refuse_nested(list, "searching for elements in")?;
    let same = comparator(list, element)?;
    let mut all = ListBuilder::new(Int32Builder::new());
    for row in 0..list.len() {
        let range = range(list, row);
        let found = range.clone().filter(|at| same(*at, row).is_eq());
        found.for_each(|at| all.values().append_value((at - range.start + 1) as i32));
        all.append(list.is_valid(row));
    }
    Ok(Arc::new(all.finish()))
}

/// `element = ANY (array)`: NULL where nothing is equal and something is NULL.
pub(super) fn any(list: &ListArray, element: &ArrayRef) -> Result<ArrayRef> {
    let same = comparator(list, element)?;
    let values = list.values();
    let one = |row: usize| {
        let range = range(list, row);
        if list.is_null(row) {
            None
        } else if range.is_empty() {
            Some(false)
        } else if element.is_null(row) {
            None
        } else if range.clone().any(|at| same(at, row).is_eq()) {
            Some(true)
        } else if range.clone().any(|at| values.is_null(at)) {
            None
        } else {
            Some(false)
        }
    };
    Ok(Arc::new((0..list.len()).map(one).collect::<BooleanArray>()))
}

/// `@>` and `&&`: of all values, whatever the dimensions; a NULL is equal to nothing.
pub(super) fn compare(kind: ArrayKind, list: &ListArray, other: &ArrayRef) -> Result<ArrayRef> {
    let Some(other) = other.as_list_opt::<i32>() else {
        return exec_err!("arrays compared with {}", other.data_type());
    };
    let ((a, a_ranges), (b, b_ranges)) = (flattened(list)?, flattened(other)?);
    let converter = RowConverter::new(vec![SortField::new(a.data_type().clone())])?;
    let (a_rows, b_rows) = (
        converter.convert_columns(std::slice::from_ref(&a))?,
        converter.convert_columns(std::slice::from_ref(&b))?,
    );
    let mut answers = Vec::with_capacity(list.len());
    for (row, (mine, theirs)) in a_ranges.into_iter().zip(b_ranges).enumerate() {
        if list.is_null(row) || other.is_null(row) {
            answers.push(None);
            continue;
        }
        let mine: HashSet<_> = mine.filter(|at| a.is_valid(*at)).map(|at| a_rows.row(at)).collect();
        let has = |at: usize| b.is_valid(at) && mine.contains(&b_rows.row(at));
        answers.push(Some(match kind {
            ArrayKind::Contains => theirs.clone().all(has),
            _ => theirs.clone().any(has),
        }));
    }
    Ok(Arc::new(BooleanArray::from(answers)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int32Array;
    use datafusion::arrow::datatypes::Int32Type;

    fn list(rows: Vec<Option<Vec<Option<i32>>>>) -> ListArray {
        ListArray::from_iter_primitive::<Int32Type, _, _>(rows)
    }

    fn column(values: Vec<Option<i32>>) -> ArrayRef {
        Arc::new(Int32Array::from(values))
    }

    #[test]
    fn all_that_are_equal_go() {
        let arrays = list(vec![
            Some(vec![Some(1), Some(2), Some(1)]),
            Some(vec![Some(1), None]),
            None,
            Some(vec![Some(3)]),
        ]);
        let element = column(vec![Some(1), None, Some(1), Some(3)]);
        let wanted = list(vec![Some(vec![Some(2)]), Some(vec![Some(1)]), None, Some(vec![])]);
        assert_eq!(remove(&arrays, &element).unwrap().as_list::<i32>(), &wanted);
        let to = column(vec![Some(9), Some(9), Some(9), None]);
        let wanted = list(vec![
            Some(vec![Some(9), Some(2), Some(9)]),
            Some(vec![Some(1), Some(9)]),
            None,
            Some(vec![None]),
        ]);
        assert_eq!(replace(&arrays, &element, &to).unwrap().as_list::<i32>(), &wanted);
    }

    #[test]
    fn null_is_equal_to_nothing_where_arrays_are_compared() {
        let arrays = list(vec![Some(vec![Some(1), None]); 4]);
        let others: ArrayRef = Arc::new(list(vec![
            Some(vec![None]),
            Some(vec![Some(1), Some(1)]),
            Some(vec![]),
            None,
        ]));
        let answers = |kind| {
            let all = compare(kind, &arrays, &others).unwrap();
            all.as_boolean().iter().collect::<Vec<_>>()
        };
        let (no, yes) = (Some(false), Some(true));
        assert_eq!(answers(ArrayKind::Contains), [no, yes, yes, None]);
        assert_eq!(answers(ArrayKind::Overlaps), [no, yes, no, None]);
        let one = any(&arrays, &column(vec![Some(1), Some(2), None, Some(1)])).unwrap();
        assert_eq!(one.as_boolean().iter().collect::<Vec<_>>(), [yes, None, None, yes]);
    }
}
