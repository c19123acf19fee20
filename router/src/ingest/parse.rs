//! Conversions that Arrow does not have: text by PostgreSQL's rules, uuid as text, local times of a zone.
//!
//! ```text
//!   '1e2' → numeric(6,2)          100.00         the same parsers as COPY (copy/value.rs)
//!   1.005 :: double → numeric     1.005 first: 15 digits, as PostgreSQL shows a double, then rounded to the scale
//!   00:00 UTC → timestamp         02:00 where the session's zone is +02:00
//! ```

use crate::copy::value::ColumnBuilder;
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, StringViewArray, StringViewBuilder, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};
use uuid::Uuid;

/// Values of a type from their text; a timestamptz without a zone is of `zone`.
///
/// # Errors
/// 22P02, 22003, 22007 and the like, with the value.
pub(super) fn text(sql_type: SqlType, text: &StringViewArray, zone: &str) -> Result<ArrayRef> {
    let mut builder = ColumnBuilder::new(sql_type).in_zone(zone);
    for value in text.iter() {
        match value {
            None => builder.append_null(),
            Some(value) => builder.append(value)?,
        }
    }
    Ok(builder.finish())
}

/// Numerics from doubles, by the 15 digits that every double keeps.
///
/// # Errors
/// 22003 for one that does not fit, 0A000 for NaN and infinity.
pub(super) fn numeric(sql_type: SqlType, doubles: &Float64Array) -> Result<ArrayRef> {
    let mut builder = ColumnBuilder::new(sql_type);
    for value in doubles.iter() {
        match value {
            None => builder.append_null(),
            Some(value) if value.is_finite() => builder.append(&format!("{value:.14e}"))?,
            Some(value) => {
                return Err(Error::unsupported(
                    format!("numeric {value} is not supported"),
                    "use NULL, or a double precision column",
                ));
            }
        }
    }
    Ok(builder.finish())
}

/// UUIDs as text.
///
/// # Errors
/// None is expected.
pub(super) fn uuid_text(array: &ArrayRef) -> Result<ArrayRef> {
    let uuids = array.as_fixed_size_binary();
    let mut builder = StringViewBuilder::with_capacity(uuids.len());
    for value in uuids.iter() {
        let value = value
            .map(Uuid::from_slice)
            .transpose()
            .map_err(|e| Error::internal(e.to_string()))?;
        builder.append_option(value.map(|u| u.to_string()));
    }
    Ok(Arc::new(builder.finish()))
}

/// What clocks in a zone showed at these instants.
///
/// # Errors
/// 22023 for an unknown zone, 22008 for an instant outside the calendar.
pub(super) fn local_time(instants: &ArrayRef, zone: &str) -> Result<ArrayRef> {
    use chrono::{DateTime, Offset, TimeZone};
    let zone: Tz = zone
        .parse()
        .map_err(|_| Error::new("22023", format!("time zone \"{zone}\" not recognized")))?;
    let local = |micros: Option<i64>| -> Result<Option<i64>> {
        let Some(micros) = micros else { return Ok(None) };
        let instant =
            DateTime::from_timestamp_micros(micros).ok_or_else(|| Error::new("22008", "timestamp out of range"))?;
        let offset = zone
            .offset_from_utc_datetime(&instant.naive_utc())
            .fix()
            .local_minus_utc();
        Ok(Some(micros.saturating_add(i64::from(offset) * 1_000_000)))
    };
    let instants = instants.as_primitive::<TimestampMicrosecondType>();
    Ok(Arc::new(
        instants
            .iter()
            .map(local)
            .collect::<Result<TimestampMicrosecondArray>>()?,
    ))
}
