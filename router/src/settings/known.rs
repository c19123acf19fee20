//! The settings there are, and what their values may be.
//!
//! Not here: settings of PostgreSQL without a meaning in Tessera. They are unknown rather than ignored.

use super::SERVER_VERSION;
use tessera_proto::{Error, Result};

/// How a setting's text is checked.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Anything.
    Text,
    /// on, off, true, false, yes, no, 1, 0; kept as on or off.
    Bool,
    /// Milliseconds, or a number with ms, s, min, h, d; kept in milliseconds.
    Millis,
    /// An integer in a range.
    Int(i64, i64),
    /// One of these, case ignored; kept in lower case.
    OneOf(&'static [&'static str]),
    /// A time zone.
    Zone,
    /// Shown, never set.
    ReadOnly,
}

/// One setting.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    kind: Kind,
    pub(super) about: &'static str,
}

const fn setting(name: &'static str, default: &'static str, kind: Kind, about: &'static str) -> Setting {
    Setting {
        name,
        default,
        kind,
        about,
    }
}

/// All settings, ascending by name.
pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "application_name",
        "",
        Kind::Text,
        "name of the client, for the lists of sessions",
    ),
    setting("bytea_output", "hex", Kind::OneOf(&["hex"]), "text form of bytea"),
    setting(
        "client_encoding",
        "UTF8",
        Kind::OneOf(&["utf8", "unicode", "utf-8"]),
        "encoding of the client's text",
    ),
    setting(
        "client_min_messages",
        "notice",
        Kind::OneOf(&[
            "debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error",
        ]),
        "least severe message that is sent",
    ),
    setting(
        "datestyle",
        "ISO, MDY",
        Kind::OneOf(&[
            "iso", "iso, mdy", "iso,mdy", "iso, ymd", "iso,ymd", "iso, dmy", "iso,dmy",
        ]),
        "text form of dates; always ISO",
    ),
    setting(
        "default_transaction_isolation",
        "read committed",
        Kind::OneOf(&["read committed", "read uncommitted", "repeatable read"]),
        "isolation of new transactions",
    ),
    setting(
        "default_transaction_read_only",
        "off",
        Kind::Bool,
        "whether transactions are read-only",
    ),
    setting("extra_float_digits", "1", Kind::Int(-15, 3), "digits of floats in text"),
    setting(
        "idle_in_transaction_session_timeout",
        "0",
        Kind::Millis,
        "longest idle time inside a transaction",
    ),
    setting(
        "integer_datetimes",
        "on",
        Kind::ReadOnly,
        "dates and times are integers",
    ),
    setting(
        "intervalstyle",
        "postgres",
        Kind::OneOf(&["postgres"]),
        "text form of intervals",
    ),
    setting("lc_collate", "C", Kind::ReadOnly, "collation: by bytes"),
    setting("lc_ctype", "C", Kind::ReadOnly, "character classes"),
    setting("lock_timeout", "0", Kind::Millis, "longest wait for a lock"),
    setting("max_identifier_length", "63", Kind::ReadOnly, "longest name, in bytes"),
    setting(
        "search_path",
        "public",
        Kind::Text,
        "schemas in which unqualified names are looked up",
    ),
    setting("server_encoding", "UTF8", Kind::ReadOnly, "encoding of stored text"),
    setting(
        "server_version",
        SERVER_VERSION,
        Kind::ReadOnly,
        "PostgreSQL version whose behaviour is followed",
    ),
    setting("server_version_num", "150000", Kind::ReadOnly, "the same as a number"),
    setting(
        "standard_conforming_strings",
        "on",
        Kind::OneOf(&["on"]),
        "backslashes in strings are ordinary",
    ),
    setting(
        "statement_timeout",
        "0",
        Kind::Millis,
        "longest run time of a statement; 0 is without limit",
    ),
    setting(
        tessera_proto::frugal::BATCH_ROWS,
        "256",
        Kind::Int(16, 8_192),
        "rows of a batch where tessera.hash_join is off: fewer take less memory and more time",
    ),
    setting(
        "tessera.distributed",
        "auto",
        Kind::OneOf(&["auto", "off", "on"]),
        "whether nodes exchange rows among each other: by the estimated bytes, never, or wherever they can",
    ),
    setting(
        tessera_proto::frugal::HASH_JOIN,
        "on",
        Kind::Bool,
        "whether joins may keep one side in memory; off sorts both sides, which may spill",
    ),
    setting("tessera.join_order", "on", Kind::Bool, "whether joins are reordered"),
    setting(
        "tessera.semi_join_filters",
        "auto",
        Kind::OneOf(&["auto", "off", "on"]),
        "whether join keys are read first and sent to the other side's scans: by the estimated savings, never, or wherever they can",
    ),
    setting(
        "tessera.shard_local",
        "on",
        Kind::Bool,
        "whether subplans are pushed to the shards as a whole",
    ),
    setting("timezone", "UTC", Kind::Zone, "time zone of timestamptz in text"),
    setting(
        "transaction_isolation",
        "read committed",
        Kind::OneOf(&["read committed", "read uncommitted", "repeatable read"]),
        "isolation of the present transaction",
    ),
    setting(
        "transaction_read_only",
        "off",
        Kind::Bool,
        "whether the present transaction is read-only",
    ),
];

/// The setting of this name, lower case.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}

/// 42704.
pub(super) fn unknown(name: &str) -> Error {
    let error = Error::new("42704", format!("unrecognized configuration parameter \"{name}\""));
    match crate::error::did_you_mean(name, SETTINGS.iter().map(|s| s.name)) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
        None => error.with_hint("SHOW ALL lists the parameters; names with a dot may be invented freely"),
    }
}

fn invalid(setting: &Setting, value: &str, hint: String) -> Error {
    Error::new(
        "22023",
        format!("invalid value for parameter \"{}\": \"{value}\"", setting.name),
    )
    .with_hint(hint)
}

/// The value as it is kept.
///
/// # Errors
/// 22023 for a bad value, 55P02 for a setting that cannot change.
pub(super) fn check(setting: &Setting, value: &str) -> Result<String> {
    let lower = value.trim().to_ascii_lowercase();
    match setting.kind {
        Kind::Text => Ok(value.to_owned()),
        Kind::ReadOnly => Err(Error::new(
            "55P02",
            format!("parameter \"{}\" cannot be changed", setting.name),
        )),
        Kind::Bool => match lower.as_str() {
            "on" | "true" | "yes" | "1" | "t" => Ok("on".into()),
            "off" | "false" | "no" | "0" | "f" => Ok("off".into()),
            _ => Err(invalid(setting, value, "it is on or off".into())),
        },
        Kind::OneOf(_) if lower == setting.default.to_ascii_lowercase() => Ok(setting.default.to_owned()),
        Kind::OneOf(words) if words.contains(&lower.as_str()) => Ok(canonical(setting, &lower)),
        Kind::OneOf(words) => Err(invalid(setting, value, format!("available: {}", words.join(", ")))),
        Kind::Int(min, max) => match lower.parse::<i64>() {
            Ok(n) if (min..=max).contains(&n) => Ok(n.to_string()),
            _ => Err(invalid(setting, value, format!("it is an integer from {min} to {max}"))),
        },
        Kind::Millis => millis(&lower)
            .map(|n| n.to_string())
            .ok_or_else(|| invalid(setting, value, "valid units are ms, s, min, h and d".into())),
        Kind::Zone => zone(value.trim()).ok_or_else(|| {
            invalid(
                setting,
                value,
                "use a name such as Europe/Zurich, UTC, or an offset such as +02:00".into(),
            )
        }),
    }
}

/// Settings with one meaning keep their usual spelling.
fn canonical(setting: &Setting, lower: &str) -> String {
    match setting.name {
        "client_encoding" | "datestyle" => setting.default.to_owned(),
        _ => lower.to_owned(),
    }
}

fn millis(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // PostgreSQL's own bound: an int4 of milliseconds.
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(factor)
        .filter(|n| *n <= i32::MAX as u64)
}

/// The zone as Arrow understands it.
fn zone(text: &str) -> Option<String> {
    let name = match text.to_ascii_lowercase().as_str() {
        "utc" | "gmt" | "z" | "zulu" | "default" | "local" => "UTC".to_owned(),
        _ => text.to_owned(),
    };
    // A bare number is an offset in hours, as the SQL standard has it.
    let name = match name.parse::<i32>() {
        Ok(hours) if hours.abs() <= 15 => format!("{}{:02}:00", if hours < 0 { '-' } else { '+' }, hours.abs()),
        _ => name,
    };
    name.parse::<datafusion::arrow::array::timezone::Tz>()
        .ok()
        .map(|_| name)
}

/// Milliseconds are shown with a unit, as PostgreSQL does.
pub(super) fn display(name: &str, value: String) -> String {
    let is_time = find(&name.to_ascii_lowercase()).is_some_and(|s| matches!(s.kind, Kind::Millis));
    match value.parse::<u64>() {
        Ok(n) if is_time && n > 0 => match n {
            n if n % 3_600_000 == 0 => format!("{}h", n / 3_600_000),
            n if n % 60_000 == 0 => format!("{}min", n / 60_000),
            n if n % 1_000 == 0 => format!("{}s", n / 1_000),
            n => format!("{n}ms"),
        },
        _ => value,
    }
}
