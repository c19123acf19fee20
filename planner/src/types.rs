//! SQL type names to the Arrow types of stored columns, so that `x::timestamp` has the type of a `timestamp` column.
//!
//! ```text
//!   timestamp    Timestamp(us)            numeric        Decimal128(38, 10), as in CREATE TABLE
//!   timestamptz  Timestamp(us, zone)      time           Time64(us)
//! ```
//!
//! The rest is DataFusion's own mapping, which agrees.

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::planner::TypePlanner;
use sqlparser::ast::{DataType as SqlDataType, ExactNumberInfo, TimezoneInfo};
use std::sync::Arc;

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
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Field::new("", data_type, true))))
    }
}
