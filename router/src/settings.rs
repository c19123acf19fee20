//! Settings of a session: which exist, what they may be, what they are.
//!
//! ```text
//!   SET timezone = 'Europe/Zurich'   known, checked        SET tesera.join_order = off   42704, did you mean ...
//!   SET my.thing = 1                 custom: kept as text   SET fsync = off               42704
//! ```
//!
//! What SET LOCAL and ROLLBACK go back to is the session's business (session/control.rs). Settings that change results (time zone) travel with every
//! leaf. Settings of PostgreSQL that drivers send and that have one possible meaning here accept just that meaning.

mod known;

use known::{SETTINGS, check, display, find, unknown};
use std::collections::BTreeMap;
use std::time::Duration;
use tessera_proto::frugal::{BATCH_ROWS, HASH_JOIN};
use tessera_proto::{Error, Result};

/// The version in PostgreSQL's form, everywhere the same: clients parse the front, people read the rest.
pub(crate) const SERVER_VERSION: &str = concat!("15.0 (Tessera ", env!("CARGO_PKG_VERSION"), ")");
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

    /// Values that are not the defaults.
    pub fn changed(&self) -> &BTreeMap<String, String> {
        &self.changed
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
        let names = ["timezone", HASH_JOIN, BATCH_ROWS];
        let value = |name: &str| (name.to_owned(), self.get(name).unwrap_or_default());
        names.into_iter().map(value).collect()
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
