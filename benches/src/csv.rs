//! CSV text: batches to the form COPY reads, and answer files back to rows.
//!
//! ```text
//! 1,155190,17.00,1996-03-13,"egular courts, above"   RFC 4180; quotes only where needed, no header, LF
//! ```
//!
//! Writing covers the five Arrow types of the generated tables and nothing else. Not done: escaping for the text
//! format, because every loader here says `FORMAT csv`.

use std::fmt::Write as _;
use std::path::Path;

use datafusion::arrow::array::{
    Array, AsArray, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringViewArray,
};
use datafusion::arrow::datatypes::{DataType, Date32Type, Decimal128Type, Int32Type, Int64Type};
use datafusion::arrow::error::ArrowError;

use crate::error::{Error, Result};
use crate::oracle::Answer;

/// Appends every row of `batch` to `out`; NULL is an empty field, and an empty string is `""`.
///
/// # Errors
/// `NotYetImplemented` for a column of any other type than int4, int8, numeric, text and date.
pub fn encode(batch: &RecordBatch, out: &mut String) -> Result<(), ArrowError> {
    let columns = batch.columns().iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            column.write(row, out);
        }
        out.push('\n');
    }
    Ok(())
}

/// A column, downcast once per batch.
enum Column<'a> {
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Decimal(&'a Decimal128Array, u32),
    Text(&'a StringViewArray),
    Date(&'a Date32Array),
}

impl<'a> Column<'a> {
    fn new(array: &'a std::sync::Arc<dyn Array>) -> Result<Self, ArrowError> {
        Ok(match array.data_type() {
            DataType::Int32 => Column::Int32(array.as_primitive::<Int32Type>()),
            DataType::Int64 => Column::Int64(array.as_primitive::<Int64Type>()),
            DataType::Decimal128(_, scale) if (0..=18).contains(scale) => {
                Column::Decimal(array.as_primitive::<Decimal128Type>(), scale.unsigned_abs().into())
            }
            DataType::Utf8View => Column::Text(array.as_string_view()),
            DataType::Date32 => Column::Date(array.as_primitive::<Date32Type>()),
            other => {
                return Err(ArrowError::NotYetImplemented(format!("csv of type {other}")));
            }
        })
    }

    fn write(&self, row: usize, out: &mut String) {
        match self {
            Column::Int32(array) if array.is_valid(row) => write_integer(array.value(row).into(), out),
            Column::Int64(array) if array.is_valid(row) => write_integer(array.value(row), out),
            Column::Decimal(array, scale) if array.is_valid(row) => write_decimal(array.value(row), *scale, out),
            Column::Text(array) if array.is_valid(row) => write_text(array.value(row), out),
            Column::Date(array) if array.is_valid(row) => write_date(array.value(row), out),
            _ => {}
        }
    }
}

// Writing to a String cannot fail, so the results of `write!` carry nothing.

fn write_integer(value: i64, out: &mut String) {
    let _ = write!(out, "{value}");
}

fn write_decimal(value: i128, scale: u32, out: &mut String) {
    if value < 0 {
        out.push('-');
    }
    let unit = 10u128.pow(scale);
    let (whole, fraction) = (value.unsigned_abs() / unit, value.unsigned_abs() % unit);
    let _ = write!(out, "{whole}");
    if scale > 0 {
        let _ = write!(out, ".{fraction:0width$}", width = scale as usize);
    }
}

fn write_text(text: &str, out: &mut String) {
    let plain = !text.is_empty() && !text.bytes().any(|b| matches!(b, b',' | b'"' | b'\n' | b'\r')) && text != "\\.";
    if plain {
        out.push_str(text);
        return;
    }
    out.push('"');
    out.push_str(&text.replace('"', "\"\""));
    out.push('"');
}

/// Days since 1970 as `YYYY-MM-DD`, by the civil-from-days algorithm of Howard Hinnant: no calendar library in a loop
/// that runs millions of times.
fn write_date(days: i32, out: &mut String) {
    let shifted = i64::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}");
}

/// Reads an answer file with a header line. An empty field is NULL, quoted or not: no answer has empty strings.
///
/// # Errors
/// `File` when it cannot be read, `Answer` when a quote is not closed or a row has not as many fields as the header.
pub fn read_answer(path: &Path) -> Result<Answer> {
    let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
    parse(&text).map_err(|(line, problem)| Error::Answer {
        path: path.to_owned(),
        line,
        problem,
    })
}

/// The rows after the header; the error names a line, from 1.
pub(crate) fn parse(text: &str) -> Result<Answer, (usize, &'static str)> {
    let mut records = Vec::new();
    let mut fields = vec![String::new()];
    let (mut quoted, mut line) = (false, 1);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        let field = fields.last_mut().ok_or((line, "no field"))?;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            '\r' if !quoted => {}
            '\n' if !quoted => records.push((line - 1, std::mem::replace(&mut fields, vec![String::new()]))),
            other => field.push(other),
        }
    }
    if quoted {
        return Err((line, "quote is not closed"));
    }
    if fields != [""] {
        records.push((line, fields));
    }
    let mut records = records.into_iter();
    let (_, header) = records.next().ok_or((1, "no header"))?;
    records
        .map(|(line, fields)| match fields.len() == header.len() {
            true => Ok(fields
                .into_iter()
                .map(|field| (!field.is_empty()).then_some(field))
                .collect()),
            false => Err((line, "not as many fields as the header")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_decimals_print_as_sql() {
        let check = |days, expected| {
            let mut out = String::new();
            write_date(days, &mut out);
            assert_eq!(out, expected);
        };
        check(0, "1970-01-01");
        check(-1, "1969-12-31");
        check(9_556, "1996-03-01");
        check(11_016, "2000-02-29");
        let mut out = String::new();
        for value in [-5, 100, -12_345] {
            write_decimal(value, 2, &mut out);
            out.push(' ');
        }
        assert_eq!(out, "-0.05 1.00 -123.45 ");
    }

    #[test]
    fn text_round_trips() {
        let mut out = "h1,h2\n".to_owned();
        for text in ["plain", "a,b", "say \"x\"", "two\nlines"] {
            write_text(text, &mut out);
            out.push_str(",1\n");
        }
        let rows = parse(&out).expect("own output");
        let texts: Vec<_> = rows.iter().map(|row| row[0].clone().expect("not null")).collect();
        assert_eq!(texts, ["plain", "a,b", "say \"x\"", "two\nlines"]);
    }

    #[test]
    fn bad_answers_name_their_line() {
        assert_eq!(parse("a,b\n1,2\n3\n"), Err((3, "not as many fields as the header")));
        assert_eq!(parse("a\n\"x\n"), Err((3, "quote is not closed")));
    }
}
