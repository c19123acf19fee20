//! Values as JSON.
//!
//! ```text
//!   to_json(ARRAY[1, NULL])           [1,null]              json_build_array(1, 'a')          [1, "a"]
//!   row_to_json(s)                    {"id":1,"x":"a"}      json_build_object('a', 1, 2, t)   {"a" : 1, "2" : "2024-02-29T12:34:56"}
//!   json_object(ARRAY['a', '1'])      {"a" : "1"}           json already: as it stands
//! ```
//!
//! Numbers and booleans are JSON's, json stays what it is, arrays and rows are arrays and objects, everything else is the text
//! that a client would see, with a T in timestamps. Queries name [`functions`]; binding puts functions in their place that know
//! the session's zone and which arguments are json ([`rewrite`]). They run on the router: nodes do not have them.
//! Source: PostgreSQL 15, table 9.47, and json.c.

use super::text::written;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};
use std::sync::Arc;
use tessera_proto::Error;
use tessera_proto::functions::json::{is_json, json_field};
use tessera_proto::functions::json_build::{LINE, quote};

/// What is written of the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    ToJson,
    BuildObject,
    BuildArray,
    /// `json_object`: of text.
    Object,
    /// A part of `json_agg`; a NULL is one, too.
    Element,
    /// A part of `json_object_agg`.
    Member,
}

/// Names in queries, names in plans.
const NAMES: [(Kind, &str, &str); 8] = [
    (Kind::ToJson, "to_json", "__router_to_json"),
    (Kind::ToJson, "row_to_json", "__router_to_json"),
    (Kind::ToJson, "array_to_json", "__router_to_json"),
    (Kind::BuildObject, "json_build_object", "__router_json_build_object"),
    (Kind::BuildArray, "json_build_array", "__router_json_build_array"),
    (Kind::Object, "json_object", "__router_json_object"),
    (Kind::Element, "__json_element", "__router_json_element"),
    (Kind::Member, "__json_member", "__router_json_member"),
];

/// The functions as queries name them.
pub(super) fn functions() -> Vec<ScalarUDF> {
    let named = |(kind, name, _)| {
        ScalarUDF::from(Build {
            kind,
            name,
            known: name,
            zone: String::new(),
            json: vec![],
            signature: signature(),
        })
    };
    NAMES.into_iter().map(named).collect()
}

/// A call of one of them as a plan has it; `None` for other functions.
///
/// # Errors
/// 42883, 22023: arguments that it does not take.
pub(super) fn rewrite(call: &ScalarFunction, schema: &DFSchema, zone: &str) -> Result<Option<Expr>> {
    let Some((kind, known, name)) = NAMES.iter().find(|(_, known, _)| *known == call.func.name()) else {
        return Ok(None);
    };
    check(*kind, known, &call.args, schema)?;
    let function = Build {
        kind: *kind,
        name,
        known,
        zone: zone.to_owned(),
        json: call.args.iter().map(|arg| holds_json(arg, schema)).collect(),
        signature: signature(),
    };
    let function = Arc::new(ScalarUDF::from(function));
    Ok(Some(Expr::ScalarFunction(ScalarFunction::new_udf(
        function,
        call.args.clone(),
    ))))
}

fn signature() -> Signature {
    let signatures = vec![TypeSignature::VariadicAny, TypeSignature::Nullary];
    Signature::one_of(signatures, Volatility::Immutable)
}

fn check(kind: Kind, known: &str, args: &[Expr], schema: &DFSchema) -> Result<()> {
    let types = args
        .iter()
        .map(|arg| arg.get_type(schema))
        .collect::<Result<Vec<_>>>()?;
    let fits = match (kind, known, types.as_slice()) {
        (_, "row_to_json", [row]) => matches!(row, DataType::Struct(_)),
        (_, "array_to_json", [array]) => array.is_list() || array.is_null(),
        (Kind::ToJson | Kind::Element, _, types) => types.len() == 1,
        (Kind::Member, _, types) => types.len() == 2,
        (Kind::BuildObject, _, types) if !types.len().is_multiple_of(2) => {
            let error = Error::new("22023", "argument list must have even number of elements");
            let hint = "the arguments of json_build_object() must consist of alternating keys and values";
            return Err(error.with_hint(hint).into());
        }
        (Kind::Object, _, [only]) => is_texts(only),
        (Kind::Object, _, [keys, values]) => is_texts(keys) && is_texts(values),
        (Kind::Object, ..) => false,
        _ => true,
    };
    if fits {
        return Ok(());
    }
    let types: Vec<_> = types.iter().map(ToString::to_string).collect();
    Err(Error::new(
        "42883",
        format!("function {known}({}) does not exist", types.join(", ")),
    )
    .into())
}

fn is_texts(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field) => field.data_type().is_string() || is_texts(field.data_type()),
        other => other.is_null(),
    }
}

/// Whether a value is json. Functions that pass one of their arguments on lose the mark of its field.
fn holds_json(expr: &Expr, schema: &DFSchema) -> bool {
    let holds = |expr: &Expr| holds_json(expr, schema);
    match expr {
        Expr::Alias(alias) => holds(&alias.expr),
        Expr::ScalarFunction(call) if matches!(call.func.name(), "coalesce" | "nullif" | "greatest" | "least") => {
            call.args.iter().any(holds)
        }
        Expr::Case(case) => {
            let results = case.when_then_expr.iter().map(|(_, then)| then);
            results.chain(&case.else_expr).any(|result| holds(result))
        }
        other => other.to_field(schema).is_ok_and(|(_, field)| is_json(&field)),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Build {
    kind: Kind,
    name: &'static str,
    known: &'static str,
    zone: String,
    /// Which arguments are json.
    json: Vec<bool>,
    signature: Signature,
}

impl ScalarUDFImpl for Build {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    /// That of the function it stands for.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let args: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(format!("{}({})", self.known, args.join(",")))
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(json_field(self.name))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if args.args.is_empty() {
            let empty = if self.kind == Kind::BuildArray { "[]" } else { "{}" };
            return Ok(ColumnarValue::Scalar(datafusion::scalar::ScalarValue::Utf8View(Some(
                empty.into(),
            ))));
        }
        make_scalar_function(|columns| self.build(columns), vec![])(&args.args)
    }
}

impl Build {
    fn build(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        let rows = columns.first().map_or(0, |column| column.len());
        let mut texts = StringViewBuilder::with_capacity(rows);
        if self.kind == Kind::Object {
            for row in 0..rows {
                texts.append_option(object(columns, row)?);
            }
            return Ok(Arc::new(texts.finish()));
        }
        let values = columns.iter().enumerate().map(|(at, column)| {
            let json = self.json.get(at).copied().unwrap_or(false);
            let field = if json {
                json_field("")
            } else {
                Arc::new(Field::new("", column.data_type().clone(), true))
            };
            Values::new(&field, column, &self.zone)
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        for row in 0..rows {
            let null = columns[0].is_null(row);
            let mut out = String::new();
            match self.kind {
                Kind::ToJson if null => {
                    texts.append_null();
                    continue;
                }
                Kind::Element if !null && columns[0].data_type().is_nested() => {
                    out.push_str(LINE);
                    values[0].write(row, &mut out);
                }
                Kind::BuildArray => {
                    out.push('[');
                    for (at, value) in values.iter().enumerate() {
                        out.push_str(if at > 0 { ", " } else { "" });
                        value.write(row, &mut out);
                    }
                    out.push(']');
                }
                Kind::BuildObject => {
                    out.push('{');
                    for (at, pair) in values.chunks_exact(2).enumerate() {
                        out.push_str(if at > 0 { ", " } else { "" });
                        if columns[2 * at].data_type().is_null() || columns[2 * at].is_null(row) {
                            let message = format!("argument {} cannot be null", 2 * at + 1);
                            return Err(Error::new("22023", message)
                                .with_hint("object keys should be text")
                                .into());
                        }
                        pair[0].write_key(row, &mut out)?;
                        out.push_str(" : ");
                        pair[1].write(row, &mut out);
                    }
                    out.push('}');
                }
                Kind::Member => {
                    if null {
                        return Err(Error::new("22023", "field name must not be null").into());
                    }
                    values[0].write_key(row, &mut out)?;
                    out.push_str(" : ");
                    values[1].write(row, &mut out);
                }
                _ => values[0].write(row, &mut out),
            }
            texts.append_value(out);
        }
        Ok(Arc::new(texts.finish()))
    }
}

/// A column to be written.
enum Values {
    Null,
    /// Text that is JSON: json, numbers, booleans.
    Plain(ArrayRef),
    /// Floats, whose NaN and infinities are strings.
    Float(ArrayRef),
    Text(ArrayRef),
    Array(ArrayRef, Box<Values>),
    Row(ArrayRef, Vec<(String, Values)>),
}

impl Values {
    fn new(field: &Field, column: &ArrayRef, zone: &str) -> Result<Self> {
        let of = field.data_type();
        Ok(match of {
            DataType::Null => Self::Null,
            _ if is_json(field) => Self::Plain(written(zone, column)?),
            DataType::Boolean => Self::Plain(datafusion::arrow::compute::cast(column, &DataType::Utf8View)?),
            of if of.is_floating() => Self::Float(written(zone, column)?),
            of if of.is_numeric() => Self::Plain(written(zone, column)?),
            DataType::List(inside) => {
                let list = column.as_list::<i32>();
                Self::Array(column.clone(), Box::new(Self::new(inside, list.values(), zone)?))
            }
            DataType::Struct(fields) => {
                let row = column.as_struct();
                let members = fields.iter().zip(row.columns());
                let members = members.map(|(f, column)| Ok((f.name().clone(), Self::new(f, column, zone)?)));
                Self::Row(column.clone(), members.collect::<Result<_>>()?)
            }
            DataType::Timestamp(..) => {
                let texts = written(zone, column)?;
                let moments = texts.as_string_view().iter().map(|text| text.map(moment));
                Self::Text(Arc::new(moments.collect::<datafusion::arrow::array::StringViewArray>()))
            }
            _ => Self::Text(written(zone, column)?),
        })
    }

    fn write(&self, row: usize, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Plain(texts) | Self::Float(texts) | Self::Text(texts) if texts.is_null(row) => out.push_str("null"),
            Self::Array(values, _) | Self::Row(values, _) if values.is_null(row) => out.push_str("null"),
            Self::Plain(texts) => out.push_str(texts.as_string_view().value(row)),
            Self::Text(texts) => quote(texts.as_string_view().value(row), out),
            Self::Float(texts) => match texts.as_string_view().value(row) {
                number if number.ends_with(|c: char| c.is_ascii_digit()) => out.push_str(number),
                other => quote(other, out),
            },
            Self::Array(list, values) => {
                let offsets = list.as_list::<i32>().value_offsets();
                out.push('[');
                for at in offsets[row]..offsets[row + 1] {
                    out.push_str(if at > offsets[row] { "," } else { "" });
                    values.write(at as usize, out);
                }
                out.push(']');
            }
            Self::Row(_, members) => {
                out.push('{');
                for (at, (name, values)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    quote(name, out);
                    out.push(':');
                    values.write(row, out);
                }
                out.push('}');
            }
        }
    }

    fn write_key(&self, row: usize, out: &mut String) -> Result<()> {
        match self {
            Self::Plain(texts) | Self::Float(texts) | Self::Text(texts) => {
                quote(texts.as_string_view().value(row), out);
                Ok(())
            }
            _ => {
                let message = "key value must be scalar, not array, composite, or json";
                Err(Error::new("22023", message).into())
            }
        }
    }
}

/// `2024-02-29 12:34:56+00` as ISO 8601 has it.
fn moment(text: &str) -> String {
    let moment = text.replacen(' ', "T", 1);
    let zone_hours = moment.len().checked_sub(3).and_then(|at| moment.get(at..));
    match zone_hours {
        Some(zone) if zone.starts_with(['+', '-']) && moment.contains(':') => moment + ":00",
        _ => moment,
    }
}

/// `json_object`: of keys and values in turns, in pairs, or of keys and of values.
fn object(columns: &[ArrayRef], row: usize) -> Result<Option<String>> {
    if columns.iter().any(|column| column.is_null(row)) {
        return Ok(None);
    }
    let texts = |column: &ArrayRef| -> Result<(usize, Vec<Option<String>>)> {
        let mut values = column.slice(row, 1);
        let mut width = 0;
        while let Some(list) = values.as_list_opt::<i32>() {
            let offsets = list.value_offsets();
            let (first, end) = (offsets[0] as usize, offsets[list.len()] as usize);
            width = (end - first).checked_div(list.len()).unwrap_or(0);
            let inside = list.values().slice(first, end - first);
            values = inside;
        }
        let texts = datafusion::arrow::compute::cast(&values, &DataType::Utf8View)?;
        let texts = texts.as_string_view().iter().map(|text| text.map(str::to_owned));
        Ok((width, texts.collect()))
    };
    let pairs: Vec<(Option<String>, Option<String>)> = match columns {
        [only] => {
            let (width, all) = texts(only)?;
            let nested = matches!(only.data_type(), DataType::List(f) if f.data_type().is_list());
            if nested && width != 2 && !all.is_empty() {
                return Err(Error::new("2202E", "array must have two columns").into());
            }
            if !all.len().is_multiple_of(2) {
                return Err(Error::new("2202E", "array must have even number of elements").into());
            }
            let mut all = all.into_iter();
            let pairs = std::iter::from_fn(|| Some((all.next()?, all.next()?)));
            pairs.collect()
        }
        [keys, values] => {
            let ((_, keys), (_, values)) = (texts(keys)?, texts(values)?);
            if keys.len() != values.len() {
                return Err(Error::new("2202E", "mismatched array dimensions").into());
            }
            keys.into_iter().zip(values).collect()
        }
        _ => return exec_err!("json_object of {} arguments", columns.len()),
    };
    let mut out = String::from("{");
    for (at, (key, value)) in pairs.into_iter().enumerate() {
        out.push_str(if at > 0 { ", " } else { "" });
        let key = key.ok_or_else(|| Error::new("22004", "null value not allowed for object key"))?;
        quote(&key, &mut out);
        out.push_str(" : ");
        match value {
            Some(value) => quote(&value, &mut out),
            None => out.push_str("null"),
        }
    }
    out.push('}');
    Ok(Some(out))
}
