//! Errors of other layers as the one error clients see.
//!
//! ```text
//!   ParseError ──┐
//!   DataFusionError (through tessera_proto) ──┼──▶ Error { code, message, detail, hint, position }
//!   CAS lost too often, cancelled, timed out ─┘
//! ```

use tessera_parser::{ParseError, Unsupported};
use tessera_proto::{Error, Retry};

/// A text that is no statement.
pub fn from_parse(error: ParseError) -> Error {
    let mut out = Error::new(error.sqlstate, error.message);
    out.hint = error.hint;
    out.position = error.position;
    out
}

/// A statement or clause that is recognised and not done.
pub fn from_unsupported(unsupported: &Unsupported) -> Error {
    Error::unsupported(
        format!("{} is not supported", unsupported.what),
        unsupported.hint.clone(),
    )
}

/// No such table or view.
pub fn no_relation<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Error {
    let error = Error::new("42P01", format!("relation \"{name}\" does not exist"));
    let bare = name.rsplit('.').next().unwrap_or(name);
    match did_you_mean(bare, known) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
        None => error,
    }
}

/// No such column.
pub fn no_column<'a>(name: &str, table: &str, known: impl IntoIterator<Item = &'a str>) -> Error {
    let error = Error::new(
        "42703",
        format!("column \"{name}\" of relation \"{table}\" does not exist"),
    );
    match did_you_mean(name, known) {
        Some(near) => error.with_hint(format!("did you mean \"{near}\"?")),
        None => error,
    }
}

/// 57014 by the user's wish.
pub fn cancelled_by_user() -> Error {
    Error::cancelled("canceling statement due to user request")
}

/// 57014 by the clock.
pub fn timed_out() -> Error {
    Error::cancelled("canceling statement due to statement timeout").with_hint("SET statement_timeout allows more time")
}

/// What a client sees of an error that retries could not get rid of: ours are not SQLSTATEs that drivers know.
pub fn give_up(mut error: Error) -> Error {
    if error.code == "TS001" {
        error.code = "40001".into();
        error
            .hint
            .get_or_insert_with(|| "shards are moving; run the statement again".into());
    }
    if error.retry == Retry::Elsewhere {
        error.hint.get_or_insert_with(|| {
            "nothing was done; run the statement again once the node is back or its follower leads".into()
        });
    }
    error
}

/// The known name that `word` is most likely a misspelling of: at most two letters wrong, and fewer than a third.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs the product of both lengths.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|name| (distance(&word, &name.to_ascii_lowercase()), name))
        .filter(|(d, name)| *d <= 2 && d * 3 <= name.len())
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
