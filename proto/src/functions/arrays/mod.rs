//! Functions of arrays with PostgreSQL's values, where DataFusion's have others or there are none.
//!
//! ```text
//!   array_remove({1,2,1}, 1)   {2}            DataFusion removes the first only; likewise array_replace
//!   ({1,2,3})[-1]              NULL           DataFusion counts from the end
//!   ({1,2,3})[-1:2]            {1,2}          bounds are clipped
//!   array_length({}, 1)        NULL           an empty array has no dimensions
//!   {1,NULL} @> {NULL}         false          a NULL is equal to nothing; 2 = ANY ({1,NULL}) is NULL
//! ```
//!
//! Users name them as in PostgreSQL and the planner puts these in the place: DataFusion's own have other values and travel by
//! their names. Lower bounds are always 1. Source: PostgreSQL 15, section 9.19.

mod elements;
mod shape;

use crate::error::Error;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, ListArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, exec_err};
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

/// What is done with an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArrayKind {
    /// `array_remove(array, element)`: all that are equal; NULL is equal to NULL.
    Remove,
    /// `array_replace(array, from, to)`: likewise.
    Replace,
    /// `array_position(array, element [, start])`.
    Position,
    /// `array_positions(array, element)`.
    Positions,
    /// `array @> array`.
    Contains,
    /// `array && array`.
    Overlaps,
    /// `element = ANY (array)`, the array first.
    Any,
    /// `array_length(array, dimension)`.
    Length,
    /// `array_upper(array, dimension)`: the same, lower bounds being 1.
    Upper,
    /// `array_lower(array, dimension)`.
    Lower,
    /// `array_ndims(array)`.
    Dimensions,
    /// `array_dims(array)`, such as `[1:2][1:3]`.
    Dims,
    /// `trim_array(array, n)`.
    Trim,
    /// `array[from:to]`.
    Slice,
    /// `array[n]`, or `array[i][j]`.
    Element,
    /// Of one or more arrays, the positions of the longest: what WITH ORDINALITY numbers.
    Ordinals,
    /// One dimension of `array_fill`: value, count.
    Fill,
}

/// Each with the name that users know it by, or an operator.
const ALL: [(ArrayKind, &str, &str); 17] = [
    (ArrayKind::Remove, "__tessera_array_remove", "array_remove"),
    (ArrayKind::Replace, "__tessera_array_replace", "array_replace"),
    (ArrayKind::Position, "__tessera_array_position", "array_position"),
    (ArrayKind::Positions, "__tessera_array_positions", "array_positions"),
    (ArrayKind::Contains, "__tessera_array_contains", "@>"),
    (ArrayKind::Overlaps, "__tessera_array_overlaps", "&&"),
    (ArrayKind::Any, "__tessera_array_any", "= ANY"),
    (ArrayKind::Length, "__tessera_array_length", "array_length"),
    (ArrayKind::Upper, "__tessera_array_upper", "array_upper"),
    (ArrayKind::Lower, "__tessera_array_lower", "array_lower"),
    (ArrayKind::Dimensions, "__tessera_array_ndims", "array_ndims"),
    (ArrayKind::Dims, "__tessera_array_dims", "array_dims"),
    (ArrayKind::Trim, "__tessera_trim_array", "trim_array"),
    (ArrayKind::Slice, "__tessera_array_slice", "[:]"),
    (ArrayKind::Element, "__tessera_array_element", "[]"),
    (ArrayKind::Ordinals, "__tessera_array_ordinals", "WITH ORDINALITY"),
    (ArrayKind::Fill, "__tessera_array_fill", "array_fill"),
];

static FUNCTIONS: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
    let function = |(kind, name, known)| {
        Arc::new(ScalarUDF::from(ArrayFunction {
            kind,
            name,
            known,
            signature: Signature::user_defined(Volatility::Immutable),
        }))
    };
    ALL.into_iter().map(function).collect()
});

/// All of them.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.clone()
}

/// The function that stands for one of PostgreSQL's.
pub fn named(name: &str) -> Option<&'static str> {
    let known = ALL.iter().find(|(_, _, known)| *known == name);
    known.map(|(_, name, _)| *name)
}

impl ArrayKind {
    /// A call.
    pub fn call(self, args: Vec<Expr>) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTIONS[self as usize].clone(), args))
    }

    /// Whether an expression is a call of it.
    pub fn is(self, expr: &Expr) -> bool {
        matches!(expr, Expr::ScalarFunction(call) if call.func.name() == ALL[self as usize].1)
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ArrayFunction {
    kind: ArrayKind,
    name: &'static str,
    known: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for ArrayFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if self.kind == ArrayKind::Slice && types.len() > 3 {
            let error = Error::unsupported(
                "slices in more than one dimension are not supported",
                "write one dimension: (a)[1:2]",
            );
            return Err(error.into());
        }
        let wanted = self.coerced(types);
        wanted.ok_or_else(|| {
            let types: Vec<_> = types.iter().map(ToString::to_string).collect();
            Error::new(
                "42883",
                format!("function {}({}) does not exist", self.known, types.join(", ")),
            )
            .into()
        })
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        use ArrayKind::*;
        let first = types.first().cloned().unwrap_or(DataType::Null);
        Ok(match self.kind {
            Remove | Replace | Trim | Slice => first,
            Position | Length | Upper | Lower | Dimensions => DataType::Int32,
            Positions => list_of(DataType::Int32),
            Contains | Overlaps | Any => DataType::Boolean,
            Dims => DataType::Utf8View,
            Element => leaf_type(&first).clone(),
            Fill => list_of(first),
            Ordinals => list_of(DataType::Int64),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        make_scalar_function(|columns| self.evaluate(columns), vec![])(&args.args)
    }
}

impl ArrayFunction {
    /// Types of the arguments as the function takes them; `None` where there is no such function.
    fn coerced(&self, types: &[DataType]) -> Option<Vec<DataType>> {
        use ArrayKind::*;
        // Every level a plain list.
        let nested = |of: &DataType| match of {
            DataType::Null => Some(list_of(DataType::Null)),
            list => element_type(list).map(|_| with_leaf(list, leaf_type(list))),
        };
        let number = |of: &DataType| (of.is_integer() || of.is_null()).then_some(DataType::Int64);
        Some(match (self.kind, types) {
            (Remove | Position | Positions | Any, [list, element]) => {
                let of = common(list, element)?;
                vec![list_of(of.clone()), of]
            }
            (Position, [list, element, start]) => {
                let of = common(list, element)?;
                vec![list_of(of.clone()), of, number(start)?]
            }
            (Replace, [list, from, to]) => {
                let of = common(&list_of(common(list, from)?), to)?;
                vec![list_of(of.clone()), of.clone(), of]
            }
            (Contains | Overlaps, [a, b]) => {
                let of = match (element_type(a), element_type(b)) {
                    (Some(a), Some(b)) => common_type(leaf_type(a), leaf_type(b))?,
                    (Some(only), None) | (None, Some(only)) if a.is_null() || b.is_null() => leaf_type(only).clone(),
                    _ => return None,
                };
                let side = |list: &DataType| match list.is_null() {
                    true => list_of(of.clone()),
                    false => with_leaf(list, &of),
                };
                vec![side(a), side(b)]
            }
            (Length | Upper | Lower | Trim, [list, n]) => vec![nested(list)?, number(n)?],
            (Element, [list, positions @ ..]) if !positions.is_empty() => {
                let positions: Option<Vec<_>> = positions.iter().map(number).collect();
                std::iter::once(nested(list)?).chain(positions?).collect()
            }
            (Dimensions | Dims, [list]) => vec![nested(list)?],
            (Slice, [list, from, to]) => vec![nested(list)?, number(from)?, number(to)?],
            (Ordinals, lists) if !lists.is_empty() => lists.iter().map(nested).collect::<Option<_>>()?,
            (Fill, [value, count]) => vec![value.clone(), number(count)?],
            _ => return None,
        })
    }

    fn evaluate(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        use ArrayKind::*;
        if let (Fill, [values, counts]) = (self.kind, columns) {
            return shape::fill(values, counts);
        }
        let Some((first, rest)) = columns.split_first() else {
            return exec_err!("{} without arguments", self.name);
        };
        let Some(list) = first.as_list_opt::<i32>() else {
            return exec_err!("{} of {}", self.name, first.data_type());
        };
        match (self.kind, rest) {
            (Remove, [element]) => elements::remove(list, element),
            (Replace, [from, to]) => elements::replace(list, from, to),
            (Position, [element]) => elements::position(list, element, None),
            (Position, [element, start]) => elements::position(list, element, Some(start)),
            (Positions, [element]) => elements::positions(list, element),
            (Any, [element]) => elements::any(list, element),
            (Contains | Overlaps, [other]) => elements::compare(self.kind, list, other),
            (Length | Upper | Lower, [dimension]) => shape::length(list, dimension, self.kind == Lower),
            (Dimensions, []) => shape::dimensions(list),
            (Dims, []) => shape::dims(list),
            (Trim, [count]) => shape::trim(list, count),
            (Slice, [from, to]) => shape::slice(list, from, to),
            (Ordinals, _) => shape::ordinals(columns),
            (Element, positions) => shape::element(first, positions),
            _ => exec_err!("{} with {} arguments", self.name, columns.len()),
        }
    }
}

/// An array's type.
fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(element, true)))
}

/// The type of an array's elements.
fn element_type(list: &DataType) -> Option<&DataType> {
    match list {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            Some(field.data_type())
        }
        _ => None,
    }
}

/// The type of what is no array, below arrays of arrays.
fn leaf_type(of: &DataType) -> &DataType {
    element_type(of).map_or(of, leaf_type)
}

/// The same nesting over another type.
fn with_leaf(of: &DataType, leaf: &DataType) -> DataType {
    match element_type(of) {
        Some(inner) => list_of(with_leaf(inner, leaf)),
        None => leaf.clone(),
    }
}

/// What elements of `list` and `element` are compared as.
fn common(list: &DataType, element: &DataType) -> Option<DataType> {
    match element_type(list) {
        Some(of) => common_type(of, element),
        None if list.is_null() => Some(element.clone()),
        None => None,
    }
}

fn common_type(of: &DataType, with: &DataType) -> Option<DataType> {
    match (of, with) {
        (a, b) if a == b || b.is_null() => Some(a.clone()),
        (a, b) if a.is_null() => Some(b.clone()),
        // A constant in quotes is read as an element.
        (a, b) if !a.is_string() && b.is_string() => Some(a.clone()),
        (a, b) => comparison_coercion(a, b),
    }
}

/// Where each array of `list` lies in its values; nothing for NULL.
fn range(list: &ListArray, row: usize) -> std::ops::Range<usize> {
    match list.is_valid(row) {
        true => list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize,
        false => 0..0,
    }
}

/// The values below arrays of arrays, and where each array's lie among them.
fn flattened(list: &ListArray) -> Result<(ArrayRef, Vec<std::ops::Range<usize>>)> {
    let mut ranges: Vec<_> = (0..list.len()).map(|row| range(list, row)).collect();
    let mut values = list.values().clone();
    while element_type(values.data_type()).is_some() {
        let inner = cast(
            &values,
            &list_of(element_type(values.data_type()).cloned().unwrap_or(DataType::Null)),
        )?;
        let inner = inner.as_list::<i32>();
        let offsets = inner.value_offsets();
        for range in &mut ranges {
            *range = offsets[range.start] as usize..offsets[range.end] as usize;
        }
        values = inner.values().clone();
    }
    Ok((values, ranges))
}
