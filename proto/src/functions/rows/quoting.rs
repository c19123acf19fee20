//! Text that is part of a statement, and `format`.
//!
//! ```text
//!   quote_ident('A b')  "A b"     quote_literal('it''s')  'it''s'     quote_nullable(NULL)  NULL
//!   format('%2$s %-5s|%I %L %%', 'a', 'B c')      %[n$][-][width|*]s, I or L
//! ```

use super::{Out, Row, Value, text};
use crate::error::{Error, Result};

/// Characters that a width may ask for, so that one row stays small.
const WIDTH_MAX: usize = 1 << 20;

/// Words that are no names without quotes: PostgreSQL's keywords that are not of the unreserved kind.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "between",
    "bigint",
    "binary",
    "bit",
    "boolean",
    "both",
    "case",
    "cast",
    "char",
    "character",
    "check",
    "coalesce",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "dec",
    "decimal",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "exists",
    "extract",
    "false",
    "fetch",
    "float",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "greatest",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "inout",
    "int",
    "integer",
    "intersect",
    "interval",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "least",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "national",
    "natural",
    "nchar",
    "none",
    "normalize",
    "not",
    "notnull",
    "null",
    "nullif",
    "numeric",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "out",
    "outer",
    "overlaps",
    "overlay",
    "placing",
    "position",
    "precision",
    "primary",
    "real",
    "references",
    "returning",
    "right",
    "row",
    "select",
    "session_user",
    "setof",
    "similar",
    "smallint",
    "some",
    "substring",
    "symmetric",
    "table",
    "tablesample",
    "then",
    "time",
    "timestamp",
    "to",
    "trailing",
    "treat",
    "trim",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "values",
    "varchar",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
    "xmlattributes",
    "xmlconcat",
    "xmlelement",
    "xmlexists",
    "xmlforest",
    "xmlnamespaces",
    "xmlparse",
    "xmlpi",
    "xmlroot",
    "xmlserialize",
    "xmltable",
];

fn ident(name: &str) -> String {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let plain = name.starts_with(first)
        && name.chars().all(|c| first(c) || c.is_ascii_digit())
        && RESERVED.binary_search(&name).is_err();
    match plain {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

pub(super) fn quote_ident(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Text(ident(text(row, 0))))
}

pub(super) fn quote_literal(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Text(literal(text(row, 0))))
}

pub(super) fn quote_nullable(row: Row<'_, '_>) -> Result<Out> {
    Ok(Out::Text(match row.first() {
        Some(Some(Value::Text(value))) => literal(value),
        _ => "NULL".to_owned(),
    }))
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new("22023", message)
}

pub(super) fn format(row: Row<'_, '_>) -> Result<Out> {
    let Some(Some(Value::Text(pattern))) = row.first() else {
        return Ok(Out::Null);
    };
    let ended = || wrong("unterminated format() type specifier").with_hint("for a single \"%\" use \"%%\"");
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    let mut next = 1;
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if rest.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut position = None;
        let mut width: Option<i64> = None;
        // A number is a position if a dollar sign follows it, else a width.
        let number = number(&mut rest)?;
        if number.is_some() && rest.next_if_eq(&'$').is_some() {
            position = number;
        } else if number.is_some() {
            width = number;
        }
        let mut left = false;
        if width.is_none() {
            while rest.next_if_eq(&'-').is_some() {
                left = true;
            }
            if rest.next_if_eq(&'*').is_some() {
                let of = self::number(&mut rest)?;
                if of.is_some() && rest.next_if_eq(&'$').is_none() {
                    return Err(wrong("width argument position must be ended by \"$\""));
                }
                let at = argument(of, &mut next)?;
                let given = row.get(at).ok_or_else(|| wrong("too few arguments for format()"))?;
                width = match given {
                    Some(Value::Text(text)) => {
                        let parsed = text.trim().parse::<i64>();
                        let message = format!("invalid input syntax for type integer: \"{text}\"");
                        Some(parsed.map_err(|_| Error::new("22P02", message))?)
                    }
                    _ => Some(0),
                };
            } else {
                width = self::number(&mut rest)?;
            }
        }
        let kind = rest.next().ok_or_else(ended)?;
        if !matches!(kind, 's' | 'I' | 'L') {
            let message = format!("unrecognized format() type specifier \"{kind}\"");
            return Err(wrong(message).with_hint("for a single \"%\" use \"%%\""));
        }
        let at = argument(position, &mut next)?;
        let value = row.get(at).ok_or_else(|| wrong("too few arguments for format()"))?;
        let value = match value {
            Some(Value::Text(text)) => Some(*text),
            _ => None,
        };
        let shown = match (kind, value) {
            ('s', value) => value.unwrap_or_default().to_owned(),
            ('L', None) => "NULL".to_owned(),
            ('L', Some(value)) => literal(value),
            (_, None) => {
                return Err(Error::new(
                    "22004",
                    "null values cannot be formatted as an SQL identifier",
                ));
            }
            (_, Some(value)) => ident(value),
        };
        let width = width.unwrap_or(0);
        let left = left || width < 0;
        let blanks = (width.unsigned_abs() as usize).saturating_sub(shown.chars().count());
        if blanks > WIDTH_MAX {
            return Err(Error::new(
                "54000",
                format!("a width of format() is more than {WIDTH_MAX}"),
            ));
        }
        let blanks = " ".repeat(blanks);
        out.push_str(if left { "" } else { &blanks });
        out.push_str(&shown);
        out.push_str(if left { &blanks } else { "" });
    }
    Ok(Out::Text(out))
}

/// Where an argument stands in the row; those without a position follow the last one.
fn argument(position: Option<i64>, next: &mut usize) -> Result<usize> {
    let at = match position {
        Some(0) => return Err(wrong("format specifies argument 0, but arguments are numbered from 1")),
        Some(position) => usize::try_from(position).unwrap_or(usize::MAX),
        None => *next,
    };
    *next = at.saturating_add(1);
    Ok(at)
}

fn number(rest: &mut std::iter::Peekable<std::str::Chars>) -> Result<Option<i64>> {
    let mut number: Option<i64> = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        let more = number.unwrap_or(0) * 10 + i64::from(digit);
        if more > i64::from(i32::MAX) {
            return Err(Error::new("22003", "number is out of range"));
        }
        number = Some(more);
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(args: &[Option<&'static str>]) -> String {
        let row: Vec<_> = args.iter().map(|arg| arg.map(Value::Text)).collect();
        match format(&row) {
            Ok(Out::Text(text)) => text,
            Ok(_) => "NULL".to_owned(),
            Err(error) => error.code.to_string(),
        }
    }

    #[test]
    fn formats_as_postgresql_does() {
        for (args, wanted) in [
            (&[Some("%s-%I-%L"), Some("a"), Some("B"), Some("c")][..], "a-\"B\"-'c'"),
            (&[Some("%2$s %1$s %s"), Some("a"), Some("b")], "b a b"),
            (&[Some("[%-5s][%5s]"), Some("a"), Some("b")], "[a    ][    b]"),
            (
                &[Some("%*s|%-*s|"), Some("3"), Some("a"), Some("3"), Some("b")],
                "  a|b  |",
            ),
            (&[Some("%s%L%%"), None, None], "NULL%"),
            (&[None, Some("a")], "NULL"),
            (&[Some("%I"), None], "22004"),
            (&[Some("%s")], "22023"),
            (&[Some("%y"), Some("a")], "22023"),
            (&[Some("%"), Some("a")], "22023"),
            (&[Some("%0$s"), Some("a")], "22023"),
            (&[Some("%99999999999s"), Some("a")], "22003"),
            (&[Some("%2000000000s"), Some("a")], "54000"),
        ] {
            assert_eq!(formatted(args), wanted, "{args:?}");
        }
    }

    #[test]
    fn names_are_quoted_where_they_must_be() {
        assert!(RESERVED.is_sorted());
        for (name, wanted) in [
            ("ab", "ab"),
            ("A b", "\"A b\""),
            ("select", "\"select\""),
            ("1a", "\"1a\""),
            ("", "\"\""),
        ] {
            assert_eq!(ident(name), wanted);
        }
        assert_eq!(literal("a\\b'"), "E'a\\\\b'''");
    }
}
