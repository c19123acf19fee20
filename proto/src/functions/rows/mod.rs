//! PostgreSQL's functions that DataFusion lacks, one row at a time.
//!
//! ```text
//!   table of functions ── name, arguments' kinds, what one row gives ──> a scalar function each
//!
//!   quote_ident('A b')   "A b"          age(ts, ts)    1 mon 17 days        format('%s is %L', 'a', 'b')    a is 'b'
//! ```
//!
//! Arguments are converted to one Arrow type per kind, rows to plain values. Unless it says otherwise a function gives NULL where
//! an argument is NULL. All are immutable, and nodes have them. Source: PostgreSQL 15, sections 9.4, 9.5 and 9.9.

mod calendar;
mod encoding;
mod numbers;
mod quoting;
mod regular;

use crate::error::{Error, Result};
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewBuilder, BooleanBuilder, Date32Builder, Int32Builder,
    IntervalMonthDayNanoBuilder, ListBuilder, StringViewBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Float64Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
    TimestampMicrosecondType,
};
use datafusion::common::Result as DfResult;
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use std::sync::{Arc, LazyLock};

/// What arguments are converted to and results are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Text,
    /// int4 as a result, any integer as an argument.
    Int,
    Float,
    Bytes,
    Bool,
    Interval,
    Date,
    Time,
    /// A timestamp without time zone; a date is its midnight.
    Moment,
    /// Text arrays.
    Texts,
    /// Arrays of text arrays.
    TextsList,
    /// As an argument: whatever there is, of which only NULL is seen.
    Any,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
enum Value<'a> {
    Text(&'a str),
    Int(i64),
    Float(f64),
    Bytes(&'a [u8]),
    Interval(IntervalMonthDayNano),
    /// Microseconds since 1970.
    Moment(i64),
    Any,
}

/// What a row gives.
#[derive(Debug, Clone, PartialEq)]
enum Out {
    Null,
    Text(String),
    Int(i32),
    Bytes(Vec<u8>),
    Bool(bool),
    Interval(IntervalMonthDayNano),
    Date(i32),
    Time(i64),
    Moment(i64),
    Texts(Vec<Option<String>>),
    TextsList(Vec<Vec<Option<String>>>),
}

type Row<'a, 'b> = &'b [Option<Value<'a>>];

/// One function.
#[derive(Debug, Clone, Copy)]
struct Definition {
    /// In plans, and in queries unless [`Definition::known`] is another.
    name: &'static str,
    known: &'static str,
    /// Of the arguments; the last one again where there may be more.
    takes: &'static [Kind],
    least: usize,
    /// As many more as there are.
    more: bool,
    /// NULL for a NULL argument, without a call.
    strict: bool,
    gives: Kind,
    row: fn(Row<'_, '_>) -> Result<Out>,
}

const fn define(
    name: &'static str,
    takes: &'static [Kind],
    gives: Kind,
    row: fn(Row<'_, '_>) -> Result<Out>,
) -> Definition {
    Definition {
        name,
        known: name,
        takes,
        least: takes.len(),
        more: false,
        strict: true,
        gives,
        row,
    }
}

impl Definition {
    /// In the place of DataFusion's function of the name.
    const fn instead_of(mut self, known: &'static str) -> Self {
        self.known = known;
        self
    }

    const fn at_least(mut self, least: usize) -> Self {
        self.least = least;
        self
    }

    const fn and_more(mut self) -> Self {
        self.more = true;
        self
    }

    const fn with_nulls(mut self) -> Self {
        self.strict = false;
        self
    }
}

const DEFINITIONS: &[Definition] = {
    use Kind::*;
    &[
        define("quote_ident", &[Text], Text, quoting::quote_ident),
        define("quote_literal", &[Text], Text, quoting::quote_literal),
        define("quote_nullable", &[Text], Text, quoting::quote_nullable).with_nulls(),
        define("format", &[Text], Text, quoting::format).and_more().with_nulls(),
        define("num_nulls", &[Any], Int, numbers::nulls).and_more().with_nulls(),
        define("num_nonnulls", &[Any], Int, numbers::not_nulls)
            .and_more()
            .with_nulls(),
        define("width_bucket", &[Float, Float, Float, Int], Int, numbers::width_bucket),
        define("__tessera_make_date", &[Int, Int, Int], Date, calendar::make_date).instead_of("make_date"),
        define("__tessera_make_time", &[Int, Int, Float], Time, calendar::make_time).instead_of("make_time"),
        define(
            "make_timestamp",
            &[Int, Int, Int, Int, Int, Float],
            Moment,
            calendar::make_timestamp,
        ),
        define(
            "make_interval",
            &[Int, Int, Int, Int, Int, Int, Float],
            Interval,
            calendar::make_interval,
        )
        .at_least(0),
        define("justify_days", &[Interval], Interval, calendar::justify_days),
        define("justify_hours", &[Interval], Interval, calendar::justify_hours),
        define("justify_interval", &[Interval], Interval, calendar::justify_interval),
        define("__tessera_age", &[Moment, Moment], Interval, calendar::age).instead_of("age"),
        define(
            "__tessera_overlaps",
            &[Moment, Moment, Moment, Moment],
            Bool,
            calendar::overlaps,
        )
        .instead_of("overlaps")
        .with_nulls(),
        define(
            "__tessera_interval_times",
            &[Interval, Float],
            Interval,
            calendar::times,
        )
        .instead_of("*"),
        define("__tessera_instant", &[Float], Moment, calendar::since_1970).instead_of("to_timestamp"),
        define("__tessera_encode", &[Bytes, Text], Text, encoding::encode).instead_of("encode"),
        define("__tessera_decode", &[Text, Text], Bytes, encoding::decode).instead_of("decode"),
        define("convert_from", &[Bytes, Text], Text, encoding::convert_from),
        define("convert_to", &[Text, Text], Bytes, encoding::convert_to),
        define("regexp_split_to_array", &[Text, Text, Text], Texts, regular::split).at_least(2),
        define("regexp_substr", &[Text, Text], Text, regular::substr),
        define(
            "__tessera_regexp_matches",
            &[Text, Text, Text],
            TextsList,
            regular::matches,
        )
        .at_least(2)
        .instead_of("regexp_matches"),
    ]
};

static FUNCTIONS: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
    let function = |at| {
        Arc::new(ScalarUDF::from(ByRow {
            at,
            signature: Signature::user_defined(Volatility::Immutable),
        }))
    };
    (0..DEFINITIONS.len()).map(function).collect()
});

/// All of them; those that do not begin with `__` may be named in SQL.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.clone()
}

/// The function that stands for one of PostgreSQL's of the name.
pub fn named(name: &str) -> Option<&'static str> {
    let found = DEFINITIONS.iter().find(|d| d.known == name && d.known != d.name);
    found.map(|d| d.name)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ByRow {
    at: usize,
    signature: Signature,
}

impl ByRow {
    fn definition(&self) -> &'static Definition {
        &DEFINITIONS[self.at]
    }
}

impl ScalarUDFImpl for ByRow {
    fn name(&self) -> &str {
        self.definition().name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> DfResult<Vec<DataType>> {
        let definition = self.definition();
        let wanted = types.iter().enumerate().map(|(at, from)| {
            let last = definition.takes.len() - 1;
            let kind = definition.takes[at.min(last)];
            (at <= last || definition.more).then(|| kind.taken(from)).flatten()
        });
        let wanted: Option<Vec<DataType>> = wanted.collect();
        wanted.filter(|_| types.len() >= definition.least).ok_or_else(|| {
            let types: Vec<_> = types.iter().map(ToString::to_string).collect();
            let message = format!("function {}({}) does not exist", definition.known, types.join(", "));
            Error::new("42883", message).into()
        })
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(self.definition().gives.data_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        if args.args.is_empty() {
            let mut made = Made::new(self.definition().gives);
            made.append((self.definition().row)(&[])?);
            let value = datafusion::common::ScalarValue::try_from_array(&made.finish(), 0)?;
            return Ok(ColumnarValue::Scalar(value));
        }
        make_scalar_function(|columns| Ok(self.evaluate(columns)?), vec![])(&args.args)
    }
}

impl ByRow {
    fn evaluate(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        let definition = self.definition();
        let last = definition.takes.len() - 1;
        let columns = columns.iter().enumerate().map(|(at, column)| {
            let kind = definition.takes[at.min(last)];
            match kind {
                Kind::Any => Ok((kind, column.clone())),
                kind => cast(column, &kind.argument_type()).map(|column| (kind, column)),
            }
        });
        let columns = columns
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(datafusion::common::DataFusionError::from)?;
        let rows = columns.first().map_or(0, |(_, column)| column.len());
        let mut made = Made::new(definition.gives);
        let mut values = Vec::with_capacity(columns.len());
        for row in 0..rows {
            values.clear();
            values.extend(columns.iter().map(|(kind, column)| kind.value(column, row)));
            let null = definition.strict && values.iter().any(Option::is_none);
            made.append(if null { Out::Null } else { (definition.row)(&values)? });
        }
        Ok(made.finish())
    }
}

impl Kind {
    /// The type of results.
    fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8View,
            Self::Int => DataType::Int32,
            Self::Float => DataType::Float64,
            Self::Bytes => DataType::BinaryView,
            Self::Bool => DataType::Boolean,
            Self::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Moment => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Texts => DataType::new_list(DataType::Utf8View, true),
            Self::TextsList => DataType::new_list(DataType::new_list(DataType::Utf8View, true), true),
            Self::Any => DataType::Null,
        }
    }

    fn argument_type(self) -> DataType {
        match self {
            Self::Int => DataType::Int64,
            other => other.data_type(),
        }
    }

    /// What an argument of this type is coerced to; `None` where it does not fit.
    fn taken(self, from: &DataType) -> Option<DataType> {
        let fits = match self {
            Self::Any => return Some(from.clone()),
            // What is no text was made text by the router, or is a number.
            Self::Text => from.is_string() || from.is_numeric() || from.is_null() || *from == DataType::Boolean,
            Self::Int => from.is_integer() || from.is_null(),
            Self::Float => from.is_numeric() || from.is_null(),
            Self::Bytes => from.is_binary() || from.is_string() || from.is_null(),
            Self::Interval => matches!(from, DataType::Interval(_) | DataType::Duration(_)) || from.is_string(),
            Self::Moment => {
                matches!(from, DataType::Date32 | DataType::Timestamp(..)) || from.is_string() || from.is_null()
            }
            _ => false,
        };
        fits.then(|| self.argument_type())
    }

    fn value(self, column: &ArrayRef, row: usize) -> Option<Value<'_>> {
        if column.data_type().is_null() || column.is_null(row) {
            return None;
        }
        Some(match self {
            Self::Text => Value::Text(column.as_string_view().value(row)),
            Self::Int => Value::Int(column.as_primitive::<Int64Type>().value(row)),
            Self::Float => Value::Float(column.as_primitive::<Float64Type>().value(row)),
            Self::Bytes => Value::Bytes(column.as_binary_view().value(row)),
            Self::Interval => Value::Interval(column.as_primitive::<IntervalMonthDayNanoType>().value(row)),
            Self::Moment => Value::Moment(column.as_primitive::<TimestampMicrosecondType>().value(row)),
            _ => Value::Any,
        })
    }
}

/// Argument `at` of a row, which its kind has made sure of.
fn text<'a>(row: Row<'a, '_>, at: usize) -> &'a str {
    match row.get(at) {
        Some(Some(Value::Text(text))) => text,
        _ => "",
    }
}

fn int(row: Row<'_, '_>, at: usize) -> i64 {
    match row.get(at) {
        Some(Some(Value::Int(n))) => *n,
        _ => 0,
    }
}

fn float(row: Row<'_, '_>, at: usize) -> f64 {
    match row.get(at) {
        Some(Some(Value::Float(n))) => *n,
        _ => 0.0,
    }
}

fn bytes<'a>(row: Row<'a, '_>, at: usize) -> &'a [u8] {
    match row.get(at) {
        Some(Some(Value::Bytes(bytes))) => bytes,
        _ => &[],
    }
}

fn interval(row: Row<'_, '_>, at: usize) -> IntervalMonthDayNano {
    match row.get(at) {
        Some(Some(Value::Interval(interval))) => *interval,
        _ => IntervalMonthDayNano::ZERO,
    }
}

/// Results so far.
enum Made {
    Text(StringViewBuilder),
    Int(Int32Builder),
    Bytes(BinaryViewBuilder),
    Bool(BooleanBuilder),
    Interval(IntervalMonthDayNanoBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Moment(TimestampMicrosecondBuilder),
    Texts(ListBuilder<StringViewBuilder>),
    TextsList(ListBuilder<ListBuilder<StringViewBuilder>>),
}

impl Made {
    fn new(kind: Kind) -> Self {
        match kind {
            // No function gives the last two.
            Kind::Text | Kind::Any | Kind::Float => Self::Text(StringViewBuilder::new()),
            Kind::Int => Self::Int(Int32Builder::new()),
            Kind::Bytes => Self::Bytes(BinaryViewBuilder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::Interval => Self::Interval(IntervalMonthDayNanoBuilder::new()),
            Kind::Date => Self::Date(Date32Builder::new()),
            Kind::Time => Self::Time(Time64MicrosecondBuilder::new()),
            Kind::Moment => Self::Moment(TimestampMicrosecondBuilder::new()),
            Kind::Texts => Self::Texts(ListBuilder::new(StringViewBuilder::new())),
            Kind::TextsList => Self::TextsList(ListBuilder::new(ListBuilder::new(StringViewBuilder::new()))),
        }
    }

    /// A value of another kind is NULL; no function gives one.
    fn append(&mut self, out: Out) {
        match (self, out) {
            (Self::Text(all), Out::Text(value)) => all.append_value(value),
            (Self::Text(all), _) => all.append_null(),
            (Self::Int(all), Out::Int(value)) => all.append_value(value),
            (Self::Int(all), _) => all.append_null(),
            (Self::Bytes(all), Out::Bytes(value)) => all.append_value(value),
            (Self::Bytes(all), _) => all.append_null(),
            (Self::Bool(all), Out::Bool(value)) => all.append_value(value),
            (Self::Bool(all), _) => all.append_null(),
            (Self::Interval(all), Out::Interval(value)) => all.append_value(value),
            (Self::Interval(all), _) => all.append_null(),
            (Self::Date(all), Out::Date(value)) => all.append_value(value),
            (Self::Date(all), _) => all.append_null(),
            (Self::Time(all), Out::Time(value)) => all.append_value(value),
            (Self::Time(all), _) => all.append_null(),
            (Self::Moment(all), Out::Moment(value)) => all.append_value(value),
            (Self::Moment(all), _) => all.append_null(),
            (Self::Texts(all), Out::Texts(values)) => all.append_value(values),
            (Self::Texts(all), _) => all.append_null(),
            (Self::TextsList(all), Out::TextsList(lists)) => {
                for list in lists {
                    all.values().append_value(list);
                }
                all.append(true);
            }
            (Self::TextsList(all), _) => all.append_null(),
        }
    }

    fn finish(mut self) -> ArrayRef {
        match &mut self {
            Self::Text(all) => Arc::new(all.finish()),
            Self::Int(all) => Arc::new(all.finish()),
            Self::Bytes(all) => Arc::new(all.finish()),
            Self::Bool(all) => Arc::new(all.finish()),
            Self::Interval(all) => Arc::new(all.finish()),
            Self::Date(all) => Arc::new(all.finish()),
            Self::Time(all) => Arc::new(all.finish()),
            Self::Moment(all) => Arc::new(all.finish()),
            Self::Texts(all) => Arc::new(all.finish()),
            Self::TextsList(all) => Arc::new(all.finish()),
        }
    }
}
