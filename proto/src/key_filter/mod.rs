//! Key filters: what a leaf is told of the other side of a join, so that it leaves out rows that cannot match.
//!
//! ```text
//!   planner   Filter: __in_keys(l_partkey, 0, 0.006)          a name for a set that nobody knows yet        function.rs
//!   router    keys of `part` ──▶ Collector ──▶ KeySet ──▶ KeyCell ──▶ ExecuteRequest.key_sets               collect.rs
//!   node      Filter: l_partkey >= 7 AND l_partkey <= 199 AND keys_0(l_partkey)                             expand.rs
//! ```
//!
//! A set has all keys and may have more: what it lets through is joined all the same. It is exact for few keys and for
//! integers that lie close together; others are a Bloom filter (`bloom.rs`). Floats have no sets: whether -0.0 equals 0.0 is
//! the join's to say.
//!
//! Not here: which leaves get which filters, and when the keys are read (planner).

mod bloom;
mod collect;
mod expand;
mod function;

pub use collect::Collector;
pub use expand::{EstimateKeyFilters, counts, expand};
pub use function::{function, in_keys, placeholder};

use crate::error::{Error, Result};
use crate::v1;
use crate::v1::key_set::Members as Wire;
use bloom::Bloom;
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{ArrowPrimitiveType, DataType, Decimal128Type, Int16Type, Int32Type, Int64Type};
use datafusion::common::ScalarValue;
use datafusion_proto::protobuf;
use prost::Message;
use std::sync::OnceLock;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of one set: what a leaf's request grows by for each owner.
pub const SET_BYTES_MAX: usize = 1 << 20;
/// Keys of one set: 8 bits each in the largest Bloom filter, of which one in 40 that is no key passes.
pub const KEYS_MAX: usize = SET_BYTES_MAX;
/// Keys that are listed one by one. Row groups are pruned by each of up to 20 (DataFusion's bound), by the range of more.
const LISTED_MAX: usize = 16;
/// Longer bounds of a range are left out.
const BOUND_BYTES_MAX: usize = 1 << 10;

/// The keys of one side of a join, and perhaps some more.
#[derive(Debug, Clone, PartialEq)]
pub struct KeySet {
    /// Least and greatest key.
    range: Option<(ScalarValue, ScalarValue)>,
    members: Members,
}

#[derive(Debug, Clone, PartialEq)]
enum Members {
    /// There are no keys.
    None,
    /// Nobody knows.
    Any,
    Few(Vec<ScalarValue>),
    /// Bit `i` is for `first + i`.
    Bits {
        first: i64,
        bits: Bytes,
    },
    Bloom(Bloom),
}

impl KeySet {
    /// Of keys that nobody knows: it has every value.
    pub fn any() -> Self {
        Self {
            range: None,
            members: Members::Any,
        }
    }

    /// As EXPLAIN shows it.
    pub fn form(&self) -> &'static str {
        match self.members {
            Members::None => "none",
            Members::Any => "any",
            Members::Few(_) => "list",
            Members::Bits { .. } => "bits",
            Members::Bloom(_) => "bloom",
        }
    }

    /// Whether each value may be among the keys; NULL for NULL.
    ///
    /// # Errors
    /// A type that has no sets, or another than that of the keys.
    fn contains(&self, values: &ArrayRef) -> Result<BooleanArray> {
        let rows = values.len();
        let nulls = values.nulls().cloned();
        let buffer = match &self.members {
            Members::None => BooleanBuffer::new_unset(rows),
            // Listed keys are compared by an IN list beside this; see `expand`.
            Members::Any | Members::Few(_) => BooleanBuffer::new_set(rows),
            Members::Bits { first, bits } => match integers(values)? {
                Integers::Int16(values) => within_bits::<Int16Type>(&values, *first, bits),
                Integers::Int32(values) => within_bits::<Int32Type>(&values, *first, bits),
                Integers::Int64(values) => within_bits::<Int64Type>(&values, *first, bits),
            },
            Members::Bloom(bloom) => {
                let hashes = hashes(values)?;
                BooleanBuffer::collect_bool(rows, |row| bloom.contains(hashes[row]))
            }
        };
        Ok(BooleanArray::new(buffer, nulls))
    }

    /// For the way to the nodes.
    ///
    /// # Errors
    /// A key of a type that has no wire form; none of [`is_supported`] is.
    pub fn to_wire(&self, number: u32) -> Result<v1::KeySet> {
        let scalar = |value: &ScalarValue| {
            let message = protobuf::ScalarValue::try_from(value);
            let message = message.map_err(|e| Error::internal(format!("encoding a key: {e}")))?;
            Ok::<_, Error>(Bytes::from(message.encode_to_vec()))
        };
        let (min, max) = match &self.range {
            Some((min, max)) => (scalar(min)?, scalar(max)?),
            None => Default::default(),
        };
        let members = match &self.members {
            Members::None => None,
            Members::Any => Some(Wire::Any(true)),
            Members::Few(keys) => {
                let keys = keys.iter().map(scalar).collect::<Result<_>>()?;
                Some(Wire::Few(v1::KeyList { keys }))
            }
            Members::Bits { bits, .. } => Some(Wire::Bits(bits.clone())),
            Members::Bloom(bloom) => Some(Wire::Bloom(bloom.to_bytes())),
        };
        Ok(v1::KeySet {
            number,
            min,
            max,
            members,
        })
    }

    /// # Errors
    /// 08P01 for what [`Self::to_wire`] does not write.
    pub fn from_wire(wire: &v1::KeySet) -> Result<Self> {
        let malformed = || Error::protocol(format!("malformed keys of filter {}", wire.number));
        let scalar = |bytes: &Bytes| {
            let message = protobuf::ScalarValue::decode(bytes.clone()).map_err(|_| malformed())?;
            ScalarValue::try_from(&message).map_err(|_| malformed())
        };
        let range = match wire.min.is_empty() || wire.max.is_empty() {
            true => None,
            false => Some((scalar(&wire.min)?, scalar(&wire.max)?)),
        };
        let members = match &wire.members {
            None => Members::None,
            Some(Wire::Any(_)) => Members::Any,
            Some(Wire::Few(list)) => Members::Few(list.keys.iter().map(scalar).collect::<Result<_>>()?),
            Some(Wire::Bits(bits)) => {
                let (min, _) = range.as_ref().ok_or_else(malformed)?;
                let first = integer(min).ok_or_else(malformed)?;
                let bits = bits.clone();
                Members::Bits { first, bits }
            }
            Some(Wire::Bloom(bytes)) => Members::Bloom(Bloom::from_bytes(bytes).ok_or_else(malformed)?),
        };
        Ok(Self { range, members })
    }
}

/// Whether there are sets of values of this type.
pub fn is_supported(data_type: &DataType) -> bool {
    integers_of(data_type).is_some()
        || matches!(
            data_type,
            DataType::Decimal128(..)
                | DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::FixedSizeBinary(16)
        )
}

/// The integer type that a type's values are, or become without loss.
fn integers_of(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Boolean | DataType::Int8 | DataType::Int16 => Some(DataType::Int16),
        DataType::Int32 | DataType::Date32 => Some(DataType::Int32),
        DataType::Int64 | DataType::Timestamp(..) | DataType::Time64(_) => Some(DataType::Int64),
        _ => None,
    }
}

enum Integers {
    Int16(ArrayRef),
    Int32(ArrayRef),
    Int64(ArrayRef),
}

fn integers(values: &ArrayRef) -> Result<Integers> {
    let unsupported = || Error::internal(format!("no integers: {}", values.data_type()));
    let to = integers_of(values.data_type()).ok_or_else(unsupported)?;
    let values = match *values.data_type() == to {
        true => values.clone(),
        false => cast(values, &to).map_err(|e| Error::internal(e.to_string()))?,
    };
    Ok(match to {
        DataType::Int16 => Integers::Int16(values),
        DataType::Int32 => Integers::Int32(values),
        _ => Integers::Int64(values),
    })
}

/// The number that a key of an integer type is.
fn integer(key: &ScalarValue) -> Option<i64> {
    let array = key.to_array().ok()?;
    let mut numbers = numbers(&array).ok()?;
    numbers.pop()
}

/// Every value as a number; anything for NULL.
fn numbers(values: &ArrayRef) -> Result<Vec<i64>> {
    fn widened<T: ArrowPrimitiveType<Native: Into<i64>>>(values: &ArrayRef) -> Vec<i64> {
        values.as_primitive::<T>().values().iter().map(|v| (*v).into()).collect()
    }
    Ok(match integers(values)? {
        Integers::Int16(values) => widened::<Int16Type>(&values),
        Integers::Int32(values) => widened::<Int32Type>(&values),
        Integers::Int64(values) => widened::<Int64Type>(&values),
    })
}

fn within_bits<T: ArrowPrimitiveType<Native: Into<i64>>>(values: &ArrayRef, first: i64, bits: &[u8]) -> BooleanBuffer {
    let values = values.as_primitive::<T>().values();
    BooleanBuffer::collect_bool(values.len(), |row| {
        // What is below the first wraps around to far above the last.
        let at = values[row].into().wrapping_sub(first) as u64;
        bits.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
    })
}

/// A hash of every value, equal for equal values of one type; anything for NULL.
///
/// # Errors
/// A type that has no sets.
fn hashes(values: &ArrayRef) -> Result<Vec<u64>> {
    if integers_of(values.data_type()).is_some() {
        return Ok(numbers(values)?.into_iter().map(mixed).collect());
    }
    let rows = 0..values.len();
    Ok(match values.data_type() {
        DataType::Decimal128(..) => {
            let values = values.as_primitive::<Decimal128Type>().values();
            values.iter().map(|v| xxh3_64(&v.to_le_bytes())).collect()
        }
        DataType::Utf8 => of_bytes(rows, |row| values.as_string::<i32>().value(row).as_bytes()),
        DataType::LargeUtf8 => of_bytes(rows, |row| values.as_string::<i64>().value(row).as_bytes()),
        DataType::Utf8View => of_bytes(rows, |row| values.as_string_view().value(row).as_bytes()),
        DataType::Binary => of_bytes(rows, |row| values.as_binary::<i32>().value(row)),
        DataType::LargeBinary => of_bytes(rows, |row| values.as_binary::<i64>().value(row)),
        DataType::BinaryView => of_bytes(rows, |row| values.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => of_bytes(rows, |row| values.as_fixed_size_binary().value(row)),
        other => return Err(Error::internal(format!("no keys: {other}"))),
    })
}

fn of_bytes<'a>(rows: std::ops::Range<usize>, value: impl Fn(usize) -> &'a [u8]) -> Vec<u64> {
    rows.map(|row| xxh3_64(value(row))).collect()
}

/// Spreads a number over 64 bits (the finaliser of splitmix64).
fn mixed(number: i64) -> u64 {
    let mut x = (number as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Where the keys of one filter are put once they are known; shared by all leaves that wait for them.
#[derive(Debug)]
pub struct KeyCell {
    /// The filter's number within the query.
    pub number: u32,
    found: OnceLock<Found>,
}

/// Keys that were read.
#[derive(Debug, Clone)]
pub struct Found {
    /// As it is sent.
    pub wire: v1::KeySet,
    /// See [`KeySet::form`].
    pub form: &'static str,
    /// How many there are; the same key read from two nodes may count twice.
    pub keys: usize,
    /// How long it took to read them.
    pub time: Duration,
}

impl KeyCell {
    /// Nothing is known.
    pub fn new(number: u32) -> Self {
        Self {
            number,
            found: OnceLock::new(),
        }
    }

    /// What was found; `None` before.
    pub fn get(&self) -> Option<&Found> {
        self.found.get()
    }

    /// Puts the keys in. The first ones stay.
    ///
    /// # Errors
    /// See [`KeySet::to_wire`].
    pub fn fill(&self, set: &KeySet, keys: usize, time: Duration) -> Result<()> {
        let wire = set.to_wire(self.number)?;
        let form = set.form();
        self.found.get_or_init(|| Found { wire, form, keys, time });
        Ok(())
    }
}

impl Found {
    /// Bytes that each leaf's owner is sent.
    pub fn bytes(&self) -> usize {
        self.wire.encoded_len()
    }
}

#[cfg(test)]
mod tests;
