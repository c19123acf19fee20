//! What the server says about a statement, in psql's words: errors with a caret, notices, command tags.
//!
//! ```text
//! ERROR:  column "foo" does not exist
//! LINE 1: select foo from t;
//!                ^
//! HINT:  ...
//! ```

use std::fmt::Write as _;

use tokio_postgres::error::{DbError, ErrorPosition};
use unicode_width::UnicodeWidthChar;

/// Cells of the statement shown around an error, and those kept to its right: libpq's numbers.
const LINE_CELLS_MAX: usize = 60;
const RIGHT_CELLS_MIN: usize = 10;

/// An error or notice as psql prints it, with line feeds; `statement` is the text that was sent.
pub fn describe(error: &DbError, statement: &str) -> String {
    let mut text = format!("{}:  {}\n", error.severity(), error.message());
    if let Some(ErrorPosition::Original(position)) = error.position() {
        text.push_str(&caret(statement, *position as usize).unwrap_or_default());
    }
    for (label, part) in [
        ("DETAIL", error.detail()),
        ("HINT", error.hint()),
        ("CONTEXT", error.where_()),
    ] {
        if let Some(part) = part {
            let _ = writeln!(text, "{label}:  {part}");
        }
    }
    text
}

/// The line of `statement` that holds character `position` (from 1) and a caret below it.
fn caret(statement: &str, position: usize) -> Option<String> {
    let at = position.checked_sub(1)?;
    let before: String = statement.chars().take(at).collect();
    let line_number = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[line_start..].chars().count();
    let tab_to_blank = |c| if c == '\t' { ' ' } else { c };
    let line: Vec<char> = statement
        .lines()
        .nth(line_number - 1)?
        .chars()
        .map(tab_to_blank)
        .collect();
    let cells = |range: &[char]| range.iter().map(|c| c.width().unwrap_or(0)).sum::<usize>();
    let (mut begin, mut end) = (0, line.len());
    let column = column.min(end);
    if cells(&line) > LINE_CELLS_MAX {
        if LINE_CELLS_MAX >= cells(&line[..column]) + RIGHT_CELLS_MIN {
            while cells(&line[begin..end]) > LINE_CELLS_MAX {
                end -= 1;
            }
        } else {
            while end > column && cells(&line[column..end]) > RIGHT_CELLS_MIN {
                end -= 1;
            }
            while begin < column && cells(&line[begin..end]) > LINE_CELLS_MAX {
                begin += 1;
            }
        }
    }
    let dots = |cut| if cut { "..." } else { "" };
    let label = format!("LINE {line_number}: {}", dots(begin > 0));
    let shown: String = line[begin..end].iter().collect();
    let gap = " ".repeat(label.len() + cells(&line[begin..column]));
    Some(format!("{label}{shown}{}\n{gap}^\n", dots(end < line.len())))
}

/// The words of a statement before its first bracket, quote or number, in upper case: enough to tell what it is.
fn leading_words(statement: &str) -> Vec<String> {
    let mut rest = statement.trim_start();
    loop {
        rest = match rest.strip_prefix("--") {
            Some(comment) => comment.split_once('\n').map_or("", |(_, after)| after).trim_start(),
            None if rest.starts_with("/*") => rest.split_once("*/").map_or("", |(_, after)| after).trim_start(),
            None => break,
        };
    }
    let word = |text: &str| text.trim_end_matches(';').to_uppercase();
    rest.split([' ', '\n', '\t', '\r', '('])
        .filter(|text| !text.is_empty())
        .take(8)
        .map(word)
        .collect()
}

/// Whether a statement returns rows whose types are worth asking for.
pub fn returns_rows(statement: &str) -> bool {
    let words = leading_words(statement);
    words
        .first()
        .is_some_and(|word| matches!(word.as_str(), "SELECT" | "WITH" | "VALUES" | "TABLE"))
}

/// The two directions in which COPY can move rows over the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyDirection {
    /// `COPY ... FROM STDIN`: rows come from this side.
    In,
    /// `COPY ... TO STDOUT`: rows go to this side.
    Out,
}

/// Whether a statement is a COPY over the connection.
pub fn copy_direction(statement: &str) -> Option<CopyDirection> {
    if leading_words(statement).first()? != "COPY" {
        return None;
    }
    let words: Vec<String> = statement
        .split([' ', '\n', '\t', ')', ';', '('])
        .filter(|w| !w.is_empty())
        .map(str::to_uppercase)
        .collect();
    let has = |a: &str, b: &str| words.windows(2).any(|pair| pair[0] == a && pair[1] == b);
    match (has("FROM", "STDIN"), has("TO", "STDOUT")) {
        (true, _) => Some(CopyDirection::In),
        (_, true) => Some(CopyDirection::Out),
        _ => None,
    }
}

/// The command tag: the driver passes on only the number of rows, so its words are taken from the statement.
pub fn tag(statement: &str, rows: u64) -> String {
    let words = leading_words(statement);
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    match word(0) {
        "INSERT" => format!("INSERT 0 {rows}"),
        verb @ ("UPDATE" | "DELETE" | "MERGE" | "COPY" | "FETCH" | "MOVE" | "SELECT" | "VALUES" | "WITH" | "TABLE") => {
            format!(
                "{} {rows}",
                if matches!(verb, "VALUES" | "WITH" | "TABLE") {
                    "SELECT"
                } else {
                    verb
                }
            )
        }
        "CREATE" if words.iter().any(|word| word == "AS") && words.iter().any(|word| word == "TABLE") => {
            format!("SELECT {rows}")
        }
        verb @ ("CREATE" | "DROP" | "ALTER" | "REFRESH") => {
            let skipped = [
                "OR",
                "REPLACE",
                "TEMP",
                "TEMPORARY",
                "UNLOGGED",
                "UNIQUE",
                "REFERENCE",
                "EXTERNAL",
            ];
            let object = words.iter().skip(1).find(|word| !skipped.contains(&word.as_str()));
            let object = object.map_or("", String::as_str);
            let view = if object == "MATERIALIZED" { " VIEW" } else { "" };
            format!("{verb} {object}{view}")
        }
        "START" => "START TRANSACTION".to_owned(),
        "END" => "COMMIT".to_owned(),
        "ABORT" => "ROLLBACK".to_owned(),
        "TRUNCATE" => "TRUNCATE TABLE".to_owned(),
        "DECLARE" => "DECLARE CURSOR".to_owned(),
        "CLOSE" => "CLOSE CURSOR".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected texts are psql 15's.
    #[test]
    fn the_caret_stands_under_the_error() {
        let check = |statement: &str, needle: &str, expected: &str| {
            let position = statement[..statement.find(needle).expect("in the statement")]
                .chars()
                .count()
                + 1;
            assert_eq!(caret(statement, position).as_deref(), Some(expected));
        };
        check(
            "select * from nope;",
            "nope",
            "LINE 1: select * from nope;\n                      ^\n",
        );
        check("select\n  foo from zz;", "foo", "LINE 2:   foo from zz;\n          ^\n");
        let long = format!("select '{}', foo, '{}' from zz;", "a".repeat(68), "b".repeat(43));
        let expected = format!("LINE 1: ...{}', foo, 'bbbb...\n{}^\n", "a".repeat(47), " ".repeat(61));
        check(&long, "foo", &expected);
        assert_eq!(caret("x", 0), None);
        assert!(caret("x", 99).is_some());
    }

    #[test]
    fn tags_name_what_was_done() {
        let check = |statement: &str, expected: &str| assert_eq!(tag(statement, 3), expected);
        check("insert into t values (1)", "INSERT 0 3");
        check("create or replace view v as select 1", "CREATE VIEW");
        check("create reference table t(a int)", "CREATE TABLE");
        check("-- note\ncreate table t as select 1", "SELECT 3");
        check("drop table if exists t;", "DROP TABLE");
        check("commit;", "COMMIT");
        assert_eq!(
            copy_direction("copy t (a) from stdin with (format csv)"),
            Some(CopyDirection::In)
        );
        assert_eq!(copy_direction("COPY (select 1) TO STDOUT;"), Some(CopyDirection::Out));
        assert_eq!(copy_direction("copy t from '/x.csv'"), None);
    }
}
