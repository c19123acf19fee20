//! Lists as PostgreSQL arrays, structs and maps as its row text.
//!
//! ```text
//!   [1, NULL, 3]        {1,NULL,3}            [["a b"], ["c\"d"]]   {{"a b"},{"c\"d"}}
//!   {x: 1, y: "a,b"}    (1,"a,b")             map {k: 1}            {"(k,1)"}
//! ```
//!
//! In binary an array is rectangular: lists of lists of unequal lengths are refused there (2202E), as PostgreSQL would.

use super::{Style, binary, patch_length, text};
use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::DataType;
use postgres_types::Type;
use tessera_proto::{Error, Result};

/// PostgreSQL's `MAXDIM`.
const DIMENSIONS_MAX: usize = 6;

/// Writes a list, struct or map as text.
pub(super) fn write_text(array: &dyn Array, row: usize, style: &Style, out: &mut BytesMut) -> Result<()> {
    match array.data_type() {
        DataType::Struct(_) => write_struct(array, row, style, out),
        _ => write_list(&items(array, row)?, style, out),
    }
}

/// The elements of the list at `row`; of a map, its entries.
fn items(array: &dyn Array, row: usize) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::List(_) => array.as_list::<i32>().value(row),
        DataType::LargeList(_) => array.as_list::<i64>().value(row),
        DataType::ListView(_) => array.as_list_view::<i32>().value(row),
        DataType::LargeListView(_) => array.as_list_view::<i64>().value(row),
        DataType::FixedSizeList(..) => array.as_fixed_size_list().value(row),
        DataType::Map(..) => std::sync::Arc::new(array.as_map().value(row)),
        other => {
            return Err(Error::unsupported(
                format!("values of type {other} cannot be sent to a client"),
                "cast them to text",
            ));
        }
    })
}

fn is_list(data_type: &DataType) -> bool {
    data_type.is_nested() && !matches!(data_type, DataType::Struct(_) | DataType::Map(..))
}

/// Writes all elements as one array.
pub(super) fn write_list(items: &ArrayRef, style: &Style, out: &mut BytesMut) -> Result<()> {
    out.put_u8(b'{');
    for i in 0..items.len() {
        if i > 0 {
            out.put_u8(b',');
        }
        if items.is_null(i) || items.data_type().is_null() {
            out.extend_from_slice(b"NULL");
        } else if is_list(items.data_type()) {
            write_text(items.as_ref(), i, style, out)?;
        } else {
            let mut value = BytesMut::new();
            text::write(items.as_ref(), i, style, &mut value)?;
            let plain = !value.is_empty()
                && !value.eq_ignore_ascii_case(b"null")
                && !value.iter().any(|b| is_special(*b, b"{},"));
            write_quoted(&value, plain, b"\\", out);
        }
    }
    out.put_u8(b'}');
    Ok(())
}

fn write_struct(array: &dyn Array, row: usize, style: &Style, out: &mut BytesMut) -> Result<()> {
    out.put_u8(b'(');
    for (i, column) in array.as_struct().columns().iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        if column.is_null(row) || column.data_type().is_null() {
            continue;
        }
        let mut value = BytesMut::new();
        text::write(column.as_ref(), row, style, &mut value)?;
        let plain = !value.is_empty() && !value.iter().any(|b| is_special(*b, b"(),"));
        write_quoted(&value, plain, b"\"", out);
    }
    out.put_u8(b')');
    Ok(())
}

fn is_special(byte: u8, separators: &[u8]) -> bool {
    separators.contains(&byte) || matches!(byte, b'"' | b'\\' | b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// As it is if `plain`, else in quotes; a quote inside is escaped by `quote_escape`, a backslash by another.
fn write_quoted(value: &[u8], plain: bool, quote_escape: &[u8], out: &mut BytesMut) {
    if plain {
        out.extend_from_slice(value);
        return;
    }
    out.put_u8(b'"');
    for byte in value {
        match byte {
            b'"' => out.extend_from_slice(quote_escape),
            b'\\' => out.put_u8(b'\\'),
            _ => {}
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

/// Writes a list as a binary array of `element`s.
pub(super) fn write_binary(
    array: &dyn Array,
    row: usize,
    element: &Type,
    style: &Style,
    out: &mut BytesMut,
) -> Result<()> {
    let items = items(array, row)?;
    let mut dimensions = vec![];
    measure(&items, 0, &mut dimensions)?;
    if dimensions.contains(&0) {
        dimensions.clear();
    }
    let start = out.len();
    out.put_i32(i32::try_from(dimensions.len()).map_err(|_| ragged())?);
    out.put_i32(0);
    out.put_u32(element.oid());
    for length in &dimensions {
        out.put_i32(i32::try_from(*length).map_err(|_| Error::new("54000", "array is too long"))?);
        out.put_i32(1);
    }
    let has_nulls = write_elements(&items, element, style, out)?;
    out[start + 4..start + 8].copy_from_slice(&i32::from(has_nulls).to_be_bytes());
    Ok(())
}

/// Collects the length of every dimension and checks that all lists of one depth agree.
fn measure(items: &ArrayRef, depth: usize, dimensions: &mut Vec<usize>) -> Result<()> {
    if depth >= DIMENSIONS_MAX {
        return Err(Error::new(
            "54000",
            format!("arrays have at most {DIMENSIONS_MAX} dimensions"),
        ));
    }
    match dimensions.get(depth) {
        None => dimensions.push(items.len()),
        Some(length) if *length == items.len() => {}
        Some(_) => return Err(ragged()),
    }
    if !is_list(items.data_type()) {
        return Ok(());
    }
    for i in 0..items.len() {
        if items.is_null(i) {
            return Err(ragged());
        }
        measure(&self::items(items.as_ref(), i)?, depth + 1, dimensions)?;
    }
    Ok(())
}

fn write_elements(items: &ArrayRef, element: &Type, style: &Style, out: &mut BytesMut) -> Result<bool> {
    let mut has_nulls = false;
    for i in 0..items.len() {
        if is_list(items.data_type()) {
            has_nulls |= write_elements(&self::items(items.as_ref(), i)?, element, style, out)?;
        } else if items.is_null(i) || items.data_type().is_null() {
            has_nulls = true;
            out.put_i32(-1);
        } else {
            let at = out.len();
            out.put_i32(0);
            binary::write(items.as_ref(), i, element, style, out)?;
            patch_length(out, at, 4)?;
        }
    }
    Ok(has_nulls)
}

fn ragged() -> Error {
    Error::new("2202E", "lists of unequal lengths cannot be sent as a binary array")
        .with_hint("ask for the text format, or unnest the list")
}
