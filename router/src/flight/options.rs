//! Session options: SetSessionOptions, GetSessionOptions, CloseSession, as drivers send them at connect and close.
//!
//! ```text
//!   catalog  "tessera", cannot change        schema  the first of search_path        any other  a setting, as SET knows it
//! ```
//!
//! arrow-flight 59 has no types for these messages; they are written down here. Source: `Flight.proto` of Arrow 15.

use super::sessions::{DATABASE, FlightSession};
use prost::Message;
use std::collections::HashMap;
use tessera_proto::{Error, Result};

/// Names of the actions.
pub(super) const SET: &str = "SetSessionOptions";
pub(super) const GET: &str = "GetSessionOptions";
pub(super) const CLOSE: &str = "CloseSession";

/// `SessionOptionValue`; lists are not among our settings.
#[derive(Clone, PartialEq, Message)]
struct OptionValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(map = "string, message", tag = "1")]
    options: HashMap<String, OptionValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SetResult {
    #[prost(map = "string, message", tag = "1")]
    errors: HashMap<String, OptionError>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct OptionError {
    #[prost(int32, tag = "1")]
    value: i32,
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;

#[derive(Clone, Copy, PartialEq, Message)]
struct CloseResult {
    #[prost(int32, tag = "1")]
    status: i32,
}

const CLOSED: i32 = 1;

/// Sets each option by itself; the reply names those that could not be set.
///
/// # Errors
/// 08P01.
pub(super) fn set(session: &FlightSession, body: &[u8]) -> Result<Vec<u8>> {
    let request = Options::decode(body).map_err(|e| Error::protocol(format!("malformed session options: {e}")))?;
    let mut changed = session.copy();
    let mut errors = HashMap::new();
    for (name, value) in request.options {
        let text = match value.value {
            Some(Value::Text(text)) => text,
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Int(value)) => value.to_string(),
            Some(Value::Double(value)) => value.to_string(),
            None => String::new(),
        };
        let failed = match name.as_str() {
            "catalog" if text == DATABASE => None,
            "catalog" => Some(INVALID_VALUE),
            "schema" => changed.set_initial("search_path", &text).err().map(|_| INVALID_VALUE),
            _ => changed.set_initial(&name, &text).err().map(|e| match e.code.as_str() {
                "42704" => INVALID_NAME,
                _ => INVALID_VALUE,
            }),
        };
        errors.extend(failed.map(|value| (name, OptionError { value })));
    }
    session.keep_settings(changed);
    Ok(SetResult { errors }.encode_to_vec())
}

/// Catalog, schema, and the settings that are not the defaults.
pub(super) fn get(session: &FlightSession) -> Vec<u8> {
    let copy = session.copy();
    let text = |text: &str| OptionValue {
        value: Some(Value::Text(text.to_owned())),
    };
    let path = copy.setting("search_path").unwrap_or_default();
    let schema = path
        .split(',')
        .map(|s| s.trim().trim_matches('"'))
        .find(|s| *s != "$user");
    let changed = copy
        .changed_settings()
        .iter()
        .map(|(name, value)| (name.clone(), text(value)));
    let mut options: HashMap<_, _> = changed.collect();
    options.insert("catalog".to_owned(), text(DATABASE));
    options.insert("schema".to_owned(), text(schema.unwrap_or("public")));
    Options { options }.encode_to_vec()
}

/// The reply to CloseSession.
pub(super) fn closed() -> Vec<u8> {
    CloseResult { status: CLOSED }.encode_to_vec()
}
