//! Arrow and declared types as PostgreSQL describes columns: an OID, a size and a type modifier.
//!
//! ```text
//!   Decimal128(12, 2), declared numeric(12,2)  ->  1700 numeric, size -1, typmod (12 << 16 | 2) + 4
//!   Utf8View, declared varchar(20)             ->  1043 varchar, size -1, typmod 20 + 4
//!   Utf8View, an expression                    ->    25 text,    size -1, typmod -1
//! ```
//!
//! Unsigned integers become the signed type that DataFusion's functions have in PostgreSQL (`row_number()` is a bigint
//! there and UInt64 here); a value that does not fit is 22003 when its row is sent. Structs and maps travel as text.

use datafusion::arrow::datatypes::{DataType, IntervalUnit, SchemaRef, TimeUnit};
use pgwire::messages::data::{FieldDescription, RowDescription};
use postgres_types::{Kind, Type};
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};

/// One result column as clients see it.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// Its label.
    pub(super) name: String,
    /// Its type.
    pub(super) pg_type: Type,
    /// Its type modifier, -1 for none.
    pub(super) typmod: i32,
    /// Width of a char(n), to which values are padded.
    pub(super) pad_to: Option<u32>,
    /// The Arrow type values are brought to before they are encoded.
    pub(super) arrow: DataType,
}

/// The columns of a result. `declared` is as long as the schema, or empty.
pub(super) fn columns(schema: &SchemaRef, declared: &[Option<SqlType>]) -> Result<Vec<Column>> {
    let declared = declared.iter().copied().chain(std::iter::repeat(None));
    schema
        .fields()
        .iter()
        .zip(declared)
        .map(|(field, declared)| column(field.name(), field.data_type(), declared))
        .collect()
}

fn column(name: &str, arrow: &DataType, declared: Option<SqlType>) -> Result<Column> {
    let arrow = plain(arrow).clone();
    // A declaration describes the column only if the values still have its type.
    let declared = declared.filter(|d| same_family(&d.arrow(), &arrow));
    let (pg_type, typmod, pad_to) = match declared {
        Some(SqlType::Varchar(length)) => (Type::VARCHAR, length.map_or(-1, length_typmod), None),
        Some(SqlType::Char(length)) => (Type::BPCHAR, length_typmod(length), Some(length)),
        Some(SqlType::Numeric { precision, scale }) => (Type::NUMERIC, numeric_typmod(precision, scale), None),
        _ => (type_of(&arrow)?, -1, None),
    };
    Ok(Column {
        name: name.to_owned(),
        pg_type,
        typmod,
        pad_to,
        arrow,
    })
}

/// The value type of an encoding such as a dictionary.
fn plain(arrow: &DataType) -> &DataType {
    match arrow {
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        other => other,
    }
}

fn same_family(declared: &DataType, actual: &DataType) -> bool {
    declared == actual || (is_text(declared) && is_text(actual))
}

fn is_text(arrow: &DataType) -> bool {
    matches!(arrow, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn length_typmod(length: u32) -> i32 {
    i32::try_from(length).map_or(-1, |n| n.saturating_add(4))
}

fn numeric_typmod(precision: u8, scale: i8) -> i32 {
    // The scale takes 11 bits, in two's complement.
    (i32::from(precision) << 16 | i32::from(scale) & 0x7ff) + 4
}

/// The PostgreSQL type of an Arrow type.
///
/// # Errors
/// 0A000 for a type that PostgreSQL has nothing for.
pub(super) fn type_of(arrow: &DataType) -> Result<Type> {
    Ok(match plain(arrow) {
        DataType::Boolean => Type::BOOL,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Type::INT2,
        DataType::Int32 | DataType::UInt16 => Type::INT4,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => Type::INT8,
        DataType::Float16 | DataType::Float32 => Type::FLOAT4,
        DataType::Float64 => Type::FLOAT8,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            Type::NUMERIC
        }
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Type::TEXT,
        DataType::Struct(_) | DataType::Map(..) => Type::TEXT,
        DataType::FixedSizeBinary(16) => Type::UUID,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Type::BYTEA,
        DataType::Date32 | DataType::Date64 => Type::DATE,
        DataType::Time32(_) | DataType::Time64(_) => Type::TIME,
        DataType::Timestamp(_, None) => Type::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => Type::TIMESTAMPTZ,
        DataType::Interval(_) | DataType::Duration(_) => Type::INTERVAL,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => array_of(type_of(item.data_type())?)?,
        other => {
            return Err(Error::unsupported(
                format!("columns of type {other} cannot be sent to a client"),
                "cast the column to a type PostgreSQL has",
            ));
        }
    })
}

/// The array type of an element type; an array of arrays has the type of its innermost elements, as in PostgreSQL.
fn array_of(element: Type) -> Result<Type> {
    Ok(match element {
        Type::BOOL => Type::BOOL_ARRAY,
        Type::INT2 => Type::INT2_ARRAY,
        Type::INT4 => Type::INT4_ARRAY,
        Type::INT8 => Type::INT8_ARRAY,
        Type::FLOAT4 => Type::FLOAT4_ARRAY,
        Type::FLOAT8 => Type::FLOAT8_ARRAY,
        Type::NUMERIC => Type::NUMERIC_ARRAY,
        Type::TEXT => Type::TEXT_ARRAY,
        Type::UUID => Type::UUID_ARRAY,
        Type::BYTEA => Type::BYTEA_ARRAY,
        Type::DATE => Type::DATE_ARRAY,
        Type::TIME => Type::TIME_ARRAY,
        Type::TIMESTAMP => Type::TIMESTAMP_ARRAY,
        Type::TIMESTAMPTZ => Type::TIMESTAMPTZ_ARRAY,
        Type::INTERVAL => Type::INTERVAL_ARRAY,
        array if matches!(array.kind(), Kind::Array(_)) => array,
        other => {
            return Err(Error::unsupported(
                format!("arrays of {other} cannot be sent to a client"),
                "unnest the array",
            ));
        }
    })
}

/// The type of elements of a type of [`type_of`].
pub(super) fn element_of(pg_type: &Type) -> Option<&Type> {
    match pg_type.kind() {
        Kind::Array(element) => Some(element),
        _ => None,
    }
}

/// `pg_type.typlen`.
fn size(pg_type: &Type) -> i16 {
    match *pg_type {
        Type::BOOL => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIME | Type::TIMESTAMP | Type::TIMESTAMPTZ => 8,
        Type::INTERVAL | Type::UUID => 16,
        _ => -1,
    }
}

/// The message that describes a result. `formats` as in Bind: none, one for all, or one each.
pub(super) fn row_description(columns: &[Column], formats: &[i16]) -> RowDescription {
    let fields = columns.iter().enumerate().map(|(i, column)| {
        let (oid, size) = (column.pg_type.oid(), size(&column.pg_type));
        FieldDescription::new(
            column.name.replace('\0', "\u{fffd}"),
            0,
            0,
            oid,
            size,
            column.typmod,
            format_of(formats, i),
        )
    });
    RowDescription::new(fields.collect())
}

/// The format of column or parameter `i`: 0 text, 1 binary.
pub(super) fn format_of(formats: &[i16], i: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(i).copied().unwrap_or(0),
    }
}

/// Checks what Bind says about formats against the number of things they are for.
pub(super) fn check_formats(formats: &[i16], count: usize, what: &str) -> Result<()> {
    if let Some(odd) = formats.iter().find(|f| !(0..=1).contains(*f)) {
        return Err(Error::new("22023", format!("unsupported format code: {odd}")));
    }
    match formats.len() {
        0 | 1 => Ok(()),
        n if n == count => Ok(()),
        n => Err(Error::protocol(format!(
            "bind message has {n} {what} formats but there are {count} {what}s"
        ))),
    }
}

/// The declared type a client means by an OID; `None` where it leaves the type to us.
pub(super) fn hint_of(oid: u32) -> Option<SqlType> {
    Some(match Type::from_oid(oid)? {
        Type::BOOL => SqlType::Bool,
        Type::INT2 => SqlType::Int2,
        Type::INT4 => SqlType::Int4,
        Type::INT8 | Type::OID => SqlType::Int8,
        Type::FLOAT4 => SqlType::Float4,
        Type::FLOAT8 => SqlType::Float8,
        // The value decides precision and scale; these only say that it is exact.
        Type::NUMERIC => SqlType::Numeric {
            precision: 38,
            scale: 10,
        },
        Type::TEXT | Type::NAME | Type::BPCHAR => SqlType::Text,
        Type::VARCHAR => SqlType::Varchar(None),
        Type::BYTEA => SqlType::Bytea,
        Type::DATE => SqlType::Date,
        Type::TIME => SqlType::Time,
        Type::TIMESTAMP => SqlType::Timestamp,
        Type::TIMESTAMPTZ => SqlType::TimestampTz,
        Type::INTERVAL => SqlType::Interval,
        Type::UUID => SqlType::Uuid,
        _ => return None,
    })
}

/// Microseconds in one unit, or units in a microsecond.
pub(super) enum Scale {
    /// Coarser than a microsecond.
    Times(i64),
    /// Finer than a microsecond.
    Over(i64),
}

/// How a time unit relates to PostgreSQL's microsecond.
pub(super) fn to_micros(unit: TimeUnit) -> Scale {
    match unit {
        TimeUnit::Second => Scale::Times(1_000_000),
        TimeUnit::Millisecond => Scale::Times(1_000),
        TimeUnit::Microsecond => Scale::Times(1),
        TimeUnit::Nanosecond => Scale::Over(1_000),
    }
}

impl Scale {
    /// A count of units in microseconds, rounded down; `None` when it does not fit.
    pub(super) fn apply(self, value: i64) -> Option<i64> {
        match self {
            Self::Times(n) => value.checked_mul(n),
            Self::Over(n) => Some(value.div_euclid(n)),
        }
    }
}

/// The Arrow type a parameter of `pg_type` is decoded to.
pub(super) fn arrow_of(pg_type: &Type) -> Option<DataType> {
    Some(match *pg_type {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::NUMERIC => DataType::Decimal128(38, 10),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON => DataType::Utf8View,
        Type::BYTEA => DataType::BinaryView,
        Type::DATE => DataType::Date32,
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        Type::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        Type::UUID => DataType::FixedSizeBinary(16),
        _ => return None,
    })
}
