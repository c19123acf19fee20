//! Errors and notices as the fields PostgreSQL's clients show.
//!
//! ```text
//!   S ERROR  V ERROR  C 42601  M syntax error at or near "FORM"  D ..  H ..  P 18
//! ```

use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};
use tessera_proto::{Error, Retry};

/// How bad an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
}

/// The message that reports `error`.
pub(super) fn error_message(error: &Error, severity: Severity) -> PgWireBackendMessage {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    PgWireBackendMessage::ErrorResponse(ErrorResponse::new(fields(error, severity)))
}

/// The message that tells of `notice`: a warning if its code is of class 01, a notice otherwise.
pub(super) fn notice_message(notice: &Error) -> PgWireBackendMessage {
    let severity = if notice.code.starts_with("01") {
        "WARNING"
    } else {
        "NOTICE"
    };
    PgWireBackendMessage::NoticeResponse(NoticeResponse::new(fields(notice, severity)))
}

fn fields(error: &Error, severity: &str) -> Vec<(u8, String)> {
    // A stale shard map is ours to retry; a client that sees it all the same should know that repeating is right.
    let code = match error.retry {
        Retry::RefreshMap => "40001",
        _ if error.code.len() == 5 => error.code.as_str(),
        _ => "XX000",
    };
    let mut fields = vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', code.to_owned()),
    ];
    fields.push((b'M', clean(&error.message)));
    fields.extend(error.detail.as_deref().map(|detail| (b'D', clean(detail))));
    fields.extend(error.hint.as_deref().map(|hint| (b'H', clean(hint))));
    fields.extend(error.position.map(|position| (b'P', position.to_string())));
    fields
}

/// Fields end at a zero byte, so a text that quotes user data must not contain one.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
