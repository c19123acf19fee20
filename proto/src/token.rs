//! From a row's shard key to its shard: canonical key bytes, then `xxh3_64(bytes, seed) >> 48`.
//!
//! ```text
//!   key (42::int4)   class Int   bytes 02 | 2A 00 00 00 00 00 00 00        token u16   shard = range that holds the token
//! ```
//!
//! On-disk format: never change, add a version. One class each for all integers, all texts, numerics by value, ...; NULL is
//! a constant, so NULL keys are legal and live together. Independent of Arrow encoding (Utf8, Utf8View, dictionary give the
//! same bytes). Not DataFusion's repartition hash, which is unstable by contract.

use crate::error::{Error, Result};
use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the placement hash; part of the on-disk format.
const SEED: u64 = 0x7465_7373_6572_6131;
/// Number of distinct tokens.
pub const TOKENS: u32 = 1 << 16;

/// Half-open range of tokens, `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRange {
    /// First token.
    pub start: u32,
    /// One past the last, at most [`TOKENS`].
    pub end: u32,
}

/// Equal ranges for a new group; sizes differ by at most one.
pub fn equal_ranges(shards: u32) -> Vec<TokenRange> {
    (0..shards)
        .map(|i| TokenRange {
            start: i * TOKENS / shards,
            end: (i + 1) * TOKENS / shards,
        })
        .collect()
}

/// Tokens of rows: one per row of `keys`, which are the shard key columns in key order, equally long.
///
/// # Errors
/// A column type that cannot be a shard key.
pub fn tokens(keys: &[ArrayRef]) -> Result<Vec<u16>> {
    let rows = keys.first().map_or(0, |k| k.len());
    let columns = keys.iter().map(KeyColumn::new).collect::<Result<Vec<_>>>()?;
    let mut bytes = Vec::with_capacity(64);
    Ok((0..rows)
        .map(|row| {
            bytes.clear();
            for column in &columns {
                column.append(row, &mut bytes);
            }
            token_of_bytes(&bytes)
        })
        .collect())
}

/// Canonical key bytes of every row, concatenated column by column: equal rows give equal bytes whatever the encoding.
///
/// # Errors
/// A column type that cannot be a key.
pub fn canonical_keys(keys: &[ArrayRef]) -> Result<Vec<Box<[u8]>>> {
    let rows = keys.first().map_or(0, |k| k.len());
    let columns = keys.iter().map(KeyColumn::new).collect::<Result<Vec<_>>>()?;
    let mut bytes = Vec::with_capacity(64);
    Ok((0..rows)
        .map(|row| {
            bytes.clear();
            for column in &columns {
                column.append(row, &mut bytes);
            }
            bytes.as_slice().into()
        })
        .collect())
}

/// Token of canonical key bytes.
pub fn token_of_bytes(bytes: &[u8]) -> u16 {
    (xxh3_64_with_seed(bytes, SEED) >> 48) as u16
}

/// One key column brought to its canonical Arrow type, with its class byte.
struct KeyColumn {
    class: u8,
    array: ArrayRef,
    scale: i8,
    trim: bool,
}

impl KeyColumn {
    fn new(array: &ArrayRef) -> Result<Self> {
        let micros = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let (class, to, scale, trim) = match array.data_type() {
            DataType::Boolean => (1, DataType::Boolean, 0, false),
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => (2, DataType::Int64, 0, false),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => {
                (3, DataType::Utf8View, 0, true)
            }
            DataType::Decimal32(_, s) | DataType::Decimal64(_, s) | DataType::Decimal128(_, s) => {
                (4, DataType::Decimal128(38, *s), *s, false)
            }
            DataType::Date32 => (5, DataType::Date32, 0, false),
            DataType::Timestamp(_, None) => (6, micros(None), 0, false),
            DataType::Timestamp(_, Some(_)) => (7, micros(Some("+00:00")), 0, false),
            DataType::FixedSizeBinary(16) => (8, DataType::FixedSizeBinary(16), 0, false),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => (9, DataType::BinaryView, 0, false),
            // Legal in primary keys, never in shard keys (checked where tables are created).
            DataType::Float32 | DataType::Float64 => (10, DataType::Float64, 0, false),
            DataType::Time64(_) => (11, DataType::Time64(TimeUnit::Microsecond), 0, false),
            other => {
                return Err(Error::unsupported(
                    format!("type {other} cannot be part of a key"),
                    "use an integer, text, date, timestamp, numeric, uuid or bytea column",
                ));
            }
        };
        let array = if *array.data_type() == to {
            array.clone()
        } else {
            cast(array, &to).map_err(|e| Error::internal(e.to_string()))?
        };
        Ok(Self {
            class,
            array,
            scale,
            trim,
        })
    }

    /// Class byte, then the value; variable-length values are terminated by their length so that columns cannot run together.
    fn append(&self, row: usize, out: &mut Vec<u8>) {
        if self.array.is_null(row) {
            out.push(0);
            return;
        }
        out.push(self.class);
        match self.array.data_type() {
            DataType::Boolean => out.push(u8::from(self.array.as_boolean().value(row))),
            DataType::Int64 => out.extend(self.array.as_primitive::<Int64Type>().value(row).to_le_bytes()),
            DataType::Date32 => out.extend(self.array.as_primitive::<Date32Type>().value(row).to_le_bytes()),
            DataType::Timestamp(_, _) => out.extend(
                self.array
                    .as_primitive::<TimestampMicrosecondType>()
                    .value(row)
                    .to_le_bytes(),
            ),
            DataType::Time64(_) => out.extend(
                self.array
                    .as_primitive::<Time64MicrosecondType>()
                    .value(row)
                    .to_le_bytes(),
            ),
            DataType::FixedSizeBinary(_) => out.extend(self.array.as_fixed_size_binary().value(row)),
            DataType::Utf8View => {
                let text = self.array.as_string_view().value(row);
                append_sized(
                    if self.trim { text.trim_end_matches(' ') } else { text }.as_bytes(),
                    out,
                );
            }
            DataType::BinaryView => append_sized(self.array.as_binary_view().value(row), out),
            DataType::Decimal128(_, _) => {
                append_decimal(self.array.as_primitive::<Decimal128Type>().value(row), self.scale, out)
            }
            DataType::Float64 => {
                let value = self.array.as_primitive::<Float64Type>().value(row);
                // -0.0 equals 0.0, and every NaN equals every other, as PostgreSQL has it.
                let value = if value == 0.0 {
                    0.0
                } else if value.is_nan() {
                    f64::NAN
                } else {
                    value
                };
                out.extend(value.to_bits().to_le_bytes());
            }
            _ => unreachable!("KeyColumn::new casts to one of the types above"),
        }
    }
}

fn append_sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(bytes);
    out.extend((bytes.len() as u64).to_le_bytes());
}

/// By value: 1.50 at scale 2 equals 1.5 at scale 1, so trailing zeros go.
fn append_decimal(mut value: i128, mut scale: i8, out: &mut Vec<u8>) {
    while value != 0 && value % 10 == 0 {
        value /= 10;
        scale -= 1;
    }
    if value == 0 {
        scale = 0;
    }
    out.extend(value.to_le_bytes());
    out.push(scale as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::*;
    use std::sync::Arc;

    fn token(array: impl Array + 'static) -> u16 {
        tokens(&[Arc::new(array) as ArrayRef]).unwrap()[0]
    }

    #[test]
    fn golden_vectors() {
        // On-disk format: if this fails, data already stored would be looked for in the wrong shard.
        let got = [
            token(Int64Array::from(vec![42])),
            token(Int64Array::from(vec![None::<i64>])),
            token(StringArray::from(vec!["tessera"])),
            token(Date32Array::from(vec![19_000])),
            token(BooleanArray::from(vec![true])),
        ];
        assert_eq!(got, GOLDEN);
    }

    const GOLDEN: [u16; 5] = [27105, 49152, 63496, 28580, 1069];

    #[test]
    fn one_class_one_token() {
        assert_eq!(token(Int16Array::from(vec![7])), token(Int64Array::from(vec![7])));
        assert_eq!(
            token(StringArray::from(vec!["ab  "])),
            token(StringViewArray::from(vec!["ab"]))
        );
        let d = |v, s| Decimal128Array::from(vec![v]).with_precision_and_scale(20, s).unwrap();
        assert_eq!(token(d(150, 2)), token(d(15, 1)));
        assert_ne!(token(Int64Array::from(vec![7])), token(StringArray::from(vec!["7"])));
    }

    #[test]
    fn ranges_cover_every_token_once() {
        for shards in [1, 3, 16, 1_000] {
            let ranges = equal_ranges(shards);
            assert_eq!((ranges[0].start, ranges[shards as usize - 1].end), (0, TOKENS));
            assert!(
                ranges
                    .windows(2)
                    .all(|w| w[0].end == w[1].start && w[0].start < w[0].end)
            );
        }
    }
}
