//! CREATE and DROP of everything but tables' columns, and EXPLAIN: statements with a query or a list of names behind a
//! few words of their own.
//!
//! ```text
//!   CREATE OR REPLACE VIEW v (a) AS SELECT 1          EXPLAIN (ANALYZE) SELECT ...
//!   └──────── ours ───────────┘    └ sqlparser        └───── ours ────┘ └ sqlparser
//! ```
//!
//! Not here: the columns and clauses of CREATE TABLE (`create_table.rs`).

use sqlparser::tokenizer::Token;

use crate::create_table::parse_create_table;
use crate::cursor::{Cursor, starts_with, text_of};
use crate::error::{Stop, unsupported};
use crate::query::parse_query;
use crate::statement::{ExplainFormat, ObjectName, Statement};
use crate::unsupported::refuse_object;

/// The next token starts a query.
pub(crate) fn sees_query(cursor: &Cursor<'_>) -> bool {
    cursor.sees_symbol(&Token::LParen)
        || ["SELECT", "WITH", "VALUES", "TABLE"]
            .iter()
            .any(|word| cursor.sees(&[word]))
}

/// Reads what follows `CREATE`.
pub(crate) fn parse_create(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    let or_replace = cursor.take(&["OR", "REPLACE"]);
    let mut scope = *cursor;
    if (scope.take(&["GLOBAL"]) || scope.take(&["LOCAL"]) || scope.sees(&["TEMP"]) || scope.sees(&["TEMPORARY"]))
        && (scope.take(&["TEMP"]) || scope.take(&["TEMPORARY"]))
    {
        return unsupported("CREATE TEMPORARY", "create a plain table or view and drop it when done");
    }
    if cursor.take(&["VIEW"]) {
        return parse_create_view(cursor, or_replace);
    }
    if or_replace && ["TABLE", "SCHEMA", "REFERENCE"].iter().any(|word| cursor.sees(&[word])) {
        return Err(cursor
            .syntax_error()
            .with_hint("OR REPLACE is for views; drop the object first")
            .into());
    }
    if cursor.take(&["REFERENCE", "TABLE"]) {
        return parse_create_table(cursor, true);
    }
    if cursor.take(&["TABLE"]) {
        return parse_create_table(cursor, false);
    }
    if cursor.take(&["SCHEMA"]) {
        return parse_create_schema(cursor);
    }
    if cursor.take(&["REFERENCE"]) {
        cursor.expect(&["TABLE"])?;
    }
    refuse_object(cursor, "CREATE")
}

fn parse_create_schema(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    const ELEMENTS: &str = "run every CREATE as a statement of its own, with the schema before the name";
    let if_not_exists = cursor.take(&["IF", "NOT", "EXISTS"]);
    let before = *cursor;
    let name = if cursor.sees(&["AUTHORIZATION"]) {
        String::new()
    } else {
        cursor.name()?
    };
    if cursor.sees(&["AUTHORIZATION"]) {
        return unsupported(
            "CREATE SCHEMA ... AUTHORIZATION",
            "leave the clause out; there are no roles yet",
        );
    }
    if cursor.sees(&["CREATE"]) || cursor.sees(&["GRANT"]) {
        return unsupported("CREATE SCHEMA with elements", ELEMENTS);
    }
    cursor.finish()?;
    if name.starts_with("pg_") {
        let message = format!("unacceptable schema name \"{name}\"");
        return Err(before
            .error("42939", message)
            .with_hint("the prefix \"pg_\" is reserved for system schemas")
            .into());
    }
    Ok(Statement::CreateSchema { name, if_not_exists })
}

fn parse_create_view(cursor: &mut Cursor<'_>, or_replace: bool) -> Result<Statement, Stop> {
    let name = cursor.object_name()?;
    let columns = if cursor.sees_symbol(&Token::LParen) {
        cursor.distinct_names_in_parentheses()?
    } else {
        Vec::new()
    };
    if cursor.sees(&["WITH"]) {
        return unsupported("CREATE VIEW ... WITH (options)", "leave the clause out");
    }
    cursor.expect(&["AS"])?;
    let check_option = |toks: &[crate::split::Tok]| {
        starts_with(toks, &["WITH", "CHECK", "OPTION"])
            || starts_with(toks, &["WITH", "LOCAL", "CHECK", "OPTION"])
            || starts_with(toks, &["WITH", "CASCADED", "CHECK", "OPTION"])
    };
    if cursor.find_outside_parentheses(check_option).is_some() {
        return unsupported(
            "WITH CHECK OPTION",
            "leave the clause out; views cannot be written through",
        );
    }
    let query_text = text_of(cursor.sql(), cursor.rest()).to_owned();
    let query = parse_query(cursor)?;
    Ok(Statement::CreateView {
        name,
        columns,
        query,
        query_text,
        or_replace,
    })
}

/// Reads what follows `DROP`.
pub(crate) fn parse_drop(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    if cursor.take(&["TABLE"]) {
        let (if_exists, names, cascade) = dropped(cursor)?;
        return Ok(Statement::DropTable {
            names,
            if_exists,
            cascade,
        });
    }
    if cursor.take(&["VIEW"]) {
        let (if_exists, names, cascade) = dropped(cursor)?;
        return Ok(Statement::DropView {
            names,
            if_exists,
            cascade,
        });
    }
    if !cursor.take(&["SCHEMA"]) {
        return refuse_object(cursor, "DROP");
    }
    let before = *cursor;
    let (if_exists, mut names, cascade) = dropped(cursor)?;
    match (names.pop(), names.is_empty()) {
        (Some(ObjectName { schema: None, name }), true) => Ok(Statement::DropSchema {
            name,
            if_exists,
            cascade,
        }),
        (Some(ObjectName { schema: Some(_), .. }), true) => {
            Err(before.error("42601", "a schema has no schema before its name").into())
        }
        _ => unsupported("DROP SCHEMA of several", "drop one schema in each statement"),
    }
}

fn dropped(cursor: &mut Cursor<'_>) -> Result<(bool, Vec<ObjectName>, bool), Stop> {
    let if_exists = cursor.take(&["IF", "EXISTS"]);
    let mut names = vec![cursor.object_name()?];
    while cursor.take_symbol(&Token::Comma) {
        names.push(cursor.object_name()?);
    }
    let cascade = cursor.take(&["CASCADE"]);
    if !cascade {
        cursor.take(&["RESTRICT"]);
    }
    cursor.finish()?;
    Ok((if_exists, names, cascade))
}

/// Reads what follows `EXPLAIN`.
pub(crate) fn parse_explain(cursor: &mut Cursor<'_>) -> Result<Statement, Stop> {
    let (mut analyze, mut verbose, mut format) = (false, false, ExplainFormat::Text);
    let mut inside = *cursor;
    inside.skip(1);
    if cursor.sees_symbol(&Token::LParen) && !sees_query(&inside) {
        cursor.skip(1);
        read_explain_options(cursor, &mut analyze, &mut verbose, &mut format)?;
    } else {
        analyze = cursor.take(&["ANALYZE"]) || cursor.take(&["ANALYSE"]);
        verbose = cursor.take(&["VERBOSE"]);
    }
    if !sees_query(cursor) {
        return refuse_explain(cursor);
    }
    let query = parse_query(cursor)?;
    Ok(Statement::Explain {
        analyze,
        verbose,
        format,
        query,
    })
}

/// Refuses what stands where EXPLAIN's query should: as unsupported if PostgreSQL explains it, else as wrong.
fn refuse_explain<T>(cursor: &Cursor<'_>) -> Result<T, Stop> {
    let word = cursor.peek_word().unwrap_or_default();
    let hint = match word.as_str() {
        "UPDATE" | "DELETE" => "explain a SELECT with the same tables and the same WHERE",
        "INSERT" | "MERGE" | "CREATE" | "EXECUTE" | "DECLARE" | "REFRESH" => "explain its query alone",
        _ => return Err(cursor.syntax_error().with_hint("expected a query").into()),
    };
    unsupported(format!("EXPLAIN {word}"), hint)
}

fn read_explain_options(
    cursor: &mut Cursor<'_>,
    analyze: &mut bool,
    verbose: &mut bool,
    format: &mut ExplainFormat,
) -> Result<(), Stop> {
    loop {
        let before = *cursor;
        let option = cursor.peek_word().unwrap_or_default().to_ascii_lowercase();
        cursor.skip(1);
        match option.as_str() {
            "analyze" | "analyse" => *analyze = read_switch(cursor, "analyze")?,
            "verbose" => *verbose = read_switch(cursor, "verbose")?,
            "format" => *format = read_format(cursor)?,
            "costs" | "buffers" | "settings" | "timing" | "summary" | "wal" | "generic_plan" => {
                return unsupported(
                    format!("EXPLAIN option {option}"),
                    "options are ANALYZE, VERBOSE and FORMAT",
                );
            }
            "" => {
                return Err(before.syntax_error().with_hint("expected an option of EXPLAIN").into());
            }
            _ => {
                return Err(before
                    .error("42601", format!("unrecognized EXPLAIN option \"{option}\""))
                    .into());
            }
        }
        if cursor.take_symbol(&Token::RParen) {
            return Ok(());
        }
        cursor.expect_symbol(&Token::Comma)?;
    }
}

pub(crate) fn read_switch(cursor: &mut Cursor<'_>, name: &str) -> Result<bool, Stop> {
    if cursor.sees_symbol(&Token::Comma) || cursor.sees_symbol(&Token::RParen) {
        return Ok(true);
    }
    let text = match cursor.peek() {
        Some(Token::Word(word)) => word.value.to_ascii_lowercase(),
        Some(Token::Number(digits, _)) => digits.clone(),
        Some(Token::SingleQuotedString(text)) => text.to_ascii_lowercase(),
        _ => return Err(cursor.syntax_error().into()),
    };
    let on = match text.as_str() {
        "true" | "on" | "1" => true,
        "false" | "off" | "0" => false,
        _ => {
            return Err(cursor.error("42601", format!("{name} requires a Boolean value")).into());
        }
    };
    cursor.skip(1);
    Ok(on)
}

fn read_format(cursor: &mut Cursor<'_>) -> Result<ExplainFormat, Stop> {
    let before = *cursor;
    let name = match cursor.take_string() {
        Some(name) => name,
        None => cursor.name()?,
    };
    match name.to_ascii_lowercase().as_str() {
        "text" => Ok(ExplainFormat::Text),
        "json" => Ok(ExplainFormat::Json),
        "xml" | "yaml" => unsupported(format!("EXPLAIN (FORMAT {name})"), "formats are TEXT and JSON"),
        _ => {
            let message = format!("unrecognized value for EXPLAIN option \"format\": \"{name}\"");
            Err(before
                .error("22023", message)
                .with_hint("formats are TEXT and JSON")
                .into())
        }
    }
}
