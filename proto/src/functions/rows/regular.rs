//! Regular expressions that split and that find several matches.
//!
//! ```text
//!   regexp_matches('aXbX', '(.)X', 'g')   {a} {b}      each match its groups, or the whole where there are none
//!   regexp_split_to_array('a b', ' ')     {a,b}
//! ```
//!
//! Expressions are of Rust's regex crate, as those of `~` and `regexp_replace` are. Not here: the flags of PostgreSQL that
//! choose another dialect of expressions.

use super::{Out, Row, text};
use crate::error::{Error, Result};
use regex::{Regex, RegexBuilder};
use std::cell::RefCell;

thread_local! {
    /// The expression that was used last, by pattern and flags: of a constant all rows use one.
    static LAST: RefCell<Option<(String, String, Regex)>> = const { RefCell::new(None) };
}

/// The expression, and whether all matches count.
fn compiled(pattern: &str, flags: &str) -> Result<(Regex, bool)> {
    let all = flags.contains('g');
    let last = LAST.with_borrow(|last| {
        let last = last.as_ref().filter(|(p, f, _)| p == pattern && f == flags);
        last.map(|(_, _, regex)| regex.clone())
    });
    if let Some(regex) = last {
        return Ok((regex, all));
    }
    let mut builder = RegexBuilder::new(pattern);
    // PostgreSQL's dot takes line breaks, too.
    builder.dot_matches_new_line(true);
    for flag in flags.chars() {
        match flag {
            'g' | 't' => {}
            'i' => {
                builder.case_insensitive(true);
            }
            'c' => {
                builder.case_insensitive(false);
            }
            'n' | 'm' => {
                builder.multi_line(true).dot_matches_new_line(false);
            }
            'w' => {
                builder.multi_line(true);
            }
            'p' => {
                builder.dot_matches_new_line(false);
            }
            's' => {
                builder.multi_line(false).dot_matches_new_line(true);
            }
            'x' => {
                builder.ignore_whitespace(true);
            }
            flag => {
                let message = format!("invalid regular expression option: \"{flag}\"");
                return Err(Error::new("22023", message));
            }
        }
    }
    let regex = builder.build().map_err(|e| {
        let message = format!("invalid regular expression: {pattern}");
        Error::new("2201B", message).with_detail(e.to_string())
    })?;
    LAST.set(Some((pattern.to_owned(), flags.to_owned(), regex.clone())));
    Ok((regex, all))
}

fn found(captures: &regex::Captures<'_>) -> Vec<Option<String>> {
    let group = |group: Option<regex::Match<'_>>| group.map(|group| group.as_str().to_owned());
    match captures.len() {
        1 => vec![group(captures.get(0))],
        _ => captures.iter().skip(1).map(group).collect(),
    }
}

pub(super) fn matches(row: Row<'_, '_>) -> Result<Out> {
    let (regex, all) = compiled(text(row, 1), text(row, 2))?;
    let matches = regex.captures_iter(text(row, 0)).take(if all { usize::MAX } else { 1 });
    Ok(Out::TextsList(matches.map(|captures| found(&captures)).collect()))
}

pub(super) fn split(row: Row<'_, '_>) -> Result<Out> {
    let (given, flags) = (text(row, 0), text(row, 2));
    if flags.contains('g') {
        let message = "regexp_split_to_array() does not support the \"global\" option";
        return Err(Error::new("22023", message));
    }
    let (regex, _) = compiled(text(row, 1), flags)?;
    let (mut parts, mut from) = (vec![], 0);
    for found in regex.find_iter(given) {
        // Nothing at the beginning or end, or right behind a match, splits nothing.
        if found.is_empty() && (found.start() == from || found.start() == given.len()) && found.start() == 0 {
            continue;
        }
        if found.is_empty() && found.start() == given.len() {
            continue;
        }
        parts.push(Some(given[from..found.start()].to_owned()));
        from = found.end();
    }
    parts.push(Some(given[from..].to_owned()));
    Ok(Out::Texts(parts))
}

pub(super) fn substr(row: Row<'_, '_>) -> Result<Out> {
    let (regex, _) = compiled(text(row, 1), "")?;
    Ok(match regex.find(text(row, 0)) {
        Some(found) => Out::Text(found.as_str().to_owned()),
        None => Out::Null,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::*;

    fn parts(given: &'static str, pattern: &'static str) -> String {
        let row = [given, pattern].map(|text| Some(Value::Text(text)));
        match split(&row).unwrap() {
            Out::Texts(parts) => parts.into_iter().flatten().collect::<Vec<_>>().join("|"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn splits_as_postgresql_does() {
        assert_eq!(parts("a b  c", "\\s+"), "a|b|c");
        assert_eq!(parts("abc", ""), "a|b|c");
        assert_eq!(parts(" a ", " "), "|a|");
        assert_eq!(parts("", "x"), "");
        assert_eq!(parts("a1b22c", "[0-9]*"), "a|b|c");
    }
}
