//! Arrays in quotes.
//!
//! ```text
//!   '{1,NULL,3}'      three elements, the second NULL        '{}'   none
//!   '{"a,b", c }'     quoted with commas and blanks, or not; blanks outside of quotes mean nothing
//!   '{{1,2},{3,4}}'   of int[] in PostgreSQL, too; here it is 22P02 unless the type is int[][]
//! ```
//!
//! Not here: lower bounds (`'[0:1]={1,2}'`), which are 0A000. Source: PostgreSQL 15, section 8.15.6.

use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;
use tessera_proto::{Error, Result};

/// The array that `text` stands for; `element` reads one element's text, and says `None` where it is kept as text.
///
/// # Errors
/// 22P02 for text that is no array, and what `element` says.
pub(super) fn read(
    text: &str,
    of: &DataType,
    element: &dyn Fn(&str, &DataType) -> Result<Option<ScalarValue>>,
) -> Result<ScalarValue> {
    let malformed = || Error::new("22P02", format!("malformed array literal: \"{text}\""));
    let trimmed = text.trim();
    if trimmed.starts_with('[') {
        return Err(Error::unsupported(
            "arrays with lower bounds are not supported",
            "leave them out: '{1,2}'",
        ));
    }
    let inside = trimmed.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let parts = parts(inside.ok_or_else(malformed)?).ok_or_else(malformed)?;
    let mut values = Vec::with_capacity(parts.len());
    for part in parts {
        let value = match (part, of) {
            (Part::Array(text), DataType::List(field)) => read(&text, field.data_type(), element)?,
            (Part::Array(_), _) | (Part::Text(_), DataType::List(_)) => return Err(malformed()),
            (Part::Null, of) => ScalarValue::try_from(of)?,
            (Part::Text(text), of) => match element(&text, of)? {
                Some(value) => value,
                None => ScalarValue::Utf8View(Some(text)).cast_to(of)?,
            },
        };
        values.push(value);
    }
    Ok(ScalarValue::List(ScalarValue::new_list_nullable(&values, of)))
}

enum Part {
    Null,
    Text(String),
    /// With its braces.
    Array(String),
}

/// What stands between the outermost braces; `None` where they, quotes or commas are wrong.
fn parts(inside: &str) -> Option<Vec<Part>> {
    let mut all = vec![];
    let mut rest = inside.trim_start();
    if rest.is_empty() {
        return Some(all);
    }
    loop {
        let (part, after) = match rest.chars().next()? {
            '{' => array(rest)?,
            '"' => quoted(&rest[1..])?,
            _ => bare(rest)?,
        };
        all.push(part);
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None if after.is_empty() => return Some(all),
            None => return None,
        }
    }
}

fn array(text: &str) -> Option<(Part, &str)> {
    let (mut depth, mut in_quotes, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_quotes = !in_quotes,
            '{' if !in_quotes => depth += 1,
            '}' if !in_quotes => depth -= 1,
            _ => {}
        }
        if depth == 0 && !in_quotes {
            let (part, rest) = text.split_at(at + 1);
            return Some((Part::Array(part.to_owned()), rest));
        }
    }
    None
}

fn quoted(text: &str) -> Option<(Part, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((Part::Text(value), &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn bare(text: &str) -> Option<(Part, &str)> {
    let (mut value, mut kept) = (String::new(), 0);
    let mut characters = text.char_indices();
    let rest = loop {
        let Some((at, c)) = characters.next() else { break "" };
        match c {
            ',' => break &text[at..],
            '{' | '}' | '"' => return None,
            '\\' => {
                value.push(characters.next()?.1);
                kept = value.len();
            }
            c => {
                value.push(c);
                if !c.is_whitespace() {
                    kept = value.len();
                }
            }
        }
    };
    value.truncate(kept);
    match value.as_str() {
        "" => None,
        null if null.eq_ignore_ascii_case("null") => Some((Part::Null, rest)),
        _ => Some((Part::Text(value), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> String {
        let of = DataType::Utf8View;
        match read(text, &of, &|_, _| Ok(None)) {
            Ok(value) => value.to_string(),
            Err(error) => error.code.to_string(),
        }
    }

    #[test]
    fn reads_what_postgresql_reads() {
        for (text, wanted) in [
            ("{}", "[]"),
            (" { a , \"b,\\\"c\" , NULL, \"NULL\",d e } ", "[a, b,\"c, , NULL, d e]"),
            ("{a", "22P02"),
            ("a}", "22P02"),
            ("{a,}", "22P02"),
            ("{,a}", "22P02"),
            ("{a\"b\"}", "22P02"),
            ("{\"a\"b}", "22P02"),
            ("{{a}}", "22P02"),
            ("{\\", "22P02"),
            ("[1:1]={a}", "0A000"),
        ] {
            assert_eq!(texts(text), wanted, "{text}");
        }
        let of = DataType::new_list(DataType::Utf8View, true);
        let nested = read("{{a,\"}\"},{b}}", &of, &|_, _| Ok(None)).unwrap();
        assert_eq!(nested.to_string(), "[[a, }], [b]]");
    }
}
