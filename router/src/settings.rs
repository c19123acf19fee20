//! Settings of a session: which exist, what they may be, what they are.
//!
//! ```text
//!   SET timezone = 'Europe/Zurich'   known, checked        SET tesera.join_order = off   42704, did you mean ...
//!   SET my.thing = 1                 custom: kept as text   SET fsync = off               42704
//! ```
//!
//! `SET LOCAL` has no transaction to end with yet, so the session refuses it. Settings that change results (time zone) travel with every
//! leaf. Settings of PostgreSQL that drivers send and that have one possible meaning here accept just that meaning.

use std::collections::BTreeMap;
use std::time::Duration;
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
struct Setting {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    about: &'static str,
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
const SETTINGS: &[Setting] = &[
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
        Kind::OneOf(&["read committed", "read uncommitted"]),
        "isolation of new transactions",
    ),
    setting(
        "default_transaction_read_only",
        "off",
        Kind::OneOf(&["off"]),
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
        "15.0 (Tessera)",
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
        "tessera.distributed",
        "auto",
        Kind::OneOf(&["auto", "off"]),
        "whether nodes exchange rows among each other; so far they never do",
    ),
    setting("tessera.join_order", "on", Kind::Bool, "whether joins are reordered"),
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
        Kind::OneOf(&["read committed", "read uncommitted"]),
        "isolation of the present transaction",
    ),
    setting(
        "transaction_read_only",
        "off",
        Kind::OneOf(&["off"]),
        "whether the present transaction is read-only",
    ),
];

/// Longest value: nothing sensible is longer, and it is kept for the session's life.
const VALUE_BYTES_MAX: usize = 8 << 10;
/// Most custom settings of one session.
const CUSTOM_MAX: usize = 256;
/// Longest statement without a limit of its own: what one call to a node may take.
const DEADLINE_MAX: Duration = Duration::from_secs(3_600);

/// The values of one session.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    changed: BTreeMap<String, String>,
    /// What RESET goes back to: the values the client sent at its start.
    initial: BTreeMap<String, String>,
}

impl Settings {
    /// Sets a value as the client's startup message does; RESET comes back to it.
    ///
    /// # Errors
    /// Those of [`Settings::set`].
    pub fn set_initial(&mut self, name: &str, value: &str) -> Result<()> {
        self.set(name, value)?;
        let name = name.to_ascii_lowercase();
        if let Some(value) = self.changed.get(&name) {
            self.initial.insert(name, value.clone());
        }
        Ok(())
    }

    /// Sets a value.
    ///
    /// # Errors
    /// 42704 for an unknown name, 22023 for a bad value, 55P02 for one that cannot change, 53400 for too many.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let name = name.to_ascii_lowercase();
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::new(
                "22023",
                format!("value of parameter \"{name}\" is longer than {VALUE_BYTES_MAX} bytes"),
            ));
        }
        let value = match find(&name) {
            Some(setting) => check(setting, value)?,
            None if name.contains('.') && !name.starts_with("tessera.") => self.custom(&name, value)?,
            None => return Err(unknown(&name)),
        };
        self.changed.insert(name, value);
        Ok(())
    }

    fn custom(&self, name: &str, value: &str) -> Result<String> {
        let known = self.changed.contains_key(name);
        if !known && self.changed.keys().filter(|n| find(n).is_none()).count() >= CUSTOM_MAX {
            return Err(Error::new(
                "53400",
                format!("a session may have {CUSTOM_MAX} custom settings"),
            ));
        }
        Ok(value.to_owned())
    }

    /// Back to what the session began with.
    ///
    /// # Errors
    /// 42704 for an unknown name.
    pub fn reset(&mut self, name: &str) -> Result<()> {
        let name = name.to_ascii_lowercase();
        if find(&name).is_none() && !name.contains('.') {
            return Err(unknown(&name));
        }
        match self.initial.get(&name) {
            Some(value) => self.changed.insert(name, value.clone()),
            None => self.changed.remove(&name),
        };
        Ok(())
    }

    /// Everything back to what the session began with.
    pub fn reset_all(&mut self) {
        self.changed = self.initial.clone();
    }

    /// A value; `None` when there is no such setting.
    pub fn get(&self, name: &str) -> Option<String> {
        let name = name.to_ascii_lowercase();
        self.changed
            .get(&name)
            .cloned()
            .or_else(|| find(&name).map(|s| s.default.to_owned()))
    }

    /// A value, for SHOW.
    ///
    /// # Errors
    /// 42704 for an unknown name.
    pub fn show(&self, name: &str) -> Result<String> {
        self.get(name)
            .map(|value| display(name, value))
            .ok_or_else(|| unknown(name))
    }

    /// Name, value and description of every setting, ascending by name.
    pub fn all(&self) -> Vec<(String, String, String)> {
        let known = SETTINGS.iter().map(|s| {
            (
                s.name.to_owned(),
                self.get(s.name).unwrap_or_default(),
                s.about.to_owned(),
            )
        });
        let custom = self
            .changed
            .iter()
            .filter(|(name, _)| find(name).is_none())
            .map(|(n, v)| (n.clone(), v.clone(), String::new()));
        let mut all: Vec<_> = known.chain(custom).collect();
        all.sort();
        all
    }

    /// `statement_timeout`, or the longest a statement may take at all.
    pub fn time_limit(&self) -> Duration {
        match self.get("statement_timeout").and_then(|v| v.parse().ok()) {
            None | Some(0) => DEADLINE_MAX,
            Some(millis) => Duration::from_millis(millis).min(DEADLINE_MAX),
        }
    }

    /// Whether a limit was set by the user.
    pub fn has_time_limit(&self) -> bool {
        self.get("statement_timeout").is_some_and(|v| v != "0")
    }

    /// Schemas of `search_path`, in order; `"$user"` is skipped, since nobody has a schema of that kind here.
    pub fn search_path(&self) -> Vec<String> {
        let path = self.get("search_path").unwrap_or_default();
        let names = path
            .split(',')
            .map(|part| part.trim().trim_matches(['"', '\'']))
            .filter(|part| !part.is_empty() && *part != "$user");
        names.map(str::to_owned).collect()
    }

    /// The schema in which new objects are made: the first of the path.
    pub fn current_schema(&self) -> Option<String> {
        self.search_path().into_iter().next()
    }

    /// A setting that is on or off.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name).as_deref() == Some("on")
    }

    /// What nodes must know to compute the same results.
    pub fn for_nodes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("timezone".to_owned(), self.get("timezone").unwrap_or_default())])
    }
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}

fn unknown(name: &str) -> Error {
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

fn check(setting: &Setting, value: &str) -> Result<String> {
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
fn display(name: &str, value: String) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, value: &str, expected: Result<&str, &str>) {
        let mut settings = Settings::default();
        let got = settings.set(name, value).and_then(|()| settings.show(name));
        assert_eq!(
            got.as_deref().map_err(|e| e.code.as_str()),
            expected,
            "SET {name} = {value}"
        );
    }

    #[test]
    fn values_are_checked_and_shown_as_postgresql_does() {
        check("statement_timeout", "90s", Ok("90s"));
        check("statement_timeout", "120000", Ok("2min"));
        check("statement_timeout", "-1", Err("22023"));
        check("TimeZone", "europe/nowhere", Err("22023"));
        check("TimeZone", "+02:00", Ok("+02:00"));
        check("client_encoding", "unicode", Ok("UTF8"));
        check("client_encoding", "latin1", Err("22023"));
        check("tessera.shard_local", "false", Ok("off"));
        check("tessera.shard_locl", "off", Err("42704"));
        check("my.own", "x", Ok("x"));
        check("server_version", "16", Err("55P02"));
        check("default_transaction_isolation", "serializable", Err("22023"));
    }

    #[test]
    fn unknown_names_suggest_near_ones_and_reset_returns_to_the_start() {
        let mut settings = Settings::default();
        assert_eq!(
            settings.set("statement_timeot", "1").unwrap_err().hint.as_deref(),
            Some("did you mean \"statement_timeout\"?")
        );
        settings.set_initial("application_name", "app").unwrap();
        settings.set("application_name", "other").unwrap();
        settings.reset_all();
        assert_eq!(settings.get("application_name").as_deref(), Some("app"));
        settings.set("search_path", "\"$user\", public, Sales").unwrap();
        assert_eq!(settings.search_path(), ["public", "Sales"]);
    }
}
