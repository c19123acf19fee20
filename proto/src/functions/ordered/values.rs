//! The values of one group, kept until all have come, and `mode`, the most frequent of them.
//!
//! ```text
//!   update 2, 1, NULL, 2   ->   rows [2] [1] [2], as bytes that compare in the order   ->   sorted   ->   mode 2
//! ```
//!
//! NULLs do not count. Of several that are most frequent, the first in the order.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::compute::{SortOptions, filter, is_not_null};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::Accumulator;

/// Values in the order of their coming.
#[derive(Debug)]
pub(super) struct Values {
    of: DataType,
    converter: RowConverter,
    rows: Rows,
}

impl Values {
    pub(super) fn new(of: &DataType, order: SortOptions) -> Result<Self> {
        let converter = RowConverter::new(vec![SortField::new_with_options(of.clone(), order)])?;
        let rows = converter.empty_rows(0, 0);
        Ok(Self {
            of: of.clone(),
            converter,
            rows,
        })
    }

    /// All but NULLs.
    pub(super) fn append(&mut self, values: &ArrayRef) -> Result<()> {
        let values = match values.logical_null_count() {
            0 => values.clone(),
            _ => {
                let known: BooleanArray = is_not_null(values)?;
                filter(values, &known)?
            }
        };
        Ok(self.converter.append(&mut self.rows, &[values])?)
    }

    /// What [`Self::state`] made elsewhere.
    pub(super) fn merge(&mut self, states: &ArrayRef) -> Result<()> {
        let Some(lists) = states.as_list_opt::<i32>() else {
            return exec_err!("values in {}", states.data_type());
        };
        lists.iter().flatten().try_for_each(|values| self.append(&values))
    }

    pub(super) fn state(&self) -> Result<ScalarValue> {
        let values = self.decoded(0..self.len())?;
        Ok(SingleRowListArrayBuilder::new(values)
            .with_nullable(true)
            .build_list_scalar())
    }

    pub(super) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Positions in the order.
    pub(super) fn sorted(&self) -> Vec<usize> {
        let mut positions: Vec<usize> = (0..self.len()).collect();
        positions.sort_unstable_by(|a, b| self.rows.row(*a).cmp(&self.rows.row(*b)));
        positions
    }

    /// The values at these positions.
    pub(super) fn decoded(&self, positions: impl IntoIterator<Item = usize>) -> Result<ArrayRef> {
        let rows = positions.into_iter().map(|position| self.rows.row(position));
        match self.converter.convert_rows(rows)?.pop() {
            Some(values) => Ok(values),
            None => exec_err!("values of no column"),
        }
    }

    pub(super) fn null(&self) -> Result<ScalarValue> {
        ScalarValue::try_from(&self.of)
    }

    /// With what sorting them takes.
    pub(super) fn size(&self) -> usize {
        self.rows.size() + self.converter.size() + self.len() * size_of::<usize>()
    }
}

/// The accumulator of `mode`.
#[derive(Debug)]
pub(super) struct Mode(Values);

impl Mode {
    pub(super) fn new(values: Values) -> Self {
        Self(values)
    }
}

impl Accumulator for Mode {
    /// Arguments are the order and the value.
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        match columns {
            [_, values] => self.0.append(values),
            _ => exec_err!("mode of {} columns", columns.len()),
        }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        states.iter().try_for_each(|values| self.0.merge(values))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.0.state()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sorted = self.0.sorted();
        let runs = sorted.chunk_by(|a, b| self.0.rows.row(*a) == self.0.rows.row(*b));
        let mut longest: &[usize] = &[];
        for run in runs {
            if run.len() > longest.len() {
                longest = run;
            }
        }
        match longest.first() {
            Some(position) => ScalarValue::try_from_array(&self.0.decoded([*position])?, 0),
            None => self.0.null(),
        }
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.0.size()
    }
}
