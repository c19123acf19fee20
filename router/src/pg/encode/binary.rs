//! Values in PostgreSQL's binary format.
//!
//! ```text
//!   int8 8 bytes    date: days since 2000-01-01    timestamp[tz]: microseconds since 2000-01-01 UTC
//!   interval: microseconds i64, days i32, months i32              text, bytea, uuid: the bytes
//! ```
//!
//! The width follows the type that was described to the client, not Arrow's: a UInt32 column is an int8.

use super::super::calendar::{PG_EPOCH_DAYS, PG_EPOCH_MICROS};
use super::text::{at, bytes, date, integer, interval, time, timestamp, unscaled};
use super::{Style, nested, number, out_of_range, text, time_out_of_range};
use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::Array;
use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{Float16Type, Float32Type, Float64Type};
use datafusion::arrow::datatypes::DataType;
use postgres_types::Type;
use tessera_proto::Result;

/// Writes the value at `row`, which is not NULL, as `pg_type`.
pub(super) fn write(array: &dyn Array, row: usize, pg_type: &Type, style: &Style, out: &mut BytesMut) -> Result<()> {
    match *pg_type {
        Type::BOOL => out.put_u8(u8::from(array.as_boolean().value(row))),
        Type::INT2 => out.put_i16(integer(array, row)?.try_into().map_err(|_| out_of_range("smallint"))?),
        Type::INT4 => out.put_i32(integer(array, row)?.try_into().map_err(|_| out_of_range("integer"))?),
        Type::INT8 => out.put_i64(integer(array, row)?),
        Type::FLOAT4 if array.data_type() == &DataType::Float16 => out.put_f32(at::<Float16Type>(array, row).to_f32()),
        Type::FLOAT4 => out.put_f32(at::<Float32Type>(array, row)),
        Type::FLOAT8 => out.put_f64(at::<Float64Type>(array, row)),
        Type::NUMERIC => {
            let (unscaled, scale) = unscaled(array, row)?;
            number::write_numeric_binary(out, &unscaled, scale);
        }
        Type::DATE => out.put_i32(pg_date(date(array, row)?)?),
        Type::TIME => out.put_i64(time(array, row)?),
        Type::TIMESTAMP | Type::TIMESTAMPTZ => out.put_i64(pg_timestamp(timestamp(array, row)?)?),
        Type::INTERVAL => {
            let (months, days, micros) = interval(array, row)?;
            out.put_i64(micros);
            out.put_i32(days);
            out.put_i32(months);
        }
        Type::BYTEA | Type::UUID => out.extend_from_slice(bytes(array, row)?),
        _ => match super::super::types::element_of(pg_type) {
            Some(element) => nested::write_binary(array, row, element, style, out)?,
            // Text is the same in both formats, and what we send as text for want of a type has only that one.
            None => text::write(array, row, style, out)?,
        },
    }
    Ok(())
}

/// Days since 2000; infinity stays what it is.
fn pg_date(days: i64) -> Result<i32> {
    match i32::try_from(days) {
        Ok(infinity @ (i32::MAX | i32::MIN)) => Ok(infinity),
        Ok(days) => days.checked_sub(PG_EPOCH_DAYS).ok_or_else(|| time_out_of_range("date")),
        Err(_) => Err(time_out_of_range("date")),
    }
}

/// Microseconds since 2000; infinity stays what it is.
fn pg_timestamp(micros: i64) -> Result<i64> {
    match micros {
        i64::MAX | i64::MIN => Ok(micros),
        _ => micros
            .checked_sub(PG_EPOCH_MICROS)
            .ok_or_else(|| time_out_of_range("timestamp")),
    }
}
