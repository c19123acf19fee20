//! Arrow batches as DataRow messages.
//!
//! ```text
//!   batch  a: Int64 [1, NULL]  b: Utf8View ["x", "y"]          formats: a binary, b text
//!   rows   'D' len 2 | 8 00..01 | 1 'x'       'D' len 2 | -1 | 1 'y'
//! ```
//!
//! Rows go straight into the connection's output buffer, and encoding stops when that is full enough, so memory is bounded by
//! one row and [`FLUSH_BYTES`](super::channel::FLUSH_BYTES). A row that cannot be encoded leaves no bytes behind.

mod binary;
mod nested;
mod number;
mod text;

pub(crate) use number::read_numeric;
pub(super) use number::read_numeric_binary;

use super::calendar;
use super::types::{Column, format_of};
use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::SchemaRef;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};

/// How values look that have several text forms.
#[derive(Debug, Clone)]
pub(super) struct Style {
    /// The session's time zone; `None` is UTC.
    pub(super) zone: Option<Tz>,
    /// `extra_float_digits`.
    pub(super) float_digits: i32,
}

impl Style {
    /// From the settings `timezone` and `extra_float_digits`.
    pub(super) fn new(zone: Option<&str>, float_digits: Option<&str>) -> Self {
        Self {
            zone: zone.and_then(calendar::zone),
            float_digits: float_digits.and_then(|d| d.parse().ok()).unwrap_or(1),
        }
    }
}

/// Encodes the rows of one result.
#[derive(Debug)]
pub(super) struct RowEncoder {
    columns: Vec<Column>,
    formats: Vec<i16>,
    style: Style,
}

impl RowEncoder {
    /// For these columns; `formats` as in Bind.
    pub(super) fn new(columns: Vec<Column>, formats: Vec<i16>, style: Style) -> Self {
        Self {
            columns,
            formats,
            style,
        }
    }

    /// The columns.
    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Brings a batch to the columns' types: dictionaries are unpacked, and a source that yields another type than it
    /// announced is converted rather than believed.
    ///
    /// # Errors
    /// XX000 if it has other columns than announced.
    pub(super) fn prepare(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        if batch.num_columns() != self.columns.len() {
            return Err(Error::internal(format!(
                "batch of {} columns for {}",
                batch.num_columns(),
                self.columns.len()
            )));
        }
        let exact = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let convert = |(array, column): (&ArrayRef, &Column)| match array.data_type() == &column.arrow {
            true => Ok(array.clone()),
            false => cast_with_options(array, &column.arrow, &exact)
                .map_err(|e| Error::internal(format!("column \"{}\": {e}", column.name))),
        };
        batch.columns().iter().zip(&self.columns).map(convert).collect()
    }

    /// Encodes row `row` of prepared columns.
    ///
    /// # Errors
    /// 22003 and 22008 for values PostgreSQL has no room for, 54000 for a row too long for a message. `out` is as before then.
    pub(super) fn encode(&self, columns: &[ArrayRef], row: usize, out: &mut BytesMut) -> Result<()> {
        let start = out.len();
        let result = self.encode_at(columns, row, out, start);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn encode_at(&self, columns: &[ArrayRef], row: usize, out: &mut BytesMut, start: usize) -> Result<()> {
        out.put_u8(b'D');
        out.put_i32(0);
        out.put_u16(u16::try_from(columns.len()).map_err(|_| Error::new("54011", "result has too many columns"))?);
        for (i, (array, column)) in columns.iter().zip(&self.columns).enumerate() {
            self.encode_field(array, row, column, format_of(&self.formats, i), out)?;
        }
        patch_length(out, start + 1, 0)
    }

    fn encode_field(
        &self,
        array: &ArrayRef,
        row: usize,
        column: &Column,
        format: i16,
        out: &mut BytesMut,
    ) -> Result<()> {
        if array.is_null(row) || array.data_type().is_null() {
            out.put_i32(-1);
            return Ok(());
        }
        let at = out.len();
        out.put_i32(0);
        if format == 0 {
            text::write(array.as_ref(), row, &self.style, out)?;
        } else {
            binary::write(array.as_ref(), row, &column.pg_type, &self.style, out)?;
        }
        if let Some(width) = column.pad_to {
            pad(out, at + 4, width);
        }
        patch_length(out, at, 4)
    }
}

/// Rows of one result, field by field in the text format: for COPY.
#[derive(Debug)]
pub(crate) struct TextRows(RowEncoder);

impl TextRows {
    /// For a result of `schema` with `declared` types, in a session with these settings.
    ///
    /// # Errors
    /// 0A000 for a column type that PostgreSQL has no text for.
    pub(crate) fn new(
        schema: &SchemaRef,
        declared: &[Option<SqlType>],
        time_zone: Option<&str>,
        float_digits: Option<&str>,
    ) -> Result<Self> {
        let columns = super::types::columns(schema, declared)?;
        Ok(Self(RowEncoder::new(
            columns,
            vec![],
            Style::new(time_zone, float_digits),
        )))
    }

    /// Names of the columns.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.columns.iter().map(|c| c.name.as_str()).collect()
    }

    /// See [`RowEncoder::prepare`].
    ///
    /// # Errors
    /// XX000 if the batch has other columns than announced.
    pub(crate) fn prepare(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.0.prepare(batch)
    }

    /// Writes a value of column `column`; false for NULL.
    ///
    /// # Errors
    /// 22003 and 22008 for values PostgreSQL has no room for.
    pub(crate) fn field(&self, array: &ArrayRef, row: usize, column: usize, out: &mut BytesMut) -> Result<bool> {
        if array.is_null(row) || array.data_type().is_null() {
            return Ok(false);
        }
        let start = out.len();
        text::write(array.as_ref(), row, &self.0.style, out)?;
        if let Some(width) = self.0.columns.get(column).and_then(|c| c.pad_to) {
            pad(out, start, width);
        }
        Ok(true)
    }
}

/// All values of `items` as the text of one PostgreSQL array, instants in UTC.
///
/// # Errors
/// 0A000, 22003 and 22008 for values that PostgreSQL has no text for.
pub(crate) fn array_text(items: &ArrayRef) -> Result<String> {
    let mut out = BytesMut::new();
    nested::write_list(items, &Style::new(None, None), &mut out)?;
    String::from_utf8(out.to_vec()).map_err(|e| Error::internal(e.to_string()))
}

/// Fills a length field at `at` with the bytes that follow it, the field itself included if `own` is 0.
fn patch_length(out: &mut BytesMut, at: usize, own: usize) -> Result<()> {
    let length =
        i32::try_from(out.len() - at - own).map_err(|_| Error::new("54000", "row is too long for a message"))?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Blanks up to `width` characters, as char(n) is shown.
fn pad(out: &mut BytesMut, start: usize, width: u32) {
    // Characters of UTF-8: every byte that does not continue one.
    let characters = out[start..].iter().filter(|b| (**b as i8) >= -0x40).count();
    out.put_bytes(b' ', (width as usize).saturating_sub(characters));
}

/// 22003, naming the type.
fn out_of_range(kind: &str) -> Error {
    Error::new("22003", format!("{kind} out of range"))
}

/// 22008, naming the type.
fn time_out_of_range(kind: &str) -> Error {
    Error::new("22008", format!("{kind} out of range"))
}

#[cfg(test)]
mod tests;
