//! Our errors as gRPC clients see them: a status code that drivers map to their own classes, and SQLSTATE in the text.
//!
//! ```text
//!   42P01  no such relation, hint       NOT_FOUND "[42P01] relation "t" does not exist\nHINT: did you mean "tt"?"
//! ```
//!
//! Between our own processes an [`Error`] travels whole, in the status' details. Not here: those bytes are not what clients
//! of other makers expect in the details, and some fail on them.

use crate::error::{Error, Retry};
use arrow_flight::error::FlightError;
use datafusion::error::DataFusionError;
use tonic::{Code, Status};

/// Longest text: it travels in a header, and peers bound those (16 KiB, percent-encoded threefold at worst).
const TEXT_BYTES_MAX: usize = 4 << 10;

/// The status for a client.
pub fn status(error: &Error) -> Status {
    // Our own code for a stale map is none that drivers know.
    let sqlstate = match error.code.as_str() {
        "TS001" => "40001",
        code => code,
    };
    let mut text = format!("[{sqlstate}] {}", error.message);
    let more = [("DETAIL", &error.detail), ("HINT", &error.hint)];
    for (label, more) in more.into_iter().filter_map(|(l, m)| Some((l, m.as_ref()?))) {
        text.push_str(&format!("\n{label}: {more}"));
    }
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    Status::new(code(error), text)
}

fn code(error: &Error) -> Code {
    match error.retry {
        Retry::RefreshMap | Retry::Restart => return Code::Aborted,
        Retry::Elsewhere => return Code::Unavailable,
        Retry::OutcomeUnknown => return Code::Unknown,
        Retry::No => {}
    }
    let class = error.code.get(..2).unwrap_or_default();
    match error.code.as_str() {
        "42501" => Code::PermissionDenied,
        "42P01" | "42703" | "42883" | "26000" | "3F000" => Code::NotFound,
        "42P07" | "42P06" | "42710" | "23505" => Code::AlreadyExists,
        "57014" => Code::Cancelled,
        "57P01" | "08006" => Code::Unavailable,
        "40003" => Code::Unknown,
        _ => match class {
            "0A" => Code::Unimplemented,
            "28" => Code::Unauthenticated,
            "08" | "22" | "42" | "54" => Code::InvalidArgument,
            "23" | "25" | "55" => Code::FailedPrecondition,
            "40" => Code::Aborted,
            "53" => Code::ResourceExhausted,
            _ => Code::Internal,
        },
    }
}

/// The status for what ended a stream.
pub fn stream_status(error: FlightError) -> Status {
    match error {
        FlightError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
            Ok(error) => status(&Error::from(*error)),
            Err(inner) => match inner.downcast::<Error>() {
                Ok(error) => status(&error),
                Err(inner) => status(&Error::internal(inner.to_string())),
            },
        },
        FlightError::Tonic(status) => *status,
        other => status(&Error::internal(format!("encoding rows: {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_get_a_class_and_people_a_sqlstate() {
        let error = Error::new("42P01", "relation \"t\" does not exist").with_hint("did you mean \"tt\"?");
        let status = status(&error);
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(
            status.message(),
            "[42P01] relation \"t\" does not exist\nHINT: did you mean \"tt\"?"
        );
        assert!(status.details().is_empty());
        let check = |code: &str, expected| assert_eq!(super::code(&Error::new(code, "")), expected, "{code}");
        check("0A000", Code::Unimplemented);
        check("22012", Code::InvalidArgument);
        check("57014", Code::Cancelled);
        check("53400", Code::ResourceExhausted);
        check("XX000", Code::Internal);
        check("é", Code::Internal);
        let long = super::status(&Error::new("22000", "ä".repeat(TEXT_BYTES_MAX)));
        assert!(long.message().len() <= TEXT_BYTES_MAX);
    }
}
