//! SQL type names to the Arrow types of stored columns, so that `x::timestamp` has the type of a `timestamp` column.
//!
//! ```text
//!   timestamp    Timestamp(us)            numeric        Decimal128(38, 10), as in CREATE TABLE
//!   timestamptz  Timestamp(us, zone)      time           Time64(us)
//!   json         Utf8View; the field's metadata says so
//!   uuid         FixedSizeBinary(16)      varchar(n)     Utf8View; n is in the field's metadata, see [`length`]
//! ```
//!
//! The rest is DataFusion's own mapping, which agrees.

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::planner::TypePlanner;
use sqlparser::ast::{CharacterLength, DataType as SqlDataType, ExactNumberInfo, TimezoneInfo};
use std::collections::HashMap;
use std::sync::Arc;
use tessera_proto::functions::json::json_field;

/// See the module's text.
#[derive(Debug)]
pub struct SqlTypes {
    /// The session's time zone: text without an offset is a time there.
    pub zone: Arc<str>,
}

impl TypePlanner for SqlTypes {
    fn plan_type_field(&self, sql_type: &SqlDataType) -> Result<Option<FieldRef>> {
        let data_type = match sql_type {
            SqlDataType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone)
            | SqlDataType::Datetime(_) => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlDataType::Timestamp(_, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone) => {
                DataType::Timestamp(TimeUnit::Microsecond, Some(self.zone.clone()))
            }
            SqlDataType::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
                DataType::Time64(TimeUnit::Microsecond)
            }
            SqlDataType::Numeric(ExactNumberInfo::None)
            | SqlDataType::Decimal(ExactNumberInfo::None)
            | SqlDataType::Dec(ExactNumberInfo::None) => DataType::Decimal128(38, 10),
            SqlDataType::Bytea => DataType::BinaryView,
            SqlDataType::JSON => return Ok(Some(json_field(""))),
            SqlDataType::Uuid => DataType::FixedSizeBinary(16),
            sql_type if let Some(length) = Length::of(sql_type) => return Ok(Some(length.field())),
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Field::new("", data_type, true))))
    }
}

/// A declared length of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// varchar(n).
    Varchar(u32),
    /// char(n), whose trailing blanks mean nothing.
    Char(u32),
}

/// Key of a field's metadata that holds a [`Length`].
const LENGTH: &str = "tessera.length";

impl Length {
    /// The length in a type's name; char alone is char(1).
    pub fn of(sql_type: &SqlDataType) -> Option<Self> {
        let limit = |length: &Option<CharacterLength>| match length {
            Some(CharacterLength::IntegerLength { length, .. }) => u32::try_from(*length).ok(),
            _ => None,
        };
        match sql_type {
            SqlDataType::Varchar(n) | SqlDataType::CharacterVarying(n) | SqlDataType::CharVarying(n) => {
                limit(n).map(Self::Varchar)
            }
            SqlDataType::Char(None) | SqlDataType::Character(None) => Some(Self::Char(1)),
            SqlDataType::Char(n) | SqlDataType::Character(n) => limit(n).map(Self::Char),
            _ => None,
        }
    }

    fn field(self) -> FieldRef {
        let value = match self {
            Self::Varchar(n) => format!("varchar {n}"),
            Self::Char(n) => format!("char {n}"),
        };
        let metadata = HashMap::from([(LENGTH.to_owned(), value)]);
        Arc::new(Field::new("", DataType::Utf8View, true).with_metadata(metadata))
    }
}

/// The declared length that a cast's target carries. Whoever binds the plan applies it and drops the metadata: DataFusion's
/// own casts do not know of it.
pub fn length(field: &Field) -> Option<Length> {
    let (kind, n) = field.metadata().get(LENGTH)?.split_once(' ')?;
    let n = n.parse().ok()?;
    Some(if kind == "char" {
        Length::Char(n)
    } else {
        Length::Varchar(n)
    })
}
