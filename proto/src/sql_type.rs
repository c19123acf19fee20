//! Column types of SQL and the Arrow types that hold them, in memory and between processes.
//!
//! ```text
//!   bool int2 int4 int8      Boolean Int16 Int32 Int64        date       Date32
//!   float4 float8            Float32 Float64                  time       Time64(us)
//!   numeric(p,s)             Decimal128(p,s)                  timestamp  Timestamp(us)        timestamptz  Timestamp(us, "+00:00")
//!   text varchar char        Utf8View                         interval   Interval(MonthDayNano)
//!   bytea                    BinaryView                       uuid       FixedSizeBinary(16)
//! ```

use datafusion::arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A column's declared type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SqlType {
    /// true or false
    Bool,
    /// 16-bit integer
    Int2,
    /// 32-bit integer
    Int4,
    /// 64-bit integer
    Int8,
    /// IEEE single
    Float4,
    /// IEEE double
    Float8,
    /// Exact number, precision 1 to 38.
    Numeric {
        /// Total digits.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// Text without a limit.
    Text,
    /// Text of at most so many characters.
    Varchar(Option<u32>),
    /// Text blank-padded to so many characters; compared without trailing blanks.
    Char(u32),
    /// Days.
    Date,
    /// Microseconds of a day.
    Time,
    /// Microseconds without a zone.
    Timestamp,
    /// Microseconds in UTC.
    TimestampTz,
    /// Months, days and nanoseconds.
    Interval,
    /// Bytes.
    Bytea,
    /// 16 bytes.
    Uuid,
}

impl SqlType {
    /// The Arrow type of this column everywhere inside Tessera.
    pub fn arrow(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int2 => DataType::Int16,
            Self::Int4 => DataType::Int32,
            Self::Int8 => DataType::Int64,
            Self::Float4 => DataType::Float32,
            Self::Float8 => DataType::Float64,
            Self::Numeric { precision, scale } => DataType::Decimal128(precision, scale),
            Self::Text | Self::Varchar(_) | Self::Char(_) => DataType::Utf8View,
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Self::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Self::Bytea => DataType::BinaryView,
            Self::Uuid => DataType::FixedSizeBinary(16),
        }
    }

    /// Whether values may decide placement; equal classes compare equal across tables.
    pub fn key_class(self) -> Option<KeyClass> {
        Some(match self {
            Self::Bool => KeyClass::Bool,
            Self::Int2 | Self::Int4 | Self::Int8 => KeyClass::Int,
            Self::Numeric { .. } => KeyClass::Numeric,
            Self::Text | Self::Varchar(_) | Self::Char(_) => KeyClass::Text,
            Self::Date => KeyClass::Date,
            Self::Timestamp => KeyClass::Timestamp,
            Self::TimestampTz => KeyClass::TimestampTz,
            Self::Uuid => KeyClass::Uuid,
            Self::Bytea => KeyClass::Bytea,
            Self::Float4 | Self::Float8 | Self::Time | Self::Interval => return None,
        })
    }
}

impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("boolean"),
            Self::Int2 => f.write_str("smallint"),
            Self::Int4 => f.write_str("integer"),
            Self::Int8 => f.write_str("bigint"),
            Self::Float4 => f.write_str("real"),
            Self::Float8 => f.write_str("double precision"),
            Self::Numeric { precision, scale } => write!(f, "numeric({precision},{scale})"),
            Self::Text => f.write_str("text"),
            Self::Varchar(None) => f.write_str("character varying"),
            Self::Varchar(Some(n)) => write!(f, "character varying({n})"),
            Self::Char(n) => write!(f, "character({n})"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time without time zone"),
            Self::Timestamp => f.write_str("timestamp without time zone"),
            Self::TimestampTz => f.write_str("timestamp with time zone"),
            Self::Interval => f.write_str("interval"),
            Self::Bytea => f.write_str("bytea"),
            Self::Uuid => f.write_str("uuid"),
        }
    }
}

/// Types whose equal values have equal canonical key bytes, so that they may be colocated and joined locally.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyClass {
    /// bool
    Bool,
    /// int2, int4, int8
    Int,
    /// numeric, by value
    Numeric,
    /// text, varchar, and char without trailing blanks
    Text,
    /// date
    Date,
    /// timestamp
    Timestamp,
    /// timestamptz
    TimestampTz,
    /// uuid
    Uuid,
    /// bytea
    Bytea,
}
