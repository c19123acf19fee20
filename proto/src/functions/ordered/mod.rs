//! Ordered-set and hypothetical-set aggregates, as PostgreSQL has them.
//!
//! ```text
//!   mode() WITHIN GROUP (ORDER BY x DESC)            __tessera_mode('df', x)
//!   percentile_cont(0.5) WITHIN GROUP (ORDER BY x)   __tessera_percentile_cont('al', x, 0.5)
//!   rank(7, 'b') WITHIN GROUP (ORDER BY x, y)        __tessera_rank('al,al', x, y, 7, 'b')
//!                                                     a, d: up, down      f, l: NULLs first, last
//! ```
//!
//! The planner writes the first as the second. Rows may come in any order: what needs one keeps the values of a group and sorts
//! them at the end, so a group must fit in memory (53200); ranks keep counts only, `dense_rank` the different rows before its own.
//! Partial results combine, but weigh what the values weigh: such an aggregate runs in leaves only where a group is on one node.
//! Source: PostgreSQL 15, sections 9.21 and 4.2.7, and orderedsetaggs.c.

mod percentile;
mod rank;
mod values;

use crate::error::Error;
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, Signature, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use std::sync::{Arc, LazyLock};

/// What is computed of the ordered rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Mode,
    PercentileDisc,
    PercentileCont,
    Rank,
    DenseRank,
    PercentRank,
    CumeDist,
}

use Kind::*;

/// Each with the name that users know it by.
const ALL: [(Kind, &str, &str); 7] = [
    (Mode, "__tessera_mode", "mode"),
    (PercentileDisc, "__tessera_percentile_disc", "percentile_disc"),
    (PercentileCont, "__tessera_percentile_cont", "percentile_cont"),
    (Rank, "__tessera_rank", "rank"),
    (DenseRank, "__tessera_dense_rank", "dense_rank"),
    (PercentRank, "__tessera_percent_rank", "percent_rank"),
    (CumeDist, "__tessera_cume_dist", "cume_dist"),
];

static FUNCTIONS: LazyLock<Vec<Arc<AggregateUDF>>> = LazyLock::new(|| {
    let function = |(kind, name, known)| {
        Arc::new(AggregateUDF::from(OrderedSet {
            kind,
            name,
            known,
            signature: Signature::user_defined(Volatility::Immutable),
        }))
    };
    ALL.into_iter().map(function).collect()
});

/// All of them.
pub fn functions() -> Vec<Arc<AggregateUDF>> {
    FUNCTIONS.clone()
}

/// The function that stands for one of PostgreSQL's with WITHIN GROUP.
pub fn named(name: &str) -> Option<&'static str> {
    ALL.iter()
        .find(|(_, _, known)| *known == name)
        .map(|(_, name, _)| *name)
}

/// How an order is told to the functions: for each of its columns, `descending` and `nulls_first`.
pub fn order_text(columns: impl IntoIterator<Item = (bool, bool)>) -> String {
    let column = |(descending, nulls_first)| match (descending, nulls_first) {
        (false, false) => "al",
        (false, true) => "af",
        (true, false) => "dl",
        (true, true) => "df",
    };
    columns.into_iter().map(column).collect::<Vec<_>>().join(",")
}

fn order_of(text: &str) -> Result<Vec<SortOptions>> {
    let column = |column: &str| match column {
        "al" => Ok(SortOptions::new(false, false)),
        "af" => Ok(SortOptions::new(false, true)),
        "dl" => Ok(SortOptions::new(true, false)),
        "df" => Ok(SortOptions::new(true, true)),
        other => exec_err!("an order of {other}"),
    };
    text.split(',').map(column).collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct OrderedSet {
    kind: Kind,
    name: &'static str,
    known: &'static str,
    signature: Signature,
}

impl OrderedSet {
    fn is_hypothetical(&self) -> bool {
        matches!(self.kind, Rank | DenseRank | PercentRank | CumeDist)
    }

    /// Types of the arguments as the function takes them; `None` where there is no such function.
    fn coerced(&self, types: &[DataType]) -> Option<Vec<DataType>> {
        let (order, rest) = types.split_first().filter(|(order, _)| order.is_string())?;
        let mut wanted = vec![order.clone()];
        match (self.kind, rest) {
            (Mode, [value]) => wanted.push(value.clone()),
            (PercentileDisc, [value, fraction]) => wanted.extend([value.clone(), fraction_type(fraction)?]),
            (PercentileCont, [value, fraction]) => wanted.extend([continuous(value)?, fraction_type(fraction)?]),
            (_, rest) if self.is_hypothetical() && !rest.is_empty() && rest.len().is_multiple_of(2) => {
                let (columns, given) = rest.split_at(rest.len() / 2);
                let common = columns.iter().zip(given).map(|(a, b)| common_type(a, b));
                let common = common.collect::<Option<Vec<_>>>()?;
                wanted.extend(common.iter().chain(&common).cloned());
            }
            _ => return None,
        }
        Some(wanted)
    }
}

impl AggregateUDFImpl for OrderedSet {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.coerced(types).ok_or_else(|| {
            let columns: Vec<_> = types.iter().skip(1).map(ToString::to_string).collect();
            let message = format!("function {}({}) does not exist", self.known, columns.join(", "));
            let hint = "its arguments are the ordered columns and those in its parentheses";
            Error::new("42883", message).with_hint(hint).into()
        })
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match (self.kind, types) {
            (Mode, [_, value]) => value.clone(),
            (PercentileDisc | PercentileCont, [_, value, fraction]) => match fraction {
                DataType::List(_) => DataType::new_list(value.clone(), true),
                _ => value.clone(),
            },
            (Rank | DenseRank, _) => DataType::Int64,
            (PercentRank | CumeDist, _) => DataType::Float64,
            _ => return exec_err!("{} of {types:?}", self.name),
        })
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            let what = format!("DISTINCT in {} is not supported", self.known);
            return Err(Error::unsupported(what, "leave DISTINCT out").into());
        }
        let types: Vec<DataType> = args.expr_fields.iter().map(|f| f.data_type().clone()).collect();
        let order = args.exprs.first().and_then(constant);
        let Some(Some(Some(text))) = order.as_ref().map(|order| order.try_as_str()) else {
            return exec_err!("{} without an order", self.name);
        };
        let order = order_of(text)?;
        let accumulator: Box<dyn Accumulator> = match (self.kind, types.get(1..).unwrap_or(&[])) {
            (Mode, [value]) => Box::new(values::Mode::new(values::Values::new(value, order[0])?)),
            (kind @ (PercentileDisc | PercentileCont), [value, fraction]) => {
                let values = values::Values::new(value, order[0])?;
                let fraction = match args.exprs.get(2).and_then(constant) {
                    Some(known) => known,
                    None => ScalarValue::try_from(fraction)?,
                };
                Box::new(percentile::Percentile::new(kind == PercentileCont, values, fraction)?)
            }
            (kind, columns) if columns.len() == 2 * order.len() => {
                Box::new(rank::HypotheticalRank::new(kind, &columns[..order.len()], &order)?)
            }
            _ => return exec_err!("{} of {types:?}", self.name),
        };
        Ok(accumulator)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = |name: &str, data_type| Arc::new(Field::new(format_state_name(args.name, name), data_type, true));
        let values = |at: usize| {
            let of = args
                .input_fields
                .get(at)
                .map_or(DataType::Null, |f| f.data_type().clone());
            DataType::new_list(of, true)
        };
        Ok(match self.kind {
            Mode => vec![field("values", values(1))],
            PercentileDisc | PercentileCont => {
                let fraction = args
                    .input_fields
                    .get(2)
                    .map_or(DataType::Null, |f| f.data_type().clone());
                vec![field("values", values(1)), field("fraction", fraction)]
            }
            Rank | DenseRank | PercentRank | CumeDist => {
                let count = |name| field(name, DataType::Int64);
                let rows = field("rows before", DataType::new_list(DataType::Binary, true));
                vec![count("before"), count("equal"), count("all"), rows]
            }
        })
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        Ok(match self.kind {
            Rank | DenseRank => ScalarValue::Int64(Some(1)),
            PercentRank => ScalarValue::Float64(Some(0.0)),
            CumeDist => ScalarValue::Float64(Some(1.0)),
            Mode | PercentileDisc | PercentileCont => ScalarValue::try_from(data_type)?,
        })
    }
}

/// The value of an expression that needs no row.
fn constant(expr: &Arc<dyn PhysicalExpr>) -> Option<ScalarValue> {
    if !datafusion::physical_expr::utils::collect_columns(expr).is_empty() {
        return None;
    }
    let no_columns = RecordBatch::new_empty(Arc::new(datafusion::arrow::datatypes::Schema::empty()));
    match expr.evaluate(&no_columns).ok()? {
        ColumnarValue::Scalar(value) => Some(value),
        ColumnarValue::Array(_) => None,
    }
}

/// One fraction, or several.
fn fraction_type(of: &DataType) -> Option<DataType> {
    let number = |t: &DataType| t.is_numeric() || t.is_null();
    match of {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _)
            if number(field.data_type()) =>
        {
            Some(DataType::new_list(DataType::Float64, true))
        }
        of => number(of).then_some(DataType::Float64),
    }
}

/// What is interpolated: numbers are double precision, and intervals are intervals.
fn continuous(of: &DataType) -> Option<DataType> {
    match of {
        DataType::Interval(_) => Some(DataType::Interval(IntervalUnit::MonthDayNano)),
        DataType::Duration(_) => Some(DataType::Duration(TimeUnit::Microsecond)),
        of => (of.is_numeric() || of.is_null()).then_some(DataType::Float64),
    }
}

/// What a column and its hypothetical value are compared as.
fn common_type(column: &DataType, given: &DataType) -> Option<DataType> {
    match (column, given) {
        (a, b) if a == b || b.is_null() => Some(a.clone()),
        (a, b) if a.is_null() => Some(b.clone()),
        // A constant in quotes is read as the column's type.
        (a, b) if !a.is_string() && b.is_string() => Some(a.clone()),
        (a, b) => comparison_coercion(a, b),
    }
}
