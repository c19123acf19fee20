//! Reading JSON that is kept as text, as PostgreSQL's type `json` does.
//!
//! ```text
//!   '{"a": {"b": [1, "x"]}}'   -> 'a'   {"b": [1, "x"]}      ->> 'a'   the same      the text as it stands in the document
//!                              #>> '{a,b,1}'   x             -> 1      NULL          an object has no positions
//! ```
//!
//! `->`, `->>`, `#>` and `#>>` are planned to these functions; `json_extract_path`, `json_extract_path_text`,
//! `json_array_length` and `json_typeof` can be named. Of keys that come twice the last counts. Whatever is not JSON is 22P02.
//! `json_strip_nulls` leaves members out that are null. Functions that return sets are lists here, which the planner unnests:
//! `json_array_elements[_text]`, `json_object_keys`, `json_each[_text]`. Building JSON is [`super::json_build`]'s and the router's.
//! Not here: `jsonb`. Source: PostgreSQL 15, section 9.16.

use crate::error::Error;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int32Array, ListBuilder, StringViewBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// What is done with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Json {
    /// Checks it; the text stays.
    Check,
    /// `->`: a member by key, or an element by position; negative ones count from the end.
    Get,
    /// `->>`: the same as text.
    GetText,
    /// `#>`: along keys and positions, all as text.
    Path,
    /// `#>>`: the same as text.
    PathText,
    /// Elements of an array.
    Length,
    /// Members that are null are left out, however deep.
    Strip,
    /// The elements of an array, as a list.
    Elements,
    /// The same as text.
    ElementsText,
    /// The keys of an object, as a list.
    Keys,
    /// The values of an object, as a list.
    Values,
    /// The same as text.
    ValuesText,
    /// `object`, `array`, `string`, `number`, `boolean` or `null`.
    TypeOf,
}

static FUNCTIONS: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
    let all = [
        Json::Check,
        Json::Get,
        Json::GetText,
        Json::Path,
        Json::PathText,
        Json::Length,
        Json::Strip,
        Json::Elements,
        Json::ElementsText,
        Json::Keys,
        Json::Values,
        Json::ValuesText,
        Json::TypeOf,
    ];
    all.map(|kind| Arc::new(ScalarUDF::from(JsonFunction::new(kind))))
        .to_vec()
});

/// All of them; those that begin with `json_` may be named in SQL.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.clone()
}

/// Key of the metadata of a field that holds json, whose type is text's.
const JSON: &str = "tessera.json";

/// The field of a json value: as of a cast to json, and of what the functions here return.
pub fn json_field(name: &str) -> FieldRef {
    let metadata = HashMap::from([(JSON.to_owned(), String::new())]);
    Arc::new(Field::new(name, DataType::Utf8View, true).with_metadata(metadata))
}

/// Whether a field holds json.
pub fn is_json(field: &Field) -> bool {
    field.metadata().contains_key(JSON)
}

impl Json {
    /// Whether it returns json.
    fn returns_json(self) -> bool {
        matches!(self, Self::Check | Self::Get | Self::Path | Self::Strip)
    }

    /// Whether it returns a list; of json, or of text.
    fn listed(self) -> Option<bool> {
        match self {
            Self::Elements | Self::Values => Some(true),
            Self::ElementsText | Self::Keys | Self::ValuesText => Some(false),
            _ => None,
        }
    }

    /// A call.
    pub fn call(self, args: Vec<Expr>) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTIONS[self as usize].clone(), args))
    }
}

/// One of the functions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonFunction {
    kind: Json,
    signature: Signature,
}

impl JsonFunction {
    fn new(kind: Json) -> Self {
        Self {
            kind,
            signature: Signature::variadic_any(Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for JsonFunction {
    fn name(&self) -> &str {
        match self.kind {
            Json::Check => "__tessera_json",
            Json::Get => "__tessera_json_get",
            Json::GetText => "__tessera_json_get_text",
            Json::Path => "json_extract_path",
            Json::PathText => "json_extract_path_text",
            Json::Length => "json_array_length",
            Json::Strip => "json_strip_nulls",
            Json::Elements => "__tessera_json_elements",
            Json::ElementsText => "__tessera_json_elements_text",
            Json::Keys => "__tessera_json_keys",
            Json::Values => "__tessera_json_values",
            Json::ValuesText => "__tessera_json_values_text",
            Json::TypeOf => "json_typeof",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let arguments = match self.kind {
            Json::Get | Json::GetText => types.len() == 2,
            Json::Path | Json::PathText => !types.is_empty(),
            _ => types.len() == 1,
        };
        let is_text = |t: &DataType| t.is_string() || t.is_null();
        let fits = match types {
            [document, keys @ ..] => {
                let positions = matches!(self.kind, Json::Get | Json::GetText);
                is_text(document) && keys.iter().all(|t| is_text(t) || (positions && t.is_integer()))
            }
            [] => false,
        };
        if !arguments || !fits {
            let types: Vec<_> = types.iter().map(ToString::to_string).collect();
            return plan_err!("function {}({}) does not exist", self.name(), types.join(", "));
        }
        Ok(match self.kind {
            Json::Length => DataType::Int32,
            kind if let Some(json) = kind.listed() => DataType::List(item(json)),
            _ => DataType::Utf8View,
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        if self.kind.returns_json() {
            return Ok(json_field(self.name()));
        }
        let types: Vec<_> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        if is_constant && self.kind.listed().is_some() {
            // A scalar made of an element of the array would forget that its elements are json.
            let lists = self.evaluate(&ColumnarValue::values_to_arrays(&args.args)?)?;
            let list = ScalarValue::List(Arc::new(lists.as_list::<i32>().clone()));
            return Ok(ColumnarValue::Scalar(list));
        }
        make_scalar_function(|columns| self.evaluate(columns), vec![])(&args.args)
    }
}

impl JsonFunction {
    fn evaluate(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        let Some((documents, keys)) = columns.split_first() else {
            return exec_err!("{} without arguments", self.name());
        };
        let rows = documents.len();
        let documents = cast(documents, &DataType::Utf8View)?;
        let documents = documents.as_string_view();
        let keys = keys.iter().map(Keys::new).collect::<Result<Vec<_>>>()?;
        let document = |row: usize| (!documents.is_null(row)).then(|| documents.value(row));
        if self.kind == Json::Length {
            let lengths = (0..rows).map(|row| document(row).map(length).transpose());
            return Ok(Arc::new(lengths.collect::<std::result::Result<Int32Array, Error>>()?));
        }
        if let Some(json) = self.kind.listed() {
            let mut lists = ListBuilder::new(StringViewBuilder::new()).with_field(item(json));
            for row in 0..rows {
                match document(row) {
                    Some(text) => {
                        for part in self.listed(text)? {
                            lists.values().append_option(part);
                        }
                        lists.append(true);
                    }
                    None => lists.append(false),
                }
            }
            return Ok(Arc::new(lists.finish()));
        }
        let mut texts = StringViewBuilder::with_capacity(rows);
        for row in 0..rows {
            let found = match document(row) {
                Some(text) => {
                    check(text)?;
                    self.found(text, &keys, row)?
                }
                None => None,
            };
            texts.append_option(found);
        }
        Ok(Arc::new(texts.finish()))
    }

    /// What the lists are of.
    fn listed(&self, text: &str) -> std::result::Result<Vec<Option<String>>, Error> {
        check(text)?;
        let value = text.trim_matches(WHITE);
        let array = matches!(self.kind, Json::Elements | Json::ElementsText);
        let Some(mut inside) = Inside::of(value, if array { '[' } else { '{' }) else {
            let (of, name) = match (self.kind, type_of(value)) {
                (Json::Elements, "object") => ("cannot call %s on a non-array", "json_array_elements"),
                (Json::ElementsText, "object") => ("cannot call %s on a non-array", "json_array_elements_text"),
                (Json::Elements, _) => ("cannot call %s on a scalar", "json_array_elements"),
                (Json::ElementsText, _) => ("cannot call %s on a scalar", "json_array_elements_text"),
                (Json::Keys, "array") => ("cannot call %s on an array", "json_object_keys"),
                (Json::Keys, _) => ("cannot call %s on a scalar", "json_object_keys"),
                (_, "array") => ("cannot deconstruct an array as an object", ""),
                _ => ("cannot deconstruct a scalar", ""),
            };
            return Err(Error::new("22023", of.replace("%s", name)));
        };
        let mut all = vec![];
        while let Some((key, value)) = inside.next()? {
            all.push(match self.kind {
                Json::Keys => key,
                Json::ElementsText | Json::ValuesText => as_text(value)?,
                _ => Some(value.to_owned()),
            });
        }
        Ok(all)
    }

    fn found(&self, text: &str, keys: &[Keys], row: usize) -> std::result::Result<Option<String>, Error> {
        let mut value = text.trim_matches(WHITE);
        if self.kind == Json::Check {
            return Ok(Some(text.to_owned()));
        }
        for key in keys {
            let along = matches!(self.kind, Json::Path | Json::PathText);
            let inside = match key.at(row) {
                None => None,
                Some(Key::Position(position)) => element(value, position)?,
                // Along a path, a number is a position in an array.
                Some(Key::Name(name)) if along && value.starts_with('[') => match name.parse() {
                    Ok(position) => element(value, position)?,
                    Err(_) => None,
                },
                Some(Key::Name(name)) => member(value, name)?,
            };
            match inside {
                Some(inside) => value = inside,
                None => return Ok(None),
            }
        }
        Ok(match self.kind {
            Json::TypeOf => Some(type_of(value).to_owned()),
            Json::GetText | Json::PathText => as_text(value)?,
            Json::Strip => {
                let mut kept = String::with_capacity(value.len());
                strip(value, &mut kept)?;
                Some(kept)
            }
            _ => Some(value.to_owned()),
        })
    }
}

/// A column of keys.
enum Keys {
    Names(ArrayRef),
    Positions(ArrayRef),
}

enum Key<'a> {
    Name(&'a str),
    Position(i64),
}

impl Keys {
    fn new(array: &ArrayRef) -> Result<Self> {
        Ok(match array.data_type().is_integer() {
            true => Self::Positions(cast(array, &DataType::Int64)?),
            false => Self::Names(cast(array, &DataType::Utf8View)?),
        })
    }

    fn at(&self, row: usize) -> Option<Key<'_>> {
        match self {
            Self::Names(names) if names.is_valid(row) => Some(Key::Name(names.as_string_view().value(row))),
            Self::Positions(all) if all.is_valid(row) => {
                Some(Key::Position(all.as_primitive::<Int64Type>().value(row)))
            }
            _ => None,
        }
    }
}

/// JSON's white space.
const WHITE: [char; 4] = [' ', '\t', '\n', '\r'];

fn invalid(error: &serde_json::Error) -> Error {
    Error::new("22P02", "invalid input syntax for type json").with_detail(error.to_string())
}

fn check(text: &str) -> std::result::Result<(), Error> {
    parse::<IgnoredAny>(text).map(drop)
}

fn parse<T: DeserializeOwned>(text: &str) -> std::result::Result<T, Error> {
    serde_json::from_str(text).map_err(|e| invalid(&e))
}

/// The value that `text` begins with, and its bytes.
fn first<T: DeserializeOwned>(text: &str) -> std::result::Result<(T, usize), Error> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    let value = values.next().transpose().map_err(|e| invalid(&e))?;
    let value = value.ok_or_else(|| Error::new("22P02", "invalid input syntax for type json"))?;
    Ok((value, values.byte_offset()))
}

/// The values of an array or object, one after the other, each as it stands in the document; keys of an object before them.
struct Inside<'a> {
    rest: &'a str,
    keys: bool,
}

impl<'a> Inside<'a> {
    /// `None` for other values.
    fn of(value: &'a str, open: char) -> Option<Self> {
        value.strip_prefix(open).map(|rest| Self {
            rest,
            keys: open == '{',
        })
    }

    /// The document was checked before: what stands between values is what should.
    fn next(&mut self) -> std::result::Result<Option<(Option<String>, &'a str)>, Error> {
        let between = |c: char| WHITE.contains(&c) || c == ',' || c == ':';
        self.rest = self.rest.trim_start_matches(between);
        if self.rest.starts_with([']', '}']) || self.rest.is_empty() {
            return Ok(None);
        }
        let mut key = None;
        if self.keys {
            let (name, bytes) = first::<String>(self.rest)?;
            key = Some(name);
            self.rest = self.rest[bytes..].trim_start_matches(between);
        }
        let (_, bytes) = first::<IgnoredAny>(self.rest)?;
        let (value, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        Ok(Some((key, value)))
    }
}

fn member<'a>(value: &'a str, name: &str) -> std::result::Result<Option<&'a str>, Error> {
    let Some(mut inside) = Inside::of(value, '{') else {
        return Ok(None);
    };
    let mut found = None;
    while let Some((key, value)) = inside.next()? {
        if key.as_deref() == Some(name) {
            found = Some(value);
        }
    }
    Ok(found)
}

fn element(value: &str, position: i64) -> std::result::Result<Option<&str>, Error> {
    let Some(mut inside) = Inside::of(value, '[') else {
        return Ok(None);
    };
    let mut all = vec![];
    while let Some((_, value)) = inside.next()? {
        all.push(value);
    }
    let position = if position < 0 {
        position + all.len() as i64
    } else {
        position
    };
    Ok(usize::try_from(position).ok().and_then(|p| all.get(p).copied()))
}

/// A value as text: a string's own, and nothing for null.
fn as_text(value: &str) -> std::result::Result<Option<String>, Error> {
    Ok(match value {
        "null" => None,
        string if string.starts_with('"') => Some(parse(string)?),
        other => Some(other.to_owned()),
    })
}

/// Writes a value without members that are null and without white space. The document was checked, and with it its depth.
fn strip(value: &str, kept: &mut String) -> std::result::Result<(), Error> {
    let (open, close) = match value.as_bytes().first() {
        Some(b'{') => ('{', '}'),
        Some(b'[') => ('[', ']'),
        _ => {
            kept.push_str(value);
            return Ok(());
        }
    };
    let Some(mut inside) = Inside::of(value, open) else {
        return Ok(());
    };
    kept.push(open);
    let mut first = true;
    while let Some((key, value)) = inside.next()? {
        if key.is_some() && value == "null" {
            continue;
        }
        if !std::mem::take(&mut first) {
            kept.push(',');
        }
        if let Some(key) = key {
            super::json_build::quote(&key, kept);
            kept.push(':');
        }
        strip(value, kept)?;
    }
    kept.push(close);
    Ok(())
}

/// The field of a list's elements.
fn item(json: bool) -> FieldRef {
    let name = Field::LIST_FIELD_DEFAULT_NAME;
    match json {
        true => json_field(name),
        false => Arc::new(Field::new(name, DataType::Utf8View, true)),
    }
}

fn length(text: &str) -> std::result::Result<i32, Error> {
    check(text)?;
    let mut inside = match Inside::of(text.trim_matches(WHITE), '[') {
        Some(inside) => inside,
        None => {
            let kind = if type_of(text.trim_matches(WHITE)) == "object" {
                "an object"
            } else {
                "a scalar"
            };
            return Err(Error::new("22023", format!("cannot get array length of {kind}")));
        }
    };
    let mut length = 0;
    while inside.next()?.is_some() {
        length += 1;
    }
    Ok(length)
}

fn type_of(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        _ => "number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_as_they_stood() {
        let text = r#"{"a": {"b" : [1, -2.50e3 ,"x\u0041\"", null, true]}, "a2": 1, "a2":{ "c":2 } }"#;
        let a = member(text, "a").unwrap().unwrap();
        assert_eq!(a, r#"{"b" : [1, -2.50e3 ,"x\u0041\"", null, true]}"#);
        let b = member(a, "b").unwrap().unwrap();
        for (position, wanted) in [
            (0, Some("1")),
            (1, Some("-2.50e3")),
            (2, Some(r#""x\u0041\"""#)),
            (3, Some("null")),
            (-1, Some("true")),
            (5, None),
            (-6, None),
        ] {
            assert_eq!(element(b, position).unwrap(), wanted, "{position}");
        }
        // The last of two counts.
        assert_eq!(member(text, "a2").unwrap(), Some(r#"{ "c":2 }"#));
        assert_eq!(member(b, "a").unwrap(), None);
        assert_eq!(length("[]").unwrap(), 0);
        assert_eq!(length(b).unwrap(), 5);
        assert_eq!(length("{}").unwrap_err().code, "22023");
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "{", "[1,]", "{\"a\" 1}", "nul", "1 2", "'a'", deep.as_str()] {
            assert_eq!(check(text).unwrap_err().code, "22P02");
        }
    }
}
