//! Text forms that Arrow does not know: bytea, uuid, and PostgreSQL's words for true and false.
//!
//! ```text
//!   \x00ff        hex bytea            a\\b\001      escape bytea
//!   {a0eebc99-..} uuid, braces and hyphens optional
//!   tru, YES, 1   bool: any beginning of true, false, yes, no; on, off, 1, 0
//! ```

use super::cast::bad_text;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryViewBuilder, BooleanBuilder, FixedSizeBinaryBuilder, StringViewArray, StringViewBuilder};
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};
use uuid::Uuid;

/// Bytes from hex or escape form.
pub(super) fn bytea(text: &StringViewArray) -> Result<ArrayRef> {
    let mut builder = BinaryViewBuilder::with_capacity(text.len());
    for value in text.iter() {
        match value {
            None => builder.append_null(),
            Some(value) => builder.append_value(bytes(value).ok_or_else(|| bad_bytea(value))?),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn bad_bytea(value: &str) -> Error {
    bad_text(SqlType::Bytea, value).with_hint("use \\x followed by pairs of hexadecimal digits")
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let Some(hex) = text.strip_prefix("\\x") else { return escaped(text.as_bytes()) };
    let digits = hex.bytes().filter(|b| !b.is_ascii_whitespace());
    let digits: Vec<u8> = digits.map(|b| (b as char).to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    (digits.len() % 2 == 0).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// `\\` is a backslash, `\ooo` a byte in octal, everything else itself.
fn escaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                out.push(b'\\');
                rest = tail;
            }
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            (b'\\', _) => return None,
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    Some(out)
}

/// UUIDs in any of PostgreSQL's forms.
pub(super) fn uuid(text: &StringViewArray) -> Result<ArrayRef> {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(text.len(), 16);
    for value in text.iter() {
        match value {
            None => builder.append_null(),
            Some(value) => {
                let digits: String = value.trim().trim_start_matches('{').trim_end_matches('}').chars().filter(|c| *c != '-').collect();
                let uuid = Uuid::try_parse(&digits).map_err(|_| bad_text(SqlType::Uuid, value))?;
                builder.append_value(uuid.as_bytes()).map_err(|e| Error::internal(e.to_string()))?;
            }
        }
    }
    Ok(Arc::new(builder.finish()))
}

/// UUIDs as text.
pub(super) fn uuid_text(array: &ArrayRef) -> Result<ArrayRef> {
    let uuids = array.as_fixed_size_binary();
    let mut builder = StringViewBuilder::with_capacity(uuids.len());
    for value in uuids.iter() {
        let value = value.map(Uuid::from_slice).transpose().map_err(|e| Error::internal(e.to_string()))?;
        builder.append_option(value.map(|u| u.to_string()));
    }
    Ok(Arc::new(builder.finish()))
}

/// Truth values.
pub(super) fn bool(text: &StringViewArray) -> Result<ArrayRef> {
    let mut builder = BooleanBuilder::with_capacity(text.len());
    for value in text.iter() {
        match value {
            None => builder.append_null(),
            Some(value) => builder.append_value(truth(value).ok_or_else(|| bad_text(SqlType::Bool, value))?),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn truth(text: &str) -> Option<bool> {
    let word = text.trim().to_ascii_lowercase();
    let begins = |of: &str| !word.is_empty() && of.starts_with(&word);
    match word.as_str() {
        "on" | "1" => Some(true),
        "of" | "off" | "0" => Some(false),
        _ if begins("true") || begins("yes") => Some(true),
        _ if begins("false") || begins("no") => Some(false),
        _ => None,
    }
}
